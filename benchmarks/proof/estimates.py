"""Figures with 95% intervals over seeds and requests at once.

Every variant is trained with the same S seeds and judged on the same requests, so a figure is a mean over two crossed
samples: seeds (readers, in the words of those who compare radiologists) and users' requests (cases). Its variance by
Obuchowski and Rockette (1995), with the degrees of freedom of Hillis (Statistics in Medicine 26:596, 2007):

    Var = V_seed / S + max(V_case - V_both / S, 0),    df = Var^2 / ((V_seed / S)^2 / (S - 1))

V_seed: variance between the seeds' figures. V_case: variance of the mean figure over requests drawn again, V_both: of what
a request does in one seed only (it is in both of the others, hence the difference). The last two are sums of squared
influences of the clusters (requests of one user), the delta method. A bootstrap that draws five seeds again loses a fifth of
their variance and the tails of the t distribution, so it misses too often where the seeds differ most (tests/benchmarks/test_estimates.py).

Letters: S seeds, R requests, C clusters, N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hap.evaluation import delong
from hap.evaluation.auc import RequestAuc

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that holds it."""

    value: float
    lo: float
    hi: float
    seeds: int
    clusters: int
    seed_deviation: float  # standard deviation of the seeds' values; NaN of one seed
    by_seed: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Measured:
    """A figure by seed, and how much each cluster of requests weighs in it."""

    value_S: F64
    influence_SC: F64 = field(repr=False)  # sums to 0 over C

    def minus(self, other: "Measured") -> "Measured":
        """The paired difference: equal seeds, equal requests."""
        return Measured(self.value_S - other.value_S, self.influence_SC - other.influence_SC)

    def over(self, other: "Measured") -> "Measured":
        """The paired ratio; the delta method's influence."""
        ratio_S = self.value_S / other.value_S
        return Measured(ratio_S, (self.influence_SC - ratio_S[:, None] * other.influence_SC) / other.value_S[:, None])

    def estimate(self, low: float = -np.inf, high: float = np.inf) -> Estimate:
        """Mean over the seeds with its interval; of one seed, over requests alone.

        Args:
            low, high: what the figure can be at all; the interval ends there.
        """
        seeds, clusters = len(self.value_S), int((self.influence_SC != 0).any(axis=0).sum())  # those that weigh
        value = float(self.value_S.mean())
        by_seed = tuple(map(float, self.value_S))
        if self.influence_SC.shape[1] < 2 or clusters == 1 or not np.isfinite(value):
            return Estimate(value, float("nan"), float("nan"), seeds, clusters, float("nan"), by_seed)
        common_C = self.influence_SC.mean(axis=0)
        correction = clusters / max(clusters - 1, 1)
        variance = cases = correction * float((common_C**2).sum())
        freedom, deviation = float(max(clusters - 1, 1)), float("nan")
        if seeds > 1:
            both = correction * float(((self.influence_SC - common_C) ** 2).sum()) / (seeds - 1)
            deviation = float(self.value_S.std(ddof=1))
            between = deviation**2 / seeds
            # Seeds that happen to agree do not make the requests' own spread smaller.
            variance = max(between + max(cases - both / seeds, 0.0), cases)
            if between > 0:
                freedom = min(freedom, variance**2 / (between**2 / (seeds - 1)))
        half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * variance**0.5
        return Estimate(value, max(value - half, low), min(value + half, high), seeds, clusters, deviation, by_seed)


def mean_over_weights(value_SR: F64, weight_R: F64, cluster_R: NDArray[np.int64]) -> Measured:
    """The weighted mean over requests; a request of weight 0 is not read."""
    total = weight_R.sum()
    width = int(cluster_R.max(initial=-1)) + 1
    if total <= 0:
        return Measured(np.full(len(value_SR), np.nan), np.zeros((len(value_SR), width)))
    used_SR = np.where(weight_R > 0, value_SR, 0.0)
    value_S = used_SR @ weight_R / total
    influence_SR = weight_R * np.where(weight_R > 0, used_SR - value_S[:, None], 0.0) / total
    return Measured(value_S, _by_cluster(influence_SR, cluster_R, width))


def mean_gauc(grouped: Sequence[RequestAuc], cluster_R: NDArray[np.int64]) -> Measured:
    """GAUC of each seed; the requests and so their weights are the same for all."""
    return mean_over_weights(np.stack([one.auc for one in grouped]), grouped[0].weight, cluster_R)


def pooled_auc(
    scores_SN: Sequence[F64], positive_N: NDArray[np.bool_], negative_N: NDArray[np.bool_], offsets: I64, cluster_R: I64
) -> Measured:
    """AUC over all rows of each seed, with DeLong's components summed over clusters (hap.evaluation.delong)."""
    found = [delong.pooled_auc(scores, positive_N, negative_N, offsets) for scores in scores_SN]
    influence_SR = np.stack([one.influence for one in found])
    return Measured(np.array([one.value for one in found]), _by_cluster(influence_SR, cluster_R, int(cluster_R.max(initial=-1)) + 1))


def _by_cluster(influence_SR: F64, cluster_R: NDArray[np.int64], width: int) -> F64:
    """Sums over each cluster [S, C]; one that nothing weighs in stays as a column of zeros, so that all figures of a world pair."""
    return np.stack([np.bincount(cluster_R, weights=row, minlength=width) for row in influence_SR])
