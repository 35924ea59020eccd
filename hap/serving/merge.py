"""Hard selection and the merged score, as plain NumPy: what the graphs in hap.serving.graphs must agree with.

One float carries order and route: routed = softplus(expressive logit) > 0, unrouted = -softplus(-light logit) < 0.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hap.params import SHARE_SLACK, Route

MAX_LOGIT = 60.0  # logits are clipped to +-60: softplus(-60) is still a normal float32
NAN_SCORE = -64.0  # of a candidate whose logit is NaN: below every other score


def routed_count(route: Route, candidates: int, k: int | None = None) -> int:
    """How many of N candidates the expressive model scores: min(K, N), where the request's own k wins over the route."""
    if k is None or k < 0:
        k = math.ceil(route.share * candidates - SHARE_SLACK) if route.share is not None else int(route.k or 0)
    return min(k, candidates)


def hard_select(light: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` best light logits, best first; equal ones by smaller place, NaN never."""
    places = np.flatnonzero(~np.isnan(light))
    return places[np.argsort(-light[places], kind="stable")][:count].astype(np.int64)


def merge(
    light: NDArray[np.float32], index: NDArray[np.int64], expressive: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Light logits F32[N], routed places I64[K] and their expressive logits F32[K] -> score F32[N], routed BOOL[N]."""
    score = np.where(np.isnan(light), NAN_SCORE, -_softplus(-light))
    score[index] = np.where(np.isnan(expressive), NAN_SCORE, _softplus(expressive))
    return score.astype(np.float32), score > 0


def logit_and_ctr(score: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The logit and the click probability behind merged scores: of the expressive model where routed, of the light one elsewhere."""
    magnitude = np.abs(np.asarray(score, np.float64))
    inverse = magnitude + np.log(-np.expm1(-np.maximum(magnitude, np.finfo(np.float64).tiny)))
    logit = np.where(np.asarray(score) > 0, inverse, -inverse)
    return logit, 1.0 / (1.0 + np.exp(-logit))


def _softplus(logit: NDArray[np.float32]) -> NDArray[np.float64]:
    known = np.where(np.isnan(logit), 0.0, logit.astype(np.float64))  # callers put NAN_SCORE in these places
    return np.asarray(np.logaddexp(0.0, np.clip(known, -MAX_LOGIT, MAX_LOGIT)), np.float64)
