"""Log rows kept beside the logs: `TABLE/day=YYYY-MM-DD/part-0.parquet` and a marker, below `quarantine/` or `late/`.

A row keeps its own columns and says the file that it came from; a quarantined one says the rule, too.

While a day is collected its rows are staged beside those of the day as it was closed before, and take their place once the
new manifest stands: a killed collection leaves rows that the manifest knows, or what the next one needs to finish.
"""

import datetime as dt
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from hap import durable
from hap.errors import NotFound
from hap.logs.schema import TABLES
from hap.logs.storage import MARKER, ROW_GROUP_ROWS, day_folder

_SEAL = "sealed.json"


def side_schema(schema: pa.Schema, *more: str) -> pa.Schema:
    """A table's columns, any of which may be null here, and some columns of text."""
    return pa.schema([*(field.with_nullable(True) for field in schema), *(pa.field(name, pa.string()) for name in more)])


def write_side(root: Path, table: str, day: dt.date, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Replace one table's day in whole and return its rows."""
    rows = 0
    with durable.new_directory(_folder(root, table, day)) as building:
        with pq.ParquetWriter(building / "part-0.parquet", schema, compression="zstd", compression_level=1) as writer:
            for batch in batches:
                writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema), row_group_size=ROW_GROUP_ROWS)
                rows += batch.num_rows
        (building / MARKER).touch()
    return rows


def staging(root: Path, day: dt.date) -> Path:
    """Where the day's rows are written until its manifest stands."""
    return root / f".day={day.isoformat()}.next"


def begin_staging(root: Path, day: dt.date) -> Path:
    """The staging folder, empty."""
    shutil.rmtree(staging(root, day), ignore_errors=True)
    return staging(root, day)


def seal(root: Path, day: dt.date, manifest: str) -> None:
    """Everything is staged that belongs to a manifest (the hash of its file)."""
    staged = staging(root, day)
    durable.write_json(staged / _SEAL, {"manifest": manifest, "tables": side_tables(staged, day)})


def publish(root: Path, day: dt.date, manifest: str | None) -> bool:
    """Let what was staged for `manifest` replace the day's rows; drop what was staged for another. Returns whether there was any.

    Killed in between, it is finished by the next call.
    """
    staged = staging(root, day)
    try:
        sealed = orjson.loads((staged / _SEAL).read_bytes())
    except FileNotFoundError:
        sealed = {}
    of_manifest = manifest is not None and sealed.get("manifest") == manifest
    for table in TABLES if of_manifest else ():
        ready = _folder(staged, table, day)
        if table not in sealed["tables"] or ready.exists():  # else it was moved before a kill
            remove_side(root, table, day)
        if ready.exists():
            _folder(root, table, day).parent.mkdir(parents=True, exist_ok=True)
            os.replace(ready, _folder(root, table, day))
            durable.fsync_path(_folder(root, table, day).parent)
    shutil.rmtree(staged, ignore_errors=True)
    _drop_empty(root)
    return of_manifest


def remove_side(root: Path, table: str, day: dt.date) -> None:
    """Take one table's day away, and what a killed write left beside it."""
    folder = _folder(root, table, day)
    for leftover in (folder, folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")):
        shutil.rmtree(leftover, ignore_errors=True)
    _drop_empty(folder.parent)
    _drop_empty(root)


def _drop_empty(folder: Path) -> None:
    """An empty folder says nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def side_tables(root: Path, day: dt.date) -> list[str]:
    """The tables that have rows of the day there."""
    return [table for table in TABLES if (_folder(root, table, day) / MARKER).exists()]


def read_side(root: Path, table: str, day: dt.date) -> pa.Table:
    """The rows of one table's day, with `file` and, in quarantine, `rule`.

    Raises:
        NotFound: no row of that day lies there.
    """
    folder = _folder(root, table, day)
    if not (folder / MARKER).exists():
        there = ", ".join(side_tables(root, day)) or "none"
        raise NotFound(f"{folder} does not exist: no row of {table} was put there; tables with rows of {day} there: {there}")
    return pq.ParquetFile(folder / "part-0.parquet").read()


def _folder(root: Path, table: str, day: dt.date) -> Path:
    return Path(day_folder(root, table, day))
