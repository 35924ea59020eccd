"""The whole cascade on requests with all their candidates: what is found, what it costs, and which share to route.

The final list is the routed candidates by expressive score, above all others by light score [derived, hap.md "DAMR"]. Who is
routed is said by a selector: the light model in service; chance, or an oracle that knows the clicks, for comparison. Scores are
values here; ties go by chance, since samples lie clicked ones first. Letters: R requests, N candidates of all of them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hap.evaluation.interval import resample
from hap.params import SHARE_SLACK

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
ENOUGH = 0.995  # of expressive-on-all's Recall@K: what a routed share must keep to be called enough


@dataclass(frozen=True, eq=False)
class Requests:
    """R requests with all candidates."""

    offsets: I64  # [R + 1]
    clicked: NDArray[np.bool_]  # [N]
    chance: F64  # [N], one draw a candidate: breaks ties, and routes at random

    @property
    def counts(self) -> I64:
        return np.diff(self.offsets)

    @property
    def owner(self) -> I64:
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)


def describe_requests(clicked: NDArray[np.bool_], offsets: I64, seed: int) -> Requests:
    """Requests with the draws that belong to them; samples lie clicked ones first, so ties must not keep that order."""
    return Requests(offsets, clicked, np.random.default_rng(seed).random(len(clicked)))


def places(score_N: F64, requests: Requests) -> I64:
    """Each candidate's place in its request by falling score, from 0; ties by chance."""
    order = np.lexsort((requests.chance, -score_N, requests.owner))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.repeat(requests.offsets[:-1], requests.counts)
    return place


def oracle(requests: Requests) -> F64:
    """Scores of a selector that knows the clicks and nothing else."""
    return requests.clicked + requests.chance


def routed_counts(counts: I64, share: float) -> I64:
    """K = ceil(share * N) of requests with N candidates each, as in serving (hap.serving.merge)."""
    return np.ceil(share * counts - SHARE_SLACK).clip(min=0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Selected:
    """What a curve's points share, so that each costs a running sum and no sort."""

    requests: Requests
    selector: I64  # [N] place by the selector
    by_light: I64  # [N] rows in order of (request, place by light score)
    by_expressive: I64  # [N] rows in order of (request, place by expressive score)

    def final_places(self, share: float) -> I64:
        """Each candidate's place in the final list."""
        owner = self.requests.owner
        routed = self.selector < routed_counts(self.requests.counts, share)[owner]
        # A routed one is preceded by the routed ones that expressive puts above it; another one by all routed ones, and
        # by the unrouted ones that light puts above it.
        final = np.empty(len(owner), np.int64)
        for rows, marked, base in (
            (self.by_expressive, routed, np.zeros(len(self.requests.counts), np.int64)),
            (self.by_light, ~routed, np.bincount(owner[routed], minlength=len(self.requests.counts))),
        ):
            inside = marked[rows]
            running = np.cumsum(inside)
            before = np.concatenate([[0], running])[self.requests.offsets[:-1]]
            place = np.empty(len(owner), np.int64)
            place[rows] = running - 1
            final[marked] = (place - before[owner] + base[owner])[marked]
        return final


def select(requests: Requests, selector_N: F64, light_N: F64, expressive_N: F64) -> Selected:
    """A curve's parts from the three scores of every candidate."""
    by_light, by_expressive = (_in_order(places(score, requests), requests) for score in (light_N, expressive_N))
    return Selected(requests, places(selector_N, requests), by_light, by_expressive)


def _in_order(place_N: I64, requests: Requests) -> I64:
    rows = np.empty(len(place_N), np.int64)
    rows[place_N + np.repeat(requests.offsets[:-1], requests.counts)] = np.arange(len(place_N))
    return rows


def hits(final_N: I64, requests: Requests, k: int) -> F64:
    """Clicked candidates among the first k of each request [R]."""
    return np.bincount(requests.owner[requests.clicked & (final_N < k)], minlength=len(requests.counts)).astype(np.float64)


def findable(requests: Requests, k: int) -> F64:
    """What Recall@K divides by [R]: the clicked candidates, or k of them where there are more, so that 1 can be reached."""
    clicks = np.bincount(requests.owner[requests.clicked], minlength=len(requests.counts))
    return np.minimum(clicks, k).astype(np.float64)


def agreement(final_N: I64, expressive_N: I64, requests: Requests, k: int) -> F64:
    """Share of expressive-on-all's first k that the final list has in its first k [R]."""
    both = np.bincount(requests.owner[(final_N < k) & (expressive_N < k)], minlength=len(requests.counts))
    return both / np.minimum(requests.counts, k).clip(min=1)


def ndcg(final_N: I64, requests: Requests, k: int) -> F64:
    """NDCG@K of the clicks in each request's final list [R], NaN without a click: gain 1 at place p counts 1 / log2(p + 2)."""
    counted = requests.clicked & (final_N < k)
    gained = np.bincount(requests.owner[counted], weights=1 / np.log2(final_N[counted] + 2), minlength=len(requests.counts))
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])[findable(requests, k).astype(np.int64)]
    return np.divide(gained, ideal, out=np.full(len(ideal), np.nan), where=ideal > 0)


def rank_agreement(final_N: I64, expressive_N: I64, requests: Requests) -> F64:
    """Spearman's correlation of the final list with expressive-on-all's, whole lists [R]; NaN below two candidates."""
    moved = np.bincount(requests.owner, weights=(final_N - expressive_N).astype(np.float64) ** 2, minlength=len(requests.counts))
    count = requests.counts.astype(np.float64)
    return 1 - 6 * np.divide(moved, count * (count**2 - 1), out=np.full(len(count), np.nan), where=count > 1)


class Cost(NamedTuple):
    """What a model takes, in any unit: operations, or seconds."""

    per_request: float
    per_candidate: float


def cost_ratio(light: Cost, expressive: Cost, counts: I64, share: float) -> float:
    """The cascade's cost over that of expressive on all, over all requests; light scores every candidate."""
    routed = routed_counts(counts, share)
    total = len(counts) * light.per_request + counts.sum() * light.per_candidate
    if share > 0:
        total += (routed > 0).sum() * expressive.per_request + routed.sum() * expressive.per_candidate
    return float(total / (len(counts) * expressive.per_request + counts.sum() * expressive.per_candidate))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the first K of final lists hold, over some requests; NaN where none of them defines it."""

    recall: float  # clicks among the first K, of those that fit; each click weighs alike
    hit_rate: float  # of the requests with a click, those with one among the first K
    ndcg: float  # mean over the requests with a click
    agreement: float  # of expressive-on-all's first K, those in the final first K: mean over requests
    rank_agreement: float  # Spearman's correlation of the whole list with expressive-on-all's: mean over requests


def describe(final_N: I64, expressive_N: I64, requests: Requests, k: int, inside: NDArray[np.bool_] | None = None) -> Found:
    """Figures of final lists.

    Args:
        final_N, expressive_N: places in the final list, and in that of expressive on all.
        inside: BOOL[R], the requests that count; None takes all.
    """
    chosen = np.ones(len(requests.counts), dtype=bool) if inside is None else inside
    found, weight = hits(final_N, requests, k)[chosen], findable(requests, k)[chosen]
    return Found(
        recall=float(found.sum() / weight.sum()) if weight.sum() else float("nan"),
        hit_rate=_mean((found > 0)[weight > 0].astype(np.float64)),
        ndcg=_mean(ndcg(final_N, requests, k)[chosen]),
        agreement=_mean(agreement(final_N, expressive_N, requests, k)[chosen]),
        rank_agreement=_mean(rank_agreement(final_N, expressive_N, requests)[chosen]),
    )


@dataclass(frozen=True, kw_only=True)
class Point(Found):
    """The cascade at one routed share."""

    share: float
    relative: float  # recall over that of expressive on all
    cost: float | None  # over that of expressive on all


def curve(
    requests: Requests, light_N: F64, expressive_N: F64, k: int, costs: tuple[Cost, Cost] | None = None, shares: Sequence[float] = SHARES
) -> list[Point]:
    """The routing curve: the cascade with each share routed by the light model.

    Args:
        k: length of the list that users see.
        costs: of light and expressive; None leaves the cost out.
    """
    selected = select(requests, light_N, light_N, expressive_N)
    on_all = places(expressive_N, requests)
    whole = describe(on_all, on_all, requests, k).recall
    points = []
    for share in shares:
        found = describe(selected.final_places(share), on_all, requests, k)
        relative = found.recall / whole if whole else float("nan")
        cost = cost_ratio(*costs, requests.counts, share) if costs else None
        points.append(Point(share=share, relative=relative, cost=cost, **asdict(found)))
    return points


def best_share(points: Sequence[Point], budget: float) -> Point | None:
    """The point that finds most within the budget, the smaller share of equals; None where nothing fits it.

    Args:
        budget: cost over that of expressive on all.
    """
    within = [point for point in points if point.cost is not None and point.cost <= budget]
    return max(within, key=lambda point: (point.recall, -point.share), default=None)


def enough_share(
    requests: Requests, light_N: F64, expressive_N: F64, k: int, alpha: float, draws: int, seed: int, shares: Sequence[float] = SHARES
) -> float | None:
    """The least share from which on the cascade keeps `ENOUGH` of expressive-on-all's Recall@K by the lower bound; None without clicks.

    Args:
        alpha: the bound of one share fails with this probability.
        draws, seed: of the bootstrap over requests.
    """
    weight = findable(requests, k)
    if not weight.sum():
        return None
    selected = select(requests, light_N, light_N, expressive_N)
    found = np.stack([hits(selected.final_places(share), requests, k) for share in shares], axis=1)
    margin = (found - ENOUGH * hits(places(expressive_N, requests), requests, k)[:, None]) / weight.clip(min=1)[:, None]
    kept = [one.lower(alpha) >= 0 for one in resample(margin, np.repeat(weight[:, None], len(shares), axis=1), draws, seed)]
    return next(share for place, share in enumerate(shares) if all(kept[place:]) or share == 1)


@dataclass(frozen=True, kw_only=True)
class SizeGroup(Found):
    """Requests of about one size that have a click."""

    name: str  # candidates: 200-499, or 2000+
    requests: int
    routed_share: float


def by_size(
    final_N: I64, expressive_N: I64, routed_N: NDArray[np.bool_], requests: Requests, k: int, edges: Sequence[int]
) -> list[SizeGroup]:
    """The final list by the number of candidates: under the first edge, between two, and from the last one on; empty groups left out."""
    clicked, routed = findable(requests, k) > 0, np.bincount(requests.owner[routed_N], minlength=len(requests.counts))
    groups = []
    for low, high in pairwise([0, *edges, np.inf]):
        inside = (requests.counts >= low) & (requests.counts < high) & clicked
        if inside.any():
            name = f"{low}+" if high == np.inf else f"{low}-{high - 1}"
            share = float(routed[inside].sum() / requests.counts[inside].sum())
            found = asdict(describe(final_N, expressive_N, requests, k, inside))
            groups.append(SizeGroup(name=name, requests=int(inside.sum()), routed_share=share, **found))
    return groups


def _mean(values: F64) -> float:
    """Of what is defined."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
