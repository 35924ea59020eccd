"""Exact AUC, pooled and grouped by request, for each kind of negative.

N rows (candidates), R requests. Ties between a positive and a negative count one half. Where there is no
positive or no negative the AUC is NaN: undefined, never 0.5.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hap.errors import DataError
from hap.params import KINDS, NEGATIVES

F64 = NDArray[np.float64]


class RequestAuc(NamedTuple):
    """AUC of each request against one kind, and what the request weighs in GAUC."""

    auc: F64  # [R], NaN where undefined
    weight: F64  # [R], positives of the request; 0 where the AUC is undefined


def auc(
    positive: ArrayLike, negative: ArrayLike, positive_weight: ArrayLike | None = None, negative_weight: ArrayLike | None = None
) -> float:
    """The share of (positive, negative) pairs that are in order; NaN when either side is empty.

    Args:
        positive_weight, negative_weight: what each score counts, not negative; None counts each once.

    Raises:
        DataError: a score is NaN, or there are more or fewer weights than scores.
    """
    pos, neg = _scores(positive), _scores(negative)
    if positive_weight is not None or negative_weight is not None:
        return _weighted(pos, neg, _weights(positive_weight, pos), _weights(negative_weight, neg))
    neg = np.sort(neg)
    if not pos.size or not neg.size:
        return float("nan")
    twice = np.searchsorted(neg, pos, side="left") + np.searchsorted(neg, pos, side="right")  # integers: exact at any size
    return float(twice.sum() / (2 * pos.size * neg.size))


def global_auc(scores: ArrayLike, kind: ArrayLike) -> dict[str, float]:
    """AUC of all positives against all negatives of each kind, requests pooled.

    Raises:
        DataError: a score is NaN, or the lengths differ.
    """
    values, codes = _rows(scores, kind)
    positive = values[codes == 0]
    return {name: auc(positive, values[codes == KINDS.index(name)]) for name in NEGATIVES}


class Ranked(NamedTuple):
    """P positives and what each has below it among the negatives of its own request, counted from one sort.

    Every GAUC follows from it by counting: of a kind, of a bucket, of a slice of the positives.
    """

    row: NDArray[np.int64]  # [P] where each positive lies among the rows
    owner: NDArray[np.int64]  # [P] its request
    twice: dict[str, NDArray[np.int64]]  # by group: [P] 2 * (negatives below + negatives tied / 2)
    negatives: dict[str, NDArray[np.int64]]  # by group: [R]


def rank(scores: ArrayLike, code: ArrayLike, offsets: ArrayLike, groups: Sequence[str] = NEGATIVES) -> Ranked:
    """Rank each positive among its request's negatives of each group, with one sort for all.

    Args:
        scores: [N] in request order.
        code: [N] 0 for a positive, g for a negative of groups[g - 1]; with the default groups, places in KINDS.
        offsets: [R+1] rows of request r are offsets[r] to offsets[r+1].

    Raises:
        DataError: a score is NaN, the lengths differ, or the offsets do not cover the rows.
    """
    values, codes = _rows(scores, code)
    bounds = np.asarray(offsets, dtype=np.int64)
    if bounds.ndim != 1 or not bounds.size or bounds[0] != 0 or bounds[-1] != values.size or (np.diff(bounds) < 0).any():
        raise DataError(f"offsets must rise from 0 to the {values.size} rows; these do not, so rows and requests do not match")
    lengths = np.diff(bounds)
    row_request = np.repeat(np.arange(lengths.size), lengths)
    order = np.lexsort((values, row_request))
    values, codes = values[order], codes[order]  # row_request is sorted already and stays what it is

    # Rows of one request with one score form a tie; [first, last) are its ends, seen from each positive.
    changes = np.ones(values.size, dtype=bool)
    changes[1:] = (values[1:] != values[:-1]) | (row_request[1:] != row_request[:-1])
    starts = np.append(np.flatnonzero(changes), values.size)
    at = np.flatnonzero(codes == 0)
    tie = np.cumsum(changes)[at] - 1
    first, last, owner = starts[tie], starts[tie + 1], row_request[at]
    twice, negatives = {}, {}
    for place, name in enumerate(groups, 1):
        seen = np.concatenate(([0], np.cumsum(codes == place)))  # negatives of the group before each row
        negatives[name] = seen[bounds[1:]] - seen[bounds[:-1]]
        twice[name] = seen[first] + seen[last] - 2 * seen[bounds[owner]]
    return Ranked(order[at], owner, twice, negatives)


def by_request(ranked: Ranked, chosen: NDArray[np.bool_] | None = None) -> dict[str, RequestAuc]:
    """AUC of each request against each group of negatives.

    Args:
        chosen: BOOL[P], the positives that count, in the order of `ranked`; None takes all.
    """
    result = {}
    owner = ranked.owner if chosen is None else ranked.owner[chosen]
    for name, twice in ranked.twice.items():
        negatives = ranked.negatives[name]
        positives = np.bincount(owner, minlength=negatives.size)
        in_order = np.bincount(owner, weights=twice if chosen is None else twice[chosen], minlength=negatives.size)  # below 2^53: exact
        defined = (positives > 0) & (negatives > 0)
        grouped = np.full(negatives.size, np.nan)
        np.divide(in_order, 2 * positives * negatives, out=grouped, where=defined)
        result[name] = RequestAuc(grouped, np.where(defined, positives, 0).astype(np.float64))
    return result


def request_aucs(scores: ArrayLike, kind: ArrayLike, offsets: ArrayLike) -> dict[str, RequestAuc]:
    """AUC of each request against each kind of negative. Arguments and errors as those of `rank`."""
    return by_request(rank(scores, kind, offsets))


def gauc(grouped: RequestAuc) -> float:
    """Mean AUC of the requests, each weighing as much as it has positives; NaN when no request defines one.

    So every click counts once: GAUC is the mean over clicks of the share of the request's negatives ranked
    below. Weighing by pairs would let the sampling windows (10 RN here, 200 there) decide which requests count.
    """
    total = grouped.weight.sum()
    return float(np.nansum(grouped.auc * grouped.weight) / total) if total > 0 else float("nan")


def _weighted(pos: F64, neg: F64, pos_weight: F64, neg_weight: F64) -> float:
    order = np.argsort(neg, kind="stable")
    neg, below = neg[order], np.concatenate(([0.0], np.cumsum(neg_weight[order])))
    if not (total := pos_weight.sum() * below[-1]):
        return float("nan")
    in_order = below[np.searchsorted(neg, pos, side="left")] + below[np.searchsorted(neg, pos, side="right")]
    return float((pos_weight * in_order).sum() / (2 * total))


def _weights(values: ArrayLike | None, scores: F64) -> F64:
    array = np.ones(scores.size) if values is None else np.asarray(values, dtype=np.float64).ravel()
    if array.size != scores.size or (array < 0).any() or not np.isfinite(array).all():
        raise DataError(f"{array.size} weights for {scores.size} scores: one per score is needed, finite and not negative")
    return array


def _scores(values: ArrayLike) -> F64:
    array = np.asarray(values, dtype=np.float64).ravel()
    if missing := int(np.isnan(array).sum()):
        raise DataError(f"{missing} of {array.size} scores are NaN: they have no place in an order")
    return array


def _rows(scores: ArrayLike, kind: ArrayLike) -> tuple[F64, NDArray[np.int64]]:
    values, codes = _scores(scores), np.asarray(kind, dtype=np.int64).ravel()
    if values.size != codes.size:
        raise DataError(f"{values.size} scores for {codes.size} rows: a score per row is needed, in the order of the rows")
    return values, codes
