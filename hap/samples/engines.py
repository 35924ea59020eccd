"""The engines that evaluate the sample expression: DuckDB here, Spark where one machine is not enough.

Both give an Ibis connection, read the same Parquet files and stream Arrow batches of one schema, so
whatever is written from them is equal byte for byte.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from hap.logs.contract import TIME
from hap.logs.sql import reach
from hap.params import Params
from hap.samples.expression import SampleTables
from hap.samples.grouping import group_batches

_REQUEST_ROWS, _CANDIDATE_ROWS = 2048, 65_536  # of a batch: about equal shares of a day, and a few MB each


def connect(params: Params, scratch: Path | None = None) -> Any:
    """An Ibis connection to the engine that `collect.engine` names, with the workspace's limits, in UTC.

    Args:
        scratch: where a query beyond its memory limit spills; the system's folder for temporary files where None.

    Raises:
        ConfigError: Spark is asked for and not installed, or does not start.
    """
    folder = _spill_folder(scratch or Path(tempfile.gettempdir()))
    try:
        con = _open(params, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    con.hap_spill = folder
    return con


def disconnect(con: Any) -> None:
    """Close the connection and remove what it spilled."""
    if con.name == "pyspark":
        from hap.samples import spark

        spark.disconnect(con)
    else:
        con.disconnect()
    shutil.rmtree(con.hap_spill, ignore_errors=True)


def _open(params: Params, folder: Path) -> Any:
    collect = params.collect
    if collect.engine == "spark":
        from hap.samples import spark

        return spark.connect(collect, folder)
    con = ibis.duckdb.connect(
        memory_limit=collect.memory_limit, threads=collect.threads, temp_directory=str(folder), preserve_insertion_order=False
    )
    con.raw_sql("SET GLOBAL TimeZone = 'UTC'")
    con.raw_sql("SET enable_progress_bar = false")
    reach(con.con, params.logs.path)
    return con


def read_parquet(con: Any, paths: list[str], name: str) -> ir.Table:
    """The files as one table called `name`."""
    if con.name == "pyspark":
        from hap.samples import spark

        spark.read_parquet(con, paths, name)
    else:  # a view that is not temporary, so that a second cursor sees it
        con.con.read_parquet(paths).create_view(name)
    return con.table(name)


def batches(con: Any, table: ir.Table | SampleTables, rows: int) -> pa.RecordBatchReader:
    """Stream the table's rows in its own order; of samples, one row per request with the candidates in lists.

    Args:
        rows: of a batch, where the engine can choose; of samples at least this many requests.
    """
    if isinstance(table, SampleTables):
        requests = _stream(con, table.requests, max(rows, _REQUEST_ROWS))
        return group_batches(requests, _stream(con, table.candidates, _CANDIDATE_ROWS))
    return _stream(con, table, rows)


def _stream(con: Any, table: ir.Table, rows: int) -> pa.RecordBatchReader:
    query, schema = _sql(con, table), arrow_schema(table)
    reader: Iterable[pa.RecordBatch]
    if con.name == "pyspark":
        from hap.samples import spark

        reader = spark.stream(con, query)
    else:
        cursor = con.con.cursor()  # of its own, since a connection streams one result at a time
        cursor.execute("SET enable_progress_bar = false")
        reader = cursor.sql(query).to_arrow_reader(rows)
    return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in reader))


def arrow_schema(table: ir.Table) -> pa.Schema:
    """The table's columns as every engine's batches have them: nullable, times in UTC microseconds."""
    return pa.schema([(name, _arrow_type(dtype.to_pyarrow())) for name, dtype in table.schema().items()])


def row_count(con: Any, table: ir.Table) -> int:
    """The table's number of rows."""
    return int(batches(con, table.count().as_table(), 1).read_all().column(0)[0].as_py())


def _arrow_type(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_list(dtype):
        return pa.list_(_arrow_type(dtype.value_type))
    return TIME if pa.types.is_timestamp(dtype) else dtype


def _sql(con: Any, table: ir.Table) -> str:
    """The expression in the engine's own SQL.

    Ibis 12 streams with a method that DuckDB 2 dropped, so its SQL is handed over directly; steps stay
    apart (`fuse_selects`), since fused ones repeat the sampling key's formula thousands of times.
    """
    fused = ibis.options.sql.fuse_selects
    ibis.options.sql.fuse_selects = False
    try:
        return str(con.compile(table))
    finally:
        ibis.options.sql.fuse_selects = fused


def _spill_folder(scratch: Path) -> Path:
    """A folder of this process; what killed ones left is removed."""
    import psutil

    scratch.mkdir(parents=True, exist_ok=True)
    for left in scratch.glob("hap-spill-*"):
        owner = left.name.removeprefix("hap-spill-").partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"hap-spill-{os.getpid()}-", dir=scratch))
