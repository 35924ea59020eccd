"""The embedded source of logs: requests pass a four-stage cascade in a simulated world.

Each request draws candidates from the catalogue (imperfect retrieval), and each later stage orders what
reached it by the true click logit plus noise of its own, keeps the head, and hands it on. Clicks are drawn
from the true logit with a position bias. Equations, defaults and what they lead to: docs/simulator.md.
Shapes: R requests of a chunk, C candidates of each, H history, N items alive, I interests, D latent width.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from hap.days import day_range
from hap.errors import UsageError
from hap.logs import contract
from hap.logs.world import DAY_US, HOUR_US, SimulatorSettings, World, interest_affinity
from hap.params import Features

CHUNK_REQUESTS = 512  # drawn together from one stream, so it is part of the world; 512 x 3,000 scores stay near the cache
IDS_PER_DAY = 10**9  # request_id = YYYYMMDD * this + number within the day
_INGEST_LAG_US = 20_000_000
REQUEST_COLUMNS = ("user_id", "age_band", "activity", "hour")
ITEM_COLUMNS = ("item_id", "author_id", "content_type", "price", "quality")
HISTORY_COLUMNS = ("item_id", "author_id", "content_type")

DEFAULTS = SimulatorSettings()
SETTINGS = {
    "default": DEFAULTS,
    "single-interest": replace(DEFAULTS, interests=1),  # attention over the history has little to choose from
    "double-noise": replace(
        DEFAULTS,
        retrieval_noise=2 * DEFAULTS.retrieval_noise,
        prerank_noise=2 * DEFAULTS.prerank_noise,
        rank_noise=2 * DEFAULTS.rank_noise,
        rerank_noise=2 * DEFAULTS.rerank_noise,
    ),  # stages that hardly agree with the clicks
}


@dataclass(frozen=True)
class Summary:
    """What a simulation wrote: rows of each table over all days, and clicks."""

    days: tuple[dt.date, ...]
    rows: dict[str, int]
    clicks: int

    @property
    def clicks_per_request(self) -> float:
        return self.clicks / self.rows["requests"]


@dataclass(frozen=True)
class Chunk:
    """The outcome of some requests; candidates lie in order of their furthest stage, exposures first."""

    number_R: np.ndarray  # within the day, from 1
    user_R: np.ndarray
    at_us_R: np.ndarray
    item_RC: np.ndarray  # item index
    logit_RC: np.ndarray  # the truth that no log shows, before position bias
    position: dict[str, np.ndarray]  # stage -> int32[R, C], 0 where not reached
    click_RE: np.ndarray  # of the first E = exposed candidates
    event_us_RE: np.ndarray
    ingest_us_RE: np.ndarray
    dwell_ms_RE: np.ndarray
    like_RE: np.ndarray
    share_RE: np.ndarray


def settings_digest(settings: SimulatorSettings = DEFAULTS) -> str:
    """sha256 of the settings' values."""
    return hashlib.sha256(orjson.dumps(asdict(settings), option=orjson.OPT_SORT_KEYS)).hexdigest()


def simulate(
    logs_root: str | Path,
    first_day: dt.date,
    days: int,
    requests_per_day: int,
    seed: int,
    features: Features,
    *,
    settings: SimulatorSettings = DEFAULTS,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write `days` days of logs from `first_day` on, and the feedback that arrives the day after the last.

    Args:
        progress: called with (requests done, requests in all) after every chunk.

    Raises:
        UsageError: no days or no requests are asked for.
        ConfigError: params.yaml declares a feature that the simulator does not make.
    """
    if days < 1 or requests_per_day < 1:
        raise UsageError(f"{days} days of {requests_per_day} requests: both must be at least 1")
    contract.check_declared(features, REQUEST_COLUMNS, ITEM_COLUMNS, HISTORY_COLUMNS, "the simulator")
    schemas = {table: contract.table_schema(table, features) for table in contract.TABLES}
    world = World(settings, seed, first_day)
    calendar = day_range(first_day, first_day + dt.timedelta(days=days - 1))
    rows = dict.fromkeys(contract.TABLES, 0)
    clicks = done = 0
    late: list[pa.Table] = []  # feedback whose own day is the next one
    for number, day in enumerate(calendar):
        feedback, late = late, []
        midnight = world.day_start_us(number + 1)
        with ExitStack() as stack:
            write = {t: stack.enter_context(contract.day_writer(logs_root, t, day, schemas[t])) for t in contract.TABLES}
            for chunk in day_chunks(world, number, requests_per_day):
                tables = chunk_tables(world, day, chunk, features)
                today = pa.compute.less(tables["feedback"]["event_time"], pa.scalar(midnight, contract.TIME))
                feedback.append(tables["feedback"].filter(today))
                late.append(tables["feedback"].filter(pa.compute.invert(today)))
                for table in ("requests", "candidates"):
                    write[table](tables[table])
                    rows[table] += tables[table].num_rows
                clicks += int(chunk.click_RE.sum())
                done += len(chunk.user_R)
                if progress:
                    progress(done, days * requests_per_day)
            for table, whole in (("feedback", pa.concat_tables(feedback)), ("items", catalogue(world, number))):
                write[table](whole)
                rows[table] += whole.num_rows
    last = pa.concat_tables(late)
    if last.num_rows:
        with contract.day_writer(logs_root, "feedback", calendar[-1] + dt.timedelta(days=1), schemas["feedback"]) as append:
            append(last)
        rows["feedback"] += last.num_rows
    return Summary(tuple(calendar), rows, clicks)


def day_chunks(world: World, day: int, requests: int) -> Iterator[Chunk]:
    """Play one day (0 is the first) in time order; clicks enter the histories at the slot after their ingestion."""
    s = world.settings
    world.open_day(day)
    rng = world.stream("day", day)
    start = world.day_start_us(day)
    at_us = start + np.sort((rng.beta(2.2, 1.6, requests) * DAY_US).astype(np.int64)).clip(max=DAY_US - 1)  # quiet nights
    users = np.searchsorted(np.cumsum(world.activity_U), rng.random(requests) * world.activity_U.sum()).clip(max=s.users - 1)
    bounds = np.searchsorted(at_us, start + np.arange(s.slots_per_day + 1) * (DAY_US // s.slots_per_day))
    for slot in range(s.slots_per_day):
        slot_us = start + slot * (DAY_US // s.slots_per_day)
        _ripen(world, slot_us)
        alive = world.items.alive(slot_us)
        for place, begin in enumerate(range(bounds[slot], bounds[slot + 1], CHUNK_REQUESTS)):
            span = slice(begin, min(begin + CHUNK_REQUESTS, bounds[slot + 1]))
            number = np.arange(span.start, span.stop) + 1
            chunk = play(world, number, users[span], at_us[span], alive, world.stream("chunk", day, slot, place))
            _await(world, chunk)
            yield chunk


def play(
    world: World, number_R: np.ndarray, user_R: np.ndarray, at_us_R: np.ndarray, alive_N: np.ndarray, rng: np.random.Generator
) -> Chunk:
    """Take requests through retrieval, pre-ranking, ranking, re-ranking and exposure, and draw their feedback."""
    s, items = world.settings, world.items
    rows = np.arange(len(user_R))[:, None]

    def noise(scale: float, *shape: int) -> np.ndarray:
        return scale * rng.standard_normal(shape, dtype=np.float32)

    appeal_N = s.quality_weight * items["quality"][alive_N] + s.popularity_weight * items["popularity"][alive_N]
    liking = interest_affinity(world.interest_UID[user_R], items.latent_ND[alive_N])
    crude = s.retrieval_gain * ((s.history_weight + s.interest_weight) * liking + appeal_N)
    crude += noise(s.retrieval_noise, *crude.shape)
    width = min(s.retrieved, len(alive_N))
    item = alive_N[np.argpartition(crude, -width, axis=1)[:, -width:]]
    logit = click_logit(world, user_R, at_us_R, item)

    position: dict[str, np.ndarray] = {}
    reached = width
    for stage, keep, scale in (
        ("prerank", s.ranked, s.prerank_noise),
        ("rank", s.reranked, s.rank_noise),
        ("rerank", s.exposed, s.rerank_noise),
        ("exposure", 0, None),
    ):
        place = np.zeros((len(user_R), width), np.int32)
        place[:, :reached] = np.arange(1, reached + 1)
        if scale is not None:
            score = logit[:, :reached] + noise(scale, len(user_R), reached)
            if stage == "rerank":
                score -= s.author_penalty * _earlier_same(items["author"][item[:, :reached]], score)
            order = np.argsort(-score, axis=1)
            head = [item, logit, *position.values()]
            for array in head:
                array[:, :reached] = array[rows, order]
        position[stage] = place
        reached = min(keep, reached)

    shown = min(s.exposed, width)
    seen = logit[:, :shown] - s.position_weight * np.log2(1 + np.arange(1, shown + 1, dtype=np.float32))
    click = rng.random(seen.shape, dtype=np.float32) < 1 / (1 + np.exp(-seen))
    delayed = rng.random(seen.shape) < s.delayed_share
    delay = np.where(delayed, rng.exponential(s.delay_hours * HOUR_US, seen.shape), rng.exponential(60e6, seen.shape))
    event = at_us_R[:, None] + np.where(click, delay, 1e6).clip(1e6, DAY_US - 1).astype(np.int64)
    dwell = np.exp(9.5 + 0.2 * logit[:, :shown] + noise(0.7, *seen.shape)).astype(np.int64)
    like = click & (rng.random(seen.shape) < 0.1 * (1 + np.tanh(items["quality"][item[:, :shown]])))
    share = click & (rng.random(seen.shape) < 0.03)
    ingest = event + rng.exponential(_INGEST_LAG_US, seen.shape).astype(np.int64)
    return Chunk(number_R, user_R, at_us_R, item, logit, position, click, event, ingest, dwell, like, share)


def click_logit(world: World, user_R: np.ndarray, at_us_R: np.ndarray, item_RC: np.ndarray) -> np.ndarray:
    """The true logit of a click at the first position [R, C]: docs/simulator.md, "Clicks"."""
    s, items = world.settings, world.items
    latent = items.latent_ND[item_RC]  # [R, C, D]
    past = world.hist_item_UH[user_R]  # [R, H]
    age = (at_us_R[:, None] - world.hist_us_UH[user_R]).astype(np.float32) / DAY_US
    weight = np.where(past >= 0, np.exp(-age / s.history_days), 0).astype(np.float32)
    total = weight.sum(1)
    alike = np.exp(s.history_focus * (latent @ items.latent_ND[past].transpose(0, 2, 1)))  # [R, C, H]
    with np.errstate(divide="ignore", invalid="ignore"):  # users without a history
        drawn = np.log((alike @ weight[:, :, None])[:, :, 0] / total[:, None]) / s.history_focus
    drawn = np.where(total[:, None] > 0, drawn, 0)
    wish = (latent @ world.interest_UID[user_R].transpose(0, 2, 1)) * world.interest_weight_UI[user_R][:, None, :]

    hour = (at_us_R % DAY_US) // HOUR_US
    days_old = (at_us_R[:, None] - items["published_us"][item_RC]).astype(np.float32) / DAY_US
    logit: np.ndarray = (
        s.bias
        + s.history_weight * drawn
        + s.interest_weight * wish.sum(2)
        + s.quality_weight * items["quality"][item_RC]
        + s.popularity_weight * items["popularity"][item_RC]
        - s.price_weight * world.price_sense_U[user_R][:, None] * items["price_level"][item_RC]
        - s.age_weight * days_old
        + s.hour_weight * world.hour_appeal[hour[:, None], items["content_type"][item_RC]]
    ).astype(np.float32)
    return logit


def chunk_tables(world: World, day: dt.date, chunk: Chunk, features: Features) -> dict[str, pa.Table]:
    """Requests, candidates and feedback of a chunk as the logs show them; what a log may get wrong, it gets wrong here."""
    request_id = int(day.strftime("%Y%m%d")) * IDS_PER_DAY + chunk.number_R
    at, ingest = _times(chunk.at_us_R), _times(chunk.at_us_R + 1_000_000)
    past, past_us = world.hist_item_UH[chunk.user_R], world.hist_us_UH[chunk.user_R]
    real = past >= 0
    offsets = pa.array(np.concatenate([[0], real.sum(1).cumsum()]).astype(np.int32))
    events = _item_columns(world, past[real])
    request = {
        "user_id": chunk.user_R + 1,
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


def _earlier_same(author_RC: np.ndarray, score_RC: np.ndarray) -> np.ndarray:
    """How many better-scored candidates of the request share the author [R, C]."""
    same = author_RC[:, :, None] == author_RC[:, None, :]
    count: np.ndarray = (same & (score_RC[:, None, :] > score_RC[:, :, None])).sum(2, dtype=np.float32)
    return count


def _await(world: World, chunk: Chunk) -> None:
    clicked = chunk.click_RE
    users = np.broadcast_to(chunk.user_R[:, None], clicked.shape)[clicked]
    items = chunk.item_RC[:, : clicked.shape[1]][clicked]
    world.pending.append(np.stack([users, items, chunk.event_us_RE[clicked], chunk.ingest_us_RE[clicked]]))


def _ripen(world: World, at_us: int) -> None:
    """Move clicks ingested before `at_us` into the histories."""
    if not world.pending:
        return
    waiting = np.concatenate(world.pending, axis=1)
    ripe = waiting[3] < at_us
    world.pending = [waiting[:, ~ripe]]
    world.remember(waiting[0, ripe], waiting[1, ripe], waiting[2, ripe])


def _times(us: np.ndarray) -> pa.Array:
    return pa.array(us.astype(np.int64)).cast(contract.TIME)
