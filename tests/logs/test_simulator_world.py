"""The world behind the logs: every column of a quiet day is as on any other, and each effect is there in its size."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from hap.logs.cascade import CHUNK_REQUESTS, Chunk, begin, click_logit, coarse_logit, day_chunks
from hap.logs.simulator import DEFAULTS, SETTINGS
from hap.logs.world import SimulatorSettings, Turn, World

FIRST = dt.date(2026, 1, 1)


def lived(settings: SimulatorSettings, requests: int, days: int, seed: int = 1) -> Iterator[tuple[World, int, Chunk]]:
    world = begin(settings, seed, FIRST, requests)
    for day in range(days):
        for chunk in day_chunks(world, day):
            yield world, day, chunk


@cache
def ten_quiet_days() -> dict[str, np.ndarray]:
    """Per request of ten days: day, history length, click rate, new user, and how far its candidates' types spread."""
    rows = []
    for world, day, chunk in lived(DEFAULTS, 600, 10):
        length = (world.hist_item_UH[chunk.user_R] >= 0).sum(1)
        cheap = world.items["price_level"][chunk.item_RC].mean(1)
        kinds = [(chunk.position[stage] > 0).sum(1) for stage in ("rank", "rerank")]
        taste = (world.interest_UID * world.type_TD[world.type_UI]).sum(2).mean(1)[chunk.user_R]
        rows.append(np.stack([np.full(len(length), day), length, chunk.click_RE.mean(1), length == 0, cheap, taste, *kinds], 1))
    columns = np.concatenate(rows).T
    return dict(zip(("day", "history", "clicks", "empty", "price", "taste", "ranked", "reranked"), columns, strict=True))


@pytest.mark.parametrize("column", ["history", "clicks", "empty", "price", "taste"])
def test_a_quiet_world_stands_still(column: str) -> None:
    days = ten_quiet_days()
    values, early = days[column], days["day"] < 5
    moved = values[~early].mean() - values[early].mean()
    assert abs(moved) < 0.1 * values.std()  # a tenth of a standard deviation is what drift alarms at
    slope = np.polyfit(days["day"], values, 1)[0]
    assert abs(slope) * 9 < 0.15 * values.std()


def test_some_users_are_new_on_every_day() -> None:
    days = ten_quiet_days()
    assert all(0 < days["empty"][days["day"] // 5 == half].mean() < 0.03 for half in range(2))
    world = World(DEFAULTS, 1, FIRST, 4000)
    first = set(world.user_id_U)
    for day in range(3):
        world.open_day(day)
    assert len(set(world.user_id_U) - first) == pytest.approx(3 * DEFAULTS.user_turnover * len(first), rel=0.35)


@cache
def oracle(setting: str, requests: int = 600) -> tuple[dict[str, float], dict[str, float], float]:
    """AUC of positives against each kind by the true logit and by its coarse part, and clicks per request, on the second day."""
    wins: list[dict[str, list[float]]] = [{kind: [] for kind in ("EN", "RN", "PRN", "GN")} for _ in range(2)]
    rng, clicks = np.random.default_rng(0), 0
    for world, day, chunk in lived(SETTINGS[setting], requests, 2):
        if day == 0:
            continue
        clicks += int(chunk.click_RE.sum())
        shown = chunk.click_RE.shape[1]
        drawn = rng.choice(world.items.alive(int(chunk.at_us_R[0])), (len(chunk.user_R), 16))
        rank = (chunk.position["rank"] > 50) & (chunk.position["exposure"] == 0)
        prerank = (chunk.position["prerank"] > 200) & (chunk.position["rank"] == 0)
        for score, found in zip((click_logit, coarse_logit), wins, strict=True):
            own, pool = (score(world, chunk.user_R, chunk.at_us_R, items) for items in (chunk.item_RC, drawn))
            pool[(drawn[:, :, None] == chunk.item_RC[:, None, :]).any(2)] = np.nan
            for r, logit in enumerate(own):
                positive = logit[:shown][chunk.click_RE[r], None]
                negatives = {
                    "EN": logit[:shown][~chunk.click_RE[r]],
                    "RN": logit[rank[r]],
                    "PRN": logit[prerank[r]],
                    "GN": pool[r][~np.isnan(pool[r])],
                }
                for kind, negative in negatives.items():
                    if positive.size and negative.size:
                        found[kind].append(float((positive > negative).mean()))
    true, coarse = ({kind: float(np.mean(values)) for kind, values in found.items()} for found in wins)
    return true, coarse, clicks / requests


def test_kinds_are_ordered_by_difficulty_and_clicks_are_learnable() -> None:
    auc, coarse, clicks = oracle("default")
    assert coarse["EN"] < coarse["RN"] < coarse["PRN"] < coarse["GN"]
    assert 0.7 < auc["EN"] < 0.9 and min(auc["RN"], auc["PRN"], auc["GN"]) > 0.97
    assert 1.3 < clicks < 2.2


def test_the_mood_tells_hard_candidates_apart_and_hardly_easy_ones() -> None:
    true, coarse, _ = oracle("default")
    gain = {kind: true[kind] - coarse[kind] for kind in true}
    assert min(gain["EN"], gain["RN"]) > 0.06
    assert gain["GN"] < gain["PRN"] < 0.6 * gain["RN"]


def test_a_single_interest_leaves_the_mood_little_to_say() -> None:
    (many, many_coarse, _), (one, one_coarse, _) = oracle("default"), oracle("single-interest")
    assert one["RN"] - one_coarse["RN"] < 0.25 * (many["RN"] - many_coarse["RN"])


def test_doubled_noise_brings_the_kinds_together() -> None:
    plain, noisy = oracle("default")[0], oracle("double-noise")[0]
    assert noisy["RN"] < plain["RN"] and noisy["PRN"] < plain["PRN"]


def test_stages_err_less_and_less() -> None:
    """How well the order of each stage agrees with the true logit, among the candidates that all stages saw."""
    found: dict[str, list[float]] = {stage: [] for stage in ("prerank", "rank", "rerank")}
    for world, _, chunk in lived(DEFAULTS, 600, 1):
        truth = click_logit(world, chunk.user_R, chunk.at_us_R, chunk.item_RC)
        for r in range(len(truth)):
            saw = chunk.position["rerank"][r] > 0
            for stage, values in found.items():
                values.append(np.corrcoef(-chunk.position[stage][r][saw], truth[r][saw])[0, 1])
    agreement = {stage: np.mean(values) for stage, values in found.items()}
    assert agreement["prerank"] < agreement["rank"] < agreement["rerank"]


def test_retrieval_finds_much_of_what_would_be_clicked_but_not_all() -> None:
    world = begin(DEFAULTS, 2, FIRST, 300)
    chunk = next(day_chunks(world, 0))
    alive = world.items.alive(int(chunk.at_us_R[0]))
    truth = click_logit(world, chunk.user_R, chunk.at_us_R, np.broadcast_to(alive, (len(chunk.user_R), len(alive))))
    best = alive[np.argsort(-truth, axis=1)[:, :50]]
    recall = np.mean([np.isin(wanted, got).mean() for wanted, got in zip(best, chunk.item_RC, strict=True)])
    assert 0.4 < recall < 0.95


def test_latest_clicks_tell_the_mood_and_older_ones_do_not() -> None:
    told: list[np.ndarray] = []
    for world, _, chunk in lived(DEFAULTS, 600, 2):
        latent = world.items.latent_ND[world.hist_item_UH[chunk.user_R]]
        near = (latent @ world.interest_UID[chunk.user_R].transpose(0, 2, 1)).argmax(2)  # [R, H]
        full = world.hist_item_UH[chunk.user_R, 0] >= 0
        told.append((near == world.mood_U[chunk.user_R][:, None])[full])
    by_recency = np.concatenate(told).mean(0)
    assert by_recency[-1] > 0.6 and by_recency[0] < by_recency[-1] - 0.25


def test_a_mood_lasts_as_long_as_its_setting_says() -> None:
    world = World(DEFAULTS, 1, FIRST, 8000)
    before = world.mood_U.copy()
    for slot in range(DEFAULTS.slots_per_day):
        world.open_slot(0, slot)
    kept = np.exp(-1 / DEFAULTS.mood_days)
    assert (world.mood_U == before).mean() == pytest.approx(kept + (1 - kept) / DEFAULTS.interests, abs=0.03)


def test_what_is_shown_lower_is_clicked_less_for_the_same_logit() -> None:
    def clicks(weight: float) -> np.ndarray:
        shown = [chunk.click_RE for _, _, chunk in lived(replace(DEFAULTS, position_weight=weight, warmup_days=0), 1000, 1)]
        return np.asarray(np.concatenate(shown).mean(0))

    biased, plain = clicks(DEFAULTS.position_weight), clicks(0.0)
    assert biased[-1] / plain[-1] < 0.75 * biased[0] / plain[0]


def test_quality_popularity_price_age_and_hour_move_the_logit_as_weighted() -> None:
    world = begin(replace(DEFAULTS, warmup_days=0), 1, FIRST, CHUNK_REQUESTS)
    chunk = next(day_chunks(world, 0))
    args = world, chunk.user_R, chunk.at_us_R, chunk.item_RC
    before, items = coarse_logit(*args), world.items
    for name, weight in (("quality", DEFAULTS.quality_weight), ("popularity", DEFAULTS.popularity_weight)):
        items.columns[name] = items[name] + 1
        assert np.allclose(coarse_logit(*args) - before, weight, atol=1e-4)
        items.columns[name] = items[name] - 1
    items.columns["price_level"] = items["price_level"] + 1
    fall = before - coarse_logit(*args)
    assert np.allclose(fall, DEFAULTS.price_weight * world.price_sense_U[chunk.user_R][:, None], atol=1e-4)
    items.columns["price_level"] = items["price_level"] - 1
    later = coarse_logit(world, chunk.user_R, chunk.at_us_R + 24 * 3_600_000_000, chunk.item_RC)
    assert np.allclose(before - later, DEFAULTS.age_weight, atol=1e-4)
    midnight = chunk.at_us_R // 86_400_000_000 * 86_400_000_000
    at_noon = [coarse_logit(world, chunk.user_R, midnight + hour * 3_600_000_000, chunk.item_RC) for hour in (0, 12)]
    types = items["content_type"][chunk.item_RC]
    drop = DEFAULTS.age_weight * 0.5
    wanted = DEFAULTS.hour_weight * (world.hour_appeal[12] - world.hour_appeal[0])[types] - drop
    assert np.allclose(at_noon[1] - at_noon[0], wanted, atol=1e-3)


def test_interests_move_by_the_drift_and_keep_their_spread() -> None:
    def turn(settings: SimulatorSettings) -> tuple[float, float, float]:
        world = World(settings, 1, FIRST, 8000)
        old, types = world.interest_UID, world.type_UI
        spread = np.linalg.norm(world.offset_UID, axis=2).mean()
        for day in range(5):
            world.open_day(day)
        same = (types == world.type_UI).all(1)
        return float((old * world.interest_UID).sum(2)[same].mean()), float(spread), float(np.linalg.norm(world.offset_UID, axis=2).mean())

    calm, fast = turn(replace(DEFAULTS, user_turnover=0.0)), turn(replace(SETTINGS["fast-drift"], user_turnover=0.0))
    assert fast[0] < calm[0] < 0.999
    assert calm[2] == pytest.approx(calm[1], rel=0.02)


def test_interests_turn_by_a_fifth_a_day_until_their_share_and_stay_turned() -> None:
    def shares(turn: Turn | None) -> list[float]:
        world = World(DEFAULTS, 1, FIRST, 4000, turn)
        return [float((world.type_UI == 0).mean()) for day in range(9) if world.open_day(day) is None]

    quiet, turned = shares(None), shares(Turn(2, 0.4))
    assert quiet[:2] == turned[:2], "the days before are as ever"
    wanted = [0.08, 0.16, 0.24, 0.32, 0.4, 0.4, 0.4]
    gone = [(after - before) / (1 - before) for before, after in zip(quiet[2:], turned[2:], strict=True)]
    assert gone == pytest.approx(wanted, abs=0.02)
