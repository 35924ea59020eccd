"""The engine that evaluates the sample expression: DuckDB, in memory, with a limit it spills beyond."""

from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from hap.params import Collect


def connect(collect: Collect) -> Any:
    """An Ibis connection to an in-memory DuckDB with the workspace's limits, in UTC."""
    con = ibis.duckdb.connect(memory_limit=collect.memory_limit, threads=collect.threads)
    con.raw_sql("SET TimeZone = 'UTC'")
    con.raw_sql("SET enable_progress_bar = false")
    return con


def batches(con: Any, table: ir.Table, rows: int) -> pa.RecordBatchReader:
    """Stream the table's rows in its own order.

    Ibis 12 calls a method that DuckDB 2 dropped, so its SQL is handed to DuckDB directly; steps stay
    apart (`fuse_selects`), since fused ones repeat the sampling key's formula thousands of times.
    """
    fused = ibis.options.sql.fuse_selects
    ibis.options.sql.fuse_selects = False
    try:
        query = con.compile(table)
    finally:
        ibis.options.sql.fuse_selects = fused
    return con.con.sql(query).to_arrow_reader(rows)


def row_count(con: Any, table: ir.Table) -> int:
    """The table's number of rows."""
    return int(batches(con, table.count().as_table(), 1).read_all().column(0)[0].as_py())
