"""DeLong's interval of a pooled AUC: the textbook's variance without clusters, a bootstrap's with them."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hap.errors import DataError
from hap.evaluation.delong import pooled_auc


def rows(seed=1, requests=300):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 12, requests)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    owner = np.repeat(np.arange(requests), counts)
    positive = rng.random(offsets[-1]) < 0.3
    common = rng.normal(size=requests)[owner]  # what rows of a request share
    one = positive * 0.8 + common + rng.normal(size=offsets[-1])
    other = positive * 0.6 + common + rng.normal(size=offsets[-1])
    return offsets, positive, np.round(one, 1), np.round(other, 1)  # rounded: ties


def test_the_value_is_that_of_scikit_learn():
    offsets, positive, one, _ = rows()
    assert pooled_auc(one, positive, ~positive, offsets).value == pytest.approx(roc_auc_score(positive, one), abs=1e-12)


def test_without_clusters_the_variance_is_delongs():
    """S10 / m + S01 / n of the placement values, computed pair by pair."""
    _, positive, one, _ = rows(requests=60)
    pos, neg = one[positive], one[~positive]
    order = (pos[:, None] > neg[None, :]) + 0.5 * (pos[:, None] == neg[None, :])
    slow = order.mean(axis=1).var(ddof=1) / len(pos) + order.mean(axis=0).var(ddof=1) / len(neg)
    found = pooled_auc(one, positive, ~positive, np.arange(len(one) + 1))
    assert (found.influence**2).sum() == pytest.approx(slow, rel=0.03)  # m - 1 and n - 1 there, N - 1 in the interval


def test_with_clusters_the_paired_interval_is_as_wide_as_that_of_drawn_requests():
    offsets, positive, one, other = rows(seed=2)
    found = pooled_auc(one, positive, ~positive, offsets).minus(pooled_auc(other, positive, ~positive, offsets)).interval(0.025)
    rng, draws = np.random.default_rng(3), []
    parts = [np.arange(first, end) for first, end in pairwise(offsets.tolist())]
    for _ in range(200):
        drawn = np.concatenate([parts[request] for request in rng.integers(0, len(parts), len(parts))])
        draws.append(roc_auc_score(positive[drawn], one[drawn]) - roc_auc_score(positive[drawn], other[drawn]))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.upper - found.lower == pytest.approx(high - low, rel=0.15)
    assert found.point == pytest.approx(roc_auc_score(positive, one) - roc_auc_score(positive, other), abs=1e-12)


def test_equal_models_differ_by_nothing_for_certain():
    offsets, positive, one, _ = rows()
    pooled = pooled_auc(one, positive, ~positive, offsets)
    same = pooled.minus(pooled).interval(0.05)
    assert (same.point, same.lower, same.upper) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_labels_of_one_class_give_no_value_and_the_widest_bounds(labels):
    positive = np.array(labels)
    found = pooled_auc([1.0, 2.0], positive, ~positive, [0, 1, 2]).interval(0.05)
    assert np.isnan(found.point) and (found.lower, found.upper) == (-1.0, 1.0)


@pytest.mark.parametrize(("scores", "said"), [([1.0, float("nan")], "1 of 2 scores are NaN"), ([1.0], "do not match")])
def test_scores_that_cannot_be_ranked_are_refused(scores, said):
    positive = np.array([True, False])
    with pytest.raises(DataError, match=said):
        pooled_auc(scores, positive, ~positive, [0, 2])
