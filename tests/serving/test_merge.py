import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hap.params import Route
from hap.serving.merge import NAN_SCORE, hard_select, logit_and_ctr, merge, routed_count

LOGITS = st.lists(st.one_of(st.floats(-70, 70, width=32), st.just(float("nan"))), max_size=40)


@pytest.mark.parametrize(
    ("share", "candidates", "count"), [(0.7, 10, 7), (0.3, 10, 3), (0.3, 1, 1), (0.3, 0, 0), (1.0, 9, 9), (0.3, 1830, 549)]
)
def test_a_share_routes_its_ceiling(share: float, candidates: int, count: int) -> None:
    assert routed_count(Route(share=share), candidates) == count


def test_a_requests_own_k_wins_and_never_exceeds_n() -> None:
    fixed = Route(share=None, k=5)
    assert [routed_count(fixed, 20), routed_count(fixed, 3), routed_count(fixed, 20, 0), routed_count(fixed, 20, 99)] == [5, 3, 0, 20]


@given(LOGITS, st.integers(0, 45), st.integers(0, 2**31))
def test_routed_candidates_come_first_and_nan_comes_last(logits: list[float], k: int, seed: int) -> None:
    light = np.array(logits, np.float32)
    index = hard_select(light, k)
    expressive = np.random.default_rng(seed).uniform(-70, 70, len(index)).astype(np.float32)
    score, routed = merge(light, index, expressive)
    assert routed.sum() == len(index) == min(k, int((~np.isnan(light)).sum()))
    assert (score[routed] > 0).all()
    assert (score[~routed] < 0).all()
    assert (score[np.isnan(light)] == NAN_SCORE).all()
    assert (score[~np.isnan(light)] > NAN_SCORE).all()


@given(LOGITS)
def test_hard_selection_is_a_stable_sort(logits: list[float]) -> None:
    light = np.array(logits, np.float32)
    slow = sorted((place for place in range(len(light)) if not np.isnan(light[place])), key=lambda place: (-light[place], place))
    assert hard_select(light, 7).tolist() == slow[:7]


def test_a_routed_candidate_without_a_logit_is_last_and_unrouted() -> None:
    score, routed = merge(np.array([1, 2], np.float32), np.array([1]), np.array([np.nan], np.float32))
    assert routed.tolist() == [False, False]
    assert score[1] == NAN_SCORE


def test_logits_come_back_from_scores() -> None:
    logits = np.linspace(-59, 59, 237).astype(np.float32)
    routed, _ = merge(np.zeros_like(logits), np.arange(len(logits)), logits)
    unrouted, _ = merge(logits, np.array([], np.int64), np.array([], np.float32))
    for score in (routed, unrouted):
        logit, ctr = logit_and_ctr(score)
        np.testing.assert_allclose(logit, logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ctr, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-4)
