import numpy as np
import pytest
from scipy import stats

from benchmarks.proof.estimates import Measured, mean_gauc, mean_over_weights, pooled_auc
from hap.evaluation.auc import auc, gauc, request_aucs
from hap.params import KINDS


def scored_requests(seed, requests=60, users=25, rows=12):
    """Scores, kinds and offsets of requests, a clicked one and at least one EN in each, and whose they are."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, rows, requests)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    kind = rng.integers(0, 3, offsets[-1])
    kind[offsets[:-1]], kind[offsets[:-1] + 1] = 0, 1
    scores = np.round(rng.normal(size=offsets[-1]) + (kind == 0), 1)  # rounded: ties
    return scores, kind, offsets, rng.integers(0, users, requests)


def jackknife_variance(figure, clusters):
    """Delete one cluster at a time and measure again."""
    left_out = np.array([figure(clusters != one) for one in np.unique(clusters)])
    n = len(left_out)
    return (n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()


def half_width_of_one_seed(measured):
    found = measured.estimate()
    return (found.hi - found.value) / stats.t.ppf(0.975, found.clusters - 1)


def test_gauc_and_its_spread_agree_with_a_jackknife_over_users():
    scores, kind, offsets, user = scored_requests(1)
    grouped = request_aucs(scores, kind, offsets)["EN"]

    def without(kept):
        return gauc(grouped._replace(auc=grouped.auc[kept], weight=grouped.weight[kept]))

    measured = mean_gauc([grouped], user)
    assert measured.value_S[0] == pytest.approx(gauc(grouped))
    assert half_width_of_one_seed(measured) == pytest.approx(jackknife_variance(without, user) ** 0.5, rel=0.1)


def test_pooled_auc_and_its_spread_agree_with_a_jackknife_over_users():
    scores, kind, offsets, user = scored_requests(2)
    owner = np.repeat(user, np.diff(offsets))
    positive, negative = kind == 0, kind == KINDS.index("RN")

    def without(kept):
        return auc(scores[positive & kept], scores[negative & kept])

    measured = pooled_auc([scores], positive, negative, offsets, user)
    assert measured.value_S[0] == pytest.approx(auc(scores[positive], scores[negative]))
    assert half_width_of_one_seed(measured) == pytest.approx(jackknife_variance(without, owner) ** 0.5, rel=0.1)


def mean_squares(table):
    """The two-way analysis of variance of a table [S, R], written out: mean squares of seeds, requests and both."""
    seeds, requests = len(table), len(table[0])
    grand = sum(sum(row) for row in table) / (seeds * requests)
    by_seed = [sum(row) / requests for row in table]
    by_request = [sum(table[s][r] for s in range(seeds)) / seeds for r in range(requests)]
    of_seeds = requests * sum((m - grand) ** 2 for m in by_seed) / (seeds - 1)
    of_requests = seeds * sum((m - grand) ** 2 for m in by_request) / (requests - 1)
    both = sum((table[s][r] - by_seed[s] - by_request[r] + grand) ** 2 for s in range(seeds) for r in range(requests))
    return of_seeds, of_requests, both / ((seeds - 1) * (requests - 1))


def crossed(rng, seeds, requests, seed_sd, request_sd, noise_sd):
    effect = seed_sd * rng.normal(size=(seeds, 1)) + request_sd * rng.normal(size=(1, requests))
    return effect + noise_sd * rng.normal(size=(seeds, requests))


def measured_of(table):
    requests = table.shape[1]
    return mean_over_weights(table, np.ones(requests), np.arange(requests))


def test_the_interval_is_that_of_a_two_way_analysis_of_variance():
    table = crossed(np.random.default_rng(3), 4, 30, 0.5, 1.0, 0.3)
    of_seeds, of_requests, both = mean_squares(table.tolist())
    variance = (of_seeds + of_requests - both) / table.size
    freedom = (of_seeds + of_requests - both) ** 2 / (of_seeds**2 / 3)
    found = measured_of(table).estimate()
    half = stats.t.ppf(0.975, min(freedom, 29)) * variance**0.5
    assert (found.value, found.lo, found.hi) == pytest.approx((table.mean(), table.mean() - half, table.mean() + half))


def bootstrap_holds(table, truth, rng, draws=300):
    """Whether a percentile interval over seeds and requests drawn again holds the truth."""
    seeds, requests = table.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
    by_request = rng.multinomial(requests, np.full(requests, 1 / requests), draws)
    drawn = (by_seed @ table * by_request).sum(axis=1) / table.size
    lo, hi = np.quantile(drawn, [0.025, 0.975])
    return lo <= truth <= hi


@pytest.mark.parametrize(("seed_sd", "noise_sd"), [(0.0, 0.5), (0.1, 1.0), (0.3, 0.5)])
def test_intervals_over_five_seeds_hold_the_truth_as_often_as_they_say(seed_sd, noise_sd):
    rng, samples = np.random.default_rng(4), 600
    found = [measured_of(crossed(rng, 5, 100, seed_sd, 1.0, noise_sd)).estimate() for _ in range(samples)]
    assert sum(one.lo <= 0 <= one.hi for one in found) / samples > 0.93


def test_a_bootstrap_over_five_seeds_misses_more_often_where_seeds_matter_most():
    rng, samples = np.random.default_rng(5), 300
    ours = theirs = 0
    for _ in range(samples):
        table = crossed(rng, 5, 200, 0.5, 1.0, 0.5)
        found = measured_of(table).estimate()
        ours += found.lo <= 0 <= found.hi
        theirs += bootstrap_holds(table, 0.0, rng)
    assert ours / samples > 0.91 and theirs / samples < 0.88


def test_a_difference_is_paired_by_seed_and_by_request():
    rng = np.random.default_rng(5)
    shared = crossed(rng, 5, 50, 1.0, 1.0, 0.0)
    better, worse = measured_of(shared + 0.1 + 0.01 * rng.normal(size=shared.shape)), measured_of(shared)
    found = better.minus(worse).estimate()
    assert 0.09 < found.lo < found.hi < 0.11 and better.estimate().lo < worse.estimate().value


def test_a_ratio_spreads_as_its_logarithm_does():
    rng = np.random.default_rng(6)
    part, whole = (mean_over_weights(rng.random((1, 400)) + shift, np.ones(400), np.arange(400)) for shift in (1.0, 2.0))
    ratio = part.over(whole)
    assert ratio.value_S[0] == pytest.approx(part.value_S[0] / whole.value_S[0])
    by_log = part.influence_SC / part.value_S[:, None] - whole.influence_SC / whole.value_S[:, None]
    np.testing.assert_allclose(ratio.influence_SC / ratio.value_S[:, None], by_log)


def test_equal_figures_differ_by_an_interval_of_no_width():
    same = measured_of(np.random.default_rng(7).normal(size=(3, 20)))
    found = same.minus(same).estimate()
    assert (found.value, found.lo, found.hi) == (0.0, 0.0, 0.0)


def test_one_seed_has_an_interval_over_requests_and_no_spread_of_seeds():
    found = measured_of(np.random.default_rng(8).normal(size=(1, 30))).estimate()
    assert found.lo < found.value < found.hi and np.isnan(found.seed_deviation)


def test_an_interval_ends_where_the_figure_cannot_go():
    found = measured_of(np.array([[0.1, 0.2, 0.1], [0.9, 0.8, 0.9]])).estimate(0, 1)
    assert (found.lo, found.hi) == (0, 1)


def test_one_user_alone_bounds_nothing():
    found = mean_over_weights(np.ones((2, 5)), np.ones(5), np.zeros(5, int)).estimate()
    assert found.value == 1.0 and np.isnan(found.lo) and np.isnan(found.hi)


def test_requests_without_weight_are_not_read_and_none_at_all_is_undefined():
    value = np.array([[0.5, np.nan, 0.7]])
    assert mean_over_weights(value, np.array([1.0, 0.0, 1.0]), np.arange(3)).value_S[0] == pytest.approx(0.6)
    empty = mean_over_weights(value, np.zeros(3), np.arange(3))
    assert np.isnan(empty.estimate().value) and isinstance(empty, Measured)
