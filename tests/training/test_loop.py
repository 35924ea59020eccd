"""Training learns, repeats bit for bit, and keeps the best epoch."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from hap.errors import ConfigError, DataError
from hap.models.build import build_model, load_model, save_model
from hap.models.features import Columns
from hap.params import NEGATIVES, Params
from hap.training import loop
from hap.training.checkpoint import checkpoint_keys, save_checkpoint
from hap.training.feed import Feed
from hap.training.loop import Place, Progress, Trained, train, warm_start
from hap.training.ranks import Ranks


def run(name: str, params: Params, files: list[Path], **more: Any) -> tuple[Trained, list[Progress]]:
    """The trained model and the report of each epoch's end."""
    seen: list[Progress] = []
    return train(name, params, files, seen.append, **more), [progress for progress in seen if progress.gauc is not None]


@pytest.mark.parametrize("name", ["light", "expressive"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(name: str, small_params: Params, sample_files: list[Path]) -> None:
    (first, seen), (second, _) = run(name, small_params, sample_files), run(name, small_params, sample_files)
    assert len(seen) == small_params.train.epochs
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key


@pytest.mark.parametrize("name", ["light", "expressive"])
def test_training_lowers_the_loss(name: str, small_params: Params, sample_files: list[Path]) -> None:
    train_settings = small_params.train.model_copy(update={"epochs": 8, "patience": 8, "warmup_steps": 0, "learning_rate": 0.01})
    _, seen = run(name, small_params.model_copy(update={"train": train_settings}), sample_files)
    assert sum(seen[-1].loss.values()) < 0.95 * sum(seen[0].loss.values())


def test_the_best_epoch_is_kept(small_params: Params, sample_files: list[Path]) -> None:
    params = small_params.model_copy(update={"train": small_params.train.model_copy(update={"epochs": 4, "patience": 1})})
    trained, _ = run("light", params, sample_files)
    means = [sum(epoch.values()) for epoch in trained.gaucs]
    assert trained.best_epoch == means.index(max(means)) + 1


def test_the_weights_that_come_out_are_those_of_the_best_epoch_and_patience_ends_it(
    small_params: Params, sample_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    monkeypatch.setattr(loop, "heldout_gauc", lambda *_: dict.fromkeys(NEGATIVES, next(measured)))
    by_epoch: list[dict[str, torch.Tensor]] = []
    closes = loop._Run.close_epoch

    def copies(of: loop._Run, *words: Any) -> bool:
        by_epoch.append({key: value.clone() for key, value in of.model.state_dict().items()})
        return closes(of, *words)

    monkeypatch.setattr(loop._Run, "close_epoch", copies)
    settings = small_params.train.model_copy(update={"epochs": 9, "patience": 2})
    trained, seen = run("light", small_params.model_copy(update={"train": settings}), sample_files)
    assert (trained.best_epoch, len(seen)) == (2, 4), "an equal GAUC later is not better"
    for key, value in trained.model.state_dict().items():
        assert torch.equal(value, by_epoch[1][key]), key
    assert not torch.equal(by_epoch[1]["head.weight"], by_epoch[3]["head.weight"])


def test_processes_that_score_a_part_each_find_the_gauc_of_the_whole(
    small_params: Params, sample_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups of few requests, so that each of three processes has some; what `sum` would add is added here."""
    trained, _ = run("light", small_params, sample_files)
    pq.write_table(pq.read_table(sample_files[-1]), tmp_path / "part-0.parquet", row_group_size=20)
    heldout, cpu = Feed([tmp_path / "part-0.parquet"], small_params, heldout=True), torch.device("cpu")
    whole = loop.heldout_gauc(trained.model, heldout, small_params, cpu)
    parts: list[torch.Tensor] = []
    for rank in range(3):
        ranks = Ranks(rank, 3)
        monkeypatch.setattr(Ranks, "by_rank", lambda _, value, __: [value])
        monkeypatch.setattr(Ranks, "sum", lambda _, values: parts.append(values) or values)  # type: ignore[func-returns-value]
        loop.heldout_gauc(trained.model, heldout, small_params, cpu, ranks)
    assert all(int(part[:, 1].sum()) for part in parts)
    monkeypatch.setattr(Ranks, "sum", lambda _, __: torch.stack(parts).sum(0))
    assert loop.heldout_gauc(trained.model, heldout, small_params, cpu, Ranks(0, 3)) == pytest.approx(whole, abs=1e-12)


def test_weights_that_the_last_step_lost_are_refused_by_every_process_even_one_without_held_out_requests(
    small_params: Params, sample_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout, cpu = Feed(sample_files[-1:], small_params, heldout=True), torch.device("cpu")
    model = build_model("light", small_params)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(DataError, match=r"\d+ scores of held-out requests are no numbers; lower train\.learning_rate") as alone:
        loop.heldout_gauc(model, heldout, small_params, cpu)
    assert "\n" not in str(alone.value)
    monkeypatch.setattr(Ranks, "sum", lambda _, values: values + 3)  # what the others add
    with pytest.raises(DataError, match="no numbers"):
        loop.heldout_gauc(build_model("light", small_params), heldout, small_params, cpu, Ranks(1, 2))


@pytest.mark.parametrize("log_steps", [2, 10**6])
def test_a_loss_that_is_not_finite_ends_the_training_in_one_line(log_steps: int, small_params: Params, sample_files: list[Path]) -> None:
    """Also where no point of the curves falls into the epoch: it is looked at before its weights are judged."""
    changes = {"learning_rate": 1e30, "warmup_steps": 0, "batch_requests": 16, "log_steps": log_steps}
    settings = small_params.train.model_copy(update=changes)
    with pytest.raises(DataError, match=r"light: the loss is not finite in epoch 1 .*; lower train\.learning_rate") as refusal:
        run("light", small_params.model_copy(update={"train": settings}), sample_files)
    assert "\n" not in str(refusal.value)


def test_dense_gradients_are_clipped_and_the_first_steps_are_small(
    small_params: Params, sample_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[float, float]] = []
    moves = torch.optim.Adam.step

    def seen(self: torch.optim.Adam, *words: Any) -> Any:
        (group,) = self.param_groups
        norms = torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None])
        steps.append((norms.norm().item(), group["lr"]))
        return moves(self, *words)

    monkeypatch.setattr(torch.optim.Adam, "step", seen)
    changes = {"epochs": 1, "batch_requests": 16, "clip_norm": 1e-3, "warmup_steps": 3, "learning_rate": 0.01}
    run("light", small_params.model_copy(update={"train": small_params.train.model_copy(update=changes)}), sample_files)
    norms, rates = zip(*steps, strict=True)
    assert norms == pytest.approx([1e-3] * len(steps), rel=1e-3), "far below what any batch of a fresh model asks for"
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


def test_steps_between_two_points_of_the_curves_look_at_no_loss(
    small_params: Params, sample_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a look waits for the device; so figures are added up there and looked at every `log_steps`."""
    looks: list[int] = []
    logs, takes = loop._Run._log, loop._Run._take

    def taken(of: loop._Run, *words: Any) -> None:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__float__", "__bool__"):
                patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a step looked at a value"))
            takes(of, *words)

    def logged(of: loop._Run, *words: Any) -> None:
        looks.append(of.done)
        logs(of, *words)

    monkeypatch.setattr(loop._Run, "_take", taken)
    monkeypatch.setattr(loop._Run, "_log", logged)
    settings = small_params.train.model_copy(update={"epochs": 1, "batch_requests": 16, "log_steps": 3, "conflict_steps": 0})
    trained, _ = run("light", small_params.model_copy(update={"train": settings}), sample_files)
    assert looks == [point["step"] for point in trained.curves] == [3, 6]


@pytest.mark.parametrize("name", ["light", "expressive"])
def test_half_precision_learns_about_the_same_and_leaves_weights_and_looks_whole(
    name: str, small_params: Params, sample_files: list[Path]
) -> None:
    def losses(precision: str) -> tuple[Trained, float]:
        settings = small_params.train.model_copy(update={"precision": precision, "batch_requests": 16, "conflict_steps": 2})
        trained, seen = run(name, small_params.model_copy(update={"train": settings}), sample_files)
        return trained, sum(seen[-1].loss.values())

    (whole, expected), (half, found) = losses("fp32"), losses("bf16")
    assert found == pytest.approx(expected, rel=0.02) and found != expected
    assert {value.dtype for value in half.model.state_dict().values()} == {value.dtype for value in whole.model.state_dict().values()}
    assert len(half.conflicts) == len(whole.conflicts) > 2
    assert half.conflicts[0]["norm"] == pytest.approx(whole.conflicts[0]["norm"], rel=0.05)


def test_a_model_comes_back_from_its_folder_as_it_was(small_params: Params, sample_files: list[Path], tmp_path: Path) -> None:
    trained, _ = run("light", small_params, sample_files)
    save_model(trained.model, tmp_path / "light", trained.facts)
    loaded = load_model(tmp_path / "light", small_params)
    for key, value in trained.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


def test_normalisation_figures_come_from_the_training_part(small_params: Params, sample_files: list[Path]) -> None:
    trained, _ = run("light", small_params, sample_files)
    scaler = trained.model.columns.scalers["item"]
    values = torch.cat([torch.from_numpy(pool.cand_dense) for pool in Feed(sample_files, small_params, heldout=False).pools()])
    assert torch.allclose(scaler.mean, scaler.scaled(values).mean(0), atol=1e-4)


def test_processes_that_read_a_part_each_find_the_normalisation_figures_of_the_whole(
    small_params: Params, sample_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pq.read_table(sample_files[-1]), tmp_path / "part-0.parquet", row_group_size=20)
    feed, cpu = Feed([tmp_path / "part-0.parquet"], small_params, heldout=False), torch.device("cpu")
    alone, shared = (Columns(small_params.features, 4) for _ in range(2))
    counts = loop.set_scales(alone, feed, Ranks(), cpu)
    parts: list[torch.Tensor] = []
    monkeypatch.setattr(Ranks, "sum", lambda _, values: parts.append(values) or values)  # type: ignore[func-returns-value]
    for rank in range(3):
        loop.set_scales(shared, feed, Ranks(rank, 3), cpu)
    assert all(0 < int(part[0]) < counts["EP"] for part in parts)
    monkeypatch.setattr(Ranks, "sum", lambda _, __: torch.stack(parts).sum(0))
    assert loop.set_scales(shared, feed, Ranks(2, 3), cpu) == counts
    for name, values in alone.named_buffers():
        assert torch.allclose(dict(shared.named_buffers())[name], values, rtol=1e-6), name


def test_more_processes_than_a_batch_has_row_groups_are_refused(small_params: Params, sample_files: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"17 processes .* train\.pool_row_groups: 16 .*; set it to 17 or more"):
        loop.train("light", small_params, sample_files, print, ranks=Ranks(0, 17))


def test_a_warm_start_takes_over_what_fits_and_begins_the_rest_fresh(
    small_params: Params, sample_files: list[Path], tmp_path: Path
) -> None:
    trained, _ = run("light", small_params, sample_files)
    save_model(trained.model, tmp_path / "light", trained.facts)
    grown = small_params.model_copy(update={"light": small_params.light.model_copy(update={"size": 24})})
    torch.manual_seed(9)
    model = build_model("light", grown)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    taken = warm_start(model, tmp_path / "light" / "model.pt")
    old, new = trained.model.state_dict(), model.state_dict()
    assert 0 < taken < sum(value.numel() for value in new.values())
    for key, value in new.items():
        assert torch.equal(value, old[key] if old[key].shape == value.shape else fresh[key]), key


def test_training_goes_on_from_warm_weights(small_params: Params, sample_files: list[Path], tmp_path: Path) -> None:
    trained, cold = run("light", small_params, sample_files)
    save_model(trained.model, tmp_path / "light", trained.facts)
    warm, seen = run("light", small_params, sample_files, warm=tmp_path / "light" / "model.pt")
    assert sum(seen[0].loss.values()) < sum(cold[0].loss.values())
    assert warm.facts["warm_parameters"] > 0 == trained.facts["warm_parameters"]


@pytest.mark.parametrize("name", ["light", "expressive"])
def test_looking_at_the_conflict_changes_no_weight(name: str, small_params: Params, sample_files: list[Path]) -> None:
    def looking(every: int) -> Trained:
        settings = small_params.train.model_copy(update={"conflict_steps": every, "batch_requests": 16})
        return run(name, small_params.model_copy(update={"train": settings}), sample_files)[0]

    blind, seen = looking(0), looking(3)
    assert blind.conflicts == []
    steps = [record["step"] for record in seen.conflicts]
    assert steps == list(range(0, steps[-1] + 1, 3))
    assert len(steps) > 2
    for key, value in blind.model.state_dict().items():
        assert torch.equal(value, seen.model.state_dict()[key]), key


class Broken(Exception):
    """Ends a training from within."""


@pytest.mark.parametrize("how", ["pcgrad", "gradvac", "conflict", "uncertainty", "curriculum"])
def test_what_surgery_sampling_and_weights_have_learned_outlives_a_break(
    how: str, small_params: Params, sample_files: list[Path], tmp_path: Path
) -> None:
    changes = {"batch_requests": 16, "checkpoint_steps": 3, "log_steps": 1, "conflict_steps": 2}
    changes |= {"surgery": how, "gradvac_beta": 0.5} if how in ("pcgrad", "gradvac") else {}
    changes |= {"sampling": how, "learning_rate": 0.02, "warmup_steps": 0} if how == "conflict" else {}
    loss = small_params.loss.model_copy(update={"weighting": how, "curriculum_epochs": 1} if how not in changes.values() else {})
    params = small_params.model_copy(update={"train": small_params.train.model_copy(update=changes), "loss": loss})
    whole, seen = run("light", params, sample_files)
    seen_steps = 0

    def breaks(progress: Progress) -> None:
        nonlocal seen_steps
        seen_steps += 1
        if seen_steps in (5, 14):
            raise Broken

    place = Place(tmp_path, how)
    for _ in range(2):
        with pytest.raises(Broken):
            train("light", params, sample_files, breaks, place=place)
    resumed = train("light", params, sample_files, breaks, place=place)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert (resumed.conflicts, resumed.facts) == (whole.conflicts, whole.facts)
    assert len(seen) == 2


def test_checkpoints_that_another_training_left_do_not_push_out_ones_own(
    small_params: Params, sample_files: list[Path], tmp_path: Path
) -> None:
    for step in (10**6, 10**6 + 1):
        save_checkpoint(tmp_path, "other samples", step, {}, keep=2)
    changes = {"batch_requests": 16, "checkpoint_steps": 2, "keep_checkpoints": 2}
    params = small_params.model_copy(update={"train": small_params.train.model_copy(update=changes)})
    trained = train("light", params, sample_files, lambda progress: None, place=Place(tmp_path, "these samples"))
    assert set(checkpoint_keys(tmp_path).values()) == {"these samples"}
    assert not trained.resumed, "it began anew, whatever lay there"
    assert train("light", params, sample_files, lambda progress: None, place=Place(tmp_path, "these samples")).resumed


def test_processes_that_see_other_checkpoints_refuse_to_train_together(
    small_params: Params, sample_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts with a disk each: the second has no checkpoint and would begin at the first step, the first goes on at its own."""
    train("light", small_params, sample_files, lambda progress: None, place=Place(tmp_path, "samples"))
    monkeypatch.setattr(Ranks, "sum", lambda _, values: values)  # the other one adds nothing
    with pytest.raises(DataError, match=r"see checkpoints of steps \d+, 0 \(0: none\) in .*; let all hosts share") as refusal:
        train("light", small_params, sample_files, lambda progress: None, ranks=Ranks(0, 2), place=Place(tmp_path, "samples"))
    assert "\n" not in str(refusal.value)
