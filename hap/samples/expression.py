"""The samples of a day as one Ibis expression over the four log tables, whatever engine evaluates it.

Every exposure, and negatives drawn from the rest of the complete request by the portable key
(hap.md, "The samples"; contracts.md, "Samples").
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
