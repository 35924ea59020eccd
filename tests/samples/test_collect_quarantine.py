"""Bad rows set aside: what falls with them, the share limit, and what a day without bad rows must not notice."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hap.cli.main import app
from hap.errors import DataError, NotFound
from hap.logs import contract
from hap.logs.side import read_side, side_tables
from hap.params import Params
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.logs.bad_files import change, part, put, read


def lenient(ws: Workspace, share: float = 0.5, complete: bool = True) -> Params:
    params = ws.params()
    return params.model_copy(update={"logs": params.logs.model_copy(update={"max_bad_share": share, "complete": complete})})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def aside(ws: Workspace, table: str) -> list[tuple[int, str]]:
    rows = read_side(ws.quarantine, table, FIRST_DAY)
    return list(zip(rows["item_id" if table == "items" else "request_id"].to_pylist(), rows["rule"].to_pylist(), strict=True))


def sampled_requests(ws: Workspace) -> set[int]:
    return set(pq.read_table(partitions.parquet_files(ws, [FIRST_DAY])[0])["request_id"].to_pylist())


def test_without_bad_rows_the_flag_changes_no_byte(ws: Workspace, logs: Path) -> None:
    plain = collect_day(ws, ws.params(), FIRST_DAY, set_aside=False)
    before = tree(ws.samples)
    assert collect_day(ws, ws.params(), FIRST_DAY, set_aside=True, reopen=True) == plain
    assert tree(ws.samples) == before and plain.quarantined == {}
    assert not ws.quarantine.exists() and not (ws.state / "collect").exists()


def test_without_the_flag_a_bad_row_refuses_the_day_and_names_the_flag(ws: Workspace, logs: Path) -> None:
    change(logs, "requests", lambda t: put(t, "user_id", [4], 0))
    with pytest.raises(DataError, match="hapctl collect --quarantine"):
        collect_day(ws, ws.params(), FIRST_DAY)
    assert partitions.find(ws, FIRST_DAY) is None and not ws.quarantine.exists()


def test_the_parameter_sets_aside_without_the_flag(ws: Workspace, logs: Path) -> None:
    change(logs, "items", lambda t: put(t, "price", [4], float("nan")))
    params = lenient(ws)
    always = params.model_copy(update={"logs": params.logs.model_copy(update={"quarantine": True})})
    assert collect_day(ws, always, FIRST_DAY).quarantined == {"items": {"NaN or infinite value in price": 1}}
    with pytest.raises(DataError, match="NaN or infinite value in price"):
        collect_day(ws, always, FIRST_DAY, set_aside=False, reopen=True)


def test_a_bad_request_takes_its_candidates_and_feedback_along(ws: Workspace, logs: Path) -> None:
    feedback = read(logs, "feedback")
    requests = read(logs, "requests")["request_id"].to_pylist()
    key = next(key for key in feedback["request_id"].to_pylist() if key in requests)
    change(logs, "requests", lambda t: put(t, "activity", [requests.index(key)], float("inf")))
    manifest = collect_day(ws, lenient(ws), FIRST_DAY, set_aside=True)
    assert aside(ws, "requests") == [(key, "NaN or infinite value in activity")]
    assert set(aside(ws, "candidates")) == {(key, "candidate without request")}
    assert set(aside(ws, "feedback")) == {(key, "feedback of a request set aside")}
    assert manifest.quarantined["candidates"] == {"candidate without request": 300}
    assert sampled_requests(ws) == set(requests) - {key}
    clicked = pc.sum(pc.equal(feedback["request_id"], key)).as_py()
    assert manifest.quarantined["feedback"]["feedback of a request set aside"] >= clicked > 0


def test_rows_set_aside_are_read_back_with_their_columns_rule_and_file(ws: Workspace, logs: Path) -> None:
    good = read(logs, "items")
    change(logs, "items", lambda t: put(t, "author_id", [7, 3], None))
    collect_day(ws, lenient(ws), FIRST_DAY, set_aside=True)
    rows = read_side(ws.quarantine, "items", FIRST_DAY)
    assert rows.column_names == [*good.column_names, "rule", "file"]
    expected = put(good, "author_id", [7, 3], None).take(pa.array([3, 7]))
    assert rows.drop_columns(["rule", "file"]).to_pylist() == expected.to_pylist()
    assert set(rows["rule"].to_pylist()) == {"null in author_id"}
    assert set(rows["file"].to_pylist()) == {f"items/day={FIRST_DAY}/part-0.parquet"}
    assert side_tables(ws.quarantine, FIRST_DAY) == ["items"]
    with pytest.raises(NotFound, match="tables with rows of 2026-01-01 there: items"):
        read_side(ws.quarantine, "requests", FIRST_DAY)


def test_a_gap_or_a_bad_candidate_takes_the_whole_request_in_complete_logs_only(ws: Workspace, logs: Path) -> None:
    rows = read(logs, "candidates")
    keys = list(dict.fromkeys(rows["request_id"].to_pylist()))
    change(logs, "candidates", lambda t: put(put(t, "prerank_position", [0], 301), "item_id", [300], 0))
    complete = collect_day(ws, lenient(ws), FIRST_DAY, set_aside=True)
    assert dict(aside(ws, "requests")) == {keys[0]: "position gap or repeat in prerank_position", keys[1]: "request with a bad candidate"}
    assert complete.quarantined["candidates"] == {
        "id 0 or negative in item_id": 1, "position gap or repeat in prerank_position": 300, "request with a bad candidate": 299,
    }  # fmt: skip
    assert sampled_requests(ws) == set(keys[2:])
    sampled = collect_day(ws, lenient(ws, complete=False), FIRST_DAY, set_aside=True, reopen=True)
    assert sampled.quarantined["candidates"] == {"id 0 or negative in item_id": 1}
    assert "requests" not in sampled.quarantined and not (ws.quarantine / "requests").exists()
    assert sampled_requests(ws) == set(keys)


def test_a_key_that_stands_twice_loses_all_its_rows(ws: Workspace, logs: Path) -> None:
    first = read(logs, "requests").slice(0, 1)
    key = first["request_id"][0].as_py()
    pq.write_table(put(first, "user_id", [0], 1), part(logs, "requests").with_name("part-1.parquet"))
    item = read(logs, "items").slice(5, 1)
    pq.write_table(pa.concat_tables([item, item]), part(logs, "items").with_name("part-1.parquet"))
    manifest = collect_day(ws, lenient(ws), FIRST_DAY, set_aside=True)
    assert manifest.quarantined["requests"] == {"duplicate (request_id)": 2}
    assert manifest.quarantined["items"] == {"duplicate (item_id)": 3}
    assert key not in sampled_requests(ws)
    assert read_side(ws.quarantine, "requests", FIRST_DAY)["file"].to_pylist() == [
        f"requests/day={FIRST_DAY}/part-0.parquet", f"requests/day={FIRST_DAY}/part-1.parquet",
    ]  # fmt: skip


def test_feedback_on_an_item_never_exposed_is_set_aside_alone(ws: Workspace, logs: Path) -> None:
    key = read(logs, "feedback")["request_id"][0].as_py()
    change(logs, "feedback", lambda t: put(put(t, "item_id", [0], 999_999_999), "dwell_ms", [6], -5))
    manifest = collect_day(ws, lenient(ws), FIRST_DAY, set_aside=True)
    assert manifest.quarantined == {"feedback": {"feedback on an item never exposed": 1, "negative dwell_ms": 1}}
    assert key in sampled_requests(ws)


def test_the_rest_is_collected_as_if_the_bad_requests_had_never_been(ws: Workspace, logs: Path) -> None:
    change(logs, "requests", lambda t: put(t, "user_id", [0, 1, 2], -1))
    set_aside = collect_day(ws, lenient(ws), FIRST_DAY, set_aside=True)
    gone = {key for key, _ in aside(ws, "requests")}
    for table, day in (("requests", 0), ("candidates", 0), ("feedback", 0), ("feedback", 1)):
        change(logs, table, lambda t: t.filter(pc.invert(pc.is_in(t["request_id"], pa.array(sorted(gone))))), FIRST_DAY + dt.timedelta(day))
    without = collect_day(ws, ws.params(), FIRST_DAY, reopen=True)
    assert without.samples_hash == set_aside.samples_hash and without.id == set_aside.id
    assert not ws.quarantine.exists()


def test_too_many_bad_rows_refuse_the_day_with_share_limit_and_worst_rule(ws: Workspace, logs: Path) -> None:
    closed = collect_day(ws, ws.params(), FIRST_DAY)
    change(logs, "requests", lambda t: put(put(t, "user_id", [0, 1, 2], 0), "age_band", [9], None))
    with pytest.raises(DataError) as caught:
        collect_day(ws, lenient(ws, 0.02), FIRST_DAY, set_aside=True, reopen=True)
    message = str(caught.value)
    assert message.startswith("requests: 4 of 150 rows (2.67%) would be set aside, more than logs.max_bad_share 2.00%; ")
    assert "worst rule: id 0 or negative in user_id (3 rows)" in message and "\n" not in message
    assert partitions.load(ws, FIRST_DAY) == closed and not ws.quarantine.exists() and not (ws.state / "collect").exists()
    assert collect_day(ws, lenient(ws, 0.03), FIRST_DAY, set_aside=True, reopen=True).quarantined["requests"]


def test_rows_that_fall_with_others_count_against_the_share(ws: Workspace, logs: Path) -> None:
    change(logs, "candidates", lambda t: put(t, "item_id", list(range(0, 3000, 300)), 0))  # 10 rows, in 10 of 150 requests
    with pytest.raises(DataError, match=r"requests: 10 of 150 rows \(6\.67%\).*worst rule: request with a bad candidate"):
        collect_day(ws, lenient(ws, 0.02), FIRST_DAY, set_aside=True)


@pytest.mark.parametrize("broken", ["columns", "unreadable"])
def test_what_files_break_is_refused_whole(ws: Workspace, logs: Path, broken: str) -> None:
    path = part(logs, "items")
    if broken == "columns":
        change(logs, "items", lambda t: t.drop_columns(["price"]))
    else:
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="missing column" if broken == "columns" else "unreadable or truncated"):
        collect_day(ws, lenient(ws), FIRST_DAY, set_aside=True)
    assert not ws.quarantine.exists()


def test_bad_rows_in_every_table_and_rule_leave_logs_that_pass(ws: Workspace, logs: Path) -> None:
    change(logs, "requests", lambda t: put(put(t, "request_id", [1], None), "hist_item_id", [8], None))
    change(logs, "candidates", lambda t: put(put(put(t, "request_id", [900], 0), "stage", [1500], None), "rank_position", [2100], -3))
    change(logs, "feedback", lambda t: put(put(t, "click", [2], None), "item_id", [3], None))
    change(logs, "items", lambda t: put(put(t, "item_id", [11], 0), "item_id", [12], None))
    split = read(logs, "candidates")
    pq.write_table(split.slice(0, 4000), part(logs, "candidates"))
    pq.write_table(split.slice(4000), part(logs, "candidates").with_name("part-1.parquet"))
    manifest = collect_day(ws, lenient(ws), FIRST_DAY, set_aside=True)
    assert set(manifest.quarantined) == set(contract.TABLES)
    counted = {table: sum(rules.values()) for table, rules in manifest.quarantined.items()}
    assert counted == {table: read_side(ws.quarantine, table, FIRST_DAY).num_rows for table in contract.TABLES}
    for table in contract.TABLES:
        rows = read_side(ws.quarantine, table, FIRST_DAY)
        found = dict(zip(*[c.to_pylist() for c in rows["rule"].value_counts().flatten()], strict=True))
        assert found == manifest.quarantined[table]


def test_the_command_sets_aside_what_its_dry_run_told(ws: Workspace, logs: Path) -> None:
    change(logs, "items", lambda t: put(t, "price", [4], float("nan")))
    words = ["collect", "--day", str(FIRST_DAY), "--root", str(ws.root)]
    refused = CliRunner().invoke(app, [*words, "--dry-run"])
    assert refused.exit_code == 1
    told = CliRunner().invoke(app, [*words, "--dry-run", "--quarantine"])
    assert told.exit_code == 0 and "quarantined     items 1 (mostly: NaN or infinite value in price)" in told.stdout
    assert partitions.find(ws, FIRST_DAY) is None and not ws.quarantine.exists()
    done = CliRunner().invoke(app, [*words, "--quarantine"])
    assert done.stdout == told.stdout


def test_feedback_of_the_next_day_that_is_bad_to_the_last_row_counts_as_none_told(ws: Workspace, logs: Path) -> None:
    path = next((logs / "feedback" / f"day={FIRST_DAY + dt.timedelta(days=1)}").glob("*.parquet"))
    table = pq.read_table(path)
    pq.write_table(put(table, "item_id", list(range(len(table))), 0), path)
    spoiled = collect_day(ws, lenient(ws, share=0.99), FIRST_DAY, set_aside=True)
    assert sum(spoiled.quarantined["feedback"].values()) > 0
    pq.write_table(table.slice(0, 0), path)
    untold = collect_day(ws, lenient(ws, share=0.99), FIRST_DAY, set_aside=True, reopen=True)
    assert untold.quarantined == {} and untold.samples_hash == spoiled.samples_hash
