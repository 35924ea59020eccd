"""Late rows: ingested after a day's as_of, or in log files that appeared or changed after the day was closed.

A closed day is never touched by them. They are counted and copied to `late/TABLE/day=D/`, and `collect --reopen`
takes in those that were ingested by as_of.

A later day's feedback is read while it is still being written, and its writer may put the same rows into other files before
it is finished. So of such a day the manifest keeps what its rows were, and equal rows are not late whatever file they are in.
"""

import datetime as dt
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from hap import durable
from hap.days import feedback_days
from hap.logs import contract
from hap.logs.check import growing
from hap.logs.columns import check_columns
from hap.logs.quarantine import FILE_NAME, empty_scratch, file_name
from hap.logs.side import remove_side, side_schema, write_side
from hap.logs.sql import connect, query, quoted, scan, stream, text, unreadable
from hap.params import Params
from hap.samples.partitions import Manifest
from hap.workspace import Workspace

if TYPE_CHECKING:
    import duckdb

_FOOTER_TAIL_BYTES = 8  # Parquet ends with the footer's length and a magic word


@dataclass(frozen=True)
class Found:
    """Late rows that came after closing: rows by table, and how many of all were ingested by as_of."""

    rows: dict[str, int]
    by_as_of: int

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def sources(logs: contract.DayLogs) -> list[dict[str, Any]]:
    """Name, bytes, rows and footer of every log file of a day, from listing and footers alone.

    The footer's hash tells a file that was written again with as many rows and bytes.

    Raises:
        DataError: a file is unreadable.
    """
    found = []
    for table in contract.TABLES:
        for day, paths in logs.files[table].items():
            with growing(logs.labels.get(day) == contract.UNFINISHED and table == "feedback"):
                found += [_source(path) for path in paths]
    return found


def labels(logs: contract.DayLogs, params: Params, as_of: dt.datetime, scratch: Path) -> dict[str, dict[str, Any]]:
    """For each day of feedback whether it is finished, unfinished or absent; of a later one also how many of its rows
    count for the day, and a digest of them that does not depend on files or order.

    Raises:
        DataError: a file is damaged.
    """
    told: dict[str, dict[str, Any]] = {str(day): {"state": state} for day, state in logs.labels.items()}
    later = {day: paths for day, paths in logs.files["feedback"].items() if day != logs.day}
    if later:
        with connect(params, scratch) as con:
            for day, paths in later.items():
                told[str(day)] |= _rows_that_count(con, paths, logs.paths("requests"), params, as_of)
    return told


def _rows_that_count(
    con: "duckdb.DuckDBPyConnection", feedback: Sequence[str], requests: Sequence[str], params: Params, as_of: dt.datetime
) -> dict[str, Any]:
    columns = f"request_id, item_id, epoch_us(ingest_time), {quoted(params.logs.positive)}"
    sql = (
        f"SELECT count(*), bit_xor(md5_number_lower(concat_ws(',', {columns}))) FROM {scan(feedback, until=as_of)} "
        f"WHERE request_id IN (SELECT request_id FROM {scan(requests)})"
    )
    rows, digest = query(con, feedback[0], sql)[0]
    return {"rows": int(rows), "digest": f"{digest or 0:016x}"}


def note(ws: Workspace, params: Params, closed: Manifest) -> None:
    """Put what came since a day was closed beside it; a day whose files are the same costs a listing.

    Raises:
        DataError: a file that came since is unreadable, or its columns are not the contract's.
    """
    if not closed.sources:
        return  # closed before they were kept: nothing to compare with
    day = dt.date.fromisoformat(closed.day)
    logs = _listed(ws.logs(params), day, params.collect.label_delay_hours)
    now = sources(logs)
    seen = _seen(ws, day)
    looked_at = seen["sources"] if seen is not None and seen["manifest"] == closed.id else closed.sources
    if all(source in looked_at for source in now):  # files that are gone bring nothing
        return
    names = {source["file"] for source in now if source in closed.sources}
    changed = [path for table in contract.TABLES for path in logs.paths(table) if file_name(path) not in names]
    as_of = dt.datetime.fromisoformat(closed.as_of)
    scratch = ws.state / "collect"
    empty_scratch(scratch)
    try:
        with connect(params, scratch) as con:
            for label, paths in logs.files["feedback"].items():
                if label != day and logs.paths("requests") and _same_rows(con, closed, label, paths, logs, params, as_of):
                    changed = [path for path in changed if path not in paths]
            tables = [table for table in contract.TABLES if logs.paths(table)]  # of logs that expired the late rows stay
            rows, by_as_of = _write(con, ws.late, params, logs, as_of, tables, changed)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    durable.write_json(_seen_file(ws, day), {"manifest": closed.id, "sources": now, "rows": rows, "by_as_of": by_as_of})


def _same_rows(
    con: "duckdb.DuckDBPyConnection",
    closed: Manifest,
    label: dt.date,
    paths: Sequence[str],
    logs: contract.DayLogs,
    params: Params,
    as_of: dt.datetime,
) -> bool:
    """Whether a later day's feedback holds, in whatever files, the rows that it held when the day was closed."""
    told = closed.labels.get(str(label), {})
    check_columns("feedback", paths, params)
    now = _rows_that_count(con, paths, logs.paths("requests"), params, as_of)
    return (told.get("rows", 0), told.get("digest", f"{0:016x}")) == (now["rows"], now["digest"])


def put_beside(
    root: Path, params: Params, logs: contract.DayLogs, as_of: dt.datetime, scratch: Path, tables: Iterable[str]
) -> dict[str, int]:
    """While a day is collected: copy the late rows of `tables` below `root`, and count them by table."""
    chosen = list(tables)
    if not chosen:
        return {}
    with connect(params, scratch) as con:
        return _write(con, root, params, logs, as_of, chosen, [])[0]


def forget(ws: Workspace, day: dt.date) -> None:
    """What came since the day was closed is no longer news: it is collected anew."""
    _seen_file(ws, day).unlink(missing_ok=True)


def find(ws: Workspace, day: dt.date) -> Found | None:
    """What came after the day was closed, or None where nothing did."""
    seen = _seen(ws, day)
    return Found(seen["rows"], seen["by_as_of"]) if seen and seen["rows"] else None


def _write(
    con: "duckdb.DuckDBPyConnection",
    root: Path,
    params: Params,
    logs: contract.DayLogs,
    as_of: dt.datetime,
    tables: Iterable[str],
    changed: list[str],
) -> tuple[dict[str, int], int]:
    """Replace the late rows of `tables` below `root`; return rows by table, and how many were ingested by `as_of`."""
    limit = f"TIMESTAMPTZ {text(str(as_of))}"
    counted: dict[str, int] = {}
    by_as_of = 0
    for table in tables:
        paths = logs.paths(table)
        where = f"(t.ingest_time > {limit}{''.join(f' OR t.filename = {text(path)}' for path in changed if path in paths)})"
        if table == "feedback":  # its partitions hold the labels of other days' requests, too
            where += (
                f" AND t.request_id IN (SELECT request_id FROM {scan(logs.paths('requests'))})" if logs.paths("requests") else " AND false"
            )
        rows, early = 0, 0
        if paths:
            columns = check_columns(table, paths, params)
            rows, early = query(
                con,
                paths[0],
                f"SELECT count(*), coalesce(count_if(t.ingest_time <= {limit}), 0) FROM {scan(paths, located=True)} t WHERE {where}",
            )[0]
        if not rows:
            remove_side(root, table, logs.day)
            continue
        write_side(root, table, logs.day, side_schema(columns, "file"), _late_rows(con, paths, columns.names, where))
        counted[table] = int(rows)
        by_as_of += int(early)
    return counted, by_as_of


def _late_rows(con: "duckdb.DuckDBPyConnection", paths: list[str], columns: list[str], where: str) -> Iterator[pa.RecordBatch]:
    names = ", ".join(f't."{name}"' for name in columns)
    sql = f"SELECT {names}, {FILE_NAME} AS file FROM {scan(paths, located=True)} t WHERE {where} ORDER BY file, t.file_row_number"
    return stream(con, paths[0], sql, contract.ROW_GROUP_ROWS)


def _listed(root: str, day: dt.date, label_delay_hours: float) -> contract.DayLogs:
    """The day's files as far as they are still there: a closed day does not need them.

    A later day's feedback counts once it is finished. Until then its files come and go, and may be half written.
    """
    files: dict[str, dict[dt.date, list[str]]] = {}
    for table in contract.TABLES:
        files[table] = {day: contract.read_paths(root, table, day)} if contract.has_day(root, table, day) else {}
    for later in feedback_days(day, label_delay_hours)[1:]:
        if contract.has_day(root, "feedback", later):
            files["feedback"][later] = contract.read_paths(root, "feedback", later)
    return contract.DayLogs(root, day, files, {})


def _source(path: str) -> dict[str, Any]:
    try:
        with contract.open_file(path) as handle:
            rows = pq.read_metadata(handle).num_rows
            size = handle.seek(0, os.SEEK_END)
            handle.seek(size - _FOOTER_TAIL_BYTES)
            length = int.from_bytes(handle.read(4), "little")
            handle.seek(size - _FOOTER_TAIL_BYTES - length)
            footer = hashlib.sha256(handle.read(length)).hexdigest()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from None
    return {"file": file_name(path), "bytes": size, "rows": rows, "footer": footer[:16]}


def _seen_file(ws: Workspace, day: dt.date) -> Path:
    """What the last look at a closed day's logs found."""
    return ws.late / f"day={day.isoformat()}.json"


def _seen(ws: Workspace, day: dt.date) -> dict[str, Any] | None:
    try:
        seen: dict[str, Any] = orjson.loads(_seen_file(ws, day).read_bytes())
    except FileNotFoundError:
        return None
    return seen
