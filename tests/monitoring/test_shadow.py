"""What a challenger comes to beside the champion: figures against slow ones, and memory that does not grow."""

import numpy as np
import pytest

from hap.monitoring.shadow import _KEPT_TIMES, Tally, psi
from hap.serving.merge import hard_select, logit_and_ctr, merge


def answer(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    light = logits.astype(np.float32)
    index = hard_select(light, count)
    return merge(light, index, light[index])


def tallied(shift: float, requests: int = 200, candidates: int = 50) -> tuple[Tally, list[np.ndarray], list[np.ndarray]]:
    """Answers of which the second ones' logits are `shift` higher; both sides' logits."""
    dice, tally = np.random.default_rng(4), Tally()
    ours, theirs = [], []
    for place in range(requests):
        logits = dice.normal(size=candidates)
        served, shadow = answer(logits, 15), answer(logits + shift, 15)
        tally.add("v1", served, shadow, float(place))
        ours.append(logit_and_ctr(served[0])[0])
        theirs.append(logit_and_ctr(shadow[0])[0])
    return tally, ours, theirs


def test_two_that_say_the_same_differ_in_nothing() -> None:
    found = tallied(0.0)[0].compared()
    assert found is not None
    assert (found.psi, found.ctr_change_mean, found.ctr_change_p99, found.routing_agreement, found.top_overlap) == (0, 0, 0, 1, 1)
    assert found.ctr["champion"] == found.ctr["challenger"] > 0
    assert (found.requests, found.candidates, found.champions) == (200, 10_000, {"v1": 200})
    assert found.wall_ms == pytest.approx({"p50": 99.5, "p95": 189.05, "p99": 197.01})


def test_a_shift_shows_in_the_scores_and_not_in_order_or_route() -> None:
    tally, ours, theirs = tallied(0.5)
    found = tally.compared()
    assert found is not None and found.routing_agreement == found.top_overlap == 1
    before, after = np.concatenate(ours), np.concatenate(theirs)
    change = np.abs(1 / (1 + np.exp(-after)) - 1 / (1 + np.exp(-before)))
    assert found.ctr_change_mean == pytest.approx(change.mean(), abs=1e-6)
    assert found.ctr_change_p99 == pytest.approx(np.quantile(change, 0.99), abs=2e-3)
    assert found.ctr["challenger"] - found.ctr["champion"] == pytest.approx(change.mean(), abs=1e-6)
    edges = np.quantile(before, np.arange(1, 10) / 10)
    p, q = (np.bincount(np.searchsorted(edges, side), minlength=10) / side.size for side in (before, after))
    assert found.psi == pytest.approx(((q - p) * np.log(q / p)).sum(), abs=0.02)  # deciles are cut at bins of .05
    assert 0.15 < found.psi < 0.35  # the square of the shift, in standard deviations


def test_routes_and_order_that_differ_are_counted_by_candidate_and_by_request() -> None:
    tally = Tally()
    scores = np.linspace(3, -3, 40)
    tally.add("v1", answer(scores, 10), answer(scores[::-1], 10), 1.0)
    found = tally.compared()
    assert found is not None and found.routing_agreement == pytest.approx(0.5)  # 20 of 40 keep theirs
    assert found.top_overlap == 0.0


def test_requests_without_candidates_count_and_say_nothing() -> None:
    tally = Tally()
    empty = np.zeros(0, np.float32), np.zeros(0, bool)
    tally.add("v1", empty, empty, 1.0)
    assert tally.compared() is None and tally.requests == 1
    tally.add("v2", answer(np.ones(3), 1), answer(np.ones(3), 1), 3.0)
    found = tally.compared()
    assert found is not None and (found.requests, found.candidates, found.champions) == (2, 3, {"v1": 1, "v2": 1})


def test_memory_stays_as_it_is_and_the_kept_times_are_of_the_whole() -> None:
    tally, one = Tally(), answer(np.zeros(1), 1)
    for place in range(3 * _KEPT_TIMES):
        tally.add("v1", one, one, float(place))
    assert len(tally._times) == _KEPT_TIMES
    found = tally.compared()
    assert found is not None and found.wall_ms["p50"] == pytest.approx(1.5 * _KEPT_TIMES, rel=0.05)


def test_psi_of_an_empty_part_is_finite_and_large() -> None:
    counts = np.zeros(100, np.int64)
    counts[:50] = 10
    moved = np.roll(counts, 50)
    assert psi(counts, counts) == 0
    assert 1 < psi(counts, moved) < 20
