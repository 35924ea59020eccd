"""What a challenger's answers come to beside those that callers got: score drift, routes, order and time, request by request.

Memory stays the same however long it goes on: scores and changes are counted in bins, times are kept in a sample of fixed size.
"""

import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hap.serving.merge import logit_and_ctr
from hap.serving.parity import TOP

_LOGITS = np.linspace(-15.0, 15.0, 601)  # edges of the bins of logits; what lies beyond is in the outermost
_CHANGES = np.linspace(0.0, 1.0, 1001)  # of a click probability
_DECILES = 10
_LEAST_SHARE = 1e-4  # of a bin, in PSI: an empty one would make it infinite
_KEPT_TIMES = 10_000


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A challenger beside the champion on the same requests.

    ctr: mean click probability of a candidate, as each says; `ctr_change_mean` and `_p99` of its absolute change.
    psi: population stability index of the challenger's scores (as logits) over the champion's deciles: sum (q - p) ln(q / p);
        below .1 is usually read as no shift, above .25 as a large one.
    routing_agreement: share of candidates routed alike; top_overlap: share of a request's first 20 that both have, averaged.
    wall_ms: of the challenger, as the one who asked saw it: p50, p95, p99.
    """

    requests: int
    candidates: int
    champions: dict[str, int]
    ctr: dict[str, float]
    ctr_change_mean: float
    ctr_change_p99: float
    psi: float
    routing_agreement: float
    top_overlap: float
    wall_ms: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@dataclass
class Tally:
    """Adds requests up."""

    champions: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    candidates: int = 0
    _ctr: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    _change: float = 0.0
    _alike: int = 0
    _shared: float = 0.0
    _ranked: int = 0
    _times: list[float] = field(default_factory=list)
    _logits: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(_LOGITS) + 1), np.int64))
    _changes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_CHANGES) + 1, np.int64))
    _dice: random.Random = field(default_factory=lambda: random.Random(0))

    def add(
        self,
        champion: str,
        served: tuple[NDArray[np.float32], NDArray[np.bool_]],
        shadow: tuple[NDArray[np.float32], NDArray[np.bool_]],
        wall_ms: float,
    ) -> None:
        """One request: score F32[N] and routed BOOL[N] as callers got them from `champion`, and as the challenger says."""
        (served_score, served_routed), (shadow_score, shadow_routed) = served, shadow
        count = len(served_score)
        self.champions[champion] += 1
        self.requests += 1
        self._sample(wall_ms)
        if not count:
            return
        self.candidates += count
        sides = [logit_and_ctr(score) for score in (served_score, shadow_score)]
        for place, (logit, ctr) in enumerate(sides):
            self._ctr[place] += ctr.sum()
            self._logits[place] += np.bincount(np.searchsorted(_LOGITS, logit), minlength=len(_LOGITS) + 1)
        change = np.abs(sides[1][1] - sides[0][1])
        self._change += float(change.sum())
        self._changes += np.bincount(np.searchsorted(_CHANGES, change), minlength=len(_CHANGES) + 1)
        self._alike += int((served_routed == shadow_routed).sum())
        top = min(TOP, count)
        first = [set(np.argsort(-score, kind="stable")[:top].tolist()) for score in (served_score, shadow_score)]
        self._shared += len(first[0] & first[1]) / top
        self._ranked += 1

    def compared(self) -> Compared | None:
        """What it came to; None before the first candidate."""
        if not self.candidates:
            return None
        times = np.array(self._times)
        rank = np.searchsorted(np.cumsum(self._changes), 0.99 * self.candidates)
        return Compared(
            requests=self.requests,
            candidates=self.candidates,
            champions=dict(self.champions),
            ctr={"champion": float(self._ctr[0] / self.candidates), "challenger": float(self._ctr[1] / self.candidates)},
            ctr_change_mean=self._change / self.candidates,
            ctr_change_p99=float(_CHANGES[min(int(rank), len(_CHANGES) - 1)]),
            psi=psi(self._logits[0], self._logits[1]),
            routing_agreement=self._alike / self.candidates,
            top_overlap=self._shared / self._ranked,
            wall_ms={name: float(np.quantile(times, share)) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
        )

    def _sample(self, wall_ms: float) -> None:
        """Keep every time with the same chance (Vitter, Random Sampling with a Reservoir, 1985, algorithm R)."""
        if len(self._times) < _KEPT_TIMES:
            self._times.append(wall_ms)
        elif (place := self._dice.randrange(self.requests)) < _KEPT_TIMES:
            self._times[place] = wall_ms


def psi(expected: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Population stability index of two histograms with the same bins, over the deciles of `expected` as far as bins tell them apart."""
    cumulative = np.cumsum(expected) / expected.sum()
    cuts = np.searchsorted(cumulative, np.arange(1, _DECILES) / _DECILES) + 1
    p, q = (np.array([part.sum() for part in np.split(counts, np.unique(cuts))], np.float64) / counts.sum() for counts in (expected, found))
    p, q = np.maximum(p, _LEAST_SHARE), np.maximum(q, _LEAST_SHARE)
    return float(((q - p) * np.log(q / p)).sum())
