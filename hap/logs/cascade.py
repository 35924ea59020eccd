"""Requests pass four stages in a simulated world, and what is exposed is clicked or not.

Retrieval draws candidates from the catalogue and pre-ranking orders them, both by what needs no look at the history;
ranking and re-ranking order what reached them by the true click logit. Each stage adds noise of its own, keeps the
head and hands it on. Clicks are drawn from the true logit with a position bias. Equations: docs/simulator.md.
Shapes: R requests of a chunk, C candidates of each, E exposed ones, H history, N items alive, I interests, D latent width.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hap.logs.world import DAY_US, HOUR_US, SimulatorSettings, Turn, World, nearest_interest

CHUNK_REQUESTS = 512  # drawn together from one stream, so it is part of the world; 512 x 3,000 scores stay near the cache
_INGEST_LAG_US = 20_000_000


@dataclass(frozen=True)
class Chunk:
    """The outcome of some requests; candidates lie in order of their furthest stage, exposures first."""

    number_R: np.ndarray  # within the day, from 1
    user_R: np.ndarray  # index of the user
    at_us_R: np.ndarray
    item_RC: np.ndarray  # item index
    position: dict[str, np.ndarray]  # stage -> int32[R, C], 0 where not reached
    click_RE: np.ndarray  # of the first E = exposed candidates
    event_us_RE: np.ndarray
    ingest_us_RE: np.ndarray
    dwell_ms_RE: np.ndarray
    like_RE: np.ndarray
    share_RE: np.ndarray


def begin(settings: SimulatorSettings, seed: int, first_day: dt.date, requests_per_day: int, turn: Turn | None = None) -> World:
    """A world at 00:00 of its first day, with histories that its own clicks have made."""
    world = World(settings, seed, first_day, requests_per_day, turn)
    for day in range(-settings.warmup_days, 0):
        for _ in day_chunks(world, day):
            pass
    return world


def day_chunks(world: World, day: int) -> Iterator[Chunk]:
    """Play one day (0 is the first) in time order; clicks enter the histories at the slot after their ingestion."""
    s, requests = world.settings, world.requests_per_day
    world.open_day(day)
    rng = world.stream("day", day)
    start = world.day_start_us(day)
    at_us = start + np.sort((rng.beta(2.2, 1.6, requests) * DAY_US).astype(np.int64)).clip(max=DAY_US - 1)  # quiet nights
    users = np.searchsorted(np.cumsum(world.activity_U), rng.random(requests) * world.activity_U.sum()).clip(max=len(world.activity_U) - 1)
    bounds = np.searchsorted(at_us, start + np.arange(s.slots_per_day + 1) * (DAY_US // s.slots_per_day))
    for slot in range(s.slots_per_day):
        slot_us = start + slot * (DAY_US // s.slots_per_day)
        _ripen(world, slot_us)
        world.open_slot(day, slot)
        alive = world.items.alive(slot_us)
        for place, first in enumerate(range(bounds[slot], bounds[slot + 1], CHUNK_REQUESTS)):
            span = slice(first, min(first + CHUNK_REQUESTS, bounds[slot + 1]))
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
        return np.float32(scale) * rng.standard_normal(shape, dtype=np.float32)

    appeal_N = s.quality_weight * items["quality"][alive_N] + s.popularity_weight * items["popularity"][alive_N]
    crude = s.taste_weight * nearest_interest(world.interest_UID[user_R], items.latent_ND[alive_N]) + appeal_N
    crude += noise(s.retrieval_noise, *crude.shape)
    width = min(s.retrieved, len(alive_N))
    item = alive_N[np.argpartition(crude, -width, axis=1)[:, -width:]]

    position: dict[str, np.ndarray] = {}
    logit = coarse_logit(world, user_R, at_us_R, item)
    reached = width
    for stage, keep, scale in (
        ("prerank", s.ranked, s.prerank_noise),
        ("rank", s.reranked, s.rank_noise),
        ("rerank", s.exposed, s.rerank_noise),
    ):
        if stage == "rank":
            logit = logit + s.mood_weight * mood_match(world, user_R, item[:, :reached])
        score = logit + noise(scale, *logit.shape)
        if stage == "rerank":
            score -= s.author_penalty * _earlier_same(items["author"][item[:, :reached]], score)
        order = np.argsort(-score, axis=1)
        for array in (item, *position.values()):
            array[:, :reached] = array[rows, order]
        position[stage] = _places(len(user_R), width, reached)
        reached = min(keep, reached)
        logit = logit[rows, order[:, :reached]]
    position["exposure"] = _places(len(user_R), width, reached)
    return Chunk(number_R, user_R, at_us_R, item, position, *_feedback(world, at_us_R, item[:, :reached], logit, rng))


def _places(requests: int, width: int, reached: int) -> np.ndarray:
    """1 to `reached` for the head of each request's candidates, 0 for the rest: int32[R, C]."""
    place: np.ndarray = np.arange(1, width + 1, dtype=np.int32)
    return np.broadcast_to(np.where(place <= reached, place, 0), (requests, width)).copy()


def _feedback(
    world: World, at_us_R: np.ndarray, item_RE: np.ndarray, logit_RE: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """click, event_us, ingest_us, dwell_ms, like, share of the exposures in their order."""
    s, shape = world.settings, logit_RE.shape
    seen = logit_RE - s.position_weight * np.log2(1 + np.arange(1, shape[1] + 1, dtype=np.float32))
    click = rng.random(shape, dtype=np.float32) < 1 / (1 + np.exp(-seen))
    delayed = rng.random(shape) < s.delayed_share
    delay = np.where(delayed, rng.exponential(s.delay_hours * HOUR_US, shape), rng.exponential(60e6, shape))
    event = at_us_R[:, None] + np.where(click, delay, 1e6).clip(1e6, DAY_US - 1).astype(np.int64)
    dwell = np.exp(9.5 + 0.2 * logit_RE + 0.7 * rng.standard_normal(shape)).astype(np.int64)
    like = click & (rng.random(shape) < 0.1 * (1 + np.tanh(world.items["quality"][item_RE])))
    share = click & (rng.random(shape) < 0.03)
    ingest = event + rng.exponential(_INGEST_LAG_US, shape).astype(np.int64)
    return click, event, ingest, dwell, like, share


def click_logit(world: World, user_R: np.ndarray, at_us_R: np.ndarray, item_RC: np.ndarray) -> np.ndarray:
    """The true logit of a click at the first position [R, C]: docs/simulator.md, "Clicks"."""
    mood = world.settings.mood_weight * mood_match(world, user_R, item_RC)
    logit: np.ndarray = coarse_logit(world, user_R, at_us_R, item_RC) + mood
    return logit


def coarse_logit(world: World, user_R: np.ndarray, at_us_R: np.ndarray, item_RC: np.ndarray) -> np.ndarray:
    """The click logit without the mood [R, C]: all that retrieval and pre-ranking go by."""
    s, items = world.settings, world.items
    taste = (items.latent_ND[item_RC] @ world.interest_UID[user_R].transpose(0, 2, 1)).max(2)
    hour = (at_us_R % DAY_US) // HOUR_US
    days_old = (at_us_R[:, None] - items["published_us"][item_RC]).astype(np.float32) / DAY_US
    logit: np.ndarray = (
        s.bias
        + s.taste_weight * taste
        + s.quality_weight * items["quality"][item_RC]
        + s.popularity_weight * items["popularity"][item_RC]
        - s.price_weight * world.price_sense_U[user_R][:, None] * items["price_level"][item_RC]
        - s.age_weight * days_old
        + s.hour_weight * world.hour_appeal[hour[:, None], items["content_type"][item_RC]]
    ).astype(np.float32)
    return logit


def mood_match(world: World, user_R: np.ndarray, item_RC: np.ndarray) -> np.ndarray:
    """Cosine of the items with the interest that is on each user's mind [R, C]."""
    mood_RD = world.interest_UID[user_R, world.mood_U[user_R]]
    match: np.ndarray = (world.items.latent_ND[item_RC] @ mood_RD[:, :, None])[:, :, 0]
    return match


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
