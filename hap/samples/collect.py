"""Collect a day: check its logs, evaluate the sample expression, write request-grouped Parquet, close the day by a manifest.

The same logs, parameters and `as_of` give the same bytes, whatever the number of threads or log files.
"""

import datetime as dt
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hap import durable
from hap.days import default_as_of, start_of
from hap.errors import DataError, UsageError
from hap.logs import contract, quarantine
from hap.logs.side import begin_staging, publish, seal, staging
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
    dry_run: bool = False,
) -> partitions.Manifest:
    """Check the day's logs and write its samples, or find them written.

    A closed day with the parameters asked for is left as it is, and rows that came since are put beside it
    (`hap.samples.late`); with other parameters, or `reopen`, it is collected anew, under a new manifest id if
    a sample differs.

    Args:
        as_of: None: what the day was closed as of, unless the label delay changed since; else its end plus that delay.
        set_aside: quarantine rows that break the contract instead of refusing the day; None: as params.yaml says.
        dry_run: do all of it but keep nothing; the manifest is what would be written.

    Raises:
        DataError: no logs for the day, or logs that break the contract; the old samples stay.
        UsageError: as_of lies outside the day and its label window, or the day is closed as of another time and `reopen`
            is not asked for.
    """
    settle(ws, day)
    asked = parameters(params)
    closed, before = partitions.find(ws, day), partitions.last(ws, day)
    as_of = _as_of(day, params, as_of, before, reopen)
    if closed and not reopen and closed.parameters == asked:
        if not dry_run:
            late.note(ws, params, closed)
        return closed
    logs = contract.day_logs(ws.logs(params), day, params.collect.label_delay_hours)
    scratch = ws.state / "collect"
    quarantine.empty_scratch(scratch)
    if set_aside is None:
        set_aside = params.logs.quarantine
    try:
        return _collect(ws, params, logs, as_of, set_aside, scratch, dry_run)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        settle(ws, day)


def _as_of(day: dt.date, params: Params, asked: dt.datetime | None, before: partitions.Manifest | None, reopen: bool) -> dt.datetime:
    """What counts was ingested by then: never after the label window, beyond which late requests would come in without their clicks."""
    delay = params.collect.label_delay_hours
    last = default_as_of(day, delay)
    if asked is None:
        kept = before is not None and before.parameters["collect"]["label_delay_hours"] == delay
        return dt.datetime.fromisoformat(before.as_of) if before and kept else last
    if not start_of(day) < asked <= last:
        raise UsageError(
            f"--as-of {asked.isoformat()} is not between the start of {day} and the end of its label window, {last.isoformat()}; "
            "collect.label_delay_hours in params.yaml sets that end for every day"
        )
    if before and not reopen and before.as_of != asked.isoformat():
        raise UsageError(f"{day} is closed as of {before.as_of}; add --reopen to collect it anew as of {asked.isoformat()}")
    return asked


def settle(ws: Workspace, day: dt.date) -> None:
    """Finish what a killed collection left undone, or drop what it had staged."""
    durable.restore_directory(partitions.folder(ws, day))
    for root in (ws.quarantine, ws.late):
        if staging(root, day).exists() and publish(root, day, partitions.fingerprint(ws, day)):
            late.forget(ws, day)


def _collect(
    ws: Workspace, params: Params, logs: contract.DayLogs, as_of: dt.datetime, set_aside: bool, scratch: Path, dry_run: bool
) -> partitions.Manifest:
    """Check and collect. The partition's marker comes last: whatever stands beside it without one is written again."""
    from hap.samples import engines  # Ibis: a day that is closed already does without it
    from hap.samples.expression import sample_table

    sources = late.sources(logs)
    with sound_tables(ws, params, logs, as_of, set_aside, scratch) as (con, tables, clean, tally, aside):
        samples = sample_table(tables, params, as_of, engines.row_count(con, tables.items))
        target = scratch / "dry-run" if dry_run else partitions.folder(ws, logs.day)
        with durable.new_directory(target) as building:
            rows = params.collect.row_group_requests
            counted = _write(engines.batches(con, samples, rows), building / "part-0.parquet", rows)
            if not counted["requests"]:
                raise DataError(f"{logs.day} holds no request with candidates ingested by {as_of.isoformat()}; check {logs.root}")
            _check_items(counted, logs, params)
            beside = begin_staging(ws.late, logs.day)
            known = {
                "gn_shortfall": _shortfall(counted, params),
                "watermark": tally.watermark.isoformat() if tally.watermark else "",
                "labels": late.labels(logs, params, as_of, scratch),
                "logged": tally.stages,
                "sources": sources,
                "quarantined": aside,
                "late": late.put_beside(beside, params, clean, as_of, scratch, [name for name, rows in tally.late.items() if rows]),
                "requests_torn": tally.requests_torn,
                "feedback_unmatched": tally.feedback_unmatched,
            }
            manifest = partitions.Manifest.of(logs.day, as_of, parameters(params), counted, known)
            durable.write_json(building / partitions.MANIFEST, manifest.to_json())
            written = hashlib.sha256((building / partitions.MANIFEST).read_bytes()).hexdigest()
            for root in () if dry_run else (ws.quarantine, ws.late):
                seal(root, logs.day, written)
            (building / "_SUCCESS").touch()
    return manifest


@contextmanager
def sound_tables(
    ws: Workspace, params: Params, logs: contract.DayLogs, as_of: dt.datetime, set_aside: bool, scratch: Path
) -> Iterator[tuple[Any, "LogTables", contract.DayLogs, contract.Tally, dict[str, dict[str, int]]]]:
    """The checked log tables as of a time, on an engine that ends with the block; the files they are read from, what was
    counted in them, and what was quarantined.

    Raises:
        DataError: logs that break the contract.
    """
    from hap.samples import engines

    clean, tally, aside = _sound_logs(ws, params, logs, as_of, set_aside, scratch)
    con = engines.connect(params, scratch)
    try:
        yield con, _log_tables(con, clean, as_of, tally, params), clean, tally, aside
    finally:
        engines.disconnect(con)


def _check_items(counted: dict[str, Any], logs: contract.DayLogs, params: Params) -> None:
    """Refuse a day whose catalogue lacks many of the items that were candidates: their features would all be missing."""
    unknown, rows = counted["items_unknown"], sum(counted["rows_by_kind"].values())
    examples = counted.pop("unknown_examples")
    if unknown > params.logs.max_unknown_share * rows:
        raise DataError(
            f"{logs.paths('items')[0]}: item absent from the catalogue of its day: {unknown:,} of {rows:,} samples "
            f"({unknown / rows:.2%}), more than logs.max_unknown_share {params.logs.max_unknown_share:.2%}; "
            f"item_id={', '.join(map(str, examples))}; write items of {logs.day} again, or raise the limit in params.yaml"
        )


def _sound_logs(
    ws: Workspace, params: Params, logs: contract.DayLogs, as_of: dt.datetime, set_aside: bool, scratch: Path
) -> tuple[contract.DayLogs, contract.Tally, dict[str, dict[str, int]]]:
    """The files to read, what was counted in them, and what was quarantined; only broken logs cost a second look."""
    try:
        return logs, contract.check_logs(logs, params, as_of, scratch), {}
    except contract.BrokenRows:
        if not set_aside:
            raise
    clean, aside = quarantine.set_aside(begin_staging(ws.quarantine, logs.day), logs, params, as_of, scratch)
    return clean, contract.check_logs(clean, params, as_of, scratch), aside


def _log_tables(con: Any, logs: contract.DayLogs, as_of: dt.datetime, tally: contract.Tally, params: Params) -> "LogTables":
    """The day's tables without the candidates and items that came after `as_of` (the expression leaves out requests and feedback).

    In complete logs a request goes with them: what is left of its candidates is no longer complete.
    """
    import ibis

    from hap.samples import engines
    from hap.samples.expression import LogTables

    tables = {name: engines.read_parquet(con, logs.paths(name), name) for name in contract.TABLES}
    if tally.requests_torn:
        candidates = tables["candidates"]
        torn = candidates.filter(candidates.ingest_time > ibis.literal(as_of)).select("request_id").distinct()
        tables["requests"] = tables["requests"].anti_join(torn, "request_id")
    for name in ("candidates", "items"):
        if tally.late[name]:
            tables[name] = tables[name].filter(tables[name].ingest_time <= ibis.literal(as_of))
    return LogTables(**tables)


def parameters(params: Params) -> dict[str, Any]:
    """Everything in params.yaml that samples depend on, as JSON values.

    What only decides whether logs are refused (`logs.quarantine`, the limits, a category's `known`) is not
    among it: sound logs give the same samples, and `--reopen` collects anew what was set aside.
    """
    machine = {"engine", "spark_master", "memory_limit", "threads"}  # change the speed, never a byte
    features = params.features.model_dump(mode="json", exclude={"history_length"})
    names = {group: [[f["name"], f["type"] == "dense"] for f in fields] for group, fields in features.items()}
    return {
        "seed": params.seed,
        "positive": params.logs.positive,
        "complete": params.logs.complete,
        "collect": params.collect.model_dump(mode="json", exclude=machine),
        "features": names,
    }


def _write(reader: pa.RecordBatchReader, path: Path, row_group_requests: int) -> dict[str, Any]:
    """Stream the rows into equal row groups; return counts and the file's hash."""
    import pyarrow.compute as pc  # slow to import, and a day that is closed already does without it

    kinds = [0] * len(KINDS)
    buckets: dict[str, int] = {}
    requests = unknown = 0
    examples: list[int] = []
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
            ages = batch["cand_age_hours"].flatten()  # of an item that the catalogue has, never null
            unknown += ages.null_count
            if ages.null_count and len(examples) < contract.EXAMPLES:
                items = batch["cand_item_id"].flatten().filter(ages.is_null()).unique().to_pylist()
                examples += [item for item in items if item not in examples][: contract.EXAMPLES - len(examples)]
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
        "items_unknown": unknown,
        "unknown_examples": examples,
        "samples_hash": digest,
    }


def _shortfall(counted: dict[str, Any], params: Params) -> int:
    """GN asked for and not found: repeats, the request's own candidates, a young or small catalogue."""
    rows = counted["rows_by_kind"]
    return int(rows["EP"] * params.collect.global_per_positive - rows["GN"])
