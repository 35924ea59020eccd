"""The log contract: four tables, partitioned by the UTC day of each row's own event time, checked on load.

`logs/TABLE/day=YYYY-MM-DD/*.parquet` with an empty `_SUCCESS` beside them, written last. Which feature
columns exist is declared in params.yaml (`features`); everything else is fixed here.

The rules are SQL on DuckDB: one scan per file counts every rule's violations, and only a broken rule costs
a second look for its example rows. pandera's Ibis backend runs one query per rule, collects each failing
row in pandas, and knows neither lists, pairs of columns nor other tables.
"""

import contextlib
import datetime as dt
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hap import durable
from hap.days import parse_day, start_of
from hap.errors import ConfigError, DataError, UsageError
from hap.params import Feature, Features, Params

if TYPE_CHECKING:
    import duckdb

TABLES = ("requests", "candidates", "feedback", "items")
STAGES = ("prerank", "rank", "rerank", "exposure")  # in the order a candidate passes them
KEYS = {
    "requests": ("request_id",),
    "candidates": ("request_id", "item_id"),
    "feedback": ("request_id", "item_id"),
    "items": ("item_id",),
}
MARKER = "_SUCCESS"
TIME = pa.timestamp("us", tz="UTC")
ROW_GROUP_ROWS = 122_880  # DuckDB's own unit of parallel work
_EXAMPLES = 3


@dataclass(frozen=True)
class Rule:
    """`broken` is a SQL condition that holds on a bad row; `shows` are the columns worth printing beside the key."""

    name: str
    broken: str
    shows: tuple[str, ...]


def table_schema(table: str, features: Features) -> pa.Schema:
    """The columns of one table in order; a field that is not nullable admits no null.

    Raises:
        UsageError: there is no such table.
    """
    head = [_required("event_time", TIME), _required("ingest_time", TIME)]
    if table == "requests":
        ids = [_required("request_id", pa.int64()), *head]
        history = [_required(f"hist_{f.name}", pa.list_(_feature_type(f))) for f in logged(features.history)]
        times = [_required("hist_event_time", pa.list_(TIME))]
        return pa.schema([*ids, *(_feature_field(f) for f in features.user + features.context), *times, *history])
    if table == "candidates":
        ids = [_required("request_id", pa.int64()), _required("item_id", pa.int64()), *head]
        positions = [pa.field(f"{stage}_position", pa.int32()) for stage in STAGES]
        return pa.schema([*ids, _required("stage", pa.string()), *positions])
    if table == "feedback":
        ids = [_required("request_id", pa.int64()), _required("item_id", pa.int64()), *head]
        signals = [_required(name, pa.bool_()) for name in ("click", "like", "share")]
        return pa.schema([*ids, signals[0], pa.field("dwell_ms", pa.int64()), *signals[1:]])
    if table == "items":
        ids = [_required("item_id", pa.int64()), *head, _required("published", TIME)]
        return pa.schema([*ids, *(_feature_field(f) for f in logged(features.item) if f.name != "item_id")])
    raise UsageError(f"{table!r} is not a log table; the tables are {', '.join(TABLES)}")


def logged(features: tuple[Feature, ...]) -> tuple[Feature, ...]:
    """The features that stand in the logs: ages are computed later, from the times that are logged."""
    return tuple(feature for feature in features if feature.name != "age_hours")


def check_declared(
    features: Features, request: Sequence[str], item: Sequence[str], history: Sequence[str], source: str, hint: str = ""
) -> None:
    """Refuse declared features that a source of logs does not have.

    Raises:
        ConfigError: the first one, with what the source has.
    """
    for group, declared, known in (
        ("user or context", features.user + features.context, request),
        ("item", features.item, item),
        ("history", features.history, history),
    ):
        if unknown := [feature.name for feature in logged(declared) if feature.name not in known]:
            said = f"params.yaml declares the {group} feature {unknown[0]!r}, which {source} does not have: it has {', '.join(known)}{hint}"
            raise ConfigError(said)


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


def logged_days(logs_root: str | Path) -> list[dt.date]:
    """Days that have requests, candidates and items; feedback reaches past the last of them."""
    return sorted(set.intersection(*(set(_marked_days(logs_root, table)) for table in TABLES if table != "feedback")))


def describe_days(days: list[dt.date]) -> str:
    """A list of days in a few words."""
    if not days:
        return "none"
    return str(days[0]) if len(days) == 1 else f"{days[0]} to {days[-1]} ({len(days)} days)"


def check_day(logs_root: str | Path, table: str, day: dt.date, params: Params) -> int:
    """Check every rule on one table's day and return its rows.

    Raises:
        DataError: no logs for the day, or a rule is broken; names file, rule, count and example rows.
    """
    paths = read_paths(logs_root, table, day)
    schema = table_schema(table, params.features)
    for path in paths:
        _check_columns(path, schema)
    with _connect(params) as con:
        rules = _rules(table, schema, day, params)
        rows = sum(_check_rows(con, path, table, rules) for path in paths)
        if not rows:
            raise DataError(f"{paths[0]}: empty day: {table} of {day} has 0 rows in {len(paths)} file(s); write the day again")
        _check_unique(con, paths, KEYS[table])
        if table == "candidates":
            _check_requests_exist(con, paths, read_paths(logs_root, "requests", day))
    return rows


def _required(name: str, dtype: pa.DataType) -> pa.Field:
    return pa.field(name, dtype, nullable=False)


def _feature_type(feature: Feature) -> pa.DataType:
    return pa.float64() if feature.type == "dense" else pa.int64()


def _feature_field(feature: Feature) -> pa.Field:
    return pa.field(feature.name, _feature_type(feature), nullable=feature.type == "dense")


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


@contextlib.contextmanager
def _connect(params: Params) -> "Iterator[duckdb.DuckDBPyConnection]":
    import duckdb

    with duckdb.connect() as con:
        con.execute(f"SET memory_limit = '{params.collect.memory_limit}'; SET threads = {params.collect.threads}")
        con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        spill = Path(tempfile.gettempdir()) / f"hap-duckdb-{os.getpid()}"  # by default it would be .tmp in the current folder
        con.execute(f"SET temp_directory = {_text(str(spill))}")
        yield con


def _check_columns(path: str, schema: pa.Schema) -> None:
    """Names and types, from the file's footer alone."""
    try:
        found = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    if missing := [name for name in schema.names if name not in found.names]:
        raise DataError(
            f"{path}: missing column: {len(missing)} of {len(schema.names)} ({', '.join(missing)}); "
            f"found {', '.join(found.names)}; write the day with it, or change `features` in params.yaml"
        )
    if extra := [name for name in found.names if name not in schema.names]:
        raise DataError(
            f"{path}: extra column: {len(extra)} ({', '.join(extra)}) not declared in `features` of params.yaml; declare it or leave it out"
        )
    wrong = [f"{f.name} is {found.field(f.name).type}, not {f.type}" for f in schema if _plain(found.field(f.name).type) != _plain(f.type)]
    if wrong:
        raise DataError(f"{path}: wrong dtype: {len(wrong)} column(s): {'; '.join(wrong)}; write the day with the contract's types")


def _plain(dtype: pa.DataType) -> str:
    """A type's name without what only says how it was stored (large offsets, dictionaries, names of list elements)."""
    if pa.types.is_dictionary(dtype):
        return _plain(dtype.value_type)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return f"list<{_plain(dtype.value_type)}>"
    return "string" if pa.types.is_large_string(dtype) else str(dtype)


def _rules(table: str, schema: pa.Schema, day: dt.date, params: Params) -> list[Rule]:
    first = f"TIMESTAMPTZ '{start_of(day)}'"
    end = f"TIMESTAMPTZ '{start_of(day + dt.timedelta(days=1))}'"
    rules = [rule for field in schema for rule in _column_rules(field)]
    rules += [
        Rule(f"event_time outside its day {day}", f"event_time < {first} OR event_time >= {end}", ("event_time",)),
        Rule("ingest_time before event_time", "ingest_time < event_time", ("event_time", "ingest_time")),
    ]
    if table == "requests":
        lists = [name for name in schema.names if name.startswith("hist_") and pa.types.is_list(schema.field(name).type)]
        rules += [
            Rule(f"{name} not as long as hist_event_time", f"len({_quoted(name)}) <> len(hist_event_time)", (name,))
            for name in lists
            if name != "hist_event_time"
        ]
        rules += [
            Rule("history after the request", "list_max(hist_event_time) > event_time", ("event_time", "hist_event_time")),
            Rule("history not most recent last", "hist_event_time <> list_sort(hist_event_time)", ("hist_event_time",)),
        ]
    if table == "candidates":
        rules += _stage_rules(params.logs.complete)
    if table == "items":
        rules.append(Rule(f"published after the day {day}", f"published >= {end}", ("published",)))
    return rules


def _column_rules(field: pa.Field) -> list[Rule]:
    name, column, shows = field.name, _quoted(field.name), (field.name,)
    rules = [] if field.nullable else [Rule(f"null in {name}", f"{column} IS NULL", ())]
    values = field.type.value_type if pa.types.is_list(field.type) else field.type
    if pa.types.is_list(field.type):
        rules.append(Rule(f"null inside {name}", f"list_count({column}) <> len({column})", shows))
        low, finite = f"list_min({column})", f"isfinite(list_sum({column}))"
    else:
        low, finite = column, f"isfinite({column})"
    if pa.types.is_floating(values):
        rules.append(Rule(f"NaN or infinite value in {name}", f"NOT {finite}", shows))
    elif pa.types.is_int64(values) and name != "dwell_ms":
        rules.append(Rule(f"id 0 or negative in {name}", f"{low} <= 0", shows))
    elif name == "dwell_ms":
        rules.append(Rule("negative dwell_ms", f"{column} < 0", shows))
    return rules


def _stage_rules(complete: bool) -> list[Rule]:
    listed = ", ".join(f"'{stage}'" for stage in STAGES)
    rules = [Rule(f"stage not one of {', '.join(STAGES)}", f"stage NOT IN ({listed})", ("stage",))]
    for place, stage in enumerate(STAGES):
        name, reached = f"{stage}_position", ", ".join(f"'{s}'" for s in STAGES[place:])
        rules.append(Rule(f"{name} below 1", f"{name} < 1", ("stage", name)))
        rules.append(Rule(f"{name} in a stage not reached", f"{name} IS NOT NULL AND stage NOT IN ({reached})", ("stage", name)))
        if complete:
            rules.append(Rule(f"{name} missing in a stage reached", f"{name} IS NULL AND stage IN ({reached})", ("stage", name)))
    return rules


def _check_rows(con: "duckdb.DuckDBPyConnection", path: str, table: str, rules: list[Rule]) -> int:
    """Count every rule's violations in one scan of the file; refuse with the first broken one."""
    counts = ", ".join(f"count_if({rule.broken})" for rule in rules)
    rows, *broken = _query(con, path, f"SELECT count(*), {counts} FROM read_parquet({_text(path)})")[0]
    bad = [(rule, count) for rule, count in zip(rules, broken, strict=True) if count]
    if not bad:
        return int(rows)
    rule, count = bad[0]
    shown = list(dict.fromkeys([*KEYS[table], *rule.shows]))
    columns = ", ".join(_quoted(name) for name in shown)
    examples = _query(
        con, path,
        f"SELECT file_row_number, {columns} FROM read_parquet({_text(path)}, file_row_number = true) "
        f"WHERE {rule.broken} ORDER BY file_row_number LIMIT {_EXAMPLES}",
    )  # fmt: skip
    listed = "; ".join(f"row {row[0]}: {_pairs(shown, row[1:])}" for row in examples)
    more = f" ({len(bad) - 1} more rule(s) broken)" if len(bad) > 1 else ""
    raise DataError(f"{path}: {rule.name}: {count} of {rows} rows; {listed}{more}; nothing was changed, mend the day and run this again")


def _check_unique(con: "duckdb.DuckDBPyConnection", paths: list[str], key: tuple[str, ...]) -> None:
    columns = ", ".join(key)
    repeats = f"SELECT {columns}, count(*) AS times FROM read_parquet({_list(paths)}) GROUP BY {columns} HAVING times > 1"
    count, surplus = _query(con, paths[0], f"SELECT count(*), sum(times - 1) FROM ({repeats})")[0]
    if count:
        rows = _query(con, paths[0], f"SELECT {columns}, times FROM ({repeats}) ORDER BY ALL LIMIT {_EXAMPLES}")
        listed = "; ".join(f"{_pairs(list(key), row[:-1])} x{row[-1]}" for row in rows)
        first = rows[0]
        where = " AND ".join(f"{name} = {value}" for name, value in zip(key, first[:-1], strict=True))
        files = _query(
            con, paths[0], f"SELECT DISTINCT filename FROM read_parquet({_list(paths)}, filename = true) WHERE {where} ORDER BY 1"
        )
        raise DataError(f"{files[-1][0]}: duplicate ({columns}): {surplus} surplus rows; {listed}; write each once and run this again")


def _check_requests_exist(con: "duckdb.DuckDBPyConnection", paths: list[str], requests: list[str]) -> None:
    """Every candidate has its request on the same day."""
    orphans = (
        f"SELECT request_id, count(*) AS times, min(filename) AS file FROM read_parquet({_list(paths)}, filename = true) "
        f"GROUP BY request_id"
    )
    orphans = f"SELECT * FROM ({orphans}) ANTI JOIN read_parquet({_list(requests)}) USING (request_id)"
    rows = _query(con, requests[0], f"SELECT *, sum(times) OVER () FROM ({orphans}) ORDER BY request_id LIMIT {_EXAMPLES}")
    if rows:
        listed = "; ".join(f"request_id={row[0]} ({row[1]} candidates)" for row in rows)
        raise DataError(f"{rows[0][2]}: candidate without request: {rows[0][3]} rows; {listed}; {requests[0]} lacks them")


def _query(con: "duckdb.DuckDBPyConnection", path: str, sql: str) -> list[tuple[Any, ...]]:
    """Run a query that reads `path`; a page that cannot be decoded shows itself only here."""
    import duckdb

    try:
        return con.execute(sql).fetchall()
    except (
        duckdb.ParserException,
        duckdb.BinderException,
        duckdb.CatalogException,
        duckdb.OutOfMemoryException,
        duckdb.InterruptException,
    ):
        raise  # says nothing about the file
    except duckdb.Error as error:  # a broken page may surface as any of its other classes
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{path}: unreadable or truncated file, 1 file of the day: {reason}; copy or write it again")


def _pairs(names: list[str], values: Iterable[object]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in zip(names, values, strict=True))


def _short(value: object) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(_short(v) for v in value[:4])}{', ...' if len(value) > 4 else ''}]"
    return str(value)


def _quoted(name: str) -> str:
    return f'"{name}"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _list(paths: list[str]) -> str:
    return f"[{', '.join(_text(path) for path in paths)}]"
