"""Late rows: a closed day stays as it is, what came since is counted beside it, and --reopen takes it in."""

import datetime as dt
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hap.cli.main import app
from hap.days import default_as_of
from hap.errors import DataError
from hap.logs.side import read_side, side_tables
from hap.samples import late, partitions
from hap.samples.collect import collect_day
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.logs.bad_files import change, part, put, read

NEXT_DAY = FIRST_DAY + dt.timedelta(days=1)
AS_OF = default_as_of(FIRST_DAY, 2)


def own_feedback(logs: Path, day: dt.date) -> pa.Table:
    """One partition's feedback on requests of the first day."""
    rows = read(logs, "feedback", day)
    return rows.filter(pc.is_in(rows["request_id"], read(logs, "requests")["request_id"]))


def all_late(logs: Path) -> int:
    """Feedback on the first day's requests ingested after its as_of."""
    return sum(pc.sum(pc.greater(own_feedback(logs, day)["ingest_time"], pa.scalar(AS_OF))).as_py() or 0 for day in (FIRST_DAY, NEXT_DAY))


def hold_back(logs: Path, rows: int) -> Path:
    """Take the last rows of the first day's clicked feedback out, as a file to be brought later."""
    feedback = read(logs, "feedback")
    clicked = [n for n, click in enumerate(feedback["click"].to_pylist()) if click][-rows:]
    later = logs.parent / "later.parquet"
    pq.write_table(feedback.take(pa.array(clicked)), later)
    pq.write_table(feedback.take(pa.array([n for n in range(feedback.num_rows) if n not in clicked])), part(logs, "feedback"))
    return later


def bring(logs: Path, later: Path) -> Path:
    return Path(shutil.copy(later, part(logs, "feedback").with_name("part-1.parquet")))


def state(ws: Workspace) -> dict[str, bytes]:
    return {str(path.relative_to(ws.samples)): path.read_bytes() for path in sorted(ws.samples.rglob("*")) if path.is_file()}


def test_manifest_says_the_watermark_and_the_files_it_was_made_from(ws: Workspace, logs: Path) -> None:
    manifest = collect_day(ws, ws.params(), FIRST_DAY)
    times = [t for table, day in (("requests", FIRST_DAY), ("candidates", FIRST_DAY), ("items", FIRST_DAY), ("feedback", FIRST_DAY),
             ("feedback", NEXT_DAY)) for t in read(logs, table, day)["ingest_time"].to_pylist()]  # fmt: skip
    assert dt.datetime.fromisoformat(manifest.watermark) == max(t for t in times if t <= AS_OF)
    assert [source["file"] for source in manifest.sources] == [
        f"requests/day={FIRST_DAY}/part-0.parquet", f"candidates/day={FIRST_DAY}/part-0.parquet",
        f"feedback/day={FIRST_DAY}/part-0.parquet", f"feedback/day={NEXT_DAY}/part-0.parquet", f"items/day={FIRST_DAY}/part-0.parquet",
    ]  # fmt: skip
    for source in manifest.sources:
        assert source["bytes"] == (logs / source["file"]).stat().st_size
        assert source["rows"] == pq.read_metadata(logs / source["file"]).num_rows


def test_rows_beyond_as_of_are_counted_and_kept_when_the_day_is_collected(ws: Workspace, logs: Path) -> None:
    change(logs, "feedback", lambda t: put(t, "ingest_time", [1, 4], AS_OF + dt.timedelta(seconds=1)))
    manifest = collect_day(ws, ws.params(), FIRST_DAY)
    expected = all_late(logs)
    assert expected >= 2 and manifest.late == {"feedback": expected}
    rows = read_side(ws.late, "feedback", FIRST_DAY)
    assert rows.num_rows == expected and rows.column_names[-1] == "file"
    assert min(rows["ingest_time"].to_pylist()) > AS_OF
    assert late.find(ws, FIRST_DAY) is None


def test_late_candidates_and_items_do_not_enter_the_samples(ws: Workspace, logs: Path) -> None:
    exposed = [n for n, stage in enumerate(read(logs, "candidates")["stage"].to_pylist()) if stage == "exposure"][:3]
    keys = {(row["request_id"], row["item_id"]) for row in read(logs, "candidates").take(pa.array(exposed)).to_pylist()}
    change(logs, "candidates", lambda t: put(t, "ingest_time", exposed, AS_OF + dt.timedelta(hours=1)))
    change(logs, "items", lambda t: put(t, "ingest_time", [0], AS_OF + dt.timedelta(hours=1)))
    manifest = collect_day(ws, ws.params(), FIRST_DAY)
    assert manifest.late["candidates"] == 3 and manifest.late["items"] == 1
    rows = pq.read_table(partitions.parquet_files(ws, [FIRST_DAY])[0]).to_pylist()
    pairs = {
        (row["request_id"], item) for row in rows for item, kind in zip(row["cand_item_id"], row["cand_kind"], strict=True) if kind < 4
    }
    assert not pairs & keys


def test_feedback_that_lands_in_the_next_day_after_closing_is_late_and_taken_in_by_reopening(ws: Workspace, logs: Path) -> None:
    folder = part(logs, "feedback", NEXT_DAY).parent
    whole = collect_day(ws, ws.params(), FIRST_DAY)
    before = state(ws)
    rows = read(logs, "feedback", NEXT_DAY)
    in_time = pc.less_equal(rows["ingest_time"], pa.scalar(AS_OF))
    assert 0 < pc.sum(in_time).as_py() < rows.num_rows
    expected = all_late(logs)
    (folder / "_SUCCESS").unlink()
    pq.write_table(rows.filter(in_time), folder / "part-0.parquet")  # as the writer's first hours at 03:00
    at_night = collect_day(ws, ws.params(), FIRST_DAY, reopen=True)
    assert {label: told["state"] for label, told in at_night.labels.items()} == {str(FIRST_DAY): "finished", str(NEXT_DAY): "unfinished"}
    (folder / "part-1.parquet").write_bytes(b"PAR1")  # half written: no business of a closed day
    assert collect_day(ws, ws.params(), FIRST_DAY) == at_night and late.find(ws, FIRST_DAY) is None
    assert at_night.id == whole.id and at_night.samples_hash == whole.samples_hash
    pq.write_table(rows.filter(pc.invert(in_time)), folder / "part-1.parquet")
    (folder / "_SUCCESS").touch()
    pq.write_table(read(logs, "feedback", NEXT_DAY), folder / "compacted.parquet")  # the same rows in another file
    (folder / "part-0.parquet").unlink()
    collect_day(ws, ws.params(), FIRST_DAY)
    found = late.find(ws, FIRST_DAY)
    assert found is not None and found.rows == {"feedback": expected} and found.by_as_of == 0
    reopened = collect_day(ws, ws.params(), FIRST_DAY, reopen=True)
    assert reopened.id == whole.id and reopened.labels == whole.labels
    assert {name: data for name, data in state(ws).items() if name.endswith(".parquet")} == {
        name: data for name, data in before.items() if name.endswith(".parquet")
    }


def test_late_rows_leave_a_closed_day_unchanged(ws: Workspace, logs: Path) -> None:
    later = hold_back(logs, 5)
    closed = collect_day(ws, ws.params(), FIRST_DAY)
    before = state(ws)
    bring(logs, later)
    assert collect_day(ws, ws.params(), FIRST_DAY) == closed
    assert state(ws) == before
    found = late.find(ws, FIRST_DAY)
    assert found is not None and found.total == 5 + all_late(logs) and found.by_as_of == 5
    rows = read_side(ws.late, "feedback", FIRST_DAY)
    came = rows.filter(pc.equal(rows["file"], f"feedback/day={FIRST_DAY}/part-1.parquet")).drop_columns(["file"])
    assert came.to_pylist() == pq.read_table(later).to_pylist()
    assert not (ws.state / "collect").exists()


def test_reopen_takes_in_what_was_ingested_by_as_of(ws: Workspace, logs: Path) -> None:
    whole = collect_day(ws, ws.params(), FIRST_DAY)
    shutil.rmtree(ws.samples)
    later = hold_back(logs, 5)
    closed = collect_day(ws, ws.params(), FIRST_DAY)
    bring(logs, later)
    collect_day(ws, ws.params(), FIRST_DAY)
    opened = collect_day(ws, ws.params(), FIRST_DAY, reopen=True)
    assert opened.id == whole.id != closed.id
    assert opened.rows_by_kind["EP"] == closed.rows_by_kind["EP"] + 5
    assert late.find(ws, FIRST_DAY) is None
    assert sum(opened.late.values()) == all_late(logs)
    assert side_tables(ws.late, FIRST_DAY) == (["feedback"] if all_late(logs) else [])


def test_rows_ingested_after_as_of_never_enter_by_reopening(ws: Workspace, logs: Path) -> None:
    closed = collect_day(ws, ws.params(), FIRST_DAY)
    rows = read(logs, "requests").slice(0, 2)
    rows = put(put(rows, "request_id", [0, 1], 10**15), "ingest_time", [0, 1], AS_OF + dt.timedelta(hours=3))
    rows = put(rows, "request_id", [1], 10**15 + 1)
    pq.write_table(rows, part(logs, "requests").with_name("part-1.parquet"))
    collect_day(ws, ws.params(), FIRST_DAY)
    found = late.find(ws, FIRST_DAY)
    assert found is not None and found.rows["requests"] == 2 and found.by_as_of == 0
    opened = collect_day(ws, ws.params(), FIRST_DAY, reopen=True)
    assert opened.id == closed.id and opened.samples_hash == closed.samples_hash
    assert opened.late["requests"] == 2


def test_a_file_written_again_with_as_many_rows_is_noticed(ws: Workspace, logs: Path) -> None:
    collect_day(ws, ws.params(), FIRST_DAY)
    assert late.find(ws, FIRST_DAY) is None
    price = read(logs, "items")["price"][0].as_py()
    change(logs, "items", lambda t: put(t, "price", [0], price + 10**6))
    collect_day(ws, ws.params(), FIRST_DAY)
    found = late.find(ws, FIRST_DAY)
    assert found is not None and found.rows["items"] == read(logs, "items").num_rows


def test_the_second_look_at_the_same_late_files_writes_nothing(ws: Workspace, logs: Path) -> None:
    later = hold_back(logs, 3)
    collect_day(ws, ws.params(), FIRST_DAY)
    bring(logs, later)
    collect_day(ws, ws.params(), FIRST_DAY)
    stamps = {path: path.stat().st_mtime_ns for path in ws.late.rglob("*")}
    collect_day(ws, ws.params(), FIRST_DAY)
    assert {path: path.stat().st_mtime_ns for path in ws.late.rglob("*")} == stamps


def test_a_closed_day_does_not_need_its_logs(ws: Workspace, logs: Path) -> None:
    closed = collect_day(ws, ws.params(), FIRST_DAY)
    shutil.rmtree(logs)
    assert collect_day(ws, ws.params(), FIRST_DAY) == closed
    assert late.find(ws, FIRST_DAY) is None


def test_late_rows_stay_when_the_logs_expire(ws: Workspace, logs: Path) -> None:
    later = hold_back(logs, 5)
    collect_day(ws, ws.params(), FIRST_DAY)
    bring(logs, later)
    collect_day(ws, ws.params(), FIRST_DAY)
    rows, found = read_side(ws.late, "feedback", FIRST_DAY), late.find(ws, FIRST_DAY)
    shutil.rmtree(logs)
    collect_day(ws, ws.params(), FIRST_DAY)
    assert read_side(ws.late, "feedback", FIRST_DAY) == rows and late.find(ws, FIRST_DAY) == found


def test_a_broken_file_that_came_late_is_named_and_the_closed_day_stays(ws: Workspace, logs: Path) -> None:
    collect_day(ws, ws.params(), FIRST_DAY)
    before = state(ws)
    part(logs, "candidates").with_name("part-1.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"part-1\.parquet: unreadable or truncated"):
        collect_day(ws, ws.params(), FIRST_DAY)
    assert state(ws) == before


def test_the_same_logs_and_as_of_give_the_same_bytes_for_ever(ws: Workspace, logs: Path) -> None:
    collect_day(ws, ws.params(), FIRST_DAY)
    before = state(ws)
    os.utime(part(logs, "candidates"), (1, 1))
    collect_day(ws, ws.params(), FIRST_DAY, as_of=AS_OF, reopen=True)
    assert state(ws) == before


def test_an_unchanged_closed_day_costs_a_listing(ws: Workspace, logs: Path) -> None:
    begun = time.process_time()
    collect_day(ws, ws.params(), FIRST_DAY)
    first = time.process_time() - begun
    begun = time.process_time()
    for _ in range(5):
        collect_day(ws, ws.params(), FIRST_DAY)
    assert (time.process_time() - begun) / 5 < 0.1 * first  # of a day of 150 requests; the share falls as days grow


def test_the_command_says_in_one_line_what_came_late_and_how_to_take_it_in(ws: Workspace, logs: Path) -> None:
    later = hold_back(logs, 4)
    words = ["collect", "--day", str(FIRST_DAY), "--root", str(ws.root)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0 and "is closed" not in first.output and "watermark" in first.stdout
    bring(logs, later)
    second = CliRunner().invoke(app, words)
    (line,) = second.stderr.splitlines()
    assert f"{FIRST_DAY} is closed and stays as it is: " in line and "takes in the 4 that were ingested by" in line
    assert f"`hapctl collect --day {FIRST_DAY} --reopen`" in line
    assert second.stdout == first.stdout
    third = CliRunner().invoke(app, [*words, "--reopen", "--json"])
    assert third.exit_code == 0 and third.stderr == ""
