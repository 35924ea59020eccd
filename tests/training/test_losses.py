"""GHCL against a slow float64 reference, and the bounds that its derivation promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softplus

from hap.params import KINDS, NEGATIVES, Loss
from hap.training.losses import contrastive, loss_terms, segment_logsumexp


def loss_parts(*words) -> dict[str, torch.Tensor]:
    """The terms as they are summed in one process."""
    return {name: term.mean() for name, term in loss_terms(*words).items()}


def one_group(
    logits: torch.Tensor, kind: torch.Tensor, request: torch.Tensor, requests: int, code: int, temperature: float
) -> torch.Tensor:
    """The mean over the pairs of one kind of negatives."""
    totals, counts = contrastive(logits, kind, request, requests, (kind != code).long(), 1, temperature)
    return totals[0] / counts[0].clamp(min=1)


LOSSES = ("bce", "infonce", "infonce+bce", "ghcl", "ghcl+bce")


@st.composite
def jagged(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Logits, kinds and ascending requests of up to four requests, empty groups and all."""
    requests = draw(st.integers(1, 4))
    rows = [(r, draw(st.integers(0, 4)), draw(st.floats(-8, 8))) for r in range(requests) for _ in range(draw(st.integers(0, 7)))]
    logits = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    return (
        logits,
        torch.tensor([row[1] for row in rows], dtype=torch.int8),
        torch.tensor([row[0] for row in rows], dtype=torch.int64),
        requests,
    )


def reference(logits: list[float], kind: list[int], request: list[int], group: set[int], temperature: float) -> float:
    """The formula, pair by pair, in Python floats."""
    losses = []
    for row, (value, code, owner) in enumerate(zip(logits, kind, request, strict=True)):
        negatives = [logits[i] for i in range(len(logits)) if request[i] == owner and kind[i] in group]
        if code == 0 and negatives:
            top = math.exp(value / temperature)
            losses.append(-math.log(top / (top + sum(math.exp(s / temperature) for s in negatives))))
        assert row >= 0
    return sum(losses) / len(losses) if losses else 0.0


@given(jagged(), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_each_group_equals_the_formula_pair_by_pair(batch, temperature: float) -> None:
    logits, kind, request, requests = batch
    for code in range(1, 5):
        found = one_group(logits, kind, request, requests, code, temperature)
        expected = reference(logits.tolist(), kind.tolist(), request.tolist(), {code}, temperature)
        assert float(found) == pytest.approx(expected, abs=1e-5)


@given(jagged(), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_order_of_candidates_within_requests_changes_nothing(batch, seed: int) -> None:
    logits, kind, request, requests = batch
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(logits)))
    for name in LOSSES:
        whole = loss_parts(logits, kind, request, requests, Loss(name=name), NEGATIVES)
        mixed = loss_parts(logits[order], kind[order], request[order], requests, Loss(name=name), NEGATIVES)
        if len(logits):
            assert {k: float(v) for k, v in whole.items()} == pytest.approx({k: float(v) for k, v in mixed.items()}, abs=1e-5)


@given(jagged(), st.sampled_from([0.25, 1.0, 3.0]))
@settings(max_examples=40, deadline=None)
def test_the_negatives_of_a_group_pull_with_at_most_one_over_t(batch, temperature: float) -> None:
    logits, kind, request, requests = batch
    for code in range(1, 5):
        pull = logits.clone().requires_grad_()
        one_group(pull, kind, request, requests, code, temperature).backward()
        assert pull.grad is not None
        assert float(pull.grad[kind == code].abs().sum()) <= 1 / temperature + 1e-5
        others = (kind != code) & (kind != 0)
        assert float(pull.grad[others].abs().sum()) == 0.0, "a group's denominator holds no other kind"


@pytest.mark.parametrize("extreme", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(extreme: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([extreme, 0.0, -extreme, extreme, 1.0], dtype=dtype, requires_grad=True)
    kind, request = torch.tensor([0, 1, 2, 3, 4], dtype=torch.int8), torch.zeros(5, dtype=torch.int64)
    total = torch.stack(list(loss_parts(logits, kind, request, 1, Loss(), NEGATIVES).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def slow_loss(name: str, logits: torch.Tensor, kind: list[int], request: list[int], weights: dict[str, float], t: float) -> torch.Tensor:
    """The whole loss, written as it reads in float64: one positive at a time, each group's denominator summed by hand."""

    def contrast(group: set[int]) -> torch.Tensor:
        found = []
        for place, code in enumerate(kind):
            against = [other for other in range(len(kind)) if request[other] == request[place] and kind[other] in group]
            if code == 0 and against:
                found.append(torch.logsumexp(logits[[place, *against]] / t, 0) - logits[place] / t)
        return torch.stack(found).mean() if found else logits.sum() * 0

    total = logits.sum() * 0
    if name.startswith("ghcl"):
        total = sum((weights[k] / sum(weights.values()) * contrast({code}) for code, k in enumerate(NEGATIVES, 1)), total)
    elif name.startswith("infonce"):
        total = contrast({1, 2, 3, 4})
    if "bce" in name and kind:
        clicked = torch.tensor([code == 0 for code in kind])
        total = total + 0.5 * torch.where(clicked, softplus(-logits), softplus(logits)).mean()
    return total


@pytest.mark.parametrize("name", LOSSES)
@given(jagged(), st.sampled_from([0.25, 1.0, 3.0]))
@settings(max_examples=50, deadline=None)
def test_loss_and_gradient_equal_a_slow_float64_reference(name: str, batch, temperature: float) -> None:
    logits, kind, request, requests = batch
    weights = {"EN": 2.0, "RN": 1.0, "PRN": 0.5, "GN": 0.0}
    slow = logits.clone().requires_grad_()
    expected = slow_loss(name, slow, kind.tolist(), request.tolist(), weights, temperature)
    expected.backward()
    fast = logits.float().requires_grad_()
    loss = Loss(name=name, temperature=temperature, bce_weight=0.5, kind_weights=weights)
    found = torch.stack(list(loss_parts(fast, kind, request, requests, loss, NEGATIVES).values())).sum()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5, rel=1e-5)
    assert fast.grad is not None and slow.grad is not None
    assert torch.allclose(fast.grad.double(), slow.grad, atol=1e-6, rtol=1e-5)


@given(jagged(), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_order_of_requests_changes_nothing(batch, seed: int) -> None:
    logits, kind, request, requests = batch
    renamed = torch.from_numpy(np.random.default_rng(seed).permutation(requests))[request]
    order = torch.argsort(renamed, stable=True)
    for name in LOSSES:
        whole = loss_parts(logits, kind, request, requests, Loss(name=name), NEGATIVES)
        mixed = loss_parts(logits[order], kind[order], renamed[order], requests, Loss(name=name), NEGATIVES)
        assert {k: float(v) for k, v in whole.items()} == pytest.approx({k: float(v) for k, v in mixed.items()}, abs=1e-5)


@pytest.mark.parametrize("level", [0.0, -3.5, 1e4])
@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (1, 50), (40, 1), (40, 50)])
def test_where_all_candidates_tie_each_pair_costs_the_log_of_its_group(level: float, positives: int, negatives: int) -> None:
    kind = torch.tensor([0] * positives + [2] * negatives, dtype=torch.int8)
    logits = torch.full((len(kind),), level, requires_grad=True)
    exact = 1e-6 + abs(level) * torch.finfo(torch.float32).eps  # a sum of exponentials as large as the level is no finer
    parts = loss_parts(logits, kind, torch.zeros(len(kind), dtype=torch.int64), 1, Loss(name="ghcl"), ("RN",))
    assert parts["RN"].item() == pytest.approx(math.log(1 + negatives), abs=exact)
    parts["RN"].backward()
    assert logits.grad is not None
    pulls = logits.grad.double()
    assert pulls[:positives].tolist() == pytest.approx([-negatives / (1 + negatives) / positives] * positives, abs=exact)
    assert pulls[positives:].tolist() == pytest.approx([1 / (1 + negatives)] * negatives, abs=exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_an_extreme_logit_costs_what_the_formula_says(extreme: float, name: str, dtype: torch.dtype) -> None:
    """A positive beside one negative, so far apart that the loss is their distance or nothing."""
    logits = torch.tensor([extreme, 0.0], dtype=dtype, requires_grad=True)
    kind, request = torch.tensor([0, 1], dtype=torch.int8), torch.zeros(2, dtype=torch.int64)
    parts = loss_parts(logits, kind, request, 1, Loss(name=name), ("EN",))
    torch.stack(list(parts.values())).sum().backward()
    distance = max(0.0, -float(logits[0].detach()))
    expected = {"EN": distance, "pooled": distance, "bce": (distance + math.log(2)) / 2}
    assert {term: value.item() for term, value in parts.items()} == pytest.approx({term: expected[term] for term in parts}, rel=1e-6)
    assert logits.grad is not None
    wrong = float(extreme < 0)
    pull = {"bce": (wrong / 2, 0.25), "ghcl": (wrong, wrong), "infonce": (wrong, wrong)}
    terms = [pull[part] for part in name.split("+")]
    assert logits.grad.tolist() == pytest.approx([-sum(one[0] for one in terms), sum(one[1] for one in terms)])


def test_requests_without_a_positive_or_a_group_add_nothing() -> None:
    kind, request = torch.tensor([1, 2, 0, 0], dtype=torch.int8), torch.tensor([0, 0, 1, 1])
    parts = loss_parts(torch.tensor([1.0, 2.0, 3.0, 4.0]), kind, request, 2, Loss(name="ghcl"), NEGATIVES)
    assert {name: float(value) for name, value in parts.items()} == {"EN": 0.0, "RN": 0.0, "PRN": 0.0, "GN": 0.0}


@given(jagged(), st.sampled_from([0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_groups_in_one_pass_equal_each_group_alone(batch, temperature: float) -> None:
    logits, kind, request, requests = batch
    together = loss_parts(logits, kind, request, requests, Loss(name="ghcl", temperature=temperature), NEGATIVES)
    for code, name in enumerate(NEGATIVES, 1):
        assert float(together[name]) == pytest.approx(float(one_group(logits, kind, request, requests, code, temperature)) / 4, abs=1e-6)


def test_an_empty_segment_is_minus_infinity() -> None:
    found = segment_logsumexp(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), 2)
    assert found.tolist() == [pytest.approx(1 + math.log(2)), -math.inf]


@pytest.mark.parametrize("name", LOSSES)
def test_each_ablation_has_its_own_terms(name: str) -> None:
    logits, kind, request = torch.randn(10), torch.arange(10, dtype=torch.int8) % 5, torch.zeros(10, dtype=torch.int64)
    terms = set(loss_parts(logits, kind, request, 1, Loss(name=name), ("EN", "RN")))
    expected = {
        "bce": {"bce"},
        "infonce": {"pooled"},
        "infonce+bce": {"pooled", "bce"},
        "ghcl": {"EN", "RN"},
        "ghcl+bce": {"EN", "RN", "bce"},
    }
    assert terms == expected[name]
    assert KINDS[0] not in terms
