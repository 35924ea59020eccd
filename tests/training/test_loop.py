"""Training learns, repeats bit for bit, and keeps the best epoch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hap.models.build import build_model, load_model, save_model
from hap.params import Params
from hap.training.checkpoint import checkpoint_keys, save_checkpoint
from hap.training.feed import Feed
from hap.training.loop import Place, Progress, Trained, train, warm_start


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


@pytest.mark.parametrize("how", ["pcgrad", "gradvac", "uncertainty", "curriculum"])
def test_what_surgery_and_weights_have_learned_outlives_a_break(
    how: str, small_params: Params, sample_files: list[Path], tmp_path: Path
) -> None:
    changes = {"batch_requests": 16, "checkpoint_steps": 3, "log_steps": 1, "conflict_steps": 2}
    changes |= {"surgery": how, "gradvac_beta": 0.5} if how in ("pcgrad", "gradvac") else {}
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
    train("light", params, sample_files, lambda progress: None, place=Place(tmp_path, "these samples"))
    assert set(checkpoint_keys(tmp_path).values()) == {"these samples"}
