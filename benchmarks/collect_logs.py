"""A synthetic day of logs that keeps the contract, made as fast as Parquet is written: the input of benchmarks/collect.py.

Each request has 300 candidates, of which 80 were ranked, 20 re-ranked and 10 shown; one shown item in ten is clicked, and
a tenth of the clicks comes too late to count. A candidate's item is an affine walk through a catalogue of prime size, so
it is unique in its request. Nothing here can be learnt: only the number of rows, the types and the joins are real.
"""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa

from hap.days import start_of
from hap.logs import contract
from hap.params import Features

CANDIDATES, RANKED, RERANKED, SHOWN = 300, 80, 20, 10
CATALOGUE = 199_999  # a prime: every stride walks through all of it
HISTORY = 20
CHUNK_REQUESTS = 2048
_DAY_US = 86_400_000_000


def write_logs(root: Path, day: dt.date, stage_rows: int, seed: int, features: Features) -> dict[str, int]:
    """Write the four tables of `day` with about `stage_rows` candidates and return their rows."""
    rng = np.random.default_rng([seed, day.toordinal()])
    requests = max(stage_rows // CANDIDATES, 1)
    start_us = int(start_of(day).timestamp() * 1e6)
    rows = {"items": contract.write_day(root, "items", day, _items(rng, start_us, features))}
    schemas = {name: contract.table_schema(name, features) for name in ("requests", "candidates", "feedback")}
    # The day's first label partition is enough: a click of the last hour that comes after midnight keeps its event time.
    with (
        contract.day_writer(root, "requests", day, schemas["requests"]) as add_requests,
        contract.day_writer(root, "candidates", day, schemas["candidates"]) as add_candidates,
        contract.day_writer(root, "feedback", day, schemas["feedback"]) as add_feedback,
    ):
        for first in range(0, requests, CHUNK_REQUESTS):
            count = min(CHUNK_REQUESTS, requests - first)
            tables = _chunk(rng, day, first, count, start_us, features)
            add_requests(tables["requests"])
            add_candidates(tables["candidates"])
            add_feedback(tables["feedback"])
            for name, made in tables.items():
                rows[name] = rows.get(name, 0) + made.num_rows
    return rows


def _times(us: np.ndarray) -> pa.Array:
    return pa.array(us.astype(np.int64)).cast(contract.TIME)


def _values(rng: np.random.Generator, features: tuple, rows: int) -> dict[str, pa.Array]:
    """Random columns of the declared types; one dense value in fifty is absent."""
    made = {}
    for feature in features:
        if feature.type == "dense":
            made[feature.name] = pa.array(np.round(rng.random(rows) * 100, 3), mask=rng.random(rows) < 0.02)
        else:
            made[feature.name] = pa.array(rng.integers(1, feature.rows or 2, rows))
    return made


def _items(rng: np.random.Generator, start_us: int, features: Features) -> pa.Table:
    published = start_us + rng.integers(-10 * _DAY_US, _DAY_US, CATALOGUE)
    at = _times(np.maximum(published, start_us))
    declared = tuple(f for f in contract.logged(features.item) if f.name != "item_id")
    columns = {"item_id": np.arange(1, CATALOGUE + 1), "event_time": at, "ingest_time": at, "published": _times(published)}
    return pa.table(columns | _values(rng, declared, CATALOGUE), schema=contract.table_schema("items", features))


def _chunk(rng: np.random.Generator, day: dt.date, first: int, count: int, start_us: int, features: Features) -> dict[str, pa.Table]:
    """requests, candidates and feedback of `count` requests; rows of a request lie together, in the order of pre-ranking."""
    request_id = int(day.strftime("%Y%m%d")) * 10**9 + 1 + first + np.arange(count)
    at_us = start_us + np.sort(rng.integers(0, _DAY_US - 3_600_000_000, count))
    requests = {"request_id": request_id, "event_time": _times(at_us), "ingest_time": _times(at_us + 1_000_000)}
    requests |= _values(rng, features.user + features.context, count)
    offsets = np.arange(0, (count + 1) * HISTORY, HISTORY, dtype=np.int32)
    past = np.sort(at_us[:, None] - rng.integers(1, 30 * _DAY_US, (count, HISTORY)), axis=1)
    requests["hist_event_time"] = pa.ListArray.from_arrays(offsets, _times(past.ravel()))
    for name, values in _values(rng, contract.logged(features.history), count * HISTORY).items():
        requests[f"hist_{name}"] = pa.ListArray.from_arrays(offsets, values)

    place = np.arange(CANDIDATES)
    item = (rng.integers(0, CATALOGUE, (count, 1)) + place * rng.integers(1, CATALOGUE, (count, 1))) % CATALOGUE + 1
    order = np.argsort(rng.random((count, CANDIDATES)), axis=1)  # order[r, c]: place of candidate c among those that went on
    reached = (order < RANKED).astype(np.int8) + (order < RERANKED) + (order < SHOWN)
    columns = {
        "request_id": np.repeat(request_id, CANDIDATES),
        "item_id": item.ravel(),
        "event_time": _times(np.repeat(at_us, CANDIDATES)),
        "ingest_time": _times(np.repeat(at_us + 1_000_000, CANDIDATES)),
        "stage": pa.DictionaryArray.from_arrays(pa.array(reached.ravel()), pa.array(contract.STAGES)).cast(pa.string()),
        "prerank_position": np.tile(place + 1, count).astype(np.int32),
    }
    for stage, kept in zip(contract.STAGES[1:], (RANKED, RERANKED, SHOWN), strict=True):
        columns[f"{stage}_position"] = pa.array((order.ravel() + 1).astype(np.int32), mask=order.ravel() >= kept)
    shown = np.argsort(order, axis=1)[:, :SHOWN]
    click = rng.random(count * SHOWN) < 0.1
    seen_us = np.repeat(at_us, SHOWN) + rng.integers(1_000_000, 600_000_000, count * SHOWN)
    delay = np.where(rng.random(count * SHOWN) < 0.1, 40 * 3_600_000_000, 20_000_000)
    feedback = {
        "request_id": np.repeat(request_id, SHOWN),
        "item_id": np.take_along_axis(item, shown, axis=1).ravel(),
        "event_time": _times(seen_us),
        "ingest_time": _times(seen_us + delay),
        "click": click,
        "dwell_ms": pa.array(rng.integers(100, 60_000, count * SHOWN), mask=~click),
        "like": click & (rng.random(count * SHOWN) < 0.2),
        "share": click & (rng.random(count * SHOWN) < 0.05),
    }
    made = {"requests": requests, "candidates": columns, "feedback": feedback}
    return {name: pa.table(values, schema=contract.table_schema(name, features)) for name, values in made.items()}
