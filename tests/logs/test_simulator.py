"""The simulated cascade: deterministic, complete, harder from stage to stage."""

import datetime as dt
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from hap.errors import ConfigError, UsageError
from hap.logs import contract
from hap.logs.simulator import DEFAULTS, SETTINGS, Summary, click_logit, day_chunks, settings_digest, simulate
from hap.logs.world import World
from hap.params import Feature, Features, Params

FIRST = dt.date(2026, 1, 1)
DAYS, REQUESTS = 2, 120


def digests(root: Path, days: int) -> dict[str, str]:
    """sha256 of every file of the first days."""
    names = [FIRST + dt.timedelta(days=n) for n in range(days)]
    paths = [root / table / f"day={day}" / "part-0.parquet" for table in contract.TABLES for day in names]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_every_table_keeps_the_contract(simulated: tuple[Path, Summary], params: Params) -> None:
    root, summary = simulated
    days = contract.logged_days(root)
    assert days == list(summary.days) == [FIRST, FIRST + dt.timedelta(days=1)]
    rows = {table: sum(contract.check_day(root, table, day, params) for day in days) for table in contract.TABLES}
    rows["feedback"] += contract.check_day(root, "feedback", days[-1] + dt.timedelta(days=1), params)
    assert rows == summary.rows
    assert rows["requests"] == DAYS * REQUESTS and rows["candidates"] == 300 * rows["requests"] and rows["feedback"] == 8 * rows["requests"]


def test_same_seed_gives_the_same_bytes_however_many_days_follow(simulated: tuple[Path, Summary], params: Params, tmp_path: Path) -> None:
    simulate(tmp_path, FIRST, 3, REQUESTS, 7, params.features)
    longer, shorter = digests(tmp_path, DAYS), digests(simulated[0], DAYS)
    assert longer == shorter


def test_another_seed_gives_another_world(simulated: tuple[Path, Summary], params: Params, tmp_path: Path) -> None:
    simulate(tmp_path, FIRST, 1, 20, 8, params.features)
    simulate(tmp_path / "same", FIRST, 1, 20, 7, params.features)
    assert digests(tmp_path, 1) != digests(tmp_path / "same", 1)


def test_stage_positions_are_whole_and_nested(simulated: tuple[Path, Summary]) -> None:
    table = ds.dataset(simulated[0] / "candidates" / f"day={FIRST}" / "part-0.parquet").to_table()
    sizes = {"prerank": 300, "rank": 80, "rerank": 30, "exposure": 8}
    for request in pc.unique(table["request_id"]).to_pylist()[:10]:
        rows = table.filter(pc.equal(table["request_id"], request))
        for stage, size in sizes.items():
            assert sorted(rows[f"{stage}_position"].drop_null().to_pylist()) == list(range(1, size + 1))
        for earlier, later in zip(contract.STAGES, contract.STAGES[1:], strict=False):
            passed = rows.filter(pc.is_valid(rows[f"{later}_position"]))
            assert pc.max(passed[f"{earlier}_position"]).as_py() == sizes[later]  # the head of a stage goes on


def test_candidates_are_alive_and_published_before_their_request(simulated: tuple[Path, Summary]) -> None:
    root, _ = simulated
    items = ds.dataset(root / "items" / f"day={FIRST}" / "part-0.parquet").to_table(columns=["item_id", "published"])
    rows = ds.dataset(root / "candidates" / f"day={FIRST}" / "part-0.parquet").to_table(columns=["item_id", "event_time"])
    joined = rows.join(items, "item_id")
    assert joined["published"].null_count == 0
    assert pc.all(pc.less(joined["published"], joined["event_time"])).as_py()


def test_catalogue_turns_over_daily(simulated: tuple[Path, Summary]) -> None:
    one, two = (
        set(
            pq.read_table(simulated[0] / "items" / f"day={FIRST + dt.timedelta(days=n)}" / "part-0.parquet", partitioning=None)[
                "item_id"
            ].to_pylist()
        )
        for n in (0, 1)
    )
    assert len(two - one) == DEFAULTS.new_items_per_day
    assert len(one - two) > DEFAULTS.new_items_per_day / 2


def test_some_clicks_come_the_next_day_and_after_the_last(simulated: tuple[Path, Summary]) -> None:
    root, _ = simulated
    for n in (1, 2):
        day = FIRST + dt.timedelta(days=n)
        feedback = pq.read_table(root / "feedback" / f"day={day}" / "part-0.parquet", partitioning=None)
        earlier = pc.less(feedback["request_id"], int(day.strftime("%Y%m%d")) * 10**9)
        assert 0 < pc.sum(earlier).as_py() < REQUESTS
    assert pc.all(earlier).as_py()  # past the last day there is nothing else


def test_history_grows_by_ingested_clicks_only(simulated: tuple[Path, Summary]) -> None:
    root, _ = simulated
    requests = ds.dataset(root / "requests", format="parquet").to_table().to_pylist()
    feedback = ds.dataset(root / "feedback", format="parquet").to_table().to_pylist()
    user = {row["request_id"]: row["user_id"] for row in requests}
    clicks = {(user[row["request_id"]], row["item_id"]): row["ingest_time"] for row in feedback if row["click"]}
    start = dt.datetime.combine(FIRST, dt.time.min, dt.UTC)
    grown = 0
    for row in requests:
        for item, at in zip(row["hist_item_id"], row["hist_event_time"], strict=True):
            if at >= start:
                assert clicks[row["user_id"], item] < row["event_time"]
                grown += 1
    assert grown
    assert any(not row["hist_item_id"] for row in requests)  # some users begin with none


def oracle_auc(settings_name: str, requests: int) -> tuple[dict[str, float], float]:
    """AUC of the true logit for positives against each kind of negatives, and clicks per request, on the second day."""
    world = World(SETTINGS[settings_name], 1, FIRST)
    wins: dict[str, list[float]] = {kind: [] for kind in ("EN", "RN", "PRN", "GN")}
    rng = np.random.default_rng(0)
    clicks = 0
    for day in range(2):
        for chunk in day_chunks(world, day, requests):
            if day == 0:
                continue
            clicks += int(chunk.click_RE.sum())
            shown = chunk.click_RE.shape[1]
            drawn = rng.choice(world.items.alive(int(chunk.at_us_R[0])), (len(chunk.user_R), 16))
            pool = click_logit(world, chunk.user_R, chunk.at_us_R, drawn)
            rank = (chunk.position["rank"] > 50) & (chunk.position["exposure"] == 0)
            prerank = (chunk.position["prerank"] > 200) & (chunk.position["rank"] == 0)
            for r, logit in enumerate(chunk.logit_RC):
                positive = logit[:shown][chunk.click_RE[r], None]
                negatives = {"EN": logit[:shown][~chunk.click_RE[r]], "RN": logit[rank[r]], "PRN": logit[prerank[r]], "GN": pool[r]}
                for kind, negative in negatives.items():
                    if positive.size and negative.size:
                        wins[kind].append(float((positive > negative).mean()))
    return {kind: float(np.mean(values)) for kind, values in wins.items()}, clicks / requests


def test_kinds_are_ordered_by_difficulty_and_clicks_are_learnable() -> None:
    auc, clicks = oracle_auc("default", 500)
    assert auc["EN"] < auc["RN"] < auc["PRN"] < auc["GN"]
    assert 0.65 < auc["EN"] < 0.8
    assert 1.3 < clicks < 2.2


def test_doubled_noise_brings_the_kinds_together() -> None:
    plain, _ = oracle_auc("default", 200)
    noisy, _ = oracle_auc("double-noise", 200)
    assert noisy["RN"] < plain["RN"] and noisy["PRN"] < plain["PRN"]


def test_history_that_resembles_the_candidate_drives_the_click() -> None:
    world = World(DEFAULTS, 3, FIRST)
    chunk = next(day_chunks(world, 0, 400))
    truth = chunk.logit_RC
    world.settings = replace(DEFAULTS, history_focus=1e-3)  # a plain mean of the history
    mean = click_logit(world, chunk.user_R, chunk.at_us_R, chunk.item_RC)
    within = [np.corrcoef(a, b)[0, 1] for a, b in zip(truth, mean, strict=True)]
    assert np.mean(within) < 0.8


def test_fewer_items_than_a_stage_holds_still_runs(params: Params, tmp_path: Path) -> None:
    tiny = replace(DEFAULTS, users=10, new_items_per_day=2, authors=3, retrieved=300)
    simulate(tmp_path, FIRST, 1, 30, 1, params.features, settings=tiny)
    assert contract.check_day(tmp_path, "candidates", FIRST, params)


def test_progress_counts_requests(params: Params, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    simulate(tmp_path, FIRST, 2, 25, 1, params.features, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (50, 50) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_only_declared_features_are_logged_and_unknown_ones_refused(params: Params, tmp_path: Path) -> None:
    few = Features(user=params.features.user[:1], item=params.features.item[:2], history=params.features.history[:1])
    simulate(tmp_path, FIRST, 1, 5, 1, few)
    names = pq.read_schema(contract.read_paths(tmp_path, "items", FIRST)[0]).names
    assert names == ["item_id", "event_time", "ingest_time", "published", "author_id"]
    strange = params.features.model_copy(update={"user": (Feature(name="shoe_size", type="dense"),)})
    with pytest.raises(ConfigError, match="'shoe_size', which the simulator does not have"):
        simulate(tmp_path, FIRST, 1, 5, 1, strange)
    with pytest.raises(UsageError, match="must be at least 1"):
        simulate(tmp_path, FIRST, 0, 5, 1, few)


def test_document_states_the_hash_of_the_defaults() -> None:
    document = Path(__file__).parents[2] / "docs" / "simulator.md"
    assert settings_digest() in document.read_text()
