"""The routing curve: share of the candidates that the expressive model rescores, against Recall@K and cost.

The final list is the routed candidates by expressive score, above all others by light score [derived, hap.md "DAMR"]. Who is
routed is said by a selector: the light model, chance, or an oracle that knows the clicks. Letters: R requests with all their
candidates, N candidates of all of them, P clicked ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.proof.estimates import F64
from hap.models.describe import Description
from hap.serving.merge import SHARE_SLACK

I64 = NDArray[np.int64]
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


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


def routed_counts(requests: Requests, share: float) -> I64:
    """K = ceil(share * N) of every request, as in serving (hap.serving.merge)."""
    return np.ceil(share * requests.counts - SHARE_SLACK).clip(min=0).astype(np.int64)


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
        routed = self.selector < routed_counts(self.requests, share)[owner]
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


def flops_ratio(light: Description, expressive: Description, requests: Requests, share: float) -> float:
    """Operations of the cascade over those of expressive on all, over all requests; light scores every candidate."""
    routed = routed_counts(requests, share)
    total = len(routed) * light.flops_per_request + int(requests.counts.sum()) * light.flops_per_candidate
    if share > 0:
        total += int((routed > 0).sum()) * expressive.flops_per_request + int(routed.sum()) * expressive.flops_per_candidate
    return total / (len(routed) * expressive.flops_per_request + int(requests.counts.sum()) * expressive.flops_per_candidate)
