import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hap.evaluation import interval as module
from hap.evaluation.interval import draw_counts, paired_interval, resample


def slow_draws(value, weight, draws, seed):
    """The bootstrap written as a loop, one request at a time: sorted pivots, and the drawn means."""
    n = len(value)
    point = sum(w * x for w, x in zip(weight, value, strict=True)) / sum(weight)
    rng, pivots, means = np.random.default_rng(seed), [], []
    for _ in range(draws):
        chosen = rng.integers(0, n, size=(1, n))[0]
        mass = sum(weight[i] for i in chosen)
        mean = sum(weight[i] * value[i] for i in chosen) / mass
        error = sum((weight[i] * (value[i] - mean)) ** 2 for i in chosen) ** 0.5 / mass
        pivots.append((mean - point) / error)
        means.append(mean)
    return sorted(pivots), means


def test_draws_agree_with_a_loop():
    rng = np.random.default_rng(1)
    value, weight = rng.normal(0, 0.2, 30), rng.integers(1, 4, 30).astype(float)
    measured = resample(value[:, None], weight[:, None], 50, 7)[0]
    pivots, means = slow_draws(value, weight, 50, 7)
    np.testing.assert_allclose(measured.pivots, pivots, atol=1e-10)
    np.testing.assert_allclose(measured.drawn, means, atol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    value, weight = rng.normal(0, 0.2, (40, 3)), np.ones((40, 3))
    whole = resample(value, weight, 200, 3)
    monkeypatch.setattr(module, "CHUNK_BYTES", 16 * 40 * 7)
    for a, b in zip(whole, resample(value, weight, 200, 3), strict=True):
        np.testing.assert_allclose(a.pivots, b.pivots, atol=1e-12)
        np.testing.assert_allclose(a.drawn, b.drawn, atol=1e-12)


def test_each_of_many_quantities_is_studied_as_if_alone():
    """Whether their weights are alike or not: what is alike is summed once."""
    rng = np.random.default_rng(2)
    value, kinds = rng.normal(0, 0.2, (60, 5)), rng.integers(0, 4, (60, 2)).astype(float)
    weight = kinds[:, [0, 1, 0, 0, 1]]
    for place, one in enumerate(resample(value, weight, 100, 3)):
        alone = resample(value[:, [place]], weight[:, [place]], 100, 3)[0]
        np.testing.assert_allclose(one.pivots, alone.pivots, atol=1e-10)
        np.testing.assert_allclose(one.drawn, alone.drawn, atol=1e-12)
        assert (one.point, one.error, one.weight) == pytest.approx((alone.point, alone.error, alone.weight), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-0.3, 0.3))
def test_what_is_moved_is_what_moved_values_give(seed, by):
    rng = np.random.default_rng(seed)
    value, weight = rng.uniform(-0.3, 0.3, (50, 1)), rng.integers(0, 3, (50, 1)).astype(float)
    moved, slow = resample(value, weight, 200, seed)[0].moved(by), resample(value + by, weight, 200, seed)[0]
    np.testing.assert_allclose(moved.drawn, slow.drawn, atol=1e-12)
    interval = slow.interval(0.05)
    assert (moved.point, moved.lower(0.05), moved.upper(0.05)) == pytest.approx((interval.point, interval.lower, interval.upper), abs=1e-9)


def test_equal_seeds_give_equal_bounds_and_other_seeds_do_not():
    rng = np.random.default_rng(3)
    a, b, w = rng.random(300), rng.random(300), np.ones(300)
    assert paired_interval(a, b, w, 500, 0.05, 1) == paired_interval(a, b, w, 500, 0.05, 1)
    assert paired_interval(a, b, w, 500, 0.05, 1) != paired_interval(a, b, w, 500, 0.05, 2)


def test_requests_without_weight_are_not_read():
    rng = np.random.default_rng(4)
    value, weight = rng.random(100), np.ones(100)
    value[::2], weight[::2] = np.nan, 0
    measured = resample(value[:, None], weight[:, None], 500, 1)[0]
    assert measured.requests == 50 and measured.point == pytest.approx(value[1::2].mean())
    assert measured.lower(0.05) < measured.point < measured.upper(0.05)


def test_a_draw_without_any_weight_has_no_mean():
    measured = resample([[0.3], [0.5], [0.7]], [[0.0], [1.0], [1.0]], 200, 1)[0]
    none = np.isnan(measured.drawn)
    assert none.any() and set(np.round(measured.drawn[~none], 3)) >= {0.5, 0.6, 0.7}


def test_counts_are_those_of_the_draws_however_many_come_at_once():
    whole = next(draw_counts(7, 20, 3, 20))
    assert whole.shape == (20, 7) and (whole.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(np.concatenate(list(draw_counts(7, 20, 3, 6))), whole)
    assert list(draw_counts(0, 20, 3, 6)) == []


def test_equal_models_have_an_interval_of_no_width():
    value = np.random.default_rng(5).random(50)
    result = paired_interval(value, value, np.ones(50), 200, 0.05, 1)
    assert (result.point, result.lower, result.upper) == (0.0, 0.0, 0.0)


def test_a_constant_difference_is_certain():
    value = np.random.default_rng(6).random(50)
    result = paired_interval(value + 0.25, value, np.full(50, 3.0), 200, 0.05, 1)
    assert result.lower == result.upper == result.point == pytest.approx(-0.25)


@pytest.mark.parametrize("weight", [[], [0.0, 0.0], [0.0, 2.0]])
def test_fewer_than_two_requests_bound_nothing(weight):
    value = np.full(len(weight), 0.3)
    measured = resample(value[:, None], np.array(weight)[:, None], 100, 1)[0]
    assert (measured.lower(0.05), measured.upper(0.05)) == (-1.0, 1.0)
    assert measured.p_below(0.9) == 1.0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 0.1]), st.integers(0, 3)), min_size=2, max_size=30), st.sampled_from([0.01, 0.05, 0.2])
)
def test_bounds_are_ordered_within_range_and_wider_for_smaller_alpha(rows, alpha):
    value, weight = np.array([[v] for v, _ in rows]), np.array([[float(w)] for _, w in rows])
    measured = resample(value, weight, 200, 1)[0]
    lower, upper = measured.lower(alpha), measured.upper(alpha)
    assert -1 <= measured.lower(alpha / 2) <= lower <= upper <= measured.upper(alpha / 2) <= 1
    assert np.isfinite([lower, upper]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-0.2, 0.2))
def test_p_value_and_upper_bound_say_the_same(seed, bound):
    value = np.random.default_rng(seed).normal(0, 0.3, (40, 1))
    measured = resample(value, np.ones((40, 1)), 999, seed)[0]
    if measured.p_below(bound) <= 0.05:
        assert measured.upper(0.05) <= bound
    elif measured.p_below(bound) > 0.052:
        assert measured.upper(0.05) >= bound


@pytest.mark.parametrize("requests", [100, 400])
def test_one_sided_bounds_fail_about_as_often_as_they_claim(requests):
    """2,000 samples of correlated AUCs on ten negatives with skewed weights: a rate of 5% is measured to +-0.5%."""
    rng = np.random.default_rng(8)
    samples = 2_000
    weight = rng.geometric(0.6, (requests, samples)).astype(float)
    shared = rng.normal(0, 0.08, (requests, samples))
    champion = rng.binomial(10, np.clip(0.75 + shared, 0, 1)) / 10
    challenger = rng.binomial(10, np.clip(0.75 + shared, 0, 1)) / 10
    measured = resample(challenger - champion, weight, 600, 9)  # the true difference is 0
    assert 0.035 <= np.mean([one.lower(0.05) > 0 for one in measured]) <= 0.07
    assert 0.035 <= np.mean([one.upper(0.05) < 0 for one in measured]) <= 0.07


def test_rare_large_losses_are_not_overlooked():
    """6% of requests lose a lot: percentiles of the draws would put the lower bound too high in a tenth of samples."""
    rng = np.random.default_rng(10)
    shape = (200, 1_000)
    value = np.where(rng.random(shape) < 0.06, -0.9 * rng.random(shape), 0.02 * rng.random(shape))
    truth = -0.06 * 0.45 + 0.94 * 0.01
    measured = resample(value, np.ones(shape), 600, 11)
    assert np.mean([one.lower(0.05) > truth for one in measured]) <= 0.06
