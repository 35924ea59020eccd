"""Each rule of the log contract, with a bad file each; and whole-or-absent writes."""

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hap.errors import DataError, UsageError
from hap.logs import contract
from hap.logs.simulator import Summary
from hap.params import Params
from tests.logs.bad_files import DAY, change, part, put


@pytest.fixture
def logs(simulated: tuple[Path, Summary], tmp_path: Path) -> Path:
    return Path(shutil.copytree(simulated[0], tmp_path / "logs"))


def refusal(logs: Path, table: str, params: Params) -> str:
    with pytest.raises(DataError) as caught:
        contract.check_day(logs, table, DAY, params)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("table", contract.TABLES)
def test_good_day_passes_and_gives_its_rows(logs: Path, params: Params, table: str) -> None:
    assert contract.check_day(logs, table, DAY, params) == pq.read_metadata(part(logs, table)).num_rows


def test_truncated_file_is_named(logs: Path, params: Params) -> None:
    path = part(logs, "candidates")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refusal(logs, "candidates", params)
    assert str(path) in message and "unreadable or truncated" in message


def test_text_with_a_parquet_name_is_refused(logs: Path, params: Params) -> None:
    part(logs, "items").write_text("item_id,price\n1,2\n")
    assert "unreadable or truncated" in refusal(logs, "items", params)


def test_garbage_behind_a_good_footer_is_found(logs: Path, params: Params) -> None:
    path = part(logs, "candidates")
    data = bytearray(path.read_bytes())
    data[1000:20000] = bytes(19000)
    path.write_bytes(bytes(data))
    message = refusal(logs, "candidates", params)
    assert str(path) in message and "unreadable or truncated" in message


def test_missing_column_is_named_with_what_was_found(logs: Path, params: Params) -> None:
    path = change(logs, "items", lambda t: t.drop_columns(["price"]))
    message = refusal(logs, "items", params)
    assert str(path) in message and "missing column: 1 of" in message and "(price)" in message


def test_extra_column_is_refused(logs: Path, params: Params) -> None:
    change(logs, "items", lambda t: t.append_column("colour", pa.array([1] * t.num_rows)))
    assert "extra column: 1 (colour)" in refusal(logs, "items", params)


def test_wrong_dtype_is_refused_and_storage_variants_are_not(logs: Path, params: Params) -> None:
    change(logs, "candidates", lambda t: t.set_column(4, "stage", t["stage"].cast(pa.large_string()).dictionary_encode()))
    assert contract.check_day(logs, "candidates", DAY, params)
    change(logs, "items", lambda t: t.set_column(0, "item_id", t["item_id"].cast(pa.float64())))
    assert "wrong dtype: 1 column(s): item_id is double, not int64" in refusal(logs, "items", params)


def test_second_file_of_another_schema_is_named(logs: Path, params: Params) -> None:
    path = part(logs, "items")
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["quality"]), path.with_name("part-1.parquet"))
    message = refusal(logs, "items", params)
    assert "part-1.parquet" in message and "missing column" in message


@pytest.mark.parametrize(
    ("table", "column", "value", "rule"),
    [
        ("requests", "user_id", None, "null in user_id"),
        ("requests", "age_band", 0, "id 0 or negative in age_band"),
        ("requests", "activity", float("nan"), "NaN or infinite value in activity"),
        ("requests", "hist_item_id", [1], "hist_item_id not as long as hist_event_time"),
        ("candidates", "item_id", -4, "id 0 or negative in item_id"),
        ("candidates", "stage", "recall", "stage not one of prerank, rank, rerank, exposure"),
        ("candidates", "prerank_position", 0, "prerank_position below 1"),
        ("candidates", "prerank_position", None, "prerank_position missing in a stage reached"),
        ("candidates", "event_time", dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "event_time outside its day 2026-01-01"),
        ("candidates", "ingest_time", dt.datetime(2025, 12, 31, tzinfo=dt.UTC), "ingest_time before event_time"),
        ("feedback", "click", None, "null in click"),
        ("feedback", "dwell_ms", -1, "negative dwell_ms"),
        ("items", "published", dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "published after the day 2026-01-01"),
        ("items", "price", float("inf"), "NaN or infinite value in price"),
        ("items", "price", float("nan"), "NaN or infinite value in price"),
        ("items", "price", -1e39, "NaN or infinite value in price"),  # samples hold float32
    ],
)
def test_broken_rule_gives_file_rule_count_and_three_rows(
    logs: Path, params: Params, table: str, column: str, value: object, rule: str
) -> None:
    path = change(logs, table, lambda t: put(t, column, [3, 5, 8, 13], value))
    message = refusal(logs, table, params)
    rows = pq.read_metadata(path).num_rows
    assert message.startswith(f"{path}: {rule}: 4 of {rows} rows; row 3: ")
    assert "row 5: " in message and "row 8: " in message and "row 13: " not in message


def test_position_in_a_stage_not_reached_is_refused(logs: Path, params: Params) -> None:
    stages = pq.read_table(part(logs, "candidates"), columns=["stage"], partitioning=None)["stage"].to_pylist()
    change(logs, "candidates", lambda t: put(t, "rank_position", [stages.index("prerank")], 5))
    assert "rank_position in a stage not reached: 1 of" in refusal(logs, "candidates", params)


def test_history_out_of_order_or_after_the_request_is_refused(logs: Path, params: Params) -> None:
    path = part(logs, "requests")
    good = pq.read_table(path, partitioning=None)
    row = next(n for n, times in enumerate(good["hist_event_time"].to_pylist()) if len(times) > 1)
    times = good["hist_event_time"][row].as_py()
    pq.write_table(put(good, "hist_event_time", [row], times[::-1]), path)
    assert "history not most recent last: 1 of" in refusal(logs, "requests", params)
    pq.write_table(put(good, "hist_event_time", [row], [*times[:-1], dt.datetime(2026, 1, 1, 23, 59, 59, 999, tzinfo=dt.UTC)]), path)
    assert "history after the request: 1 of" in refusal(logs, "requests", params)


def test_incomplete_source_may_lack_positions(logs: Path, params: Params) -> None:
    change(logs, "candidates", lambda t: put(t, "prerank_position", [0, 1], None))
    incomplete = params.model_copy(update={"logs": params.logs.model_copy(update={"complete": False})})
    assert contract.check_day(logs, "candidates", DAY, incomplete)


def test_duplicate_pair_across_files_is_refused(logs: Path, params: Params) -> None:
    path = part(logs, "candidates")
    pq.write_table(pq.read_table(path, partitioning=None).slice(0, 5), path.with_name("part-1.parquet"))
    message = refusal(logs, "candidates", params)
    assert "part-1.parquet: duplicate (request_id, item_id): 5 surplus rows" in message and "x2" in message
    assert "hapctl collect --quarantine" in message


def test_candidate_without_request_is_refused(logs: Path, params: Params) -> None:
    path = part(logs, "requests")
    requests = pq.read_table(path, partitioning=None)
    pq.write_table(requests.slice(1), path)
    message = refusal(logs, "candidates", params)
    assert "candidate without request: 300 rows" in message and f"request_id={requests['request_id'][0]} (300 candidates)" in message


def test_empty_day_is_refused(logs: Path, params: Params) -> None:
    path = change(logs, "feedback", lambda t: t.slice(0, 0))
    assert f"{path}: empty day" in refusal(logs, "feedback", params)
    path.unlink()
    assert "empty day: no Parquet file" in refusal(logs, "feedback", params)


def test_day_without_logs_names_table_path_days_and_next_command(logs: Path, params: Params) -> None:
    with pytest.raises(DataError) as caught:
        contract.check_day(logs, "candidates", dt.date(2026, 3, 1), params)
    message = str(caught.value)
    assert str(logs / "candidates" / "day=2026-03-01") in message and "2026-01-01 to 2026-01-02 (2 days)" in message
    assert "hapctl simulate" in message and "\n" not in message


def test_unmarked_day_does_not_exist(logs: Path) -> None:
    (logs / "items" / f"day={DAY}" / "_SUCCESS").unlink()
    assert contract.logged_days(logs) == [dt.date(2026, 1, 2)]
    with pytest.raises(DataError, match="has no _SUCCESS"):
        contract.read_paths(logs, "items", DAY)


def test_failed_write_leaves_the_old_day(logs: Path, params: Params) -> None:
    path = part(logs, "items")
    before = path.read_bytes()
    good = pq.read_table(path, partitioning=None)

    def batches() -> Iterator[pa.Table]:
        yield good.slice(0, 3)
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError):
        contract.write_day(logs, "items", DAY, batches())
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.parent.glob(".day=*")] == []


def test_write_day_takes_tables_and_streams_alike(logs: Path) -> None:
    good = pq.read_table(part(logs, "items"), partitioning=None)
    other = dt.date(2026, 1, 9)
    assert contract.write_day(logs, "items", other, good) == good.num_rows
    whole = pq.read_table(contract.read_paths(logs, "items", other)[0], partitioning=None)
    assert contract.write_day(logs, "items", other, iter(good.to_batches(max_chunksize=100))) == good.num_rows
    assert pq.read_table(contract.read_paths(logs, "items", other)[0], partitioning=None).equals(whole)
    with pytest.raises(DataError, match="nothing to write"):
        contract.write_day(logs, "items", other, [])


def test_an_unknown_table_is_refused(params: Params) -> None:
    with pytest.raises(UsageError, match="'clicks' is not a log table"):
        contract.table_schema("clicks", params.features)


def test_schema_follows_the_declared_features(params: Params) -> None:
    names = contract.table_schema("requests", params.features).names
    assert names == [
        "request_id", "event_time", "ingest_time", "user_id", "age_band", "activity", "hour",
        "hist_event_time", "hist_item_id", "hist_author_id", "hist_content_type",
    ]  # fmt: skip
    items = contract.table_schema("items", params.features)
    assert items.field("price").nullable and not items.field("author_id").nullable and "age_hours" not in items.names
    assert np.all([contract.table_schema(t, params.features).field("event_time").type == contract.TIME for t in contract.TABLES])


def test_what_a_killed_writer_left_hidden_is_no_day(logs: Path) -> None:
    days = contract.logged_days(logs)
    for table in contract.TABLES:
        hidden = logs / table / ".day=2026-01-09.new"
        hidden.mkdir()
        (hidden / contract.MARKER).touch()
    assert contract.logged_days(logs) == days
