"""Kinds that are in the others' way are drawn more seldom, and all of it is repeatable."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hap.models.build import build_model, save_model
from hap.params import KINDS, NEGATIVES, Loss, Params
from hap.training.loop import Trained, train
from hap.training.losses import loss_terms
from hap.training.sampling import LATEST, LEAST, ConflictSampling

COSINES = {"EN|RN": -0.6, "EN|PRN": 0.3, "EN|GN": -0.9, "RN|PRN": 0.2, "RN|GN": 0.0, "PRN|GN": 0.5}
CONFLICT = {"EN": 0.5, "RN": 0.2, "PRN": 0.0, "GN": 0.3}  # by hand: means of what is below 0


def kinds_of(rows: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, len(KINDS), rows).astype(np.int8))


def test_conflict_is_how_far_a_kind_points_against_the_others_on_average() -> None:
    sampling = ConflictSampling(NEGATIVES, 1, 0)
    sampling.learn(COSINES)
    assert sampling.conflict == pytest.approx(CONFLICT)
    sampling.learn(dict.fromkeys(COSINES, 1.0))
    assert sampling.conflict == pytest.approx({kind: (1 - LATEST) * value for kind, value in CONFLICT.items()})
    sampling.learn({"EN|RN": -1.0})
    assert sampling.conflict["GN"] == pytest.approx((1 - LATEST) * CONFLICT["GN"]), "no batch without GN says anything of it"


def test_a_negative_is_drawn_as_often_as_its_kind_agrees_and_a_positive_always() -> None:
    sampling, kind = ConflictSampling(NEGATIVES, 1, 0), kinds_of(200_000)
    assert sampling.drawn(kind, 0).all(), "nothing is known before the first look"
    sampling.learn(COSINES)
    drawn = sampling.drawn(kind, 1)
    assert drawn[kind == KINDS.index("EP")].all()
    for name in NEGATIVES:
        assert drawn[kind == KINDS.index(name)].double().mean().item() == pytest.approx(1 - CONFLICT[name], abs=0.01)


def test_a_kind_that_is_against_all_others_is_still_learned() -> None:
    sampling = ConflictSampling(NEGATIVES, 1, 0)
    sampling.learn(dict.fromkeys(COSINES, -1.0))
    assert {sampling.share(kind) for kind in NEGATIVES} == {LEAST}


def test_draws_belong_to_seed_step_and_rank() -> None:
    def drawn(seed: int, step: int, rank: int) -> torch.Tensor:
        sampling = ConflictSampling(NEGATIVES, seed, rank)
        sampling.learn(COSINES)
        return sampling.drawn(kinds_of(1000), step)

    assert torch.equal(drawn(1, 2, 0), drawn(1, 2, 0))
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
        assert not torch.equal(drawn(1, 2, 0), drawn(*other))


@pytest.mark.parametrize(("loss", "left"), [("bce", 0.5), ("infonce", 0.5), ("ghcl", (5 / 6) / (10 / 11))])
def test_half_of_a_kind_pulls_half_as_hard_but_in_a_group_of_its_own(loss: str, left: float) -> None:
    """Ten easy negatives, of which every other one is left out, beside so many hard ones that the whole hardly changes."""
    kind = torch.tensor([0, *[1] * 10_000, *[4] * 10], dtype=torch.int8)
    drawn = torch.ones(len(kind), dtype=torch.bool)
    drawn[-10::2] = False

    def pull(chosen: torch.Tensor) -> float:
        logits = torch.zeros(len(kind), requires_grad=True)
        terms = loss_terms(logits[chosen], kind[chosen], torch.zeros(int(chosen.sum()), dtype=torch.int64), 1, Loss(name=loss), NEGATIVES)
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        assert logits.grad is not None
        return float(logits.grad[-10:].sum())

    assert pull(drawn) / pull(torch.ones_like(drawn)) == pytest.approx(left, rel=0.01)


def test_sampling_goes_together_with_surgery_distillation_and_half_precision(
    small_params: Params, sample_files: list[Path], tmp_path: Path
) -> None:
    save_model(build_model("expressive", small_params), tmp_path, {"model": "expressive"})
    changes = {"sampling": "conflict", "conflict_steps": 1, "surgery": "pcgrad", "precision": "bf16", "batch_requests": 16}
    update = {
        "train": small_params.train.model_copy(update={**changes, "learning_rate": 0.02, "warmup_steps": 0}),
        "light": small_params.light.model_copy(update={"distill": 1.0}),
    }
    params = small_params.model_copy(update=update)
    first, second = (train("light", params, sample_files, lambda _: None, teacher=tmp_path) for _ in range(2))
    assert set(first.losses[0]) == {*NEGATIVES, "bce", "distill"} and np.isfinite([*first.losses[-1].values()]).all()
    assert min(first.facts["drawn_shares"].values()) < 1
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key


@pytest.mark.parametrize("loss", ["bce", "infonce+bce", "ghcl+bce"])
def test_sampling_changes_what_is_learned_and_repeats_bit_for_bit(loss: str, small_params: Params, sample_files: list[Path]) -> None:
    """Trained for as long as it takes the kinds to part: in the first steps they agree, and all is drawn."""

    def trained(sampling: str) -> Trained:
        changes = {"sampling": sampling, "conflict_steps": 1, "batch_requests": 16, "epochs": 6, "learning_rate": 0.02, "warmup_steps": 0}
        update = {
            "train": small_params.train.model_copy(update=changes),
            "loss": small_params.loss.model_copy(update={"name": loss}),
        }
        return train("light", small_params.model_copy(update=update), sample_files, lambda _: None)

    plain, first, second = (trained(how) for how in ("all", "conflict", "conflict"))
    assert plain.facts["drawn_shares"] is None
    assert set(first.facts["drawn_shares"]) == set(NEGATIVES) and LEAST <= min(first.facts["drawn_shares"].values()) < 1
    assert not torch.equal(plain.model.state_dict()["head.weight"], first.model.state_dict()["head.weight"])
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
