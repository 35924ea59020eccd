"""A cheap proof that no candidate stands twice, for files in which the rows of a request lie together, as logs are written.

A hash table of all candidates costs more than every other check together and spills under a small memory
limit. Where the rows of each request are adjacent it is enough to look inside each run of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hap.logs.sql import unreadable
from hap.logs.storage import open_file

_KEY = ("request_id", "item_id")
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))  # odd, so that each is a bijection mod 2^64
_ROWS = 122_880


def pairs_are_unique(paths: Sequence[str]) -> bool:
    """Whether (request_id, item_id) is proved unique over the files.

    False says that nothing was proved: a request's rows are scattered, or a pair may stand twice.

    Raises:
        DataError: a file cannot be read.
    """
    seen: list[np.ndarray] = []
    for path in paths:
        try:
            with open_file(path) as file:
                runs = _runs_of_file(file)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(path, error) from None
        if runs is None:
            return False
        seen.append(runs)
    runs = np.concatenate(seen)
    return len(np.unique(runs)) == len(runs)


def _runs_of_file(file: Any) -> np.ndarray | None:
    """The request of every run of rows, in file order; None where a pair may stand twice, or a run does."""
    starts: list[np.ndarray] = []
    first_R = second_R = np.empty(0, np.uint64)  # R rows: the unfinished run at the end of a batch goes on in the next
    for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=list(_KEY), use_threads=False):
        columns = [batch[name].cast(pa.int64()) for name in _KEY]
        if any(column.null_count for column in columns):
            return None
        first_R = np.concatenate([first_R, columns[0].to_numpy().view(np.uint64)])
        second_R = np.concatenate([second_R, columns[1].to_numpy().view(np.uint64)])
        edges = np.flatnonzero(first_R[1:] != first_R[:-1]) + 1
        if not len(edges):
            continue
        whole = edges[-1]
        if _may_repeat(first_R[:whole], second_R[:whole]):
            return None
        runs = first_R[np.concatenate([[0], edges[:-1]])]
        if len(np.unique(runs)) < len(runs):
            return None
        starts.append(runs)
        first_R, second_R = first_R[whole:], second_R[whole:]
    if _may_repeat(first_R, second_R):
        return None
    return np.concatenate([*starts, first_R[:1]])


def _may_repeat(first_R: np.ndarray, second_R: np.ndarray) -> bool:
    """Whether two rows have the same 64-bit mix of their pair: true of every repeat, false alarms are rare."""
    mixed = (first_R * _MIX[0]) ^ (second_R * _MIX[1])
    mixed.sort()
    return bool((mixed[1:] == mixed[:-1]).any())
