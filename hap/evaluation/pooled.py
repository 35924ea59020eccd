"""AUC over all requests at once under drawn requests: for each group of negatives and slice of positives, from one sort.

A positive with a negative of another request is a pair here too, so a draw of requests weighs pairs by the product of two
counts, and no mean over requests gives the AUC of the draw. But positives and negatives keep their order whatever is drawn:
between neighbouring scores of positives lie the same negatives of the same requests. Those are a sparse matrix; its product
with the counts of some draws says what each draw has between, and running sums from below say what it has below each positive.
All of it counts whole numbers, so a draw's AUC is the one of its rows written out as often as they were drawn.

The gate judges GAUC, by `hap.evaluation.interval`; `hap.evaluation.delong` has an interval for pooled AUC without draws.
Letters: N rows, R requests, P positives, J distinct scores of positives, G groups of negatives, S slices, D draws.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hap.errors import DataError
from hap.evaluation.auc import F64, I64, by_score, request_rows
from hap.evaluation.interval import draw_counts
from hap.params import NEGATIVES

DRAWS, POSITIVES = 64, 2048  # weighed at a time: more do not fit the processor's cache, fewer are slowed down by Python


class Pool(NamedTuple):
    """Positives by rising score, and the negatives of each request that lie between them."""

    row: I64  # [P] where each positive lies among the rows
    owner: I64  # [P] its request
    step: I64  # [P] which of the J scores it has
    groups: tuple[str, ...]
    gained: sparse.csr_array  # [(J+1)*G, R] whole numbers, row j*G+g: 2 for each negative of g above score j-1 and below score j, and
    # 1 for each that ties with either; so running sums over j count 2 * (negatives below + negatives tied / 2)
    negatives: F64  # [G, R]


def pool_rows(scores: ArrayLike, code: ArrayLike, offsets: ArrayLike, groups: Sequence[str] = NEGATIVES, order: I64 | None = None) -> Pool:
    """Lay the rows of all requests in one order. Arguments and errors as those of `hap.evaluation.auc.rank`."""
    values, codes, bounds = request_rows(scores, code, offsets)
    rows = by_score(values) if order is None else order
    requests, width = bounds.size - 1, len(groups)
    codes = codes[rows]
    row = rows[codes == 0]
    levels, step = np.unique(values[row], return_inverse=True)
    risen = values[rows]
    starts, ends = (np.searchsorted(risen, levels, side=side) for side in ("left", "right"))
    del risen

    # Scores of positives below each row, and up to it: they differ where the row ties with a positive.
    below, upto = (np.repeat(np.arange(levels.size + 1, dtype=np.int32), np.diff(at, prepend=0, append=rows.size)) for at in (ends, starts))
    tied = upto > below
    del upto
    owner = np.repeat(np.arange(requests, dtype=np.int32), np.diff(bounds))[rows]
    of_positives, negative = owner[codes == 0].astype(np.int64), (codes > 0) & (codes <= width)
    owner, tied, codes = owner[negative], tied[negative], codes[negative]
    negatives = np.array([np.bincount(owner[codes == place], minlength=requests) for place in range(1, width + 1)], dtype=np.float64)
    cell = below[negative] * width  # the row of the matrix, once the group is added; by steps, so that few large arrays are there at once
    del below, negative
    cell += codes.astype(np.int32)
    cell -= 1
    # What ties counts half from its own score on, and whole from the next one on. The type holds what one request can have in a cell.
    value = np.full(tied.size, 2, dtype=np.min_scalar_type(2 * int(np.diff(bounds).max(initial=1))))
    value[tied] = 1
    cell = np.concatenate((cell, cell[tied] + width))
    owner = np.concatenate((owner, owner[tied]))
    value = np.concatenate((value, value[tied]))
    del tied, codes
    gained = sparse.coo_array((value, (cell, owner)), shape=((levels.size + 1) * width, requests)).tocsr()
    return Pool(row, of_positives, step, tuple(groups), gained, negatives)


def weighted(pool: Pool, counts: ArrayLike, chosen: NDArray[np.bool_] | None = None) -> dict[str, F64]:
    """AUC of the chosen positives against each group when request r is there counts[r, d] times: by group, [S, D].

    Args:
        counts: [R, D] whole numbers, not negative; ones give the AUC of the rows as they are.
        chosen: BOOL[S, P] the positives that count, in the order of `pool.row`; None takes all, as one slice.

    Raises:
        DataError: counts are not of these requests, negative or no whole numbers; chosen is not of these positives.
    """
    times, slices = np.asarray(counts), np.ones((1, pool.row.size), dtype=bool) if chosen is None else np.asarray(chosen, dtype=bool)
    if times.ndim != 2 or len(times) != pool.negatives.shape[1] or not np.issubdtype(times.dtype, np.integer) or (times < 0).any():
        raise DataError(f"counts of shape {times.shape} for {pool.negatives.shape[1]} requests: whole numbers [requests, draws] are needed")
    if slices.ndim != 2 or slices.shape[1] != pool.row.size:
        raise DataError(f"slices of shape {slices.shape} for {pool.row.size} positives: [slices, positives] is needed")
    found = np.empty((len(slices), len(pool.groups), times.shape[1]))
    for begin in range(0, times.shape[1], DRAWS):
        found[:, :, begin : begin + DRAWS] = _weigh(pool, times[:, begin : begin + DRAWS], slices)
    return {name: found[:, place] for place, name in enumerate(pool.groups)}


def bootstrap(pool: Pool, draws: int, seed: int, chosen: NDArray[np.bool_] | None = None) -> dict[str, F64]:
    """AUC of each of D draws of requests, those of `hap.evaluation.interval.resample` with that seed: by group, [S, D].

    A draw in which a slice has no positive, or a group no negative, is NaN.
    """
    found, begin = {name: np.full((1 if chosen is None else len(chosen), draws), np.nan) for name in pool.groups}, 0
    for counts in draw_counts(pool.negatives.shape[1], draws, seed, DRAWS):
        chunk = slice(begin, begin := begin + len(counts))
        for name, values in weighted(pool, counts.T, chosen).items():
            found[name][:, chunk] = values
    return found


def _weigh(pool: Pool, counts: NDArray[np.integer[Any]], slices: NDArray[np.bool_]) -> F64:
    """[S, G, D] for few draws, by blocks of positives from the lowest score up."""
    width, draws = len(pool.groups), counts.shape[1]
    negatives = pool.negatives @ counts  # [G, D]
    largest = max(2 * negatives.sum(axis=0).max(initial=0), counts.max(initial=0))  # that a sum between two scores can become
    times = np.ascontiguousarray(counts, dtype=np.float32 if largest < 2**24 else np.float64)  # single: exact so far, and faster
    in_order, mass = np.zeros((len(slices), width * draws)), np.zeros((len(slices), draws))
    sums = np.zeros((POSITIVES + 1, width * draws))  # at the last score of the block before, then at each score of this one
    done = last = 0  # scores of the blocks before, and how many the one before had
    for begin in range(0, pool.row.size, POSITIVES):
        block = slice(begin, begin + POSITIVES)
        step = pool.step[block]
        end = int(step[-1]) + 1
        sums[0] = sums[last]
        last = end - done
        sums[1 : last + 1] = (_rows_between(pool.gained, done * width, end * width) @ times).reshape(last, width * draws)
        for lower, upper in pairwise(sums[: last + 1]):  # cumsum would go down column by column, past the cache
            upper += lower
        twice = sums[step - done + 1].reshape(len(step), width, draws)
        drawn = times[pool.owner[block]].astype(np.float64)
        twice *= drawn[:, None, :]
        inside = slices[:, block].astype(np.float64)
        in_order += inside @ twice.reshape(len(step), -1)
        mass += inside @ drawn
        done = end
    pairs = 2 * mass[:, None, :] * negatives
    result = np.full(pairs.shape, np.nan)
    return np.divide(in_order.reshape(pairs.shape), pairs, out=result, where=pairs > 0)


def _rows_between(matrix: sparse.csr_array, first: int, end: int) -> sparse.csr_array:
    """Some rows of the matrix, without a copy of what is in them."""
    inner = slice(matrix.indptr[first], matrix.indptr[end])
    indptr = matrix.indptr[first : end + 1] - matrix.indptr[first]
    return sparse.csr_array((matrix.data[inner], matrix.indices[inner], indptr), shape=(end - first, matrix.shape[1]))
