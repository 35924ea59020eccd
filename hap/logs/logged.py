"""What the logs show of a simulated world: its requests, candidates and feedback, and the day's catalogue.

The only place where the world becomes logs. Shapes: R requests of a chunk, C candidates of each, H history.
"""

import datetime as dt

import numpy as np
import pyarrow as pa

from hap.logs import contract
from hap.logs.cascade import Chunk
from hap.logs.world import DAY_US, HOUR_US, World
from hap.params import Features

IDS_PER_DAY = 10**9  # request_id = YYYYMMDD * this + number within the day
REQUEST_COLUMNS = ("user_id", "age_band", "activity", "hour")
ITEM_COLUMNS = ("item_id", "author_id", "content_type", "price", "quality")
HISTORY_COLUMNS = ("item_id", "author_id", "content_type")


def chunk_tables(world: World, day: dt.date, chunk: Chunk, features: Features) -> dict[str, pa.Table]:
    """Requests, candidates and feedback of a chunk as the logs show them."""
    request_id = int(day.strftime("%Y%m%d")) * IDS_PER_DAY + chunk.number_R
    at, ingest = _times(chunk.at_us_R), _times(chunk.at_us_R + 1_000_000)
    past, past_us = world.hist_item_UH[chunk.user_R], world.hist_us_UH[chunk.user_R]
    real = past >= 0
    offsets = pa.array(np.concatenate([[0], real.sum(1).cumsum()]).astype(np.int32))
    events = _item_columns(world, past[real])
    request = {
        "user_id": world.user_id_U[chunk.user_R],
        "age_band": world.age_band_U[chunk.user_R] + 1,
        "activity": np.round(np.log1p(world.activity_U[chunk.user_R]), 4),
        "hour": (chunk.at_us_R % DAY_US) // HOUR_US + 1,
    }
    requests = {"request_id": request_id, "event_time": at, "ingest_time": ingest}
    requests |= {feature.name: request[feature.name] for feature in features.user + features.context}
    requests["hist_event_time"] = pa.ListArray.from_arrays(offsets, _times(past_us[real]))
    for feature in contract.logged(features.history):
        requests[f"hist_{feature.name}"] = pa.ListArray.from_arrays(offsets, pa.array(events[feature.name]))

    width = chunk.item_RC.shape[1]
    positions = {f"{stage}_position": pa.array(place.ravel(), mask=place.ravel() == 0) for stage, place in chunk.position.items()}
    stage = np.sum([place > 0 for place in chunk.position.values()], axis=0, dtype=np.int8).ravel() - 1
    candidates = {
        "request_id": np.repeat(request_id, width),
        "item_id": chunk.item_RC.ravel() + 1,
        "event_time": _times(np.repeat(chunk.at_us_R, width)),
        "ingest_time": _times(np.repeat(chunk.at_us_R + 1_000_000, width)),
        "stage": pa.DictionaryArray.from_arrays(pa.array(stage), pa.array(contract.STAGES)).cast(pa.string()),
        **positions,
    }
    shown = chunk.click_RE.shape[1]
    feedback = {
        "request_id": np.repeat(request_id, shown),
        "item_id": chunk.item_RC[:, :shown].ravel() + 1,
        "event_time": _times(chunk.event_us_RE.ravel()),
        "ingest_time": _times(chunk.ingest_us_RE.ravel()),
        "click": chunk.click_RE.ravel(),
        "dwell_ms": pa.array(chunk.dwell_ms_RE.ravel(), mask=~chunk.click_RE.ravel()),
        "like": chunk.like_RE.ravel(),
        "share": chunk.share_RE.ravel(),
    }
    made = {"requests": requests, "candidates": candidates, "feedback": feedback}
    return {table: pa.table(columns, schema=contract.table_schema(table, features)) for table, columns in made.items()}


def catalogue(world: World, day: int) -> pa.Table:
    """items(D): every item alive at some time of the day, with the columns of ITEM_COLUMNS."""
    start = world.day_start_us(day)
    index = world.items.alive(start, until_us=start + DAY_US)
    published = world.items["published_us"][index]
    event = np.maximum(published, start)
    times = {"event_time": _times(event), "ingest_time": _times(event), "published": _times(published)}
    return pa.table({**_item_columns(world, index), **times})


def _item_columns(world: World, index: np.ndarray) -> dict[str, np.ndarray]:
    items = world.items
    return {
        "item_id": index + 1,
        "author_id": items["author"][index] + 1,
        "content_type": items["content_type"][index] + 1,
        "price": items["price"][index],
        "quality": items["quality_seen"][index],
    }


def _times(us: np.ndarray) -> pa.Array:
    return pa.array(us.astype(np.int64)).cast(contract.TIME)
