"""DuckDB over log files: a connection with the workspace's limits, and errors that name the file."""

import contextlib
import datetime as dt
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hap.errors import ConfigError, DataError
from hap.logs.storage import filesystem, is_url
from hap.params import Params

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


@contextlib.contextmanager
def connect(params: Params, spill: Path | None = None) -> "Iterator[duckdb.DuckDBPyConnection]":
    """An in-memory DuckDB in UTC that spills into a folder of its own below `spill` (the system's, where None)."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="hap-duckdb-", dir=spill) as folder, duckdb.connect() as con:
        con.execute(f"SET memory_limit = '{params.collect.memory_limit}'; SET threads = {params.collect.threads}")
        con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false; SET preserve_insertion_order = false")
        con.execute(f"SET temp_directory = {text(folder)}")
        reach(con, params.logs.path)
        yield con


def reach(con: "duckdb.DuckDBPyConnection", logs_root: str) -> None:
    """Let DuckDB read logs behind a URL through fsspec; its own extension for that would have to be downloaded."""
    if is_url(logs_root):
        con.register_filesystem(filesystem(logs_root))


def query(con: "duckdb.DuckDBPyConnection", path: str, sql: str) -> list[tuple[Any, ...]]:
    """Run a query that reads `path` and return its rows.

    Raises:
        DataError: a page of the file cannot be decoded, which shows itself only here.
        ConfigError: the memory limit does not suffice.
    """
    with file_errors(path):
        return con.execute(sql).fetchall()


def stream(con: "duckdb.DuckDBPyConnection", path: str, sql: str, rows: int) -> "Iterator[pa.RecordBatch]":
    """Run a query that reads `path` and yield its rows in batches. Raises as `query` does."""
    with file_errors(path):
        yield from con.sql(sql).to_arrow_reader(rows)


@contextlib.contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turn what DuckDB says of a broken file into a refusal that names it. Raises as `query` does."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ConfigError(
            f"collect.memory_limit is too small for {path}: {first_line(error)}; raise it in params.yaml, or lower collect.threads"
        ) from None
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.InterruptException):
        raise  # says nothing about the file
    except (duckdb.Error, OSError) as error:  # a broken page may surface as any of its other classes
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> DataError:
    """The refusal of a file that cannot be read."""
    return DataError(f"{path}: unreadable or truncated file, 1 file of the day: {first_line(error)}; copy or write it again")


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def scan(paths: Sequence[str], located: bool = False, until: dt.datetime | None = None) -> str:
    """A FROM item over Parquet files.

    Args:
        located: add `filename` and `file_row_number` to each row.
        until: leave out the rows ingested later; one whose ingest_time is null stays.
    """
    where = ", filename = true, file_row_number = true" if located else ""
    files = f"read_parquet([{', '.join(text(path) for path in paths)}], hive_partitioning = false{where})"
    return files if until is None else f"(SELECT * FROM {files} WHERE {in_time(until)})"


def in_time(until: dt.datetime) -> str:
    """The condition that a row was ingested by `until`, or says nothing of it."""
    return f"(ingest_time IS NULL OR ingest_time <= TIMESTAMPTZ {text(str(until))})"


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return f'"{name}"'


def text(value: str) -> str:
    """A text in SQL."""
    return "'" + value.replace("'", "''") + "'"
