"""Pooled AUC of drawn requests: scikit-learn with the counts as weights, and the rows written out, say the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from hap.errors import DataError
from hap.evaluation import pooled
from hap.evaluation.auc import auc, by_score, global_auc
from hap.evaluation.delong import pooled_auc
from hap.evaluation.interval import draw_counts
from hap.evaluation.pooled import bootstrap, pool_rows, weighted
from hap.params import NEGATIVES

COARSE = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])  # few values, so that ties are the rule
REQUESTS = st.lists(st.lists(st.tuples(COARSE | st.floats(-2, 2), st.integers(0, 4)), max_size=10), min_size=1, max_size=6)


def flat(requests):
    rows = [row for request in requests for row in request]
    offsets = np.concatenate(([0], np.cumsum([len(request) for request in requests]))).astype(int)
    return np.array([score for score, _ in rows]), np.array([kind for _, kind in rows], dtype=np.int8), offsets


def by_scikit_learn(scores, kind, offsets, counts, positive, code):
    """The AUC of some positives against a kind when each row weighs as often as its request was drawn."""
    weight = np.repeat(counts, np.diff(offsets))
    used = (positive | (kind == code)) & (weight > 0)
    if len(set(positive[used])) < 2:
        return np.nan
    return roc_auc_score(positive[used], scores[used], sample_weight=weight[used])


def drawn_requests(seed, requests=40, rows=30, decimals=1):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(0, rows, requests))))
    kind = rng.integers(0, 5, offsets[-1])
    user = np.repeat(rng.normal(size=requests), np.diff(offsets))
    scores = np.round(user + rng.normal(size=offsets[-1]) + (kind == 0), decimals)
    return scores, kind, offsets, rng


@settings(deadline=None)
@given(REQUESTS, st.data())
def test_every_draw_and_slice_agrees_with_scikit_learn_weighted_by_the_counts(requests, data):
    scores, kind, offsets = flat(requests)
    pool = pool_rows(scores, kind, offsets)
    counts = np.array(data.draw(st.lists(st.tuples(*[st.integers(0, 3)] * len(requests)), min_size=1, max_size=3))).T
    chosen = np.array(data.draw(st.lists(st.tuples(*[st.booleans()] * len(pool.row)), min_size=1, max_size=2)), bool)
    found = weighted(pool, counts, chosen)
    for code, name in enumerate(NEGATIVES, 1):
        assert found[name].shape == (len(chosen), counts.shape[1])
        for place, slice_of in enumerate(chosen):
            positive = np.zeros(len(scores), bool)
            positive[pool.row[slice_of]] = True
            expected = [by_scikit_learn(scores, kind, offsets, draw, positive, code) for draw in counts.T]
            np.testing.assert_allclose(found[name][place], expected, rtol=0, atol=1e-12, equal_nan=True)


def test_a_draw_is_the_auc_of_its_rows_written_out_bit_by_bit():
    scores, kind, offsets, rng = drawn_requests(1)
    counts = rng.multinomial(40, np.full(40, 1 / 40), 5).T
    found = weighted(pool_rows(scores, kind, offsets), counts)
    for d in range(5):
        row = np.repeat(np.arange(len(scores)), np.repeat(counts[:, d], np.diff(offsets)))
        expected = global_auc(scores[row], kind[row])
        assert {name: found[name][0, d] for name in NEGATIVES} == expected


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_each_request_once_is_the_pooled_auc(decimals):
    scores, kind, offsets, _ = drawn_requests(2, decimals=decimals)
    found = weighted(pool_rows(scores, kind, offsets, order=by_score(scores)), np.ones((40, 1), int))
    assert {name: values[0, 0] for name, values in found.items()} == global_auc(scores, kind)


def test_draws_are_those_of_the_gates_bootstrap_and_blocks_change_nothing(monkeypatch):
    scores, kind, offsets, rng = drawn_requests(3)
    pool = pool_rows(scores, kind, offsets)
    chosen = rng.random((3, len(pool.row))) < [[0.2], [0.5], [1.0]]
    whole = bootstrap(pool, 20, 7, chosen)
    by_counts = weighted(pool, next(draw_counts(40, 20, 7, 20)).T, chosen)
    monkeypatch.setattr(pooled, "DRAWS", 3)
    monkeypatch.setattr(pooled, "POSITIVES", 4)  # fewer than tie at one score
    in_parts = bootstrap(pool, 20, 7, chosen)
    for name in NEGATIVES:
        np.testing.assert_array_equal(whole[name], by_counts[name])
        np.testing.assert_array_equal(whole[name], in_parts[name])


@pytest.mark.parametrize("times", [10**3, 10**7, 10**9])
def test_counts_beyond_what_single_precision_holds_stay_exact(times):
    scores, kind, offsets, rng = drawn_requests(4, requests=6)
    counts, pool = rng.integers(0, 3, (6, 4)), pool_rows(scores, kind, offsets)
    once, often = weighted(pool, counts), weighted(pool, counts * times)
    for name in NEGATIVES:
        np.testing.assert_allclose(often[name], once[name], rtol=0, atol=1e-15)


def test_hundreds_of_negatives_of_one_request_between_two_positives_are_counted():
    scores = np.concatenate(([0.5, 2.0], np.zeros(700), np.ones(300)))
    kind = np.concatenate(([0, 0], np.ones(1000, int)))
    found = weighted(pool_rows(scores, kind, [0, 1002]), [[1]])["EN"]
    assert found[0, 0] == auc([0.5, 2.0], scores[2:]) == 0.85


def test_groups_may_be_buckets_and_codes_beyond_them_are_left_out():
    scores, code = np.array([2.0, 1.0, 3.0, 0.0, 2.0]), np.array([0, 1, 2, 2, 3])
    found = weighted(pool_rows(scores, code, [0, 2, 5], ("Rank-0", "Rank-50")), [[1, 2], [1, 1]])
    assert found["Rank-0"].tolist() == [[1.0, 1.0]] and found["Rank-50"].tolist() == [[0.5, 0.5]]


def test_delongs_interval_is_as_wide_as_that_of_the_draws():
    scores, kind, offsets, _ = drawn_requests(5, requests=400, rows=12)
    draws = bootstrap(pool_rows(scores, kind, offsets), 4000, 1)
    for code, name in enumerate(NEGATIVES, 1):
        interval = pooled_auc(scores, kind == 0, kind == code, offsets).interval(0.05)
        low, high = np.quantile(draws[name][0], [0.05, 0.95])
        assert interval.upper - interval.lower == pytest.approx(high - low, rel=0.05)
        assert interval.lower == pytest.approx(low, abs=0.1 * (high - low)) and interval.upper == pytest.approx(
            high, abs=0.1 * (high - low)
        )
        error = (interval.upper - interval.point) / stats.norm.ppf(0.95)
        assert error == pytest.approx(draws[name][0].std(ddof=1), rel=0.05)


def test_a_slice_without_positives_and_a_kind_without_negatives_are_undefined():
    pool = pool_rows([1.0, 0.0], [0, 1], [0, 2])
    found = weighted(pool, [[1, 0]], np.array([[True], [False]]))
    np.testing.assert_array_equal(found["EN"], [[1.0, np.nan], [np.nan, np.nan]])
    assert np.isnan(found["GN"]).all()


@pytest.mark.parametrize(("kind", "offsets"), [([], [0]), ([], [0, 0, 0]), ([1, 2], [0, 2]), ([0, 0], [0, 1, 2])])
def test_without_requests_rows_or_one_of_both_sides_every_draw_is_undefined(kind, offsets):
    found = bootstrap(pool_rows(np.zeros(len(kind)), kind, offsets), 5, 1)
    assert set(found) == set(NEGATIVES)
    assert all(values.shape == (1, 5) and np.isnan(values).all() for values in found.values())


@pytest.mark.parametrize("counts", [[[1, 1]], [1, 1], [[0.5], [1.0]], [[-1], [1]]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(DataError, match=r"counts of shape .* for 2 requests: whole numbers"):
        weighted(pool_rows([1.0, 0.0], [0, 1], [0, 1, 2]), counts)


@pytest.mark.parametrize("chosen", [[True], [[True, False]]])
def test_slices_of_other_positives_are_refused(chosen):
    with pytest.raises(DataError, match="for 1 positives"):
        weighted(pool_rows([1.0, 0.0], [0, 1], [0, 2]), [[1]], np.array(chosen))


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        pool_rows([1.0, np.nan], [0, 1], [0, 2])
    with pytest.raises(DataError, match="offsets must rise"):
        pool_rows([1.0, 2.0], [0, 1], [0, 1])
