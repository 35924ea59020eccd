"""Learned kind weights against their formula, and the curriculum's way from easy to hard."""

import math
from pathlib import Path

import pytest
import torch

from hap.params import NEGATIVES, Loss, Params
from hap.training.loop import train
from hap.training.losses import Term, loss_terms
from hap.training.weighting import LIMIT, PRICE, Uncertainty, curriculum

LOSSES = {"EN": 1.6, "RN": 0.9, "PRN": 0.3, "GN": 0.1}


def terms(weights: dict[str, float]) -> dict[str, Term]:
    return {kind: Term(torch.tensor(10 * LOSSES[kind]), torch.tensor(10), weight) for kind, weight in weights.items()}


@torch.no_grad()
def test_at_the_start_every_kind_weighs_what_is_configured() -> None:
    plain = terms({"EN": 0.5, "RN": 0.25, "PRN": 0.25, "GN": 0.0})
    weighed = Uncertainty(NEGATIVES)(plain)
    assert {kind: float(weighed[kind].mean()) for kind in plain} == {kind: float(term.mean()) for kind, term in plain.items()}
    assert float(weighed[PRICE].mean()) == 0.0


@torch.no_grad()
def test_the_loss_is_the_papers_formula() -> None:
    learned = Uncertainty(NEGATIVES)
    values = [0.3, -0.2, 1.0, -2.0]
    learned.log_variance_K.data = torch.tensor(values)
    total = sum(float(term.mean()) for term in learned(terms(dict.fromkeys(NEGATIVES, 0.25))).values())
    expected = sum(0.25 * (math.exp(-v) * LOSSES[kind] + v / 2) for kind, v in zip(NEGATIVES, values, strict=True))
    assert total == pytest.approx(expected, rel=1e-6)
    assert learned.learned() == pytest.approx({kind: math.exp(-v) for kind, v in zip(NEGATIVES, values, strict=True)})


def test_at_rest_a_kind_weighs_one_over_twice_its_loss() -> None:
    learned = Uncertainty(NEGATIVES)
    step = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(1500):
        step.zero_grad()
        torch.stack([term.mean() for term in learned(terms(dict.fromkeys(NEGATIVES, 0.25))).values()]).sum().backward()
        step.step()
    assert learned.learned() == pytest.approx({kind: 1 / (2 * loss) for kind, loss in LOSSES.items()}, rel=1e-2)


def test_a_kind_that_never_comes_does_not_run_away() -> None:
    learned = Uncertainty(("EN",))
    step = torch.optim.SGD(learned.parameters(), lr=10.0)
    for _ in range(50):
        step.zero_grad()
        nothing = {"EN": Term(torch.tensor(0.0), torch.tensor(0), 1.0)}
        torch.stack([term.mean() for term in learned(nothing).values()]).sum().backward()
        step.step()
    assert learned.learned()["EN"] == pytest.approx(math.exp(LIMIT))


@torch.no_grad()
def test_several_processes_pay_the_price_once() -> None:
    learned = Uncertainty(NEGATIVES)
    learned.log_variance_K.data = torch.tensor([0.3, -0.2, 1.0, -2.0])
    price = learned(terms(dict.fromkeys(NEGATIVES, 0.25)))[PRICE]
    assert float(3 * price.mean(3 * price.count)) == pytest.approx(float(price.mean()))


def test_the_curriculum_goes_from_easy_to_all_in_equal_steps() -> None:
    loss = Loss(weighting="curriculum", curriculum_epochs=3, kind_weights={"EN": 2.0, "RN": 1.0, "PRN": 1.0, "GN": 1.0})
    seen = [curriculum(loss, NEGATIVES, epoch).kind_weights for epoch in (1, 2, 3, 4, 9)]
    assert seen[0] == pytest.approx({"EN": 0.0, "RN": 1 / 3, "PRN": 2 / 3, "GN": 1.0})
    assert seen[1] == pytest.approx({"EN": 2 / 3, "RN": 5 / 9, "PRN": 7 / 9, "GN": 1.0})
    assert seen[3] == seen[4] == loss.kind_weights


def test_a_kind_whose_weight_is_not_named_takes_part_in_the_curriculum() -> None:
    loss = Loss(weighting="curriculum", curriculum_epochs=3, kind_weights={"GN": 2.0})
    assert curriculum(loss, NEGATIVES, 1).kind_weights == pytest.approx({"EN": 0.0, "RN": 1 / 3, "PRN": 2 / 3, "GN": 2.0})


@pytest.mark.parametrize(("kinds", "first"), [(("EN", "RN"), {"EN": 0.0, "RN": 1.0}), (("EN",), {"EN": 1.0})])
def test_the_easiest_of_the_kinds_trained_on_counts_whole_from_the_start(kinds: tuple[str, ...], first: dict[str, float]) -> None:
    weights = curriculum(Loss(weighting="curriculum"), kinds, 1).kind_weights
    assert {kind: weights[kind] for kind in kinds} == first  # type: ignore[index]


def test_what_a_kind_weighs_in_the_first_epoch_is_what_the_loss_takes() -> None:
    loss = curriculum(Loss(weighting="curriculum"), NEGATIVES, 1)
    logits, kind = torch.zeros(5), torch.arange(5, dtype=torch.int8)
    found = loss_terms(logits, kind, torch.zeros(5, dtype=torch.int64), 1, loss, NEGATIVES)
    assert [found[name].weight for name in NEGATIVES] == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2])


@pytest.mark.parametrize("weighting", ["uncertainty", "curriculum"])
def test_a_weighting_trains_and_changes_the_weights(weighting: str, small_params: Params, sample_files: list[Path]) -> None:
    def weights(name: str) -> tuple[dict[str, torch.Tensor], dict]:
        loss = small_params.loss.model_copy(update={"weighting": name, "curriculum_epochs": 1})
        trained = train("light", small_params.model_copy(update={"loss": loss}), sample_files, lambda _: None)
        return trained.model.state_dict(), trained.facts

    (plain, _), (found, facts) = weights("fixed"), weights(weighting)
    assert plain.keys() == found.keys(), "nothing of the loss stays in the model"
    assert not torch.equal(plain["head.weight"], found["head.weight"])
    assert (facts["learned_weights"] is not None) == (weighting == "uncertainty")
