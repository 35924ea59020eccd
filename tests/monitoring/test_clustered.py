"""Noise counted over users: against a jackknife over users, and against what many samples show."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hap.monitoring.clustered import Measured, measured, quantile, ratio, undefined


def jackknife_error(figure, users):
    """Leave out one user at a time and measure again."""
    left_out = np.array([figure(users != one) for one in np.unique(users)])
    count = len(left_out)
    return math.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())


def requests_of(seed, users=60, most=6):
    """Values of requests whose users are alike, their weights and users."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users) * 7 + 3, rng.integers(1, most, users))
    taste = rng.normal(size=users * 7 + 4)
    return taste[user] + rng.normal(size=len(user)) / 2, rng.integers(0, 4, len(user)).astype(float), user


@given(seed=st.integers(0, 50))
def test_a_ratio_and_its_error_agree_with_a_jackknife_over_users(seed):
    value, weight, user = requests_of(seed)
    found = ratio(value * weight, weight, user)
    assert found.value == pytest.approx((value * weight).sum() / weight.sum())
    assert found.requests == (weight > 0).sum() and found.influence.sum() == pytest.approx(0, abs=1e-9)
    expected = jackknife_error(lambda kept: (value * weight)[kept].sum() / weight[kept].sum(), user)
    assert found.error() == pytest.approx(expected, rel=0.1)


def test_the_order_of_requests_and_the_names_of_users_do_not_matter():
    value, weight, user = requests_of(1)
    order = np.random.default_rng(0).permutation(len(user))
    plain, shuffled = ratio(value * weight, weight, user), ratio((value * weight)[order], weight[order], -user[order])
    assert shuffled.value == pytest.approx(plain.value) and shuffled.error() == pytest.approx(plain.error())


def test_repeating_every_request_of_a_user_makes_nothing_surer():
    value, _, user = requests_of(2)
    once, thrice = ratio(value, np.ones(len(value)), user), ratio(np.tile(value, 3), np.ones(3 * len(value)), np.tile(user, 3))
    assert thrice.error() == pytest.approx(once.error())


def test_a_difference_counts_a_user_of_both_sides_once():
    value, _, user = requests_of(3)
    ones = np.ones(len(value))
    today, yesterday = ratio(value, ones, user), ratio(value + 1, ones, user)
    assert today.minus(yesterday).value == pytest.approx(-1) and today.minus(yesterday).error() == pytest.approx(0, abs=1e-12)
    strangers = ratio(value + 1, ones, user + 10**6)
    assert today.minus(strangers).error() == pytest.approx(math.sqrt(2) * today.error(), rel=0.02)
    assert today.plus(today.minus(strangers)).value == pytest.approx(today.value - 1)


@pytest.mark.parametrize("level", [0.25, 0.5, 0.9])
def test_a_quantiles_error_is_that_of_many_samples(level):
    drawn = [requests_of(seed, users=150) for seed in range(200)]
    found = [quantile(value, level, user) for value, _, user in drawn]
    spread = np.std([one.value for one in found])
    assert np.mean([one.error() for one in found]) == pytest.approx(spread, rel=0.15)
    rows = np.mean([quantile(value, level, np.arange(len(value))).error() for value, _, _ in drawn])
    assert rows < 0.8 * spread  # rows taken as independent look surer than they are


def test_what_says_too_little_is_bounded_by_nothing():
    assert not undefined().defined and undefined().half_width() == math.inf
    assert not ratio([1.0], [0.0], [1]).defined and not quantile([], 0.5, []).defined
    alone = ratio([1.0, 2.0], [1.0, 1.0], [5, 5])
    assert alone.value == 1.5 and alone.half_width() == math.inf
    assert quantile([2.0, 2.0, 2.0], 0.5, [1, 2, 3]).error() == 0


def test_half_widths_of_few_users_are_wider_than_a_normal_ones():
    few = Measured(0.0, np.arange(3), np.array([0.1, -0.1, 0.0]), 3)
    many = measured(0.0, np.tile([0.1, -0.1], 100) / 100, np.arange(200), 200)
    assert few.half_width() / few.error() == pytest.approx(4.303, abs=0.001)
    assert many.half_width() / many.error() == pytest.approx(1.972, abs=0.001)
