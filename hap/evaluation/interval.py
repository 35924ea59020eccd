"""Confidence bounds of weighted means over requests, by a request-clustered, studentised bootstrap.

Candidates of one request share a user and a moment, so requests are drawn again, never rows. A draw is a
vector of multinomial counts; with M quantities at once a chunk of draws is one matrix product.

R requests, M quantities, D draws. Each quantity is a ratio sum(weight * value) / sum(weight), since the weights
are drawn too. Pivots are (draw - point) / standard error of the draw; plain percentiles of the draws were tried
and cover less well on few or skewed requests (docs/gate.md).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
CHUNK_BYTES = 8 * 2**20  # counts and draws of one chunk; bounds the memory whatever D is. Many columns may have more


@dataclass(frozen=True)
class Interval:
    """A value with one-sided bounds: each holds with confidence 1 - alpha, both together with 1 - 2 alpha."""

    point: float
    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class Resampled:
    """One quantity with its pivots, from which bounds and p-values of any level follow."""

    point: float  # NaN where no request defines it
    error: float  # standard error, by linearisation
    requests: int  # requests with a weight
    weight: float  # sum of the weights
    low: float  # the least value that is possible
    high: float
    pivots: F64 = field(repr=False)  # [D], sorted
    drawn: F64 = field(repr=False)  # [D], the mean of each draw, in the order of the draws; NaN without any weight

    def lower(self, alpha: float) -> float:
        """The bound that the true value exceeds with confidence 1 - alpha."""
        return self._bound(1 - alpha)

    def upper(self, alpha: float) -> float:
        """The bound that the true value stays below with confidence 1 - alpha."""
        return self._bound(alpha)

    def interval(self, alpha: float) -> Interval:
        """Point and both one-sided bounds."""
        return Interval(self.point, self.lower(alpha), self.upper(alpha))

    def moved(self, by: float) -> "Resampled":
        """The same with every value higher by `by`: the spread, and so the pivots, stay as they are."""
        return replace(self, point=self.point + by, drawn=self.drawn + by)

    def p_below(self, bound: float) -> float:
        """p-value of "the true value is at least `bound`": small when the value lies clearly below it."""
        if self.requests < 2:
            return 1.0
        if self.error == 0:
            return 1 / (self.pivots.size + 1) if self.point < bound else 1.0
        extreme = np.searchsorted(self.pivots, (self.point - bound) / self.error, side="right")
        return float((1 + extreme) / (1 + self.pivots.size))

    def _bound(self, level: float) -> float:
        if self.requests < 2:  # one request shows no spread: nothing is bounded
            return self.low if level > 0.5 else self.high
        if self.error == 0:
            return self.point
        place = level * (self.pivots.size - 1)  # between two pivots the one that gives the wider interval
        pivot = float(self.pivots[math.ceil(place) if level > 0.5 else math.floor(place)])
        return min(max(self.point - pivot * self.error, self.low), self.high)


def resample(value: ArrayLike, weight: ArrayLike, draws: int, seed: int, low: float = -1.0, high: float = 1.0) -> list[Resampled]:
    """Draw requests again and study M weighted means on the same draws.

    Args:
        value: [R, M], each within [low, high]; not read where the weight is 0.
        weight: [R, M], not negative; 0 leaves the request out of that quantity.
        draws: D, the number of draws.
        seed: equal seeds give equal draws.
    """
    w = np.asarray(weight, dtype=np.float64)
    x = np.where(w > 0, value, 0.0).astype(np.float64, copy=False)
    requests, quantities = w.shape
    total = w.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        point = (w * x).sum(axis=0) / total
    x -= np.nan_to_num(point)
    x *= w
    centred = x  # or the sums below cancel badly
    first, of = _alike(w)
    # Filled in place: as five arrays and their stack it would be there twice.
    columns = np.empty((requests, 3 * quantities + 2 * first.size))
    parts = np.cumsum((quantities, quantities, quantities, first.size))
    columns[:, : parts[0]] = centred
    np.multiply(centred, centred, out=columns[:, parts[0] : parts[1]])
    np.multiply(centred, w, out=columns[:, parts[1] : parts[2]])
    columns[:, parts[2] : parts[3]] = w[:, first]
    np.square(columns[:, parts[2] : parts[3]], out=columns[:, parts[3] :])
    pivots, drawn, begin = np.zeros((quantities, draws)), np.full((quantities, draws), np.nan), 0
    at_once = max(CHUNK_BYTES, columns.nbytes // 4) // (16 * max(requests, 1))
    for counts in draw_counts(requests, draws, seed, max(1, at_once)):
        chunk = slice(begin, begin := begin + len(counts))
        shift, square, cross, mass, mass2 = np.split(counts.astype(np.float64) @ columns, parts, axis=1)
        mass, mass2 = mass[:, of], mass2[:, of]  # [size, M] each
        pivots[:, chunk] = _pivots(shift, mass, square, cross, mass2).T
        np.divide(shift.T, mass.T, out=drawn[:, chunk], where=mass.T > 0)
    drawn += point[:, None]
    error = np.sqrt((centred**2).sum(axis=0)) / np.where(total > 0, total, np.nan)
    error[error < 1e-12] = 0.0  # rounding in equal values is not spread
    pivots.sort(axis=1)
    used = (w > 0).sum(axis=0)
    return [
        Resampled(float(point[m]), float(error[m]), int(used[m]), float(total[m]), low, high, pivots[m], drawn[m])
        for m in range(quantities)
    ]


def _alike(weight: F64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first column of each kind, and for each of the M columns its kind: all members weigh a request alike."""
    kinds: dict[bytes, int] = {}
    of = [kinds.setdefault(column.tobytes(), len(kinds)) for column in weight.T]
    return np.array([of.index(kind) for kind in range(len(kinds))], dtype=np.intp), np.array(of, dtype=np.intp)


def draw_counts(requests: int, draws: int, seed: int, at_once: int) -> Iterator[NDArray[np.int64]]:
    """How often each draw took each request, [at_once, R] at a time and fewer at last; equal seeds give equal draws."""
    rng = np.random.default_rng(seed)
    for begin in range(0, draws if requests else 0, at_once):
        size = min(at_once, draws - begin)
        picked = rng.integers(0, requests, size=(size, requests))
        picked += requests * np.arange(size)[:, None]
        yield np.bincount(picked.ravel(), minlength=size * requests).reshape(size, requests)


def _pivots(shift: F64, mass: F64, square: F64, cross: F64, mass2: F64) -> F64:
    """(draw - point) / standard error of the draw, from sums over the drawn requests.

    A draw whose requests are all alike has no error of its own; its pivot is infinite, so that such samples give
    bounds that decide nothing. A draw without any weight says nothing and is the centre.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = shift / mass
        spread = np.sqrt(np.maximum(square - 2 * moved * cross + moved**2 * mass2, 0.0)) / mass
        moved[np.abs(moved) < 1e-12] = 0.0
        spread[spread < 1e-12] = 0.0
        pivots = moved / spread
    pivots[moved == 0] = 0.0
    pivots[mass == 0] = 0.0
    return pivots


def paired_interval(champion_auc: ArrayLike, challenger_auc: ArrayLike, weight: ArrayLike, draws: int, alpha: float, seed: int) -> Interval:
    """GAUC of the challenger minus GAUC of the champion on the same requests.

    Args:
        champion_auc: [R] AUC per request; not read where the weight is 0.
        challenger_auc: [R] of the same requests in the same order.
        weight: [R] positives of the request.
        alpha: each bound alone fails with this probability.
    """
    difference = np.asarray(challenger_auc, dtype=np.float64) - np.asarray(champion_auc, dtype=np.float64)
    return resample(difference[:, None], np.asarray(weight)[:, None], draws, seed)[0].interval(alpha)
