"""Rules that concern whole requests, several files or several tables, with bad files of their own."""

import datetime as dt
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from hap.errors import ConfigError, DataError
from hap.logs import contract
from hap.logs.unique import pairs_are_unique
from hap.params import Params, resolve
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.logs.bad_files import DAY, change, part, put, read, split, where

AS_OF = dt.datetime(2026, 1, 2, 2, tzinfo=dt.UTC)


@pytest.fixture
def logs(simulated: tuple[Path, object], tmp_path: Path) -> Path:
    return Path(shutil.copytree(simulated[0], tmp_path / "logs"))


def check(logs: Path, params: Params, as_of: dt.datetime = AS_OF) -> contract.Tally:
    return contract.check_logs(contract.day_logs(str(logs), DAY, params.collect.label_delay_hours), params, as_of)


def refusal(logs: Path, params: Params, kind: type[DataError] = contract.BrokenRows) -> str:
    with pytest.raises(DataError) as caught:
        check(logs, params)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_known(params: Params, group: str, name: str, known: int) -> Params:
    raw = params.model_dump(mode="json")
    for feature in raw["features"][group]:
        if feature["name"] == name:
            feature["known"] = known
    return resolve(raw, "test")


def incomplete(params: Params) -> Params:
    return params.model_copy(update={"logs": params.logs.model_copy(update={"complete": False})})


def test_a_good_day_gives_its_rows_and_watermark(logs: Path, params: Params) -> None:
    tally = check(logs, params)
    days = {table: [DAY, DAY + dt.timedelta(days=1)] if table == "feedback" else [DAY] for table in contract.TABLES}
    tables = {table: pa.concat_tables([read(logs, table, day) for day in days[table]]) for table in contract.TABLES}
    times = [time for table in tables.values() for time in table["ingest_time"].to_pylist()]
    assert tally.rows == {name: table.num_rows for name, table in tables.items()}
    assert tally.watermark == max(time for time in times if time <= AS_OF)
    assert sum(tally.late.values()) == sum(time > AS_OF for time in times)
    assert tally.feedback_unmatched == 0


def test_repeated_position_is_refused_with_the_request_and_the_position(logs: Path, params: Params) -> None:
    rows = read(logs, "candidates")
    (second,) = where(rows, request_id=rows["request_id"][0].as_py(), prerank_position=2)
    path = change(logs, "candidates", lambda t: put(t, "prerank_position", [second], 3))
    message = refusal(logs, params)
    assert message.startswith(f"{path}: position gap or repeat in prerank_position: 1 requests; ")
    assert f"request_id={rows['request_id'][0]}: 300 rows, 3 stands 2 times and 2 is missing" in message


@pytest.mark.parametrize("stage", contract.STAGES)
def test_position_gap_in_any_stage_is_refused(logs: Path, params: Params, stage: str) -> None:
    rows = read(logs, "candidates")
    firsts = [n for n, position in enumerate(rows[f"{stage}_position"].to_pylist()) if position == 1][:4]
    change(logs, "candidates", lambda t: put(t, f"{stage}_position", firsts, 2**31 - 1))
    message = refusal(logs, params)
    assert f"position gap or repeat in {stage}_position: 4 requests; " in message
    assert message.count("1 is missing") == 3


def test_gap_by_a_missing_row_is_found_in_files_without_statistics(logs: Path, params: Params) -> None:
    rows = read(logs, "candidates")
    (second,) = where(rows, request_id=rows["request_id"][0].as_py(), prerank_position=2)
    kept = pa.concat_tables([rows.slice(0, second), rows.slice(second + 1)])
    pq.write_table(kept, part(logs, "candidates"), write_statistics=False)
    assert "position gap or repeat in prerank_position: 1 requests; " in refusal(logs, params)
    pq.write_table(rows, part(logs, "candidates"), write_statistics=False)
    assert check(logs, params).rows["candidates"] == rows.num_rows


def test_positions_that_lie_in_several_files_are_one_list(logs: Path, params: Params) -> None:
    rows = check(logs, params).rows["candidates"]
    paths = split(logs, "candidates", 7)
    assert check(logs, params).rows["candidates"] == rows
    paths[3].unlink()
    assert "position gap or repeat" in refusal(logs, params)


def test_candidates_find_their_requests_in_any_file_and_none_where_one_is_gone(logs: Path, params: Params) -> None:
    rows = check(logs, params).rows
    split(logs, "candidates", 3)
    paths = split(logs, "requests", 4)
    assert check(logs, params).rows == rows
    gone = pq.read_table(paths[2], partitioning=None)["request_id"].to_pylist()
    paths[2].unlink()
    message = refusal(logs, params)
    assert f"candidate without request: {300 * len(gone)} rows; request_id={min(gone)} (300 candidates); " in message


def test_incomplete_logs_may_have_gaps_and_repeats(logs: Path, params: Params) -> None:
    change(logs, "candidates", lambda t: put(t, "prerank_position", [0, 1], 250))
    assert check(logs, incomplete(params)).rows["candidates"]
    assert "position gap or repeat" in refusal(logs, params)


def test_feedback_on_an_item_never_exposed_is_refused(logs: Path, params: Params) -> None:
    candidates = {(row["request_id"], row["item_id"]): row["stage"] for row in read(logs, "candidates").to_pylist()}
    rows = read(logs, "feedback").to_pylist()
    key = rows[4]["request_id"]
    unseen = next(item for (request, item), stage in candidates.items() if request == key and stage == "rank")
    path = change(logs, "feedback", lambda t: put(put(t, "item_id", [4], unseen), "item_id", [9], 999_999_999))
    message = refusal(logs, params)
    assert message.startswith(f"{path}: feedback on an item never exposed: 2 rows; row 4: request_id={key}, item_id={unseen}; row 9: ")


def test_feedback_of_other_days_requests_is_not_judged_but_counted_where_nobody_has_them(logs: Path, params: Params) -> None:
    tomorrow = DAY + dt.timedelta(days=1)
    in_time = next(n for n, time in enumerate(read(logs, "feedback", tomorrow)["ingest_time"].to_pylist()) if time <= AS_OF)
    change(logs, "feedback", lambda t: put(t, "item_id", [in_time], 999_999_999), tomorrow)
    first = read(logs, "feedback", tomorrow)["request_id"][in_time].as_py()
    own = set(read(logs, "requests")["request_id"].to_pylist())
    if first in own:
        assert "never exposed" in refusal(logs, params)
    else:
        assert check(logs, params).feedback_unmatched == 0
    change(logs, "feedback", lambda t: put(t, "request_id", [0, 1], 77))
    change(logs, "feedback", lambda t: put(t, "item_id", [1], 12345), DAY)
    change(logs, "feedback", lambda t: t.filter(pc.not_equal(t["item_id"], 999_999_999)), tomorrow)
    assert check(logs, params).feedback_unmatched == 2


def test_feedback_told_twice_is_refused_also_where_it_is_told_on_two_days(logs: Path, params: Params) -> None:
    tomorrow = DAY + dt.timedelta(days=1)
    twice = put(read(logs, "feedback").slice(3, 1), "event_time", [0], AS_OF - dt.timedelta(hours=1))
    twice = put(twice, "ingest_time", [0], AS_OF)
    path = part(logs, "feedback", tomorrow).with_name("part-1.parquet")
    pq.write_table(twice, path)
    assert f"{path}: duplicate (request_id, item_id): 1 surplus rows" in refusal(logs, params)


@pytest.mark.parametrize("name", ["_part-9.parquet", ".part-9.parquet"])
def test_a_file_named_as_not_ready_is_not_read_beside_finished_ones_either(logs: Path, params: Params, name: str) -> None:
    whole = check(logs, params)
    for table in contract.TABLES:
        part(logs, table).with_name(name).write_bytes(b"PAR1")
    assert check(logs, params) == whole


def test_the_next_days_feedback_is_read_as_it_stands_before_it_is_finished(logs: Path, params: Params) -> None:
    tomorrow = DAY + dt.timedelta(days=1)
    whole = check(logs, params)
    folder = part(logs, "feedback", tomorrow).parent
    (folder / contract.MARKER).unlink()
    found = contract.day_logs(str(logs), DAY, 2)
    assert found.labels == {DAY: "finished", tomorrow: "unfinished"} and contract.check_logs(found, params, AS_OF) == whole
    for name in (".part-1.parquet", "_part-1.parquet", "part-1.parquet.tmp"):  # as writers name what is not ready
        (folder / name).write_bytes(b"PAR1")
    assert check(logs, params) == whole
    pq.write_table(read(logs, "feedback", tomorrow).slice(0, 0), folder / "part-1.parquet")
    assert check(logs, params) == whole
    (folder / "part-1.parquet").write_bytes(b"PAR1")
    assert "part-1.parquet: unreadable" in refusal(logs, params, DataError)
    assert "no _SUCCESS yet: a file there may be half written" in refusal(logs, params, DataError)
    shutil.rmtree(folder)
    assert contract.day_logs(str(logs), DAY, 2).labels == {DAY: "finished", tomorrow: "absent"}
    assert check(logs, params).rows["feedback"] == read(logs, "feedback").num_rows


@pytest.mark.parametrize("broken", ["columns", "footer", "page", "gone"])
def test_another_days_broken_requests_refuse_nothing_and_only_leave_their_feedback_unmatched(
    logs: Path, params: Params, broken: str
) -> None:
    tomorrow = DAY + dt.timedelta(days=1)
    assert check(logs, params).feedback_unmatched == 0
    path = part(logs, "requests", tomorrow)
    whole = path.read_bytes()
    if broken == "columns":
        change(logs, "requests", lambda t: t.drop_columns(["request_id"]), tomorrow)
    elif broken == "footer":
        path.write_bytes(whole[:-100])
    elif broken == "page":
        path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    else:
        path.unlink()
    own = set(read(logs, "requests")["request_id"].to_pylist())
    in_time = read(logs, "feedback", tomorrow).filter(pc.field("ingest_time") <= pa.scalar(AS_OF))
    others = sum(key not in own for key in in_time["request_id"].to_pylist())
    assert check(logs, params).feedback_unmatched == others > 0


@pytest.mark.parametrize(
    ("table", "group", "name", "column", "value"),
    [
        ("requests", "user", "age_band", "age_band", 99),
        ("requests", "context", "hour", "hour", 99),
        ("requests", "history", "content_type", "hist_content_type", None),
        ("items", "item", "content_type", "content_type", 99),
    ],
)
def test_unknown_category_is_refused_where_the_known_ones_are_declared(
    logs: Path, params: Params, table: str, group: str, name: str, column: str, value: int | None
) -> None:
    rows = read(logs, table)
    largest = max(max(v) if isinstance(v, list) and v else v if isinstance(v, int) else 0 for v in rows[column].to_pylist())
    declared = with_known(params, group, name, largest)
    assert check(logs, declared).rows[table] == rows.num_rows
    if value is None:
        row = next(n for n, values in enumerate(rows[column].to_pylist()) if values)
        change(logs, table, lambda t: put(t, column, [row], [*rows[column][row].as_py()[:-1], 99]))
    else:
        change(logs, table, lambda t: put(t, column, [2], value))
    assert f"unknown category in {column} (known: 1 to {largest}): 1 of {rows.num_rows} rows" in refusal(logs, declared)
    assert check(logs, params).rows[table] == rows.num_rows


def test_known_needs_a_category(params: Params) -> None:
    with pytest.raises(ConfigError, match="`known` has a meaning for a category only, not for type dense"):
        with_known(params, "item", "price", 5)


def scored(table: pa.Table, values: list[float | None], name: str = "rank_score") -> pa.Table:
    return table.append_column(name, pa.array(values, pa.float64()))


def test_stage_scores_may_be_there_with_nulls_and_not_with_nan(logs: Path, params: Params) -> None:
    rows = read(logs, "candidates")
    path = part(logs, "candidates")
    pq.write_table(scored(scored(rows, [None] * rows.num_rows), [0.5] * rows.num_rows, "prerank_score"), path)
    assert check(logs, params).rows["candidates"] == rows.num_rows
    pq.write_table(scored(rows, [0.5, float("nan"), None] + [0.1] * (rows.num_rows - 3)), path)
    message = refusal(logs, params)
    assert message.startswith(f"{path}: NaN or infinite value in rank_score: 1 of {rows.num_rows} rows; row 1: ")
    pq.write_table(rows.append_column("rank_score", pa.array([1] * rows.num_rows)), path)
    assert "wrong dtype: 1 column(s): rank_score is int64, not double" in refusal(logs, params, DataError)


def test_scores_in_one_of_two_files_are_different_schemas(logs: Path, params: Params) -> None:
    paths = split(logs, "candidates", 2)
    rows = pq.read_table(paths[1], partitioning=None)
    pq.write_table(scored(rows, [0.5] * rows.num_rows), paths[1])
    message = refusal(logs, params, DataError)
    assert message.startswith(f"{paths[1]}: files of one day with different schemas: 1 column(s) (rank_score) differ from {paths[0]}; ")
    assert "rank_score stands in part-1.parquet and not in part-0.parquet" in message


def test_files_of_one_day_may_have_their_columns_in_another_order(logs: Path, params: Params) -> None:
    paths = split(logs, "candidates", 2)
    rows = pq.read_table(paths[1], partitioning=None)
    pq.write_table(rows.select(rows.column_names[::-1]), paths[1])
    assert check(logs, params).rows["candidates"]


def test_column_that_stands_twice_is_refused(logs: Path, params: Params) -> None:
    rows = read(logs, "items")
    pq.write_table(pa.Table.from_arrays([*rows.columns, rows["price"]], [*rows.column_names, "price"]), part(logs, "items"))
    assert "repeated column: 1 (price)" in refusal(logs, params, DataError)


@pytest.mark.parametrize("table", contract.TABLES)
def test_every_table_refuses_null_and_zero_ids_and_repeats(logs: Path, params: Params, table: str) -> None:
    good = read(logs, table)
    path = part(logs, table)
    key = "item_id" if table == "items" else "request_id"
    for value, rule in ((None, f"null in {key}"), (0, f"id 0 or negative in {key}")):
        pq.write_table(put(good, key, [1], value), path)
        assert f"{path}: {rule}: 1 of {good.num_rows} rows" in refusal(logs, params)
    pq.write_table(pa.concat_tables([good, good.slice(2, 1)]), path)
    assert f"{path}: duplicate (" in refusal(logs, params)


def test_repeats_are_found_whether_rows_of_a_request_lie_together_or_not(logs: Path, params: Params) -> None:
    good = read(logs, "candidates")
    path = part(logs, "candidates")
    assert pairs_are_unique([str(path)])
    scattered = good.take(pa.array([n * 7919 % good.num_rows for n in range(good.num_rows)]))
    pq.write_table(scattered, path)
    assert not pairs_are_unique([str(path)])
    assert check(logs, params).rows["candidates"] == good.num_rows
    pq.write_table(pa.concat_tables([scattered, good.slice(5, 1)]), path)
    assert "duplicate (request_id, item_id): 1 surplus rows" in refusal(logs, params)


def test_a_run_that_spans_batches_and_files_is_looked_at_whole(tmp_path: Path) -> None:
    requests = pa.array([1] * 3 + [2] * 200_000 + [3] * 2)
    items = pa.array([1, 2, 3, *range(1, 200_001), 5, 6])
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table({"request_id": requests, "item_id": items}), path, row_group_size=50_000)
    assert pairs_are_unique([str(path)])
    late = pa.array([1, 2, 3, *range(1, 200_000), 1, 5, 6])  # the last row of the long run repeats its first
    pq.write_table(pa.table({"request_id": requests, "item_id": late}), path, row_group_size=50_000)
    assert not pairs_are_unique([str(path)])
    other = tmp_path / "part-1.parquet"
    pq.write_table(pa.table({"request_id": requests, "item_id": items}), path)
    pq.write_table(pa.table({"request_id": pa.array([3]), "item_id": pa.array([5])}), other)
    assert not pairs_are_unique([str(path), str(other)])


def test_a_file_damaged_anywhere_is_refused_or_still_reads_as_sound(logs: Path, params: Params) -> None:
    path = part(logs, "candidates")
    whole = path.read_bytes()
    seen = set()
    for place in range(4, len(whole) - 64, len(whole) // 25):
        path.write_bytes(whole[:place] + bytes([whole[place + n] ^ 0xA5 for n in range(64)]) + whole[place + 64 :])
        try:
            check(logs, params)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            seen.add("unreadable" if "unreadable or truncated" in str(error) else "rule")
    assert "unreadable" in seen
    for length in (0, 3, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"{path}: unreadable or truncated file" in refusal(logs, params, DataError)


def test_a_memory_limit_that_does_not_suffice_is_told_in_one_line(logs: Path, params: Params) -> None:
    tiny = params.model_copy(update={"collect": params.collect.model_copy(update={"memory_limit": "1MB"})})
    with pytest.raises(ConfigError, match=r"collect\.memory_limit is too small") as caught:
        check(logs, tiny)
    assert "\n" not in str(caught.value)


def test_a_day_without_feedback_of_its_own_is_refused(logged_workspace: Workspace, default_params: Params, tmp_path: Path) -> None:
    root = tmp_path / "logs"
    shutil.copytree(logged_workspace.root / "logs", root)
    shutil.rmtree(root / "feedback" / f"day={FIRST_DAY}")
    assert contract.has_day(root, "feedback", FIRST_DAY + dt.timedelta(days=1))
    with pytest.raises(DataError, match=f"no logs for the day {FIRST_DAY}: .*feedback"):
        contract.day_logs(str(root), FIRST_DAY, default_params.collect.label_delay_hours)
