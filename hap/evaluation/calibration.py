"""Whether scores are probabilities: log loss, expected calibration error and calibration slope, by kind of negative.

A kind's rows are all positives and its negatives. Only EN is logged whole; RN, PRN and GN are drawn, so against them a
perfect CTR model is too low by a constant (the logarithm of the sampling rate): its slope is 1 all the same, its ECE is not 0.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hap.errors import DataError
from hap.params import KINDS, NEGATIVES

F64 = NDArray[np.float64]
BINS = 15
_STEPS, _TOLERANCE = 50, 1e-12  # of Newton's method, which needs about six


class Calibration(NamedTuple):
    """How well scores tell how often a click comes; NaN where a side is empty.

    `slope` and `intercept` are of the logistic regression of the label on the logit (Cox, 1958): 1 and 0 where calibrated; a
    slope below 1 is overconfident. Where the logits separate the labels there is no such regression: the slope is infinite.
    """

    log_loss: float
    ece: float
    slope: float
    intercept: float
    rows: int
    positives: int


class Bins(NamedTuple):
    """A reliability diagram: equally filled bins of the predicted probability."""

    predicted: F64  # [B] mean probability
    observed: F64  # [B] share of positives
    rows: NDArray[np.int64]  # [B]


def calibration(logits: ArrayLike, positive: ArrayLike, bins: int = BINS) -> Calibration:
    """Of rows with a label.

    Args:
        logits: [N], finite. positive: [N] truth.

    Raises:
        DataError: lengths differ, or a logit is not finite.
    """
    s, y = _checked(logits, positive)
    clicks = int(y.sum())
    if not clicks or clicks == len(y):
        nan = float("nan")
        return Calibration(nan, nan, nan, nan, len(y), clicks)
    loss = float((np.logaddexp(0.0, s) - y * s).mean())
    diagram = reliability(s, y, bins)
    ece = float((np.abs(diagram.predicted - diagram.observed) * diagram.rows).sum() / len(y))
    slope, intercept = _logistic(s, y)
    return Calibration(loss, ece, slope, intercept, len(y), clicks)


def calibration_by_kind(logits: ArrayLike, kind: ArrayLike, bins: int = BINS) -> dict[str, Calibration]:
    """Of all positives with the negatives of each kind; kind: [N] places in KINDS."""
    s, codes = np.asarray(logits, dtype=np.float64), np.asarray(kind)
    found = {}
    for name in NEGATIVES:
        rows = (codes == 0) | (codes == KINDS.index(name))
        found[name] = calibration(s[rows], codes[rows] == 0, bins)
    return found


def reliability(logits: ArrayLike, positive: ArrayLike, bins: int = BINS) -> Bins:
    """Rows in bins of equal numbers by predicted probability; rows of one logit share a bin."""
    s, y = _checked(logits, positive)
    order = np.argsort(s, kind="stable")
    s, y = s[order], y[order]
    cuts = np.searchsorted(s, s[np.minimum(np.arange(1, bins) * len(s) // bins, len(s) - 1)]) if len(s) else np.zeros(0, np.int64)
    edges = np.unique(np.concatenate([[0], cuts, [len(s)]]))
    rows = np.diff(edges)
    probability = np.exp(-np.logaddexp(0.0, -s))
    starts = edges[:-1]
    if not len(rows):
        return Bins(np.zeros(0), np.zeros(0), rows)
    return Bins(np.add.reduceat(probability, starts) / rows, np.add.reduceat(y, starts) / rows, rows)


def _logistic(s: F64, y: F64) -> tuple[float, float]:
    """Slope and intercept that make y most likely, by Newton's method on the two of them."""
    if s[y == 0].max() <= s[y == 1].min() or s[y == 1].max() <= s[y == 0].min():
        return (float("inf") if s[y == 1].mean() > s[y == 0].mean() else float("-inf")), float("nan")
    centre, scale = s.mean(), s.std() or 1.0
    x = (s - centre) / scale
    intercept, slope = float(np.log(y.mean() / (1 - y.mean()))), 0.0
    best = _deviance(x, y, slope, intercept)
    for _ in range(_STEPS):
        p = np.exp(-np.logaddexp(0.0, -(intercept + slope * x)))
        w = p * (1 - p)
        gradient = np.array([(y - p).sum(), ((y - p) * x).sum()])
        hessian = np.array([[w.sum(), (w * x).sum()], [(w * x).sum(), (w * x * x).sum()]])
        step = np.linalg.solve(hessian + 1e-12 * np.trace(hessian) * np.eye(2), gradient)
        length = 1.0
        while (found := _deviance(x, y, slope + length * step[1], intercept + length * step[0])) > best and length > _TOLERANCE:
            length /= 2  # a full step may overshoot where logits are extreme
        intercept, slope = intercept + length * float(step[0]), slope + length * float(step[1])
        if best - found <= _TOLERANCE * abs(best):
            break
        best = found
    return slope / scale, intercept - slope * centre / scale


def _deviance(x: F64, y: F64, slope: float, intercept: float) -> float:
    z = intercept + slope * x
    return float((np.logaddexp(0.0, z) - y * z).sum())


def _checked(logits: ArrayLike, positive: ArrayLike) -> tuple[F64, F64]:
    s, y = np.asarray(logits, dtype=np.float64).ravel(), np.asarray(positive, dtype=np.float64).ravel()
    if s.size != y.size:
        raise DataError(f"{s.size} logits for {y.size} labels: one per row is needed, in the order of the rows")
    if broken := int((~np.isfinite(s)).sum()):
        raise DataError(f"{broken} of {s.size} logits are NaN or infinite: they are no probability")
    return s, y
