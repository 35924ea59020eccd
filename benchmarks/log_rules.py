"""The row rules of the candidates table: ours (one DuckDB scan) against pandera's Ibis backend on the same DuckDB.

    python benchmarks/log_rules.py --rows 10000000

Needs pandera beside the project: `pip install 'pandera[ibis]'` (0.35.0 was measured). Each engine runs in a process
of its own over the same Parquet file, once sound and once with a broken rule; CPU is user and system time of the
process without its imports, which stand beside it. What neither side of this table shows: pandera stops at one table,
so repeats across files, positions by request and rows without their request would stay SQL.
"""

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DAY = dt.date(2026, 1, 1)
PER_REQUEST = 300
MEMORY_LIMIT = "600MB"
BAD_POSITION = 7  # where a row's item_id is broken: one row of each request


def write_candidates(path: Path, rows: int, broken: bool) -> None:
    """Candidates of `rows // 300` requests that keep the contract; `broken`: an item_id below 1 in each request."""
    import duckdb

    requests = rows // PER_REQUEST
    item = "(j * 7919 + r * 104729) % 1000003 + 1"
    if broken:
        item = f"CASE WHEN j = {BAD_POSITION} THEN -4 ELSE {item} END"
    time = f"TIMESTAMPTZ '{DAY} 00:00:00+00' + to_microseconds((r * (86000000000 // {requests}))::BIGINT)"
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'; SET threads = 2; SET memory_limit = '2GB'")
        con.execute(
            f"COPY (SELECT 1000000000000 + r * 7 AS request_id, ({item})::BIGINT AS item_id, {time} AS event_time, "
            f"{time} + INTERVAL 5 SECOND AS ingest_time, CASE WHEN j < 10 THEN 'exposure' WHEN j < 20 THEN 'rerank' "
            f"WHEN j < 80 THEN 'rank' ELSE 'prerank' END AS stage, (j * 7 % {PER_REQUEST} + 1)::INT AS prerank_position, "
            f"CASE WHEN j < 80 THEN (j * 7 % 80 + 1)::INT END AS rank_position, CASE WHEN j < 20 THEN (j + 1)::INT END AS rerank_position, "
            f"CASE WHEN j < 10 THEN (j + 1)::INT END AS exposure_position "
            f"FROM (SELECT i // {PER_REQUEST} AS r, i % {PER_REQUEST} AS j FROM range({requests * PER_REQUEST}) t(i))) "
            f"TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880)"
        )


def run_ours(path: str) -> str:
    """The project's own row rules; returns the refusal, or ''."""
    from hap.errors import DataError
    from hap.logs import check
    from hap.logs.rules import row_rules
    from hap.logs.schema import table_schema
    from hap.logs.sql import connect

    params = _params()
    rules = row_rules("candidates", table_schema("candidates", params.features), DAY, params)
    with connect(params) as con:
        try:
            check._check_rows(con, path, "candidates", rules, dt.datetime(2026, 1, 2, 2, tzinfo=dt.UTC))
        except DataError as error:
            return str(error)
    return ""


def run_pandera(path: str, examples: int | None) -> str:
    """The same rules as pandera checks; `examples` limits the failing rows that it collects, None takes all of them."""
    import ibis
    import ibis.expr.datatypes as types
    import pandera.ibis as pandera
    from pandera.errors import SchemaErrors

    from hap.logs.schema import STAGES

    con = ibis.duckdb.connect(memory_limit=MEMORY_LIMIT, threads=2)
    con.raw_sql("SET TimeZone = 'UTC'")
    table = con.read_parquet(path, hive_partitioning=False)
    first, end = (ibis.literal(dt.datetime.combine(DAY + dt.timedelta(days=n), dt.time.min, dt.UTC)) for n in (0, 1))
    more: dict[str, Any] = {"n_failure_cases": examples} if examples else {}
    time = types.Timestamp(timezone="UTC", scale=6)
    columns = {
        "request_id": pandera.Column(types.int64, pandera.Check.gt(0, **more)),
        "item_id": pandera.Column(types.int64, pandera.Check.gt(0, **more)),
        "event_time": pandera.Column(time),
        "ingest_time": pandera.Column(time),
        "stage": pandera.Column(types.string, pandera.Check.isin(STAGES, **more)),
        **{f"{stage}_position": pandera.Column(types.int32, pandera.Check.ge(1, **more), nullable=True) for stage in STAGES},
    }
    checks = [
        pandera.Check(lambda d: (d.table.event_time >= first) & (d.table.event_time < end), name="event_time outside its day", **more),
        pandera.Check(lambda d: d.table.ingest_time >= d.table.event_time, name="ingest_time before event_time", **more),
    ]
    for place, stage in enumerate(STAGES):
        reached = STAGES[place:]
        column = f"{stage}_position"
        checks.append(
            pandera.Check(lambda d, c=column, r=reached: d.table[c].isnull() | d.table.stage.isin(r), name=f"{column} too far", **more)
        )
        checks.append(
            pandera.Check(lambda d, c=column, r=reached: d.table[c].notnull() | ~d.table.stage.isin(r), name=f"{column} missing", **more)
        )
    try:
        pandera.DataFrameSchema(columns, checks=checks, strict=True).validate(table, lazy=True)
    except SchemaErrors as error:
        return f"{len(error.failure_cases)} failing rows in pandas; a message of {len(str(error)):,} characters"
    return ""


ENGINES = {
    "ours": run_ours,
    "pandera": lambda path: run_pandera(path, None),
    "pandera, 3 examples": lambda path: run_pandera(path, 3),
}


def measure(engine: str, path: str) -> dict[str, Any]:
    """Run one engine in this process."""
    import duckdb  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from hap.memory import resident_mb

    if engine != "ours":
        import ibis  # noqa: F401
        import pandera.ibis  # noqa: F401
    imported = _cpu_s()
    said = ENGINES[engine](path)
    return {"cpu_s": _cpu_s() - imported, "import_cpu_s": imported, "peak_mb": resident_mb(), "said": said[:240]}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _params() -> Any:
    from hap.params import load_params
    from hap.project import project_file

    params = load_params(project_file("params.yaml"))
    return params.model_copy(update={"collect": params.collect.model_copy(update={"memory_limit": MEMORY_LIMIT, "threads": 2})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--measure", nargs=2, metavar=("ENGINE", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    versions = {name: importlib.metadata.version(name) for name in ("duckdb", "ibis-framework", "pandera", "pyarrow")}
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}, limit {MEMORY_LIMIT}, 2 threads")
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            for broken in (False, True):
                path = Path(folder) / "candidates.parquet"
                write_candidates(path, rows, broken)
                for engine in ENGINES:
                    words = [sys.executable, __file__, "--measure", engine, str(path)]
                    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
                    print(
                        f"{rows:>11,} rows  {'broken' if broken else 'sound ':<6}  {engine:<20}  {found['cpu_s']:7.2f} cpu s  "
                        f"{found['import_cpu_s']:5.2f} s import  {found['peak_mb']:6.0f} MB  {found['said'] or 'passed'}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
