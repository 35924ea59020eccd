"""Collect a day: check its logs, evaluate the sample expression, write request-grouped Parquet, close the day by a manifest.

The same logs, parameters and `as_of` give the same bytes, whatever the number of threads or log files.
"""

import datetime as dt
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hap import durable
from hap.days import default_as_of
from hap.errors import DataError
from hap.logs import contract, quarantine
from hap.params import KINDS, Params
from hap.samples import late, partitions
from hap.workspace import Workspace

if TYPE_CHECKING:
    from hap.samples.expression import LogTables

_CODED = ["cand_kind.list.element", "cand_bucket.list.element"]


def collect_day(
    ws: Workspace,
    params: Params,
    day: dt.date,
    *,
    as_of: dt.datetime | None = None,
    reopen: bool = False,
    set_aside: bool | None = None,
) -> partitions.Manifest:
    """Check the day's logs and write its samples, or find them written.

    A closed day is left as it is when its parameters and `as_of` are the ones asked for, and rows that came
    since are put beside it (`hap.samples.late`); with other parameters, or `reopen`, it is collected anew under
    a new manifest id.

    Args:
        set_aside: quarantine rows that break the contract instead of refusing the day; None: as params.yaml says.

    Raises:
        DataError: no logs for the day, or logs that break the contract; the old samples stay.
    """
    as_of = as_of or default_as_of(day, params.collect.label_delay_hours)
    asked = parameters(params)
    closed = partitions.find(ws, day)
    if closed and not reopen and closed.parameters == asked and closed.as_of == as_of.isoformat():
        late.note(ws, params, closed)
        return closed
    logs = contract.day_logs(ws.logs(params), day, params.collect.label_delay_hours)
    scratch = ws.state / "collect"
    quarantine.empty_scratch(scratch)
    try:
        return _collect(ws, params, logs, as_of, params.logs.quarantine if set_aside is None else set_aside, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _collect(
    ws: Workspace, params: Params, logs: contract.DayLogs, as_of: dt.datetime, set_aside: bool, scratch: Path
) -> partitions.Manifest:
    """Check and collect. The partition's marker comes last: whatever stands beside it without one is written again."""
    from hap.samples import engines  # Ibis: a day that is closed already does without it
    from hap.samples.expression import sample_table

    sources = late.sources(logs)
    clean, tally, aside = _sound_logs(ws, params, logs, as_of, set_aside, scratch)
    con = engines.connect(params, scratch)
    try:
        tables = _log_tables(con, clean, as_of, tally)
        item_count = engines.row_count(con, tables.items)
        samples = sample_table(tables, params, as_of, item_count)
        with durable.new_directory(partitions.folder(ws, logs.day)) as building:
            rows = params.collect.row_group_requests
            counted = _write(engines.batches(con, samples, rows), building / "part-0.parquet", rows)
            if not counted["requests"]:
                raise DataError(f"{logs.day} holds no request with candidates ingested by {as_of.isoformat()}; check {logs.root}")
            if not aside:
                quarantine.clear(ws.quarantine, logs.day)
            known = {
                "gn_shortfall": _shortfall(counted, params),
                "watermark": tally.watermark.isoformat() if tally.watermark else "",
                "sources": sources,
                "quarantined": aside,
                "late": late.put_beside(ws, params, clean, as_of, scratch, [name for name, rows in tally.late.items() if rows]),
                "feedback_unmatched": tally.feedback_unmatched,
            }
            manifest = partitions.Manifest.of(logs.day, as_of, parameters(params), counted, known)
            durable.write_json(building / "manifest.json", manifest.to_json())
            (building / "_SUCCESS").touch()
    finally:
        engines.disconnect(con)
    return manifest


def _sound_logs(
    ws: Workspace, params: Params, logs: contract.DayLogs, as_of: dt.datetime, set_aside: bool, scratch: Path
) -> tuple[contract.DayLogs, contract.Tally, dict[str, dict[str, int]]]:
    """The files to read, what was counted in them, and what was quarantined; only broken logs cost a second look."""
    try:
        return logs, contract.check_logs(logs, params, as_of, scratch), {}
    except contract.BrokenRows:
        if not set_aside:
            raise
    clean, aside = quarantine.set_aside(ws.quarantine, logs, params, scratch)
    return clean, contract.check_logs(clean, params, as_of, scratch), aside


def _log_tables(con: Any, logs: contract.DayLogs, as_of: dt.datetime, tally: contract.Tally) -> "LogTables":
    """The day's tables without the candidates and items that came after `as_of` (the expression leaves out requests and feedback)."""
    import ibis

    from hap.samples import engines
    from hap.samples.expression import LogTables

    tables = {name: engines.read_parquet(con, logs.paths(name), name) for name in contract.TABLES}
    for name in ("candidates", "items"):
        if tally.late[name]:
            tables[name] = tables[name].filter(tables[name].ingest_time <= ibis.literal(as_of))
    return LogTables(**tables)


def parameters(params: Params) -> dict[str, Any]:
    """Everything in params.yaml that samples depend on, as JSON values.

    What only decides whether logs are refused (`logs.complete`, `logs.quarantine`, a category's `known`) is not
    among it: sound logs give the same samples, and `--reopen` collects anew what was set aside.
    """
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
    import pyarrow.compute as pc  # slow to import, and a day that is closed already does without it

    kinds = [0] * len(KINDS)
    buckets: dict[str, int] = {}
    requests = 0
    # A dictionary pays for names and codes alone; of ids and floats it makes larger files and twice the work. Every epoch
    # of every training reads these files again, so they are written for that: lz4 is larger than zstd and read much faster.
    with pq.ParquetWriter(path, reader.schema, compression="lz4", use_dictionary=_CODED) as writer:
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
