"""The samples of a day as one Ibis expression over the four log tables, whatever engine evaluates it.

Every exposure, and negatives drawn from the rest of the complete request by the portable key
(hap.md, "The samples"; contracts.md, "Samples"). The expression ends in two sorted tables, requests and
their chosen candidates; hap/samples/grouping.py zips them into one row per request as they stream by,
which costs an engine far less than gathering structs into lists.
"""

import datetime as dt
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from hap.params import KINDS, Params
from hap.samples import difficulty
from hap.samples.ages import age_hours
from hap.samples.order_key import with_order_key

SPARE_DRAWS = 16  # drawn beyond 2 * EP, since some draws repeat or hit the request's own candidates


@dataclass(frozen=True)
class LogTables:
    """The four log tables of a day as Ibis tables; `feedback` spans the label window's partitions."""

    requests: ir.Table
    candidates: ir.Table
    feedback: ir.Table
    items: ir.Table


@dataclass(frozen=True)
class SampleTables:
    """The day's samples in two tables, each sorted by request_id.

    `requests` may hold requests without candidates; `candidates` (request_id and columns cand_*) holds
    only rows of `requests`, sorted by kind, position and item within one. `limit` is the largest number
    of rows that windows of both kinds keep of one request, 0 where they keep all.
    """

    requests: ir.Table
    candidates: ir.Table
    limit: int


def sample_table(logs: LogTables, params: Params, as_of: dt.datetime, item_count: int) -> SampleTables:
    """The day's samples.

    Args:
        as_of: what was ingested later does not count.
        item_count: rows of `logs.items`; a literal, since a sub-query in its place multiplies the cost.
    """
    requests = logs.requests.filter(logs.requests.ingest_time <= ibis.literal(as_of))
    positives, shown = _exposures(logs, requests, params, as_of)
    if params.collect.requests_without_positive == "drop":
        requests = requests.semi_join(positives, "request_id")
        shown = shown.semi_join(positives, "request_id")
    rows = [positives, shown, *_drawn(logs.candidates, requests, params)]
    if params.collect.global_per_positive:
        rows.append(_global_negatives(positives, requests, logs, params, item_count))
    limit = sum(window.count or 0 for window in difficulty.windows(params.collect).values())
    candidates = _candidate_columns(ibis.union(*rows), requests, logs.items, params)
    return SampleTables(_request_columns(requests, params), candidates, limit)


def logged_table(requests: ir.Table, candidates: ir.Table, items: ir.Table, params: Params) -> SampleTables:
    """Requests with every candidate that is logged of them, whatever became of it: features as in samples, kinds and buckets empty."""
    rows = candidates.select("request_id", "item_id", kind=ibis.null("int8"), bucket=ibis.null("string"), position=ibis.null("int32"))
    return SampleTables(_request_columns(requests, params), _candidate_columns(rows, requests, items, params), 0)


def _exposures(logs: LogTables, requests: ir.Table, params: Params, as_of: dt.datetime) -> tuple[ir.Table, ir.Table]:
    """EP, of which a request keeps at most `max_positives`, and EN."""
    collect, feedback = params.collect, logs.feedback
    clicks = feedback.filter(feedback[params.logs.positive] & (feedback.ingest_time <= ibis.literal(as_of)))
    clicks = clicks.select("request_id", "item_id", clicked=ibis.literal(True)).distinct()
    rows = difficulty.exposed(logs.candidates).semi_join(requests, "request_id")
    rows = rows.left_join(clicks, ["request_id", "item_id"])
    rows = rows.select("request_id", "item_id", positive=rows.clicked.fill_null(False), position=rows.exposure_position)
    positives = rows.filter(rows.positive)
    positives = _first(_keyed(positives, requests, params), collect.max_positives)
    return _labelled(positives, difficulty.EP, params), _labelled(rows.filter(~rows.positive), difficulty.EN, params)


def _drawn(candidates: ir.Table, requests: ir.Table, params: Params) -> list[ir.Table]:
    """RN and PRN: those inside the kind's window, or `count` of them by the sampling key.

    One table per kind, so that the limit is a literal: then an engine keeps the least n of each request in place of sorting all.
    """
    drawn = []
    lengths = difficulty.list_lengths(candidates, params.collect)
    for kind, window in difficulty.windows(params.collect).items():
        rows = difficulty.of_kind(candidates, kind)
        rows = rows.select("request_id", "item_id", position=difficulty.position_of(rows, kind))
        if lengths is not None:
            rows = rows.join(lengths.select("request_id", list_length=lengths[f"length_{kind}"]), "request_id")
        rows = rows.filter(difficulty.in_window(rows, window))
        rows = rows.semi_join(requests, "request_id") if window.count is None else _first(_keyed(rows, requests, params), window.count)
        drawn.append(_labelled(rows, kind, params))
    return drawn


def _keyed(rows: ir.Table, requests: ir.Table, params: Params) -> ir.Table:
    """Rows of `requests` with the sampling key of (request, item) as `draw`."""
    salt = f"{params.seed}|negatives"
    mixes = with_order_key(requests.select("request_id"), "mix", "request_id", salt)
    return with_order_key(rows.join(mixes, "request_id"), "draw", "item_id", salt, mix="mix", ties=True)


@ibis.udf.agg.builtin(name="row_number")
def _row_number() -> int:  # type: ignore[empty-body]
    """Numbers from 1; Ibis writes its own as `ROW_NUMBER() - 1`, which hides the limit from DuckDB's optimiser and Spark's."""


def _first(rows: ir.Table, count: int) -> ir.Table:
    """Each request's `count` rows of least draw."""
    rows = rows.mutate(place=_row_number().over(ibis.window(group_by="request_id", order_by="draw", rows=(None, 0))))
    return rows.filter(rows.place <= count)


def _labelled(rows: ir.Table, kind: int, params: Params) -> ir.Table:
    return rows.select(
        "request_id", "item_id",
        kind=ibis.literal(kind, "int8"), bucket=difficulty.bucket_of(rows, kind, params.collect), position=rows.position.cast("int32"),
    )  # fmt: skip


def _global_negatives(positives: ir.Table, requests: ir.Table, logs: LogTables, params: Params, item_count: int) -> ir.Table:
    """GN: for each request, 2 items per positive from the day's catalogue, published before it, not among its candidates."""
    salt = f"{params.seed}|global"
    counts = positives.group_by("request_id").agg(wanted=(positives.count() * params.collect.global_per_positive).cast("int64"))
    counts = counts.join(requests.select("request_id", "event_time"), "request_id")
    counts = with_order_key(counts, "mix", "request_id", salt)
    draws = counts.mutate(draw=ibis.range(1, counts.wanted + SPARE_DRAWS + 1).unnest().cast("int64"))
    draws = with_order_key(draws, "key", "draw", salt, mix="mix")
    draws = draws.mutate(place=draws.key % max(item_count, 1))
    pool = logs.items.select("item_id", "published", place=ibis.row_number().over(order_by="item_id").cast("int64"))
    hits = draws.join(pool, "place")
    hits = hits.filter(hits.published < hits.event_time)
    own = logs.candidates.select("request_id", "item_id")
    hits = hits.select("request_id", "item_id", "draw", "wanted").anti_join(own, ["request_id", "item_id"])
    first = hits.group_by(["request_id", "item_id"]).agg(draw=hits.draw.min(), wanted=hits.wanted.max())
    first = first.mutate(place=ibis.row_number().over(group_by="request_id", order_by="draw"))
    kept = first.filter(first.place < first.wanted)
    return kept.select(
        "request_id", "item_id",
        kind=ibis.literal(difficulty.GN, "int8"), bucket=ibis.literal(KINDS[difficulty.GN]), position=ibis.null("int32"),
    )  # fmt: skip


def _request_columns(requests: ir.Table, params: Params) -> ir.Table:
    """One row per request: its features and its history with ages."""
    features = params.features
    columns: dict[str, ir.Value] = {name: requests[name] for name in ("request_id", "event_time")}
    columns |= {feature.name: requests[feature.name] for feature in features.user + features.context}
    columns |= {f"hist_{f.name}": requests[f"hist_{f.name}"] for f in features.history if f.name != "age_hours"}
    now_s = _seconds(requests.event_time)
    columns["hist_age_hours"] = requests.hist_event_time.map(lambda time: age_hours(now_s, _seconds(time)).cast("float32"))
    return requests.select(**columns).order_by("request_id")


def _candidate_columns(rows: ir.Table, requests: ir.Table, items: ir.Table, params: Params) -> ir.Table:
    """One row per chosen candidate: kind, bucket, position, and the item's features at the time of the request."""
    logged = [feature for feature in params.features.item if feature.name not in ("item_id", "age_hours")]
    # Times and casts before the joins: per request and per item, of which there are fewer than rows.
    rows = rows.join(requests.select("request_id", now_s=_seconds(requests.event_time)), "request_id")
    columns = {f"cand_{f.name}": items[f.name].cast("float32" if f.type == "dense" else "int64") for f in logged}
    rows = rows.left_join(items.select("item_id", published_s=_seconds(items.published), **columns), "item_id")
    fields: dict[str, ir.Value] = {
        "cand_kind": rows.kind,
        "cand_position": rows.position,
        "cand_item_id": rows.item_id,
        "cand_bucket": rows.bucket,
        "cand_age_hours": age_hours(rows.now_s, rows.published_s).cast("float32"),
    }
    fields |= {name: rows[name] for name in columns}
    # An item is unique in its request, so the order is total. Absent positions come first.
    order = ["request_id", "cand_kind", ibis._.cand_position.fill_null(0), "cand_item_id"]
    return rows.select("request_id", **fields).order_by(order)


def _seconds(time: ir.Value) -> ir.IntegerValue:
    """Whole seconds since 1970, rounded down as the serving client does; DuckDB's own figure has a fraction."""
    return time.epoch_seconds().floor().cast("int64")
