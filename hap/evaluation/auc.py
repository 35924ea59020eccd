"""Exact AUC, pooled and grouped by request, for each kind of negative.

N rows (candidates), R requests. Ties between a positive and a negative count one half. Where there is no
positive or no negative the AUC is NaN: undefined, never 0.5.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hap.errors import DataError
from hap.params import KINDS, NEGATIVES

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


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
    pos, neg = np.sort(pos), np.sort(neg)  # sorted, the positives look their places up in the cache
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


def by_score(scores: ArrayLike) -> I64:
    """All rows by rising score, ties in any order: the one sort from which `rank` and `pooled.pool_rows` count.

    Raises:
        DataError: a score is NaN.
    """
    return np.argsort(_scores(scores))


class Ranked(NamedTuple):
    """P positives and what each has below it among the negatives of its own request, counted from one sort.

    Every GAUC follows from it by counting: of a kind, of a bucket, of a slice of the positives.
    """

    row: I64  # [P] where each positive lies among the rows
    owner: I64  # [P] its request
    twice: dict[str, I64]  # by group: [P] 2 * (negatives below + negatives tied / 2)
    negatives: dict[str, I64]  # by group: [R]


def rank(scores: ArrayLike, code: ArrayLike, offsets: ArrayLike, groups: Sequence[str] = NEGATIVES, order: I64 | None = None) -> Ranked:
    """Rank each positive among its request's negatives of each group, with one sort for all.

    Args:
        scores: [N] in request order.
        code: [N] 0 for a positive, g for a negative of groups[g - 1]; with the default groups, places in KINDS.
        offsets: [R+1] rows of request r are offsets[r] to offsets[r+1].
        order: [N] what `by_score` gives of the same scores, where it is known already.

    Raises:
        DataError: a score is NaN, the lengths differ, or the offsets do not cover the rows.
    """
    values, codes, bounds = request_rows(scores, code, offsets)
    rows = _request_by_request(by_score(values) if order is None else order, np.diff(bounds))
    codes = codes[rows]

    # Rows of one request with one score form a tie; [first, last) are its ends, seen from each positive.
    risen = values[rows]
    changes = np.ones(values.size + 1, dtype=bool)
    np.not_equal(risen[1:], risen[:-1], out=changes[1:-1])
    changes[bounds] = True
    del risen
    at = np.flatnonzero(codes == 0)
    starts = np.flatnonzero(changes)
    tie = np.searchsorted(starts, at, side="right")
    first, last = starts[tie - 1], starts[tie]
    del starts
    owner = np.searchsorted(bounds, at, side="right") - 1
    twice, negatives = {}, {}
    for place, name in enumerate(groups, 1):
        places = np.flatnonzero(codes == place)
        before = np.searchsorted(places, bounds)  # negatives of the group before each request
        negatives[name] = np.diff(before)
        twice[name] = np.searchsorted(places, first) + np.searchsorted(places, last) - 2 * before[owner]
    return Ranked(rows[at], owner, twice, negatives)


def together(ranked: Ranked, name: str) -> Ranked:
    """The same positives against the negatives of all groups as one group of that name, without another sort."""
    twice, negatives = (np.sum(list(part.values()), axis=0) for part in (ranked.twice, ranked.negatives))
    return ranked._replace(twice={name: twice}, negatives={name: negatives})


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
    found, weight = gauc_sums(grouped)
    return found / weight if weight > 0 else float("nan")


def gauc_sums(grouped: RequestAuc) -> tuple[float, float]:
    """Numerator and denominator of `gauc`: what parts of the requests add up to the whole's."""
    return float(np.nansum(grouped.auc * grouped.weight)), float(grouped.weight.sum())


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


def _rows(scores: ArrayLike, kind: ArrayLike) -> tuple[F64, NDArray[Any]]:
    values, codes = _scores(scores), np.asarray(kind).ravel()
    if values.size != codes.size:
        raise DataError(f"{values.size} scores for {codes.size} rows: a score per row is needed, in the order of the rows")
    return values, codes


def request_rows(scores: ArrayLike, code: ArrayLike, offsets: ArrayLike) -> tuple[F64, NDArray[Any], I64]:
    """Scores [N], codes [N] and offsets [R+1] as arrays that belong together; errors are those of `rank`."""
    values, codes = _rows(scores, code)
    bounds = np.asarray(offsets, dtype=np.int64)
    if bounds.ndim != 1 or not bounds.size or bounds[0] != 0 or bounds[-1] != values.size or (np.diff(bounds) < 0).any():
        raise DataError(f"offsets must rise from 0 to the {values.size} rows; these do not, so rows and requests do not match")
    return values, codes, bounds


def _request_by_request(order: I64, lengths: I64) -> I64:
    """The rows of all requests one after another, by rising score in each.

    Sorts integers that hold the request above 32 bits and the place in the pooled order below: in place, and several times as
    fast as a lexsort of the scores. Good for 2^31 requests and 2^32 rows.
    """
    key = np.empty(order.size, dtype=np.int64)
    key[order] = np.arange(order.size)
    key += np.repeat(np.arange(lengths.size) << 32, lengths)
    key.sort()
    key &= 2**32 - 1
    return order[key]
