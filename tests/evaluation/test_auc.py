import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hap.errors import DataError
from hap.evaluation.auc import auc, by_request, by_score, gauc, global_auc, rank, request_aucs, together
from hap.params import KINDS, NEGATIVES

COARSE = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])  # few values, so that ties are the rule
ROWS = st.lists(st.tuples(COARSE, st.integers(0, 4)), max_size=12)


def slow_auc(pos, neg):
    if not len(pos) or not len(neg):
        return float("nan")
    return sum((p > n) + 0.5 * (p == n) for p in pos for n in neg) / (len(pos) * len(neg))


def slow_gauc(requests, kind):
    total = weight = 0.0
    for rows in requests:
        pos, neg = [s for s, k in rows if k == 0], [s for s, k in rows if KINDS[k] == kind]
        if pos and neg:
            total += len(pos) * slow_auc(pos, neg)
            weight += len(pos)
    return total / weight if weight else float("nan")


def flat(requests):
    rows = [row for request in requests for row in request]
    offsets = np.concatenate(([0], np.cumsum([len(request) for request in requests]))).astype(int)
    return np.array([s for s, _ in rows]), np.array([k for _, k in rows], dtype=np.int8), offsets


@given(st.lists(COARSE, max_size=20), st.lists(COARSE, max_size=20))
def test_auc_counts_pairs_and_half_of_the_ties(pos, neg):
    np.testing.assert_allclose(auc(pos, neg), slow_auc(pos, neg), atol=1e-12, equal_nan=True)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_auc_agrees_with_scikit_learn(pos, neg):
    expected = roc_auc_score([1] * len(pos) + [0] * len(neg), pos + neg)
    assert abs(auc(pos, neg) - expected) < 1e-12


@given(st.lists(ROWS, max_size=8))
def test_grouped_auc_agrees_with_a_loop_over_requests(requests):
    measured = request_aucs(*flat(requests))
    for kind in NEGATIVES:
        for r, rows in enumerate(requests):
            expected = slow_auc([s for s, k in rows if k == 0], [s for s, k in rows if KINDS[k] == kind])
            np.testing.assert_allclose(measured[kind].auc[r], expected, atol=1e-12, equal_nan=True)
            assert measured[kind].weight[r] == (0 if np.isnan(expected) else sum(k == 0 for _, k in rows))
        np.testing.assert_allclose(gauc(measured[kind]), slow_gauc(requests, kind), atol=1e-12, equal_nan=True)


@settings(max_examples=30)
@given(st.lists(ROWS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_of_rows_within_a_request_does_not_matter(requests, random):
    shuffled = [random.sample(rows, len(rows)) for rows in requests]
    before, after = request_aucs(*flat(requests)), request_aucs(*flat(shuffled))
    for kind in NEGATIVES:
        np.testing.assert_array_equal(before[kind].auc, after[kind].auc)
        np.testing.assert_array_equal(before[kind].weight, after[kind].weight)


@given(st.lists(ROWS, min_size=1, max_size=6))
def test_a_rising_transform_per_request_changes_nothing(requests):
    moved = [[(2.0 * s + 10 * r, k) for s, k in rows] for r, rows in enumerate(requests)]
    before, after = request_aucs(*flat(requests)), request_aucs(*flat(moved))
    for kind in NEGATIVES:
        np.testing.assert_array_equal(before[kind].auc, after[kind].auc)


@given(st.lists(ROWS, min_size=1, max_size=6))
def test_negated_scores_mirror_every_auc(requests):
    scores, kind, offsets = flat(requests)
    before, after = request_aucs(scores, kind, offsets), request_aucs(-scores, kind, offsets)
    for name in NEGATIVES:
        np.testing.assert_allclose(before[name].auc, 1 - after[name].auc, atol=1e-12, equal_nan=True)


def test_many_requests_agree_with_scikit_learn_per_request():
    rng = np.random.default_rng(5)
    lengths = rng.integers(0, 40, 60)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    kind = rng.integers(0, 5, offsets[-1])
    scores = rng.normal(size=offsets[-1]).round(1).astype(np.float32)
    measured = request_aucs(scores, kind, offsets)
    for r in range(60):
        rows = slice(offsets[r], offsets[r + 1])
        for code, name in enumerate(NEGATIVES, 1):
            keep = np.isin(kind[rows], [0, code])
            if np.unique(kind[rows][keep]).size == 2:
                expected = roc_auc_score(kind[rows][keep] == 0, scores[rows][keep])
                assert abs(measured[name].auc[r] - expected) < 1e-12
            else:
                assert np.isnan(measured[name].auc[r])


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 3)), min_size=1, max_size=40),
    st.lists(st.tuples(COARSE, st.floats(0.1, 5)), min_size=1, max_size=40),
)
def test_weighted_auc_agrees_with_scikit_learn(pos, neg):
    scores, weights = [[row[column] for row in pos + neg] for column in (0, 1)]
    labels = [1] * len(pos) + [0] * len(neg)
    found = auc(scores[: len(pos)], scores[len(pos) :], weights[: len(pos)], weights[len(pos) :])
    if not sum(weights[: len(pos)]):
        assert np.isnan(found)
    else:
        assert abs(found - roc_auc_score(labels, scores, sample_weight=weights)) < 1e-12


def test_equal_weights_change_nothing_and_wrong_ones_are_refused():
    pos, neg = [1.0, 2.0, 2.0], [0.0, 2.0]
    assert auc(pos, neg, [3, 3, 3], [0.5, 0.5]) == auc(pos, neg)
    for weights in ([1.0], [1.0, -1.0, 1.0], [1.0, np.inf, 1.0]):
        with pytest.raises(DataError, match="weights for 3 scores"):
            auc(pos, neg, weights)


@given(st.lists(ROWS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_slice_of_the_positives_is_what_the_requests_without_the_others_give(requests, random):
    scores, kind, offsets = flat(requests)
    ranked = rank(scores, kind, offsets)
    chosen = np.array([random.random() < 0.5 for _ in ranked.row], bool)
    dropped = set(ranked.row[~chosen].tolist())
    places = iter(range(len(scores)))
    left = [[row for row in rows if next(places) not in dropped] for rows in requests]
    expected, found = request_aucs(*flat(left)), by_request(ranked, chosen)
    for name in NEGATIVES:
        np.testing.assert_array_equal(found[name].auc, expected[name].auc)
        np.testing.assert_array_equal(found[name].weight, expected[name].weight)


@given(st.lists(ROWS, max_size=6))
def test_all_kinds_together_are_one_group_of_the_same_sort(requests):
    scores, kind, offsets = flat(requests)
    order = by_score(scores)
    expected = by_request(rank(scores, np.minimum(kind, 1), offsets, ("all",)))["all"]
    found = by_request(together(rank(scores, kind, offsets, order=order), "all"))["all"]
    np.testing.assert_array_equal(found.auc, expected.auc)
    np.testing.assert_array_equal(found.weight, expected.weight)


def test_groups_other_than_kinds_split_a_kind_by_bucket():
    scores, code, offsets = np.array([2.0, 1.0, 3.0, 0.0]), np.array([0, 1, 2, 2]), [0, 4]
    found = by_request(rank(scores, code, offsets, ("Rank-0", "Rank-50")))
    assert found["Rank-0"].auc.tolist() == [1.0] and found["Rank-50"].auc.tolist() == [0.5]


def test_global_auc_pools_requests():
    kind, scores = np.array([0, 1, 0, 1, 2]), np.array([3.0, 1.0, 2.0, 2.0, 9.0])
    assert global_auc(scores, kind)["EN"] == 0.875
    assert global_auc(scores, kind)["RN"] == 0.0
    assert np.isnan(global_auc(scores, kind)["GN"])


def test_infinite_scores_have_a_place_in_the_order():
    assert auc([np.inf], [0.0, -np.inf]) == 1.0


def test_nothing_at_all_is_undefined_and_not_an_error():
    measured = request_aucs([], [], [0])
    assert measured["EN"].auc.size == 0 and np.isnan(gauc(measured["EN"]))


def test_a_nan_score_is_refused():
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        request_aucs([1.0, np.nan], [0, 1], [0, 2])


def test_lengths_that_differ_are_refused():
    with pytest.raises(DataError, match="3 scores for 2 rows"):
        request_aucs([1.0, 2.0, 3.0], [0, 1], [0, 2])


@pytest.mark.parametrize("offsets", [[], [0, 1], [1, 2], [0, 3, 2], [[0, 2]]])
def test_offsets_that_do_not_cover_the_rows_are_refused(offsets):
    with pytest.raises(DataError, match="offsets must rise"):
        request_aucs([1.0, 2.0], [0, 1], offsets)
