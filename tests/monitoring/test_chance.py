import numpy as np
import pytest
from scipy import stats

from hap.monitoring.chance import ONE, deviations
from hap.monitoring.drift import WASSERSTEIN_NOISE


def test_one_figure_exceeds_its_deviations_as_seldom_as_is_said():
    assert 2 * stats.norm.sf(deviations()) == pytest.approx(ONE)


@pytest.mark.parametrize("of", [1, 24, 30])
def test_the_largest_of_many_figures_exceeds_theirs_no_more_often_than_one_does(of):
    assert 1 - (1 - 2 * stats.norm.sf(deviations(of))) ** of == pytest.approx(ONE, rel=0.01)


@pytest.mark.parametrize("draw", ["standard_normal", "random", "standard_exponential"])
def test_wasserstein_distances_of_equal_samples_stay_below_their_allowance(draw):
    rng, rows = np.random.default_rng(1), 200
    two = [np.sort(getattr(rng, draw)((40_000, rows)), axis=1) for _ in range(2)]
    distances = np.abs(two[0] - two[1]).mean(axis=1) / two[0].std() / np.sqrt(2 / rows)
    often = float((distances > WASSERSTEIN_NOISE).mean())
    assert often <= 4 * ONE  # sixteen of 40,000 draws, where four are expected
    assert float((distances > WASSERSTEIN_NOISE - 1).mean()) > 4 * ONE  # and no smaller one would do
