"""The rows that input drift compares: a drawn share of the requests of the reference days and of day D, and of their candidates.

Ids are not compared by value, since catalogue and audience turn over every day. For each id column two things are:
    NAME_seen  whether the id occurred before: day D against the last reference day, each looked up in as many days right before it
    NAME_rank  how concentrated rows are on few ids, whichever these are: ranks of ids by frequency within their own day
A dense column with nulls gets NAME_present beside it; a null category is a value of its own, "missing".
"""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hap.errors import DataError
from hap.monitoring.columns import Column, judged_columns, value_sql
from hap.params import Params
from hap.samples.order_key import order_key_sql
from hap.samples.partitions import days_before, parquet_files
from hap.workspace import Workspace

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

RANKS = (10, 100, 1000)


def sample_frames(ws: Workspace, params: Params, reference_days: Sequence[dt.date], day: dt.date) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Reference and current frame of at most `drift.max_rows` requests and as many of their candidates.

    Which ones is settled by the portable key of request and item, so reruns agree. Candidates stand beside requests in the
    same frame, the shorter side padded with nulls: Evidently reads each column alone and drops them. Columns that a
    period's samples lack are absent from its frame.

    Raises:
        NotFound: a day was not collected.
        DataError: no reference day is given, or day D is one of them.
    """
    import duckdb

    if not reference_days or day in reference_days:
        raise DataError(f"drift of {day} needs reference days other than itself; found {', '.join(map(str, reference_days)) or 'none'}")
    days = sorted(reference_days)
    with duckdb.connect(config={"memory_limit": params.collect.memory_limit, "threads": params.collect.threads}) as con:
        con.execute("SET enable_progress_bar = false")
        frames = []
        for side, last in ((days, days[-1]), ([day], day)):
            before = days_before(ws, last, len(days) - 1)
            own, earlier = ([str(path) for path in parquet_files(ws, chosen)] for chosen in (side, before))
            frames.append(_frame(con, own, earlier, str(last), params))
    return frames[0], frames[1]


def _frame(con: "duckdb.DuckDBPyConnection", files: list[str], earlier: list[str], last: str, params: Params) -> "pd.DataFrame":
    """One period's frame. `earlier` are the files in which an id of the day `last` counts as seen."""
    import pandas as pd

    limit, salt = params.drift.max_rows, f"{params.seed}|drift"
    held = _held(con, files)
    columns = [column for column in judged_columns(params.features) if column.source in held]
    source = f"read_parquet({_literal(files)}, union_by_name = true, hive_partitioning = true, hive_types = {{'day': VARCHAR}})"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE picked AS SELECT day, request_id, {order_key_sql('request_id', salt)} AS drift_key "
        f"FROM {source} ORDER BY drift_key, request_id LIMIT {limit}"
    )
    for column in columns:
        if column.role == "rank":
            _summarise_ids(con, source, earlier, last, column)
    parts = []
    for level, own in (("request", "r"), ("candidate", "c")):
        chosen = [column for column in columns if (column.level == "candidate") == (level == "candidate")]
        clusters = sorted({column.cluster for column in chosen if column.cluster and column.cluster in held})
        selected = [f'{column.sql} AS "{column.name}"' for column in chosen]
        selected += [f'CAST({own}."{name}" AS BIGINT) AS "{name}"' for name in clusters]
        if level == "request":
            rows = f"{source} r JOIN picked USING (day, request_id)"
            order = "drift_key, request_id"
        else:
            lists = sorted({column.source for column in chosen} | set(clusters))
            unnested = ", ".join(f'unnest(s."{name}") AS "{name}"' for name in lists)
            rows = (
                f"(SELECT * FROM (SELECT day, request_id, drift_key, {unnested} FROM {source} s JOIN picked USING (day, request_id)) "
                f"ORDER BY xor(drift_key, {order_key_sql('cand_item_id', salt)}), request_id, cand_item_id LIMIT {limit}) c"
            )
            order = "request_id, cand_item_id"
        for column in chosen:
            if column.role == "rank":
                table = f"{column.source}_ids"
                rows += f" LEFT JOIN {table} ON {table}.id_day = {own}.day AND {table}.id = {value_sql(column.source, column.level)}"
        parts.append(con.sql(f"SELECT {', '.join(selected)} FROM {rows} ORDER BY {order}").to_arrow_table().to_pandas())
    return pd.concat(parts, axis=1)


def _summarise_ids(con: "duckdb.DuckDBPyConnection", source: str, earlier: list[str], last: str, column: Column) -> None:
    """A table NAME_ids(id_day, id, rank, seen) over all rows of the period, not only the drawn ones.

    `seen` is null except on the day `last`, and where there is no earlier day to look into.
    """
    value = f'"{column.source}"' if column.level == "request" else f'unnest("{column.source}")'
    ranks = "CASE " + " ".join(f"WHEN place <= {edge} THEN 'top {edge}'" for edge in RANKS) + f" ELSE 'beyond {RANKS[-1]}' END"
    seen = "NULL"
    if earlier and column.source in _held(con, earlier):
        past = f"SELECT DISTINCT {value} AS id FROM read_parquet({_literal(earlier)}, union_by_name = true)"
        seen = f"CASE WHEN day <> '{last}' THEN NULL WHEN id IN (SELECT id FROM ({past})) THEN 'seen' ELSE 'new' END"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {column.source}_ids AS SELECT day AS id_day, id, {ranks} AS rank, {seen} AS seen FROM ("
        f"SELECT day, id, row_number() OVER (PARTITION BY day ORDER BY count(*) DESC, id) AS place "
        f"FROM (SELECT day, {value} AS id FROM {source}) GROUP BY day, id)"
    )


def _held(con: "duckdb.DuckDBPyConnection", files: list[str]) -> set[str]:
    """The columns that any of the files has."""
    return {row[0] for row in con.execute(f"DESCRIBE SELECT * FROM read_parquet({_literal(files)}, union_by_name = true)").fetchall()}


def _literal(files: Sequence[str]) -> str:
    return "[" + ", ".join("'" + file.replace("'", "''") + "'" for file in files) + "]"
