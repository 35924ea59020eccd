"""Logged requests as a server would have received them: every candidate, raw features by name."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import ibis

from hap.logs import contract
from hap.params import Params
from hap.samples import engines
from hap.workspace import Workspace


def logged_requests(ws: Workspace, params: Params, day: dt.date, limit: int) -> Iterator[dict[str, Any]]:
    """The day's first `limit` requests by id, each a JSON-able object of the form that `hapctl score` reads.

    Raises:
        DataError: no logs for the day, or logs that break the contract.
    """
    root, features = ws.logs(params), params.features
    for name in ("requests", "candidates", "items"):
        contract.check_day(root, name, day, params)
    con = engines.connect(params, ws.state)
    try:
        requests = engines.read_parquet(con, contract.read_paths(root, "requests", day), "requests")
        candidates = engines.read_parquet(con, contract.read_paths(root, "candidates", day), "candidates")
        items = engines.read_parquet(con, contract.read_paths(root, "items", day), "items")

        item_names = [feature.name for feature in features.item if feature.name not in ("item_id", "age_hours")]
        history_names = [feature.name for feature in features.history if feature.name != "age_hours"]
        user_names = [feature.name for feature in features.user + features.context]

        chosen = requests.order_by("request_id").limit(limit)
        rows = candidates.semi_join(chosen, "request_id").left_join(items.select("item_id", "published", *item_names), "item_id")
        entry = ibis.struct({name: rows[name] for name in ("item_id", "published", *item_names)})
        lists = rows.group_by("request_id").agg(candidates=entry.collect()).mutate(candidates=ibis._.candidates.sort())
        table = chosen.join(lists, "request_id").order_by("request_id")
        history = [f"hist_{name}" for name in history_names]
        wanted = list(dict.fromkeys(["request_id", "event_time", *user_names, *history, "hist_event_time", "candidates"]))
        for batch in engines.batches(con, table.select(*wanted), 256):
            for row in batch.to_pylist():
                events = zip(row.pop("hist_event_time"), *[row.pop(name) for name in history], strict=True)
                row["history"] = [{"event_time": _iso(time), **dict(zip(history_names, values, strict=True))} for time, *values in events]
                row["event_time"] = _iso(row["event_time"])
                for candidate in row["candidates"]:
                    candidate["published"] = _iso(candidate["published"])
                yield row
    finally:
        engines.disconnect(con)


def _iso(time: dt.datetime | None) -> str | None:
    return None if time is None else time.isoformat()
