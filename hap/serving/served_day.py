"""A day of served requests (hap.serving.served_log) read a piece at a time: first who was served, then the chosen ones whole."""

import contextlib
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hap.errors import DataError
from hap.samples.order_key import order_key

_KEYS = pa.schema([("request_id", pa.int64()), ("served_at", pa.timestamp("us", "UTC")), ("version", pa.int32())])


def served_keys(folder: Path, day: dt.date) -> pa.Table:
    """request_id, served_at and version of every served request of the day, file after file; a request scored twice is there twice.

    Raises:
        DataError: a file is damaged; it is named.
    """
    tables = [_KEYS.empty_table()]
    for path in _files(folder, day):
        with _opened(path) as file:
            tables.append(file.read(columns=_KEYS.names))
    return pa.concat_tables(tables)


def last_written(folder: Path, before: dt.date, least: int, days: int) -> tuple[dt.date, int] | None:
    """The latest of the `days` days before one of which so many served requests lie there, and their number; None where there is none.

    A damaged file counts for nothing.
    """
    for day in (before - dt.timedelta(days=n) for n in range(1, days + 1)):
        number = 0
        for path in _files(folder, day):
            with contextlib.suppress(DataError), _opened(path) as file:
                number += file.metadata.num_rows
        if number >= least:
            return day, number
    return None


def chosen_requests(ids: NDArray[np.int64], most: int, salt: str) -> NDArray[np.int64]:
    """So many different ids at most, chosen by their portable hash and sorted by id."""
    different = np.unique(ids)
    keys = order_key(different, salt)
    return np.sort(different[np.argsort(keys, kind="stable")[:most]])


def stream_served(folder: Path, day: dt.date, ids: NDArray[np.int64], candidates: int) -> Iterator[pa.Table]:
    """The rows of the chosen requests, one version at a time, about so many candidates at a time.

    A row group without a chosen request is not read. What is held in memory is a row group and the rows that wait.

    Raises:
        DataError: a file is damaged; it is named.
    """
    wanted = pa.array(ids)
    waiting: list[pa.Table] = []
    for path in _files(folder, day):
        with _opened(path) as file:
            for group in range(file.num_row_groups):
                hit = pc.is_in(file.read_row_group(group, columns=["request_id"])["request_id"], wanted)
                if not pc.any(hit).as_py():
                    continue
                rows = file.read_row_group(group).filter(hit)
                if waiting and _of(rows) != _of(waiting[0]):
                    yield pa.concat_tables(waiting)
                    waiting = []
                waiting.append(rows)
                if sum(pc.sum(pc.list_value_length(table["score"])).as_py() for table in waiting) >= candidates:
                    yield pa.concat_tables(waiting)
                    waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _of(rows: pa.Table) -> tuple[int, pa.Schema]:
    """What rows that are put together share: their version, and so their columns."""
    return rows["version"][0].as_py(), rows.schema


def _files(folder: Path, day: dt.date) -> list[Path]:
    return sorted((folder / f"day={day}").glob("served-*.parquet"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A served file; what is wrong with it is told by its name."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} does not read: {str(error).splitlines()[0]}; move it away") from None
