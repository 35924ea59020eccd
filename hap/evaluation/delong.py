"""The difference of two pooled AUCs with its interval, without a bootstrap: DeLong's components, summed over requests.

An AUC over all rows at once is a U statistic: each positive contributes the share of negatives below it, each negative the share of
positives above it (DeLong, DeLong and Clarke-Pearson, Biometrics 44:837, 1988). Rows of one request belong together, so their
contributions are added up first (Obuchowski, Biometrics 53:567, 1997). It applies to AUC over all requests, not to GAUC,
which is a mean over requests and has the bootstrap of `hap.evaluation.interval`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from hap.errors import DataError
from hap.evaluation.interval import Interval

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PooledAuc:
    """A pooled AUC, and what each request weighs in it."""

    value: float  # NaN without a positive or a negative
    influence: F64  # [R], sums to 0

    def minus(self, other: "PooledAuc") -> "PooledAuc":
        """The paired difference on the same rows."""
        return PooledAuc(self.value - other.value, self.influence - other.influence)

    def interval(self, alpha: float, low: float = -1.0, high: float = 1.0) -> Interval:
        """The value with one-sided bounds, each of which fails with probability alpha; [low, high] where nothing is known."""
        requests = int((self.influence != 0).sum())
        if not math.isfinite(self.value) or len(self.influence) < 2 or requests == 1:
            return Interval(self.value, low, high)
        error = math.sqrt(len(self.influence) / (len(self.influence) - 1) * float((self.influence**2).sum()))
        half = float(stats.norm.ppf(1 - alpha)) * error
        return Interval(self.value, max(self.value - half, low), min(self.value + half, high))


def pooled_auc(scores: ArrayLike, positive: NDArray[np.bool_], negative: NDArray[np.bool_], offsets: ArrayLike) -> PooledAuc:
    """AUC of the positives against the negatives over all requests, ties one half.

    Args:
        scores: [N] in request order.
        positive, negative: [N] which rows count as what; rows that are neither are left out.
        offsets: [R+1] rows of request r are offsets[r] to offsets[r+1].

    Raises:
        DataError: a score is NaN, or the lengths differ.
    """
    values, bounds = np.asarray(scores, np.float64).ravel(), np.asarray(offsets, np.int64)
    if not values.size == len(positive) == len(negative) == bounds[-1]:
        raise DataError(f"{values.size} scores, {len(positive)} and {len(negative)} labels and {bounds[-1]} rows do not match")
    if np.isnan(values).any():
        raise DataError(f"{int(np.isnan(values).sum())} of {values.size} scores are NaN")
    owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    pos, neg = values[positive], values[negative]
    if not pos.size or not neg.size:
        return PooledAuc(float("nan"), np.zeros(len(bounds) - 1))
    below, above = _share_below(pos, neg), 1.0 - _share_below(neg, pos)
    value = float(below.mean())
    of_positives = np.bincount(owner[positive], weights=(below - value) / pos.size, minlength=len(bounds) - 1)
    of_negatives = np.bincount(owner[negative], weights=(above - value) / neg.size, minlength=len(bounds) - 1)
    return PooledAuc(value, np.asarray(of_positives + of_negatives, np.float64))


def _share_below(values: F64, others: F64) -> F64:
    """For each value the share of the others that lie below it, ties one half."""
    ordered = np.sort(others)
    twice = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return np.asarray(twice / (2 * others.size), np.float64)
