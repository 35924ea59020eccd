"""Where the logs lie, and how a day of them is written whole: `logs/TABLE/day=YYYY-MM-DD/*.parquet` and a marker, written last.

Logs are read wherever fsspec reaches (`s3://bucket/logs`, with `pip install s3fs`; credentials come from the environment, as
for every AWS client). They are written, by the simulator and the importers, only below a folder of this machine.
"""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hap import durable
from hap.days import parse_day
from hap.errors import ConfigError, DataError, HapError, UsageError
from hap.logs.schema import TABLES

MARKER = "_SUCCESS"
ROW_GROUP_ROWS = 122_880  # DuckDB's own unit of parallel work


def is_url(path: str | Path) -> bool:
    """Whether a path is one that fsspec has to reach."""
    return "://" in str(path)


def filesystem(path: str | Path) -> Any:
    """The fsspec file system that holds the path.

    Raises:
        ConfigError: no installed package reaches such a URL, or its settings do not suffice.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(str(path), use_listings_cache=False)[0]  # another process brings files while this one runs
    except (ImportError, ValueError) as error:  # fsspec names the package that is missing
        raise ConfigError(f"logs.path {path} cannot be reached: {error}") from None


def open_file(path: str) -> Any:
    """A log file, open for reading, wherever it lies."""
    return filesystem(path).open(path, "rb") if is_url(path) else open(path, "rb")


def day_folder(logs_root: str | Path, table: str, day: dt.date) -> str:
    """Where a table's day lies."""
    return f"{str(logs_root).rstrip('/')}/{table}/day={day.isoformat()}"


@contextlib.contextmanager
def day_writer(logs_root: str | Path, table: str, day: dt.date, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends rows; the day appears in whole, marked, when the block ends well.

    What stood there before is replaced. Columns are put into the schema's order; types must fit.

    Raises:
        ConfigError: the logs lie behind a URL.
    """
    if is_url(logs_root):
        raise ConfigError(f"logs.path {logs_root} is a URL: logs there are read, never written; write them into a folder of this machine")
    with durable.new_directory(Path(day_folder(logs_root, table, day))) as building:
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
    folder, files = day_folder(logs_root, table, day), filesystem(logs_root)
    with _reached(logs_root):
        if not files.exists(f"{folder}/{MARKER}"):
            state = f"{folder} has no {MARKER}" if files.exists(folder) else f"{folder} does not exist"
            raise DataError(
                f"no logs for the day {day}: {state}; days of {table} there: {describe_days(_marked_days(logs_root, table))}; "
                "bring the day in with `hapctl simulate` or `hapctl import recflow SRC`, or give another --day"
            )
        found = files.ls(folder, detail=False)  # no glob: a folder's name may hold its special characters
        paths = sorted(_named(logs_root, files, path) for path in found if _is_data(path))
    if not paths:
        raise DataError(f"{folder}: empty day: no Parquet file stands beside {MARKER}; write the day again")
    return paths


def unfinished_paths(logs_root: str | Path, table: str, day: dt.date) -> list[str]:
    """The Parquet files that stand in one table's day, marked or not, sorted; none where there is no such folder."""
    folder, files = day_folder(logs_root, table, day), filesystem(logs_root)
    with _reached(logs_root):
        found = files.ls(folder, detail=False) if files.exists(folder) else []
    return sorted(_named(logs_root, files, path) for path in found if _is_data(path))


def has_day(logs_root: str | Path, table: str, day: dt.date) -> bool:
    """Whether one table's day is finished."""
    with _reached(logs_root):
        return bool(filesystem(logs_root).exists(f"{day_folder(logs_root, table, day)}/{MARKER}"))


def table_days(logs_root: str | Path, table: str) -> list[dt.date]:
    """The finished days of one table."""
    return _marked_days(logs_root, table)


def logged_days(logs_root: str | Path) -> list[dt.date]:
    """Days that have requests, candidates and items; feedback reaches past the last of them."""
    return sorted(set.intersection(*(set(_marked_days(logs_root, table)) for table in TABLES if table != "feedback")))


def describe_days(days: list[dt.date]) -> str:
    """A list of days in a few words."""
    if not days:
        return "none"
    return str(days[0]) if len(days) == 1 else f"{days[0]} to {days[-1]} ({len(days)} days)"


def _is_data(path: str) -> bool:
    """Whether it is a file of rows; writers name what is not ready with a dot or an underscore, and Spark reads no such file."""
    return path.endswith(".parquet") and not path.rpartition("/")[2].startswith((".", "_"))


def _chain(first: pa.Table | pa.RecordBatch, rest: Iterator[pa.Table | pa.RecordBatch]) -> Iterator[pa.Table | pa.RecordBatch]:
    yield first
    yield from rest


def _marked_days(logs_root: str | Path, table: str) -> list[dt.date]:
    files = filesystem(logs_root)
    days = []
    with _reached(logs_root):
        # One listing, not a question per day: behind a URL each costs a round trip.
        for path in files.find(f"{str(logs_root).rstrip('/')}/{table}", maxdepth=2):
            folder, _, name = str(path).rpartition("/")
            partition = folder.rpartition("/")[2]
            if name != MARKER or partition.startswith("."):  # hidden: a day that was being written when its writer was killed
                continue
            try:
                days.append(parse_day(partition.removeprefix("day=")))
            except UsageError:
                raise DataError(f"{folder} is not the folder of a day; name it day=YYYY-MM-DD, or take it away") from None
    return sorted(days)


def _named(logs_root: str | Path, files: Any, found: str) -> str:
    """A path as it was listed, with its protocol where the logs lie behind a URL."""
    return str(files.unstrip_protocol(found)) if is_url(logs_root) else str(found)


@contextlib.contextmanager
def _reached(logs_root: str | Path) -> Iterator[None]:
    """Turn what a remote store says into one line that names it."""
    try:
        yield
    except HapError:
        raise
    except Exception as error:  # every store has exceptions of its own
        if not is_url(logs_root):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{logs_root} cannot be read: {said}; check the address and the credentials of the environment") from None
