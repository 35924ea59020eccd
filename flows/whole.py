"""What the whole cascade finds of the judging days' clicks: champion and challenger on requests with all their candidates."""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hap.evaluation import cascade
from hap.evaluation.auc import RequestAuc
from hap.evaluation.evidence import RECALL
from hap.params import KINDS, Params
from hap.serving.bundle import Bundle
from hap.training.feed import Pool

SIZES = (200, 500, 1000, 2000)  # candidates of a request at which the table by size is cut
Scores = dict[str, NDArray[np.float64]]  # by member


def figures_of(scores: Scores, pool: Pool, judged: NDArray[np.int64], k: int, seed: int) -> dict[str, RequestAuc]:
    """Recall@K, hit rate, NDCG and agreement of the cascade by judged request, with what each weighs there.

    A request that is not in the pool weighs nothing; recall weighs each click that fits alike, the others each request.

    Args:
        pool: the requests with all their candidates that `scores` belong to.
        judged: I64[R], ids of the judged requests.
        seed: of the draws that break ties.
    """
    requests = _requests(pool, seed)
    weight = cascade.findable(requests, k)
    served, on_all = cascade.places(scores["cascade"], requests), cascade.places(scores["expressive"], requests)
    found, clicked = cascade.hits(served, requests, k), (weight > 0).astype(np.float64)
    figures = {
        RECALL: (found / weight.clip(min=1), weight),
        "hit_rate": ((found > 0).astype(np.float64), clicked),
        "ndcg": (np.nan_to_num(cascade.ndcg(served, requests, k)), clicked),
        "agreement": (cascade.agreement(served, on_all, requests, k), clicked),
    }
    _, at, known = np.intersect1d(judged, pool.request_id, return_indices=True)
    by_request = {}
    for name, (value, weighs) in figures.items():
        value_R, weight_R = np.zeros(len(judged)), np.zeros(len(judged))
        value_R[at], weight_R[at] = value[known], weighs[known]
        by_request[name] = RequestAuc(value_R, weight_R)
    return by_request


def describe_whole(bundle: Bundle, scores: Scores, pool: Pool, params: Params, days: Sequence[dt.date]) -> dict[str, Any]:
    """The challenger's cascade: what it finds as served and by size of the request, its routing curve, shares that are best and enough."""
    gate = params.gate
    k, requests = gate.recall.at, _requests(pool, params.seed)
    operations = bundle.cost()["operations"]
    costs = cascade.Cost(**operations["light"]), cascade.Cost(**operations["expressive"])
    served, on_all = cascade.places(scores["cascade"], requests), cascade.places(scores["expressive"], requests)
    curve = cascade.curve(requests, scores["light"], scores["expressive"], k, costs)
    best = cascade.best_share(curve, gate.max_operations if gate.max_operations is not None else np.inf)
    enough = cascade.enough_share(requests, scores["light"], scores["expressive"], k, gate.alpha, gate.bootstrap_draws, params.seed)
    ours, theirs = (cascade.describe(place, on_all, requests, k) for place in (served, on_all))
    routed = scores["cascade"] > 0
    return {
        "k": k,
        "days": [day.isoformat() for day in days],
        "requests": len(requests.counts),
        "most": gate.recall.requests,
        "positives": int(requests.clicked.sum()),
        "candidates": float(requests.counts.mean()) if len(requests.counts) else 0.0,
        "routed_share": float(routed.mean()) if len(routed) else 0.0,
        **dataclasses.asdict(ours),
        "relative": ours.recall / theirs.recall if theirs.recall else 0.0,
        "expressive_on_all": dataclasses.asdict(theirs),
        "by_size": [dataclasses.asdict(group) for group in cascade.by_size(served, on_all, routed, requests, k, SIZES)],
        "curve": [dataclasses.asdict(point) for point in curve],
        "best": dataclasses.asdict(best) if best else None,
        "enough": {"share": enough, "keeps": cascade.ENOUGH} if enough is not None else None,
    }


def _requests(pool: Pool, seed: int) -> cascade.Requests:
    return cascade.describe_requests(pool.kind == KINDS.index("EP"), pool.offsets, seed)
