"""Ways to break one day of logs, file by file, past the writer's own checks."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

DAY = dt.date(2026, 1, 1)


def part(logs: Path, table: str, day: dt.date = DAY) -> Path:
    return logs / table / f"day={day}" / "part-0.parquet"


def read(logs: Path, table: str, day: dt.date = DAY) -> pa.Table:
    return pq.read_table(part(logs, table, day), partitioning=None)


def change(logs: Path, table: str, edit: Callable[[pa.Table], pa.Table], day: dt.date = DAY) -> Path:
    """Write the day's file again after `edit`."""
    path = part(logs, table, day)
    pq.write_table(edit(pq.read_table(path, partitioning=None)), path)
    return path


def put(table: pa.Table, name: str, rows: list[int], value: object) -> pa.Table:
    """The table with `value` in some rows of one column."""
    values = table[name].to_pylist()
    for row in rows:
        values[row] = value
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, table.schema.field(name).type))


def where(table: pa.Table, **wanted: object) -> list[int]:
    """The rows whose columns have these values."""
    return [n for n, row in enumerate(table.select(list(wanted)).to_pylist()) if row == wanted]


def split(logs: Path, table: str, parts: int) -> list[Path]:
    """The day's one file as several; the rows of a request may be torn apart."""
    path = part(logs, table)
    rows = pq.read_table(path, partitioning=None)
    size = rows.num_rows // parts + 1
    paths = [path.with_name(f"part-{n}.parquet") for n in range(parts)]
    for n, piece in enumerate(paths):
        pq.write_table(rows.slice(n * size, size), piece)
    return paths
