"""Where the logs lie, and how a day of them is written whole: `logs/TABLE/day=YYYY-MM-DD/*.parquet` and a marker, written last."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hap import durable
from hap.days import parse_day
from hap.errors import ConfigError, DataError, UsageError
from hap.logs.schema import TABLES

MARKER = "_SUCCESS"
ROW_GROUP_ROWS = 122_880  # DuckDB's own unit of parallel work


def day_folder(logs_root: str | Path, table: str, day: dt.date) -> Path:
    """Where a table's day lies.

    Raises:
        ConfigError: the logs lie behind a URL.
    """
    if "://" in str(logs_root):
        raise ConfigError(f"logs.path {logs_root} is a URL; give a folder of this machine, for example `path: logs`")
    return Path(logs_root) / table / f"day={day.isoformat()}"


@contextlib.contextmanager
def day_writer(logs_root: str | Path, table: str, day: dt.date, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends rows; the day appears in whole, marked, when the block ends well.

    What stood there before is replaced. Columns are put into the schema's order; types must fit.
    """
    with durable.new_directory(day_folder(logs_root, table, day)) as building:
        with pq.ParquetWriter(building / "part-0.parquet", schema, compression="zstd", compression_level=1) as writer:

            def append(rows: pa.Table) -> None:
                writer.write_table(rows.select(schema.names).cast(schema), row_group_size=ROW_GROUP_ROWS)

            yield append
        (building / MARKER).touch()


def write_day(logs_root: str | Path, table: str, day: dt.date, rows: pa.Table | Iterable[pa.Table | pa.RecordBatch]) -> int:
    """Write one table's day (a table, or a stream of tables or batches) and return its rows.

    Raises:
        DataError: there is nothing to write.
    """
    stream = iter([rows] if isinstance(rows, pa.Table) else rows)
    first = next(stream, None)
    if first is None:
        raise DataError(f"nothing to write for {table} of {day}: an empty day is not a partition")
    written = 0
    with day_writer(logs_root, table, day, first.schema) as append:
        for part in _chain(first, stream):
            append(pa.Table.from_batches([part]) if isinstance(part, pa.RecordBatch) else part)
            written += part.num_rows
    return written


def read_paths(logs_root: str | Path, table: str, day: dt.date) -> list[str]:
    """The Parquet files of one table's finished day, sorted.

    Raises:
        DataError: the day has no finished partition.
    """
    folder = day_folder(logs_root, table, day)
    if not (folder / MARKER).exists():
        state = f"{folder} has no {MARKER}" if folder.exists() else f"{folder} does not exist"
        raise DataError(
            f"no logs for the day {day}: {state}; days of {table} there: {describe_days(_marked_days(logs_root, table))}; "
            "bring the day in with `hapctl simulate` or `hapctl import recflow SRC`, or give another --day"
        )
    paths = sorted(str(path) for path in folder.glob("*.parquet"))
    if not paths:
        raise DataError(f"{folder}: empty day: no Parquet file stands beside {MARKER}; write the day again")
    return paths


def has_day(logs_root: str | Path, table: str, day: dt.date) -> bool:
    """Whether one table's day is finished."""
    return (day_folder(logs_root, table, day) / MARKER).exists()


def logged_days(logs_root: str | Path) -> list[dt.date]:
    """Days that have requests, candidates and items; feedback reaches past the last of them."""
    return sorted(set.intersection(*(set(_marked_days(logs_root, table)) for table in TABLES if table != "feedback")))


def describe_days(days: list[dt.date]) -> str:
    """A list of days in a few words."""
    if not days:
        return "none"
    return str(days[0]) if len(days) == 1 else f"{days[0]} to {days[-1]} ({len(days)} days)"


def _chain(first: pa.Table | pa.RecordBatch, rest: Iterator[pa.Table | pa.RecordBatch]) -> Iterator[pa.Table | pa.RecordBatch]:
    yield first
    yield from rest


def _marked_days(logs_root: str | Path, table: str) -> list[dt.date]:
    days = []
    for folder in day_folder(logs_root, table, dt.date.min).parent.glob("day=*"):
        if (folder / MARKER).exists():
            try:
                days.append(parse_day(folder.name.removeprefix("day=")))
            except UsageError:
                raise DataError(f"{folder} is not the folder of a day; name it day=YYYY-MM-DD, or take it away") from None
    return sorted(days)
