"""The simulated logs: by the contract, the same for one seed, complete, and made of declared features only."""

import datetime as dt
import hashlib
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from hap.errors import ConfigError, UsageError
from hap.logs import contract
from hap.logs.simulator import DEFAULTS, Summary, settings_digest, simulate
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
    files = [simulated[0] / "items" / f"day={FIRST + dt.timedelta(days=n)}" / "part-0.parquet" for n in (0, 1)]
    one, two = (set(pq.read_table(file, partitioning=None)["item_id"].to_pylist()) for file in files)
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


def test_delays_are_short_for_most_clicks_and_hours_for_a_tenth(simulated: tuple[Path, Summary]) -> None:
    root, summary = simulated
    requests = ds.dataset(root / "requests", format="parquet").to_table(columns=["request_id", "event_time"])
    feedback = ds.dataset(root / "feedback", format="parquet").to_table(columns=["request_id", "event_time", "click", "ingest_time"])
    joined = feedback.filter(feedback["click"]).join(requests, "request_id", right_suffix="_asked")
    assert joined.num_rows == summary.clicks
    waited = pc.divide(pc.subtract(joined["event_time"], joined["event_time_asked"]).cast("int64"), 1_000_000).to_numpy()
    late = waited > 15 * 60
    assert late.mean() == pytest.approx(DEFAULTS.delayed_share, abs=0.05)
    assert waited[late].mean() == pytest.approx(DEFAULTS.delay_hours * 3600, rel=0.5) and waited[~late].mean() < 90
    assert waited.max() < 86_400


def test_history_grows_by_ingested_clicks_only(simulated: tuple[Path, Summary]) -> None:
    root, _ = simulated
    requests = ds.dataset(root / "requests", format="parquet").to_table().to_pylist()
    feedback = ds.dataset(root / "feedback", format="parquet").to_table().to_pylist()
    user = {row["request_id"]: row["user_id"] for row in requests}
    clicks = {(user[row["request_id"]], row["item_id"], row["event_time"]): row["ingest_time"] for row in feedback if row["click"]}
    own = min(row["event_time"] for row in requests) + dt.timedelta(days=1)  # by then nothing of the unlogged past is under way
    grown = 0
    for row in requests:
        for item, at in zip(row["hist_item_id"], row["hist_event_time"], strict=True):
            if at >= own:
                assert clicks[row["user_id"], item, at] < row["event_time"]
                grown += 1
    assert grown


def test_fewer_items_than_a_stage_holds_still_runs(params: Params, tmp_path: Path) -> None:
    tiny = replace(DEFAULTS, new_items_per_day=2, authors=3)
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
