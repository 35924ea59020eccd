"""Set the rows that break the log contract aside, and what falls with them, as long as they are few.

What falls with a bad row: a bad request takes its candidates and feedback along; in complete logs a bad
candidate, or a gap or repeat of positions, takes its whole request; a key that stands twice loses all its rows.
"""

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from hap.errors import DataError
from hap.logs.check import DayLogs, gather_faulty
from hap.logs.columns import check_columns
from hap.logs.rules import row_rules
from hap.logs.schema import KEYS, TABLES
from hap.logs.side import side_schema, write_side
from hap.logs.sql import connect, file_errors, query, scan, stream, text
from hap.logs.storage import ROW_GROUP_ROWS
from hap.params import Params

if TYPE_CHECKING:
    import duckdb

ORPHAN = "candidate without request"
OF_LOST_REQUEST = "feedback of a request set aside"
UNEXPOSED = "feedback on an item never exposed"
BAD_CANDIDATE = "request with a bad candidate"


FILE_NAME = "array_to_string(string_split(t.filename, '/')[-3:], '/')"  # as `file_name` gives it


def find_bad(con: "duckdb.DuckDBPyConnection", logs: DayLogs, params: Params, as_of: dt.datetime) -> dict[str, dict[str, int]]:
    """Find every row to set aside, as tables `aside_TABLE` of (filename, file_row_number, rule); return rows by table and rule.

    Rows ingested after `as_of` are late, not bad: they stay where they are and take nothing along.

    Raises:
        DataError: columns or files are broken, or more rows of a table would go than `logs.max_bad_share` admits.
    """
    rows = {table: int(query(con, paths[0], f"SELECT count(*) FROM {scan(paths, until=as_of)}")[0][0]) for table, paths in _files(logs)}
    found: dict[str, dict[str, int]] = {}
    for table in TABLES:
        _own_rules(con, logs, table, params, as_of, rows[table])
    _lost_requests(con, logs, params, as_of)
    found["requests"] = _set_aside(
        con, logs, "requests", rows, params, as_of, "l.rule", "LEFT JOIN lost l ON t.request_id = l.request_id"
    )  # fmt: skip
    found["candidates"] = _set_aside(
        con, logs, "candidates", rows, params, as_of, f"l.rule, CASE WHEN g.request_id IS NULL THEN '{ORPHAN}' END",
        "LEFT JOIN lost l ON t.request_id = l.request_id LEFT JOIN good g ON t.request_id = g.request_id",
    )  # fmt: skip
    candidates = f"{scan(logs.paths('candidates'), located=True)} c ANTI JOIN own_candidates o USING (filename, file_row_number)"
    query(
        con, logs.paths("candidates")[0],
        f"CREATE OR REPLACE TEMP TABLE exposed AS SELECT DISTINCT request_id, item_id FROM {candidates} WHERE stage = 'exposure'",
    )  # fmt: skip
    query(
        con, logs.paths("requests")[0],
        f"CREATE OR REPLACE TEMP TABLE gone AS SELECT DISTINCT request_id FROM {scan(logs.paths('requests'), located=True)} "
        f"SEMI JOIN aside_requests a USING (filename, file_row_number)",
    )  # fmt: skip
    unexposed = f"CASE WHEN g.request_id IS NOT NULL AND e.request_id IS NULL THEN '{UNEXPOSED}' END"
    found["feedback"] = _set_aside(
        con, logs, "feedback", rows, params, as_of, f"CASE WHEN d.request_id IS NOT NULL THEN '{OF_LOST_REQUEST}' END, {unexposed}",
        "LEFT JOIN gone d ON t.request_id = d.request_id LEFT JOIN good g ON t.request_id = g.request_id "
        "LEFT JOIN exposed e ON t.request_id = e.request_id AND t.item_id = e.item_id",
    )  # fmt: skip
    found["items"] = _set_aside(con, logs, "items", rows, params, as_of, "NULL", "")
    return {table: found[table] for table in TABLES if found[table]}


def _files(logs: DayLogs) -> list[tuple[str, list[str]]]:
    return [(table, logs.paths(table)) for table in TABLES]


def set_aside(root: Path, logs: DayLogs, params: Params, as_of: dt.datetime, scratch: Path) -> tuple[DayLogs, dict[str, dict[str, int]]]:
    """Write bad rows below `root` and clean copies of the tables that have some below `scratch`.

    Returns the files to read instead, and the rows set aside by table and rule.

    Raises:
        DataError: as `find_bad` does; nothing is written then.
    """
    with connect(params, scratch) as con:
        bad = find_bad(con, logs, params, as_of)
        files = dict(logs.files)
        for table in TABLES:
            if table not in bad:
                continue
            paths = logs.paths(table)
            columns = check_columns(table, paths, params)
            schema = side_schema(columns, "rule", "file")
            write_side(root, table, logs.day, schema, _rows_aside(con, table, paths, columns.names))
            files[table] = {day: [_clean_copy(con, table, path, scratch) for path in found] for day, found in logs.files[table].items()}
    return DayLogs(logs.root, logs.day, files, logs.labels), bad


def file_name(path: str) -> str:
    """A log file's name that is the same wherever the logs lie: TABLE/day=.../FILE."""
    return "/".join(Path(path).parts[-3:])


def _own_rules(con: "duckdb.DuckDBPyConnection", logs: DayLogs, table: str, params: Params, as_of: dt.datetime, rows: int) -> None:
    """Make the table `own_TABLE`: rows that break a rule by themselves, and rows whose key stands twice."""
    con.execute(f"CREATE OR REPLACE TEMP TABLE own_{table} (filename VARCHAR, file_row_number BIGINT, rule VARCHAR)")
    for day, paths in logs.files[table].items():
        schema = check_columns(table, paths, params)
        cases = " ".join(f"WHEN {rule.broken} THEN {text(rule.name)}" for rule in row_rules(table, schema, day, params))
        broken = f"SELECT filename, file_row_number, CASE {cases} END AS rule FROM {scan(paths, located=True, until=as_of)}"
        counts = query(con, paths[0], f"SELECT rule, count(*) FROM ({broken}) WHERE rule IS NOT NULL GROUP BY rule")
        _within_share(table, dict(counts), rows, params)  # before they are written down: all may be bad
        query(con, paths[0], f"INSERT INTO own_{table} SELECT * FROM ({broken}) WHERE rule IS NOT NULL")
    paths, key = logs.paths(table), ", ".join(KEYS[table])
    keyed = " AND ".join(f"{name} IS NOT NULL" for name in KEYS[table])
    twice = f"SELECT {key}, count(*) AS times FROM {scan(paths, until=as_of)} WHERE {keyed} GROUP BY {key} HAVING times > 1"
    query(con, paths[0], f"CREATE OR REPLACE TEMP TABLE twice AS {twice}")
    rule = f"duplicate ({key})"
    repeats = int(con.execute("SELECT coalesce(sum(times), 0) FROM twice").fetchall()[0][0])
    _within_share(table, {rule: repeats}, rows, params)
    query(
        con, paths[0],
        f"INSERT INTO own_{table} SELECT filename, file_row_number, {text(rule)} FROM {scan(paths, located=True, until=as_of)} "
        f"SEMI JOIN twice USING ({key}) ANTI JOIN own_{table} o USING (filename, file_row_number)",
    )  # fmt: skip


def _lost_requests(con: "duckdb.DuckDBPyConnection", logs: DayLogs, params: Params, as_of: dt.datetime) -> None:
    """Make the tables `good`, requests sound by themselves, and `lost`: those that their candidates take along, with the rule."""
    requests, candidates = logs.paths("requests"), logs.paths("candidates")
    query(
        con, requests[0],
        f"CREATE OR REPLACE TEMP TABLE good AS SELECT request_id FROM {scan(requests, located=True)} "
        f"ANTI JOIN own_requests o USING (filename, file_row_number)",
    )  # fmt: skip
    con.execute("CREATE OR REPLACE TEMP TABLE lost (request_id BIGINT, rule VARCHAR)")
    if not params.logs.complete:
        return
    faults = gather_faulty(con, candidates, requests, params, as_of)
    cases = " ".join(f"WHEN {name} THEN {text(rule)}" for name, rule in faults.items())
    query(
        con, candidates[0],
        f"INSERT INTO lost SELECT request_id, min(rule) FROM ("
        f"SELECT request_id, {text(BAD_CANDIDATE)} AS rule FROM {scan(candidates, located=True)} "
        f"SEMI JOIN own_candidates o USING (filename, file_row_number) "
        f"UNION ALL SELECT request_id, CASE {cases} END FROM faulty WHERE NOT orphan) "
        f"SEMI JOIN good USING (request_id) GROUP BY request_id",
    )  # fmt: skip


def _set_aside(
    con: "duckdb.DuckDBPyConnection",
    logs: DayLogs,
    table: str,
    rows: dict[str, int],
    params: Params,
    as_of: dt.datetime,
    rules: str,
    joins: str,
) -> dict[str, int]:
    """Make the table `aside_TABLE` of the rows in `own_TABLE` and those that `rules` names; return rows by rule."""
    paths = logs.paths(table)
    found = (
        f"SELECT t.filename, t.file_row_number, coalesce(o.rule, {rules}) AS rule FROM {scan(paths, located=True, until=as_of)} t "
        f"LEFT JOIN own_{table} o ON t.filename = o.filename AND t.file_row_number = o.file_row_number {joins}"
    )
    counts = query(con, paths[0], f"SELECT rule, count(*) FROM ({found}) WHERE rule IS NOT NULL GROUP BY rule ORDER BY rule")
    _within_share(table, dict(counts), rows[table], params)
    query(con, paths[0], f"CREATE OR REPLACE TEMP TABLE aside_{table} AS SELECT * FROM ({found}) WHERE rule IS NOT NULL")
    return dict(counts)


def _within_share(table: str, counts: dict[str, int], rows: int, params: Params) -> None:
    """Refuse more bad rows than admitted."""
    bad = sum(counts.values())
    if bad > params.logs.max_bad_share * rows:
        worst = max(sorted(counts), key=lambda rule: counts[rule])
        raise DataError(
            f"{table}: {bad:,} of {rows:,} rows ({bad / rows:.2%}) would be set aside, "
            f"more than logs.max_bad_share {params.logs.max_bad_share:.2%}; worst rule: {worst} ({counts[worst]:,} rows); "
            "nothing was changed, mend the day, or raise the limit in params.yaml"
        )


def _rows_aside(con: "duckdb.DuckDBPyConnection", table: str, paths: list[str], columns: list[str]) -> Iterator[pa.RecordBatch]:
    names = ", ".join(f't."{name}"' for name in columns)
    sql = (
        f"SELECT {names}, a.rule, {FILE_NAME} AS file "
        f"FROM {scan(paths, located=True)} t JOIN aside_{table} a USING (filename, file_row_number) ORDER BY file, t.file_row_number"
    )
    return stream(con, paths[0], sql, ROW_GROUP_ROWS)


def _clean_copy(con: "duckdb.DuckDBPyConnection", table: str, path: str, scratch: Path) -> str:
    """The file's good rows, in a file of the same name below `scratch`."""
    copy = scratch / file_name(path)
    copy.parent.mkdir(parents=True, exist_ok=True)
    sql = (
        f"SELECT t.* EXCLUDE (filename, file_row_number) FROM {scan([path], located=True)} t "
        f"ANTI JOIN aside_{table} a USING (filename, file_row_number)"
    )
    with file_errors(path):
        con.execute(f"COPY ({sql}) TO {text(str(copy))} (FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP_ROWS})")
    return str(copy)


def empty_scratch(scratch: Path) -> None:
    """An empty folder in place of what a killed run left there."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
