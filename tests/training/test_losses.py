"""GHCL against a slow float64 reference, and the bounds that its derivation promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
        if name == "bce" and not len(logits):
            continue
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
