"""Collect a day: check its logs, evaluate the sample expression, write request-grouped Parquet, close the day by a manifest.

The same logs, parameters and `as_of` give the same bytes, whatever the number of threads or log files.
"""

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hap import durable
from hap.days import default_as_of, feedback_days
from hap.errors import DataError
from hap.logs import contract
from hap.params import KINDS, Params
from hap.samples import engines, partitions
from hap.samples.expression import LogTables, sample_table
from hap.workspace import Workspace

_CODED = ["cand_kind.list.element", "cand_bucket.list.element"]


def collect_day(
    ws: Workspace, params: Params, day: dt.date, *, as_of: dt.datetime | None = None, reopen: bool = False
) -> partitions.Manifest:
    """Check the day's logs and write its samples, or find them written.

    A closed day is left as it is when its parameters and `as_of` are the ones asked for; with other
    parameters, or `reopen`, it is collected anew under a new manifest id.

    Raises:
        DataError: no logs for the day, or logs that break the contract; the old samples stay.
    """
    as_of = as_of or default_as_of(day, params.collect.label_delay_hours)
    asked = parameters(params)
    closed = partitions.find(ws, day)
    if closed and not reopen and closed.parameters == asked and closed.as_of == as_of.isoformat():
        return closed
    root = ws.logs(params)
    for name in ("requests", "candidates", "items"):
        contract.check_day(root, name, day, params)
    logged = contract.logged_days(root)
    labels = [d for d in feedback_days(day, params.collect.label_delay_hours) if _has_partition(root, "feedback", d)]
    if not labels:
        raise DataError(f"no feedback is logged for {day} or after it in {root}, so no click can be known; days logged: {_span(logged)}")
    for label_day in labels:
        contract.check_day(root, "feedback", label_day, params)

    con = engines.connect(params.collect, ws.state)
    try:
        logs = LogTables(
            engines.read_parquet(con, contract.read_paths(root, "requests", day), "requests"),
            engines.read_parquet(con, contract.read_paths(root, "candidates", day), "candidates"),
            engines.read_parquet(con, [p for d in labels for p in contract.read_paths(root, "feedback", d)], "feedback"),
            engines.read_parquet(con, contract.read_paths(root, "items", day), "items"),
        )
        item_count = engines.row_count(con, logs.items)
        samples = sample_table(logs, params, as_of, item_count)
        with durable.new_directory(partitions.folder(ws, day)) as building:
            rows = params.collect.row_group_requests
            counted = _write(engines.batches(con, samples, rows), building / "part-0.parquet", rows)
            if not counted["requests"]:
                raise DataError(f"{day} holds no request with candidates ingested by {as_of.isoformat()}; check {root}")
            manifest = partitions.Manifest.of(day, as_of, asked, counted, _shortfall(counted, params))
            durable.write_json(building / "manifest.json", manifest.to_json())
            (building / "_SUCCESS").touch()
    finally:
        engines.disconnect(con)
    return manifest


def parameters(params: Params) -> dict[str, Any]:
    """Everything in params.yaml that samples depend on, as JSON values."""
    machine = {"engine", "spark_master", "memory_limit", "threads"}  # change the speed, never a byte
    features = params.features.model_dump(mode="json", exclude={"history_length"})
    names = {group: [[f["name"], f["type"] == "dense"] for f in fields] for group, fields in features.items()}
    return {
        "seed": params.seed,
        "positive": params.logs.positive,
        "collect": params.collect.model_dump(mode="json", exclude=machine),
        "features": names,
    }


def _write(reader: pa.RecordBatchReader, path: Path, row_group_requests: int) -> dict[str, Any]:
    """Stream the rows into equal row groups; return counts and the file's hash."""
    kinds = [0] * len(KINDS)
    buckets: dict[str, int] = {}
    requests = 0
    # A dictionary pays for names and codes alone; of ids and floats it makes larger files and twice the work.
    with pq.ParquetWriter(path, reader.schema, compression="zstd", use_dictionary=_CODED) as writer:
        pending: list[pa.RecordBatch] = []
        waiting = 0

        def flush(limit: int) -> None:
            nonlocal pending, waiting
            table = pa.Table.from_batches(pending, reader.schema)
            while table.num_rows >= limit and table.num_rows:
                writer.write_table(table.slice(0, row_group_requests).combine_chunks(), row_group_size=row_group_requests)
                table = table.slice(row_group_requests)
            pending, waiting = table.to_batches(), table.num_rows

        for batch in reader:
            requests += batch.num_rows
            for value in pc.value_counts(batch["cand_kind"].flatten()).to_pylist():
                kinds[value["values"]] += value["counts"]
            for value in pc.value_counts(batch["cand_bucket"].flatten()).to_pylist():
                buckets[value["values"]] = buckets.get(value["values"], 0) + value["counts"]
            pending.append(batch)
            waiting += batch.num_rows
            if waiting >= row_group_requests:
                flush(row_group_requests)
        flush(1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "requests": requests,
        "rows_by_kind": dict(zip(KINDS, kinds, strict=True)),
        "rows_by_bucket": dict(sorted(buckets.items())),
        "samples_hash": digest,
    }


def _shortfall(counted: dict[str, Any], params: Params) -> int:
    """GN asked for and not found: repeats, the request's own candidates, a young or small catalogue."""
    rows = counted["rows_by_kind"]
    return int(rows["EP"] * params.collect.global_per_positive - rows["GN"])


def _has_partition(root: str, table: str, day: dt.date) -> bool:
    try:
        contract.read_paths(root, table, day)
    except DataError:
        return False
    return True


def _span(days: list[dt.date]) -> str:
    return f"{days[0]} to {days[-1]}" if days else "none"
