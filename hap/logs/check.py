"""The log contract checked on a day's files: each refusal names file, rule, count, three examples and what to do next.

Row rules are one DuckDB scan per file. What concerns whole requests (positions, candidates without their
request) is one aggregation by request, and uniqueness is proved run by run (see `unique`), so that neither
builds a table of all candidates.
"""

import contextlib
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from hap.days import day_range, feedback_days
from hap.errors import DataError
from hap.logs.columns import check_columns
from hap.logs.rules import Rule, row_rules
from hap.logs.schema import KEYS, STAGES, TABLES
from hap.logs.sql import connect, in_time, query, quoted, scan, text
from hap.logs.storage import has_day, open_file, read_paths, unfinished_paths
from hap.logs.unique import pairs_are_unique
from hap.params import Params

if TYPE_CHECKING:
    import duckdb

EXAMPLES = 3
NEXT = "nothing was changed; mend the day and run this again, or set such rows aside with `hapctl collect --quarantine`"
FINISHED, UNFINISHED, ABSENT = "finished", "unfinished", "absent"
_EPOCH, _ALWAYS = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
_BITMAP_BYTES = 64 << 20  # what the bitmaps of positions may take in memory


class BrokenRows(DataError):
    """Rows break the contract; files and columns are sound, so the rows can be set aside."""


@dataclass(frozen=True)
class DayLogs:
    """The files that collecting a day reads, by table and partition; feedback spans the label window.

    `labels` says of each of its partitions whether it is finished, unfinished or absent.
    """

    root: str
    day: dt.date
    files: Mapping[str, Mapping[dt.date, Sequence[str]]]
    labels: Mapping[dt.date, str]

    def paths(self, table: str) -> list[str]:
        """Every file of one table."""
        return [path for paths in self.files[table].values() for path in paths]


@dataclass(frozen=True)
class Tally:
    """What a check counted on the way.

    `late` are rows ingested after as_of, `watermark` is the last ingest_time up to it, `stages` counts candidates by the last
    stage reached, and `requests_torn` are requests in time of which some candidates are late.
    """

    rows: dict[str, int]
    late: dict[str, int]
    stages: dict[str, int]
    watermark: dt.datetime | None
    requests_torn: int
    feedback_unmatched: int


def day_logs(root: str, day: dt.date, label_delay_hours: float) -> DayLogs:
    """Find the files of a day.

    Its own feedback has to be finished: nearly every click of the day lies in it. Of a later partition the first hours
    are read, and it goes on filling for the rest of its day: it is read as it stands.

    Raises:
        DataError: a table has no logs for the day.
    """
    files: dict[str, dict[dt.date, Sequence[str]]] = {
        name: {day: read_paths(root, name, day)} for name in ("requests", "candidates", "items")
    }
    found = {day: read_paths(root, "feedback", day)}
    labels = {day: FINISHED}
    for later in feedback_days(day, label_delay_hours)[1:]:
        finished = has_day(root, "feedback", later)
        paths = read_paths(root, "feedback", later) if finished else unfinished_paths(root, "feedback", later)
        labels[later] = FINISHED if finished else UNFINISHED if paths else ABSENT
        if paths:
            found[later] = paths
    return DayLogs(root, day, {**files, "feedback": found}, labels)


def check_day(logs_root: str | Path, table: str, day: dt.date, params: Params) -> int:
    """Check every rule that one table's day can break by itself (candidates: beside its requests), and return its rows.

    Raises:
        DataError: no logs for the day, or a rule is broken.
    """
    paths = read_paths(logs_root, table, day)
    with connect(params) as con:
        rows = _check_partition(con, table, day, paths, params, _ALWAYS)[0]
        _check_keys(con, table, paths)
        if table == "candidates":
            _check_requests(con, paths, read_paths(logs_root, "requests", day), params)
    return rows


def check_logs(logs: DayLogs, params: Params, as_of: dt.datetime, spill: Path | None = None) -> Tally:
    """Check every rule on the files that collecting a day reads, and on the rows that were ingested by `as_of`.

    What came later is put aside unread: else it could refuse, or change, a day that was sound when it was closed.

    Raises:
        BrokenRows: rows break a rule.
        DataError: a file is unreadable, its columns are not the contract's, or a partition is empty.
    """
    rows, late = dict.fromkeys(TABLES, 0), dict.fromkeys(TABLES, 0)
    marks: list[dt.datetime] = []
    with connect(params, spill) as con:
        for table, partitions in logs.files.items():
            for day, paths in partitions.items():
                with growing(logs.labels.get(day) == UNFINISHED and table == "feedback"):
                    # A later day's feedback is judged with that day; here it may hold nothing yet, or nothing any more.
                    found, after, mark = _check_partition(con, table, day, paths, params, as_of, may_be_empty=day != logs.day)
                rows[table] += found
                late[table] += after
                marks += [mark] if mark else []
            _check_keys(con, table, logs.paths(table), as_of if late[table] else None)
        _check_requests(con, logs.paths("candidates"), logs.paths("requests"), params, as_of if late["candidates"] else None)
        _check_exposed(con, logs, as_of if late["feedback"] else None)
        torn = _torn(con, logs, as_of) if late["candidates"] and params.logs.complete else 0
        unmatched = _unmatched_feedback(con, logs, params, as_of)
        reached = query(con, logs.paths("candidates")[0], f"SELECT stage, count(*) FROM {scan(logs.paths('candidates'))} GROUP BY stage")
    stages = {stage: dict(reached).get(stage, 0) for stage in STAGES}
    return Tally(rows, late, stages, max(marks, default=None), torn, unmatched)


@contextlib.contextmanager
def growing(grows: bool) -> Iterator[None]:
    """Say of what is wrong with a partition that it is still being written, if it is."""
    try:
        yield
    except DataError as error:
        if not grows:
            raise
        raise type(error)(f"{error} (its partition has no _SUCCESS yet: a file there may be half written)") from None


def _check_partition(
    con: "duckdb.DuckDBPyConnection",
    table: str,
    day: dt.date,
    paths: Sequence[str],
    params: Params,
    as_of: dt.datetime,
    *,
    may_be_empty: bool = False,
) -> tuple[int, int, dt.datetime | None]:
    """Rows, rows ingested after `as_of`, and the last ingest_time up to it."""
    schema = check_columns(table, paths, params)
    rules = row_rules(table, schema, day, params)
    counted = [_check_rows(con, path, table, rules, as_of) for path in paths]
    rows = sum(found for found, _, _ in counted)
    if not rows and not may_be_empty:
        raise DataError(f"{paths[0]}: empty day: {table} of {day} has 0 rows in {len(paths)} file(s); write the day again")
    return rows, sum(after for _, after, _ in counted), max((mark for _, _, mark in counted if mark), default=None)


def _check_rows(
    con: "duckdb.DuckDBPyConnection", path: str, table: str, rules: list[Rule], as_of: dt.datetime
) -> tuple[int, int, dt.datetime | None]:
    """Count every rule's violations in one scan of the file; refuse with the first broken one."""
    counts = "".join(f", count_if({rule.broken})" for rule in rules)
    limit = f"TIMESTAMPTZ '{as_of}'"
    times = f"coalesce(count_if(ingest_time > {limit}), 0), epoch_us(max(ingest_time) FILTER (ingest_time <= {limit}))"
    rows, late, mark, *broken = query(con, path, f"SELECT count(*), {times}{counts} FROM {scan([path])}")[0]
    if late and any(broken):  # perhaps the late rows alone
        broken = list(query(con, path, f"SELECT 0{counts} FROM {scan([path], until=as_of)}")[0][1:])
    bad = [(rule, count) for rule, count in zip(rules, broken, strict=True) if count]
    if not bad:
        return int(rows), int(late), None if mark is None else _EPOCH + dt.timedelta(microseconds=mark)
    rule, count = bad[0]
    shown = list(dict.fromkeys([*KEYS[table], *rule.shows]))
    columns = ", ".join(quoted(name) for name in shown)
    examples = query(
        con, path,
        f"SELECT file_row_number, {columns} FROM {scan([path], located=True, until=as_of if late else None)} "
        f"WHERE {rule.broken} ORDER BY file_row_number LIMIT {EXAMPLES}",
    )  # fmt: skip
    listed = "; ".join(f"row {row[0]}: {_pairs(shown, row[1:])}" for row in examples) or "no row to show"
    more = f" ({len(bad) - 1} more rule(s) broken)" if len(bad) > 1 else ""
    raise BrokenRows(f"{path}: {rule.name}: {count} of {rows} rows; {listed}{more}; {NEXT}")


def _check_keys(con: "duckdb.DuckDBPyConnection", table: str, paths: Sequence[str], until: dt.datetime | None = None) -> None:
    """No key stands twice, in whatever files and partitions, among the rows ingested by `until`."""
    if table == "candidates" and pairs_are_unique(paths):
        return
    key = KEYS[table]
    columns = ", ".join(key)
    repeats = f"SELECT {columns}, count(*) AS times FROM {scan(paths, until=until)} GROUP BY {columns} HAVING times > 1"
    count, surplus = query(con, paths[0], f"SELECT count(*), sum(times - 1) FROM ({repeats})")[0]
    if count:
        rows = query(con, paths[0], f"SELECT {columns}, times FROM ({repeats}) ORDER BY ALL LIMIT {EXAMPLES}")
        listed = "; ".join(f"{_pairs(list(key), row[:-1])} x{row[-1]}" for row in rows)
        where = " AND ".join(f"{name} = {value}" for name, value in zip(key, rows[0][:-1], strict=True))
        files = query(con, paths[0], f"SELECT DISTINCT filename FROM {scan(paths, located=True)} WHERE {where} ORDER BY 1")
        path = files[-1][0] if files else paths[-1]  # a damaged file may hold values that its own statistics deny
        raise BrokenRows(f"{path}: duplicate ({columns}): {surplus} surplus rows; {listed}; {NEXT}")


def position_faults(candidates: Sequence[str], requests: int) -> dict[str, str]:
    """For each stage the aggregate condition, by request, that holds where positions are not exactly 1..n.

    Bitmaps tell repeats from gaps in one pass; where a few long requests would make them large, values are
    counted instead.
    """
    names = [f"{stage}_position" for stage in STAGES]
    largest = _largest(candidates, names)
    if largest is not None and requests * largest <= 8 * _BITMAP_BYTES:
        different = f"bit_count(bitstring_agg(CASE WHEN {{0}} >= 1 THEN {{0}} END, 1, {largest}))"
    else:
        different = "count(DISTINCT {0})"
    faulty = f"count({{0}}) > 0 AND (min({{0}}) < 1 OR max({{0}}) <> count({{0}}) OR {different} <> count({{0}}))"
    return {name: f"({faulty.format(name)})" for name in names}


def _largest(paths: Sequence[str], names: Sequence[str]) -> int | None:
    """The largest value of some int columns by the files' footers, at least 1; None where a writer left statistics out."""
    largest = 1
    for path in paths:
        with open_file(path) as file:
            footer = pq.read_metadata(file)
        for group in range(footer.num_row_groups):
            for place in range(footer.num_columns):
                column = footer.row_group(group).column(place)
                if column.path_in_schema not in names:
                    continue
                found = column.statistics
                if found is None or not (found.has_min_max or found.null_count == column.num_values):
                    return None
                largest = max(largest, found.max if found.has_min_max else 1)
    return largest


def gather_faulty(
    con: "duckdb.DuckDBPyConnection", candidates: Sequence[str], requests: Sequence[str], params: Params, until: dt.datetime | None
) -> dict[str, str]:
    """Make the table `faulty`: request_id, rows, orphan, and by stage whether positions are broken; return these columns' rules.

    Args:
        until: leave out candidates ingested later and what else their requests have, since those are not collected; None: none is.
    """
    known = query(con, requests[0], f"SELECT count(*) FROM {scan(requests)}")[0][0]
    faults = position_faults(candidates, known) if params.logs.complete else {}
    columns = "".join(f", {condition} AS {name}" for name, condition in faults.items())
    broken = "".join(f" OR {name}" for name in faults)
    whole = scan(candidates, until=until)
    if until is not None and params.logs.complete:
        late = f"SELECT request_id FROM {scan(candidates)} WHERE NOT {in_time(until)} AND request_id IS NOT NULL"
        whole = f"(SELECT * FROM {whole} WHERE request_id IS NULL OR request_id NOT IN ({late}))"
    query(
        con, candidates[0],
        f"CREATE OR REPLACE TEMP TABLE faulty AS SELECT c.*, r.request_id IS NULL AS orphan "
        f"FROM (SELECT request_id, count(*) AS rows{columns} FROM {whole} GROUP BY request_id) c "
        f"LEFT JOIN (SELECT DISTINCT request_id FROM {scan(requests)}) r USING (request_id) WHERE r.request_id IS NULL{broken}",
    )  # fmt: skip
    return {name: f"position gap or repeat in {name}" for name in faults}


def _check_requests(
    con: "duckdb.DuckDBPyConnection", candidates: Sequence[str], requests: Sequence[str], params: Params, until: dt.datetime | None = None
) -> None:
    """Every candidate has its request on the same day; where logs are complete, positions of a stage are 1..n."""
    faults = gather_faulty(con, candidates, requests, params, until)
    orphans = con.execute(f"SELECT request_id, rows, sum(rows) OVER () FROM faulty WHERE orphan ORDER BY 1 LIMIT {EXAMPLES}").fetchall()
    if orphans:
        listed = "; ".join(f"request_id={row[0]} ({row[1]} candidates)" for row in orphans)
        path = _file_of(con, candidates, orphans[0][0])
        raise BrokenRows(f"{path}: candidate without request: {orphans[0][2]} rows; {listed}; {requests[0]} lacks them; {NEXT}")
    for name, rule in faults.items():
        bad = con.execute(f"SELECT request_id, count(*) OVER () FROM faulty WHERE {name} ORDER BY 1 LIMIT {EXAMPLES}").fetchall()
        if bad:
            listed = "; ".join(_positions(con, candidates, row[0], name) for row in bad)
            path = _file_of(con, candidates, bad[0][0])
            raise BrokenRows(f"{path}: {rule}: {bad[0][1]} requests; {listed}; {NEXT}")


def _positions(con: "duckdb.DuckDBPyConnection", candidates: Sequence[str], request: int, name: str) -> str:
    """What is wrong with one request's positions, in words."""
    sql = f"SELECT {name}, count(*) FROM {scan(candidates)} WHERE request_id = {request} AND {name} IS NOT NULL GROUP BY 1 ORDER BY 1"
    times = dict(query(con, candidates[0], sql))
    rows = sum(times.values())
    repeated = [position for position, count in times.items() if count > 1]
    missing = next((n for n in range(1, rows + 1) if n not in times), None)
    said = ([f"{repeated[0]} stands {times[repeated[0]]} times"] if repeated else []) + ([f"{missing} is missing"] if missing else [])
    return f"request_id={request}: {rows} rows, {' and '.join(said)}"


def _file_of(con: "duckdb.DuckDBPyConnection", paths: Sequence[str], request: int) -> str:
    sql = f"SELECT min(filename) FROM {scan(paths, located=True)} WHERE request_id = {request}"
    return str(query(con, paths[0], sql)[0][0] or paths[0])  # none where a damaged file holds values that its statistics deny


def _check_exposed(con: "duckdb.DuckDBPyConnection", logs: DayLogs, until: dt.datetime | None) -> None:
    """Feedback on the day's requests is on items that were exposed; rows of other days' requests are not judged here."""
    feedback, candidates = logs.paths("feedback"), logs.paths("candidates")
    sql = (
        f"WITH day AS (SELECT filename, file_row_number, f.request_id, f.item_id FROM {scan(feedback, located=True, until=until)} f "
        f"SEMI JOIN {scan(logs.paths('requests'))} r ON f.request_id = r.request_id), "
        f"exposed AS (SELECT request_id, item_id FROM {scan(candidates)} WHERE stage = 'exposure') "
        f"SELECT day.* FROM day ANTI JOIN exposed ON day.request_id = exposed.request_id AND day.item_id = exposed.item_id"
    )
    bad = query(con, feedback[0], f"SELECT *, count(*) OVER () FROM ({sql}) ORDER BY 1, 2 LIMIT {EXAMPLES}")
    if bad:
        listed = "; ".join(f"row {row[1]}: request_id={row[2]}, item_id={row[3]}" for row in bad)
        raise BrokenRows(f"{bad[0][0]}: feedback on an item never exposed: {bad[0][4]} rows; {listed}; {NEXT}")


def _torn(con: "duckdb.DuckDBPyConnection", logs: DayLogs, as_of: dt.datetime) -> int:
    """Requests ingested by `as_of` of which some candidates were not."""
    limit = f"TIMESTAMPTZ {text(str(as_of))}"
    sql = (
        f"SELECT count(*) FROM {scan(logs.paths('requests'))} WHERE ingest_time <= {limit} "
        f"AND request_id IN (SELECT request_id FROM {scan(logs.paths('candidates'))} WHERE ingest_time > {limit})"
    )
    return int(query(con, logs.paths("candidates")[0], sql)[0][0])


def _unmatched_feedback(con: "duckdb.DuckDBPyConnection", logs: DayLogs, params: Params, until: dt.datetime) -> int:
    """Feedback ingested by `until` whose request is in none of the logged days that could hold it.

    A later day's feedback says nothing while that day's own requests are not finished: most of it is on them.
    """
    reach = feedback_days(logs.day, params.collect.label_delay_hours)[-1] - logs.day
    con.execute("CREATE OR REPLACE TEMP TABLE known (day DATE, request_id BIGINT)")
    for day in day_range(logs.day - reach, max(logs.files["feedback"])):
        if not has_day(logs.root, "requests", day):
            continue
        try:
            requests = logs.paths("requests") if day == logs.day else read_paths(logs.root, "requests", day)
            check_columns("requests", requests, params)
            query(con, requests[0], f"INSERT INTO known SELECT DATE '{day}', request_id FROM {scan(requests)}")
        except DataError:  # another day's broken file is refused when that day is collected
            continue
    unmatched = 0
    for day, paths in logs.files["feedback"].items():
        if not has_day(logs.root, "requests", day):
            continue
        known = f"SELECT request_id FROM known WHERE day BETWEEN DATE '{day - reach}' AND DATE '{day}'"
        sql = (
            f"SELECT count(*) FROM {scan(paths)} f ANTI JOIN ({known}) k ON f.request_id = k.request_id "
            f"WHERE f.ingest_time <= TIMESTAMPTZ {text(str(until))}"
        )
        unmatched += query(con, paths[0], sql)[0][0]
    return unmatched


def _pairs(names: list[str], values: Iterable[object]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in zip(names, values, strict=True))


def _short(value: object) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(_short(v) for v in value[:4])}{', ...' if len(value) > 4 else ''}]"
    return str(value)
