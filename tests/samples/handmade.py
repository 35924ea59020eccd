"""Small days of logs with everything that is awkward, and the rules of collection in plain Python, request by request."""

import datetime as dt
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hap.days import default_as_of, start_of
from hap.logs import contract
from hap.params import KINDS, Params, resolve
from hap.samples import engines
from hap.samples.expression import LogTables, sample_table
from hap.samples.order_key import P, order_key

DAY = dt.date(2026, 1, 1)
AS_OF = default_as_of(DAY, 2)
Day = dict[str, list[dict[str, Any]]]
_SHARD = 17 << 32
# Near the powers of two where an engine may lose a bit; the last four share keys in pairs: hi and hi + P, lo = 0 and lo = P.
IDS = [1, 2, 3, *range(2**31 - 3, 2**31 + 3), *range(2**32 - 2, 2**32 + 3), *range(2**62 - 2, 2**62 + 3), 2**63 - 1]
IDS += [*range(_SHARD, _SHARD + 6), 3 * 2**31 + 5, (3 + P) * 2**31 + 5, 9 * 2**31, 9 * 2**31 + P]


def changed(params: Params, **collect: object) -> Params:
    """The parameters with others under `collect`."""
    raw = params.model_dump(mode="json")
    raw["collect"] |= collect
    return resolve(raw, "test")


def awkward_day(seed: int, requests: int, params: Params, missing: float = 0.3) -> Day:
    """A day from a seed: wide ids, keys that tie, empty histories, requests late or without candidates, late and repeated clicks,
    unknown items, and positions of which a share of `missing` is absent."""
    rng, start = random.Random(seed), start_of(DAY)

    def moment(first_s: float, last_s: float) -> dt.datetime:
        return start + dt.timedelta(microseconds=rng.randint(int(first_s * 1e6), int(last_s * 1e6)))

    def values(features: tuple) -> dict[str, Any]:
        dense = {f.name: rng.choice([None, round(rng.uniform(-5, 5), 3)]) for f in features if f.type == "dense"}
        return {f.name: dense[f.name] if f.type == "dense" else rng.choice(IDS) for f in features}

    day: Day = {name: [] for name in contract.TABLES}
    catalogue = rng.sample(IDS, len(IDS) - 3)
    logged = tuple(f for f in contract.logged(params.features.item) if f.name != "item_id")
    for item in catalogue:
        at = moment(-90_000, 86_399)
        day["items"].append({"item_id": item, "event_time": at, "ingest_time": at, "published": at, **values(logged)})
    for request in rng.sample(IDS, requests):
        at = moment(0, 86_399)
        late = rng.random() < 0.1
        events = sorted(moment(-(10**6), 0) for _ in range(rng.choice([0, 0, 1, 5])))
        history = [values(contract.logged(params.features.history)) for _ in events]
        row = {"request_id": request, "event_time": at, "ingest_time": AS_OF + dt.timedelta(seconds=1) if late else at}
        row |= values(params.features.user + params.features.context) | {"hist_event_time": events}
        names = [f.name for f in contract.logged(params.features.history)]
        day["requests"].append(row | {f"hist_{name}": [event[name] for event in history] for name in names})
        day["candidates"] += _cascade(rng, request, at, missing)
    for c in day["candidates"]:
        if c["stage"] != "exposure" or rng.random() < 0.3:
            continue
        base = {key: c[key] for key in ("request_id", "item_id")} | {"dwell_ms": None, "like": False, "share": False}
        for _ in range(rng.choice([1, 1, 2])):  # a click may be told twice, in the files of two days
            ingest = rng.choice([c["event_time"] + dt.timedelta(seconds=5), AS_OF, AS_OF + dt.timedelta(microseconds=1)])
            day["feedback"].append({**base, "event_time": c["event_time"], "ingest_time": ingest, "click": rng.random() < 0.6})
    return day


def _cascade(rng: random.Random, request: int, at: dt.datetime, missing: float) -> list[dict[str, Any]]:
    chosen = rng.sample(IDS, rng.choice([0, 1, 12, len(IDS)]))
    sizes = sorted((rng.randint(0, len(chosen)) for _ in range(3)), reverse=True)
    rows = []
    for number, item in enumerate(chosen):
        last = sum(number < size for size in sizes)
        row = {"request_id": request, "item_id": item, "event_time": at, "ingest_time": at, "stage": contract.STAGES[last]}
        for place, stage in enumerate(contract.STAGES):
            row[f"{stage}_position"] = number + 1 if place <= last and rng.random() >= missing else None
        rows.append(row)
    return rows


def write_day(folder: Path, day: Day, params: Params, *, files: int = 1, shuffle: int | None = None) -> dict[str, list[str]]:
    """The day's Parquet files by table, in so many files and another order of rows."""
    paths: dict[str, list[str]] = {}
    for name, listed in day.items():
        rows = list(listed)
        if shuffle is not None:
            random.Random(shuffle).shuffle(rows)
        for part in range(files):
            path = folder / name / f"part-{part}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows[part::files], contract.table_schema(name, params.features)), path)
            paths.setdefault(name, []).append(str(path))
    return paths


def collected(con: Any, paths: dict[str, list[str]], params: Params) -> pa.Table:
    """What the expression gives on an open engine."""
    logs = LogTables(**{name: engines.read_parquet(con, paths[name], name) for name in contract.TABLES})
    samples = sample_table(logs, params, AS_OF, engines.row_count(con, logs.items))
    return engines.batches(con, samples, 256).read_all()


def collected_by_hand(day: Day, params: Params) -> list[dict[str, Any]]:
    """The same by the rules of hap.md and contracts.md, one request after the other."""
    collect, features = params.collect, params.features
    clicks = {(f["request_id"], f["item_id"]) for f in day["feedback"] if f["click"] and f["ingest_time"] <= AS_OF}
    items = {item["item_id"]: item for item in day["items"]}
    pool = sorted(items)
    rows = []
    for request in sorted(day["requests"], key=lambda row: row["request_id"]):
        key = request["request_id"]
        own = [c for c in day["candidates"] if c["request_id"] == key]
        if request["ingest_time"] > AS_OF:
            continue
        chosen: list[tuple[str, str, int, int | None]] = []  # kind, bucket, item, position
        shown = [("EP" if (key, c["item_id"]) in clicks else "EN", c) for c in own if c["stage"] == "exposure"]
        positives = _drawn([c for kind, c in shown if kind == "EP"], key, params)[: collect.max_positives]
        if not positives and collect.requests_without_positive == "drop":
            continue
        chosen += [("EP", "EP", c["item_id"], c["exposure_position"]) for c in positives]
        chosen += [("EN", "EN", c["item_id"], c["exposure_position"]) for kind, c in shown if kind == "EN"]
        for kind, name, stages, column, window in (
            ("RN", "Rank", ("rank", "rerank"), "rank_position", collect.rank),
            ("PRN", "Prerank", ("prerank",), "prerank_position", collect.prerank),
        ):
            length = max((c[column] for c in own if c[column]), default=0)
            inside = [c for c in own if c["stage"] in stages and (c[column] is None or c[column] > _edge(window.below, length))]
            for c in _drawn(inside, key, params)[: window.count]:
                bucket = name
                if c[column] is not None:
                    reached = [edge for edge in sorted(window.edges) if c[column] > _edge(edge, length)]
                    bucket = f"{name}-{reached[-1]:g}" if reached else f"{name}-0"
                chosen.append((kind, bucket, c["item_id"], c[column]))
        wanted, found = collect.global_per_positive * len(positives), []
        for draw in range(1, wanted + 17 if wanted else 1):
            salt = f"{params.seed}|global"
            item = pool[order_key(draw, salt, mix=order_key(key, salt)) % len(pool)]
            seen = {c["item_id"] for c in own} | set(found)
            if items[item]["published"] < request["event_time"] and item not in seen:
                found.append(item)
        chosen += [("GN", "GN", item, None) for item in found[:wanted]]
        if not chosen:
            continue
        chosen.sort(key=lambda one: (KINDS.index(one[0]), one[3] or 0, one[2]))
        known = [items.get(item) for _, _, item, _ in chosen]
        row = {name: request[name] for name in ("request_id", "event_time", *(f.name for f in features.user + features.context))}
        row |= {f"hist_{f.name}": request[f"hist_{f.name}"] for f in contract.logged(features.history)}
        row["hist_age_hours"] = [_hours(request["event_time"], event) for event in request["hist_event_time"]]
        row["cand_kind"] = [KINDS.index(kind) for kind, *_ in chosen]
        row["cand_position"] = [position for *_, position in chosen]
        row["cand_item_id"] = [item for _, _, item, _ in chosen]
        row["cand_bucket"] = [bucket for _, bucket, *_ in chosen]
        row["cand_age_hours"] = [item and _hours(request["event_time"], item["published"]) for item in known]
        for feature in contract.logged(features.item):
            if feature.name != "item_id":
                raw = [item and item[feature.name] for item in known]
                row[f"cand_{feature.name}"] = [None if v is None else float(np.float32(v)) if feature.type == "dense" else v for v in raw]
        rows.append(row)
    return rows


def _drawn(candidates: list[dict[str, Any]], request: int, params: Params) -> list[dict[str, Any]]:
    salt = f"{params.seed}|negatives"
    mix = order_key(request, salt)
    return sorted(candidates, key=lambda c: (order_key(c["item_id"], salt, mix=mix), c["item_id"]))


def _edge(edge: float, length: int) -> Fraction:
    return Fraction(str(edge)) * (length if 0 < edge < 1 else 1)


def _hours(later: dt.datetime, earlier: dt.datetime) -> float:
    return float(np.float32((int(later.timestamp() // 1) - int(earlier.timestamp() // 1)) / 3600))
