"""One day's logs become samples: one Ibis expression, written as request-grouped Parquet.

Every exposure, and negatives drawn from the rest of the complete request by the portable key
(hap.md, "The samples"; contracts.md, "Samples"). The same logs, parameters and `as_of` give the
same bytes, whatever the number of threads or log files.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hap import durable
from hap.days import default_as_of, feedback_days
from hap.errors import DataError
from hap.logs import contract
from hap.params import KINDS, Params
from hap.samples import difficulty, engines, partitions
from hap.samples.ages import age_hours
from hap.samples.order_key import with_order_key
from hap.workspace import Workspace

SPARE_DRAWS = 16  # drawn beyond 2 * EP, since some draws repeat or hit the request's own candidates


@dataclass(frozen=True)
class LogTables:
    """The four log tables of a day as Ibis tables; `feedback` spans the label window's partitions."""

    requests: ir.Table
    candidates: ir.Table
    feedback: ir.Table
    items: ir.Table


def sample_table(logs: LogTables, params: Params, as_of: dt.datetime, item_count: int) -> ir.Table:
    """The day's samples: one row per request, candidates as equally long lists, ordered by request_id.

    Args:
        item_count: rows of `logs.items`; a literal, since a sub-query in its place multiplies the cost.
    """
    requests = logs.requests.filter(logs.requests.ingest_time <= ibis.literal(as_of))
    labelled = _labelled(logs, requests, params, as_of)
    chosen = _chosen(labelled, params)
    with_positive = chosen.filter(chosen.kind == difficulty.EP)
    rows = chosen.union(_global_negatives(with_positive, requests, logs, params, item_count))
    if params.collect.requests_without_positive == "drop":
        rows = rows.semi_join(with_positive, "request_id")
    return _grouped(rows, requests, logs.items, params)


def _labelled(logs: LogTables, requests: ir.Table, params: Params, as_of: dt.datetime) -> ir.Table:
    """request_id, item_id, kind, position, list_length of every logged candidate."""
    feedback = logs.feedback
    clicks = feedback.filter(feedback[params.logs.positive] & (feedback.ingest_time <= ibis.literal(as_of)))
    clicks = clicks.select("request_id", "item_id", positive=ibis.literal(True)).distinct()
    rows = logs.candidates.semi_join(requests, "request_id").left_join(clicks, ["request_id", "item_id"])
    rows = rows.select(
        "request_id", "item_id", "exposure_position", "rank_position", "prerank_position",
        kind=difficulty.kind_of(rows.stage, rows.positive.fill_null(False)),
    )  # fmt: skip
    position = ibis.cases(
        (rows.kind <= difficulty.EN, rows.exposure_position),
        (rows.kind == difficulty.RN, rows.rank_position),
        else_=rows.prerank_position,
    ).cast("int32")
    if difficulty.uses_shares(params.collect):
        per_request = ibis.window(group_by="request_id")
        length = ibis.cases(
            (rows.kind == difficulty.RN, rows.rank_position.max().over(per_request)),
            else_=rows.prerank_position.max().over(per_request),
        )
        return rows.select("request_id", "item_id", "kind", position=position, list_length=length)
    return rows.select("request_id", "item_id", "kind", position=position)


def _chosen(labelled: ir.Table, params: Params) -> ir.Table:
    """Exposures and the drawn RN and PRN: request_id, item_id, kind, bucket, position."""
    collect = params.collect
    length = labelled.list_length if "list_length" in labelled.columns else None
    rows = labelled.filter(difficulty.in_window(labelled.kind, labelled.position, length, collect))
    length = rows.list_length if "list_length" in rows.columns else None
    salt = f"{params.seed}|negatives"
    rows = rows.mutate(bucket=difficulty.bucket_of(rows.kind, rows.position, length, collect))
    rows = with_order_key(with_order_key(rows, "mix", "request_id", salt), "draw", "item_id", salt, mix="mix")
    place = ibis.row_number().over(group_by=["request_id", "kind"], order_by=["draw", "item_id"])
    rows = rows.mutate(place=place)
    limits = {difficulty.EP: collect.max_positives}
    limits |= {code: window.count for code, window in difficulty.windows(collect).items() if window.count is not None}
    over = ibis.literal(False)
    for code, limit in limits.items():
        over = over | ((rows.kind == code) & (rows.place >= limit))
    return rows.filter(~over).select("request_id", "item_id", "kind", "bucket", "position")


def _global_negatives(positives: ir.Table, requests: ir.Table, logs: LogTables, params: Params, item_count: int) -> ir.Table:
    """GN: for each request, 2 items per positive from the day's catalogue, published before it, not among its candidates."""
    per_positive = params.collect.global_per_positive
    salt = f"{params.seed}|global"
    counts = positives.group_by("request_id").agg(wanted=(positives.count() * per_positive).cast("int64"))
    counts = counts.join(requests.select("request_id", "event_time"), "request_id")
    draws = counts.mutate(draw=ibis.range(1, counts.wanted + SPARE_DRAWS + 1).unnest().cast("int64"))
    draws = with_order_key(with_order_key(draws, "mix", "request_id", salt), "key", "draw", salt, mix="mix")
    draws = draws.mutate(place=draws.key % max(item_count, 1))
    pool = logs.items.select("item_id", "published", place=ibis.row_number().over(order_by="item_id").cast("int64"))
    hits = draws.join(pool, "place")
    hits = hits.filter(hits.published < hits.event_time)
    own = logs.candidates.select("request_id", "item_id")
    hits = hits.select("request_id", "item_id", "draw", "wanted").anti_join(own, ["request_id", "item_id"])
    first = hits.group_by(["request_id", "item_id"]).agg(draw=hits.draw.min(), wanted=hits.wanted.max())
    first = first.mutate(order=ibis.row_number().over(group_by="request_id", order_by="draw"))
    kept = first.filter(first.order < first.wanted)
    return kept.select(
        "request_id", "item_id",
        kind=ibis.literal(difficulty.GN, "int8"), bucket=ibis.literal(KINDS[difficulty.GN]), position=ibis.null("int32"),
    )  # fmt: skip


def _grouped(rows: ir.Table, requests: ir.Table, items: ir.Table, params: Params) -> ir.Table:
    """Join features, compute ages, and gather one row per request."""
    features = params.features
    request_names = [feature.name for feature in features.user + features.context]
    logged_history = [feature.name for feature in features.history if feature.name != "age_hours"]
    logged_items = [feature for feature in features.item if feature.name not in ("item_id", "age_hours")]

    times = requests.select("request_id", "event_time")
    rows = rows.join(times, "request_id").left_join(
        items.select("item_id", "published", *[feature.name for feature in logged_items]), "item_id"
    )
    age = age_hours(rows.event_time.epoch_seconds(), rows.published.epoch_seconds())
    fields: dict[str, ir.Value] = {
        "cand_kind": rows.kind.cast("int8"),
        "cand_position": rows.position,
        "cand_item_id": rows.item_id,
        "cand_bucket": rows.bucket,
        "cand_age_hours": age.cast("float32"),
    }
    for feature in logged_items:
        fields[f"cand_{feature.name}"] = rows[feature.name].cast("float32" if feature.type == "dense" else "int64")
    # Sorting compares fields in turn: kind, then position (absent ones as 0), then item, which is unique in a request.
    order = {"order_kind": rows.kind, "order_position": rows.position.fill_null(0), "order_item": rows.item_id}
    entries = rows.select("request_id", entry=ibis.struct({**order, **fields}))
    lists = entries.group_by("request_id").agg(entries=entries.entry.collect())
    lists = lists.mutate(entries=lists.entries.sort())

    table = requests.join(lists, "request_id")
    now_s = table.event_time.epoch_seconds()
    columns: dict[str, ir.Value] = {name: table[name] for name in ("request_id", "event_time")}
    columns |= {name: table[name] for name in request_names}
    columns |= {f"hist_{name}": table[f"hist_{name}"] for name in logged_history}
    columns["hist_age_hours"] = table.hist_event_time.map(lambda t: age_hours(now_s, t.epoch_seconds()).cast("float32"))
    for name in fields:
        columns[name] = table.entries.map(lambda entry, name=name: entry[name])
    return table.select(**columns).order_by("request_id")


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

    con = engines.connect(params.collect)
    try:
        logs = LogTables(
            con.read_parquet(contract.read_paths(root, "requests", day), table_name="requests"),
            con.read_parquet(contract.read_paths(root, "candidates", day), table_name="candidates"),
            con.read_parquet([p for d in labels for p in contract.read_paths(root, "feedback", d)], table_name="feedback"),
            con.read_parquet(contract.read_paths(root, "items", day), table_name="items"),
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
        con.disconnect()
    return manifest


def parameters(params: Params) -> dict[str, Any]:
    """Everything in params.yaml that samples depend on, as JSON values."""
    machine = {"memory_limit", "threads"}  # change the speed, never a byte
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
    with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
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
