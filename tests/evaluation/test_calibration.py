"""Calibration against scikit-learn, by hand, and where it is not defined."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from hap.errors import DataError
from hap.evaluation.calibration import calibration, calibration_by_kind, reliability


def drawn(seed: int, rows: int, slope: float = 1.0, intercept: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that follow intercept + slope * logit."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, rows)
    return logits, rng.random(rows) < 1 / (1 + np.exp(-(intercept + slope * logits)))


@given(st.integers(0, 10**6), st.floats(0.2, 3), st.floats(-2, 2))
def test_slope_intercept_and_loss_are_those_of_scikit_learn(seed: int, slope: float, intercept: float) -> None:
    logits, labels = drawn(seed, 400, slope, intercept)
    found = calibration(logits, labels)
    if not 5 <= labels.sum() <= 395:
        return
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits[:, None], labels)
    assert found.slope == pytest.approx(fitted.coef_[0, 0], rel=1e-4)
    assert found.intercept == pytest.approx(fitted.intercept_[0], abs=1e-4)
    assert found.log_loss == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))), rel=1e-9)
    assert (found.rows, found.positives) == (400, labels.sum())


def test_calibrated_scores_have_slope_one_and_little_error_and_overconfident_ones_do_not() -> None:
    logits, labels = drawn(1, 200_000)
    good, loud = calibration(logits, labels), calibration(2 * logits, labels)
    assert good.slope == pytest.approx(1, abs=0.02) and good.intercept == pytest.approx(0, abs=0.02) and good.ece < 0.005
    assert loud.slope == pytest.approx(0.5, abs=0.01) and loud.ece > 10 * good.ece and loud.log_loss > good.log_loss


def test_the_error_is_the_mean_distance_in_equally_filled_bins() -> None:
    probability = np.array([0.1, 0.1, 0.2, 0.2, 0.9, 0.9])
    labels = np.array([0, 1, 0, 0, 1, 1])
    found = reliability(np.log(probability / (1 - probability)), labels, bins=3)
    assert found.rows.tolist() == [2, 2, 2]
    assert found.predicted == pytest.approx([0.1, 0.2, 0.9]) and found.observed.tolist() == [0.5, 0, 1]
    error = calibration(np.log(probability / (1 - probability)), labels, bins=3).ece
    assert error == pytest.approx((0.4 + 0.2 + 0.1) / 3)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(1, 20))
def test_rows_of_one_logit_share_a_bin_and_no_row_is_lost(logits: list[int], bins: int) -> None:
    found = reliability(np.array(logits, float), np.zeros(len(logits)), bins)
    assert found.rows.sum() == len(logits) and (found.rows > 0).all() and len(found.rows) <= min(bins, len(set(logits)))
    assert (np.diff(found.predicted) > 0).all()


def test_each_kind_is_judged_with_all_positives() -> None:
    logits, labels = drawn(2, 5000)
    kind = np.where(labels, 0, 1 + np.arange(5000) % 4)
    found = calibration_by_kind(logits, kind)
    assert set(found) == {"EN", "RN", "PRN", "GN"} and {one.positives for one in found.values()} == {labels.sum()}
    for code, one in enumerate(found.values(), 1):
        assert one == calibration(logits[(kind == 0) | (kind == code)], kind[(kind == 0) | (kind == code)] == 0)
        assert one.slope == pytest.approx(1, abs=0.2) and one.intercept > 0.5  # three of four negatives are left out


def test_separated_labels_have_an_infinite_slope_and_one_class_has_none() -> None:
    assert calibration([-1.0, 0.0, 1.0, 2.0], [0, 0, 1, 1]).slope == math.inf
    assert calibration([-1.0, 0.0, 1.0, 2.0], [1, 1, 0, 0]).slope == -math.inf
    assert math.isnan(calibration([1.0, 2.0], [1, 1]).log_loss) and math.isnan(calibration([], []).ece)
    assert math.isfinite(calibration([1e4, -1e4, 5.0, 6.0], [0, 1, 0, 1]).slope)


@pytest.mark.parametrize(("logits", "labels", "said"), [([1.0], [1, 0], "1 logits for 2"), ([math.nan, 1.0], [1, 0], "1 of 2 logits")])
def test_rows_that_do_not_match_and_broken_logits_are_refused(logits: list[float], labels: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        calibration(logits, labels)
