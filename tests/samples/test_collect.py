"""Collection against a slow reference, and the promises of a closed day."""

import datetime as dt
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hap.cli.main import app
from hap.days import default_as_of
from hap.errors import DataError, UsageError
from hap.logs import contract
from hap.params import KINDS, Params, resolve
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.samples.order_key import order_key
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.logs.bad_files import change, part, put, read


def changed(params: Params, **collect: object) -> Params:
    raw = params.model_dump(mode="json")
    raw["collect"] |= collect
    return resolve(raw, "test")


def read_logs(ws: Workspace, table: str, day: dt.date) -> list[dict]:
    root = ws.logs(ws.params())
    return pa.concat_tables([pq.read_table(path) for path in contract.read_paths(root, table, day)]).to_pylist()


def samples(ws: Workspace, day: dt.date) -> dict[int, list[tuple]]:
    rows = pq.read_table(partitions.parquet_files(ws, [day])[0]).to_pylist()
    fields = ("cand_kind", "cand_item_id", "cand_bucket", "cand_position")
    return {row["request_id"]: list(zip(*[row[name] for name in fields], strict=True)) for row in rows}


def reference(ws: Workspace, params: Params, day: dt.date, as_of: dt.datetime) -> dict[int, set[tuple]]:
    """The sampling rules of hap.md request by request, in plain Python."""
    clicks = set()
    for label_day in (day, day + dt.timedelta(days=1)):
        clicks |= {
            (f["request_id"], f["item_id"]) for f in read_logs(ws, "feedback", label_day) if f["click"] and f["ingest_time"] <= as_of
        }
    items = sorted(read_logs(ws, "items", day), key=lambda item: item["item_id"])
    by_request = defaultdict(list)
    for candidate in read_logs(ws, "candidates", day):
        by_request[candidate["request_id"]].append(candidate)
    expected = {}
    for request in read_logs(ws, "requests", day):
        key, rows, pools = request["request_id"], set(), defaultdict(list)
        for c in by_request[key]:
            if c["stage"] == "exposure":
                kind = "EP" if (key, c["item_id"]) in clicks else "EN"
                rows.add((KINDS.index(kind), c["item_id"], kind, c["exposure_position"]))
            elif c["stage"] in ("rank", "rerank") and c["rank_position"] > params.collect.rank.below:
                pools["RN"].append((c["item_id"], f"Rank-{params.collect.rank.below:g}", c["rank_position"]))
            elif c["stage"] == "prerank" and c["prerank_position"] > params.collect.prerank.below:
                pools["PRN"].append((c["item_id"], f"Prerank-{params.collect.prerank.below:g}", c["prerank_position"]))
        salt = f"{params.seed}|negatives"
        for kind, pool in pools.items():
            count = params.collect.rank.count if kind == "RN" else params.collect.prerank.count
            pool.sort(key=lambda row: (order_key(row[0], salt, mix=order_key(key, salt)), row[0]))
            rows |= {(KINDS.index(kind), *row) for row in pool[:count]}
        wanted = params.collect.global_per_positive * sum(1 for row in rows if row[0] == 0)
        own, drawn = {c["item_id"] for c in by_request[key]}, []
        if wanted:
            salt = f"{params.seed}|global"
            for draw in range(1, wanted + 17):
                item = items[order_key(draw, salt, mix=order_key(key, salt)) % len(items)]
                if item["published"] < request["event_time"] and item["item_id"] not in own and item["item_id"] not in drawn:
                    drawn.append(item["item_id"])
        rows |= {(KINDS.index("GN"), item, "GN", None) for item in drawn[:wanted]}
        expected[key] = rows
    return expected


def test_samples_equal_the_rules_applied_request_by_request(ws: Workspace) -> None:
    params = ws.params()
    manifest = collect_day(ws, params, FIRST_DAY)
    found = samples(ws, FIRST_DAY)
    expected = reference(ws, params, FIRST_DAY, dt.datetime.fromisoformat(manifest.as_of))
    assert found.keys() == expected.keys()
    for request, rows in found.items():
        assert len(rows) == len(set(rows))
        assert set(rows) == expected[request], f"request {request}"
    assert manifest.rows_by_kind["EP"] > 0
    assert manifest.rows_by_kind["GN"] + manifest.gn_shortfall == 2 * manifest.rows_by_kind["EP"]


def test_a_click_ingested_after_as_of_does_not_count(ws: Workspace) -> None:
    params = ws.params()
    full = collect_day(ws, params, FIRST_DAY)
    noon = dt.datetime.combine(FIRST_DAY, dt.time(12), dt.UTC)
    early = collect_day(ws, params, FIRST_DAY, as_of=noon, reopen=True)
    assert 0 < early.rows_by_kind["EP"] < full.rows_by_kind["EP"]
    assert early.id != full.id
    assert {row[1] for rows in samples(ws, FIRST_DAY).values() for row in rows}


def test_a_closed_day_keeps_its_as_of_until_it_is_reopened_for_another(ws: Workspace) -> None:
    params = ws.params()
    noon = dt.datetime.combine(FIRST_DAY, dt.time(12), dt.UTC)
    early = collect_day(ws, params, FIRST_DAY, as_of=noon)
    assert collect_day(ws, params, FIRST_DAY) == early
    assert collect_day(ws, params, FIRST_DAY, reopen=True).as_of == noon.isoformat()
    for other in (params, changed(params, max_positives=3)):
        with pytest.raises(UsageError, match=re.escape(f"closed as of {noon.isoformat()}; add --reopen")):
            collect_day(ws, other, FIRST_DAY, as_of=noon + dt.timedelta(hours=1))
    assert partitions.load(ws, FIRST_DAY) == early
    partitions.parquet_files(ws, [FIRST_DAY])[0].unlink()
    assert collect_day(ws, params, FIRST_DAY) == early
    longer = collect_day(ws, changed(params, label_delay_hours=3), FIRST_DAY)
    assert longer.as_of == default_as_of(FIRST_DAY, 3).isoformat()


@pytest.mark.parametrize("off", [dt.timedelta(0), dt.timedelta(hours=26, microseconds=1), dt.timedelta(days=3000)])
def test_an_as_of_outside_the_day_and_its_label_window_is_refused(ws: Workspace, off: dt.timedelta) -> None:
    start = dt.datetime.combine(FIRST_DAY, dt.time(), dt.UTC)
    with pytest.raises(UsageError, match="end of its label window, 2026-01-02T02:00:00"):
        collect_day(ws, ws.params(), FIRST_DAY, as_of=start + off)
    for text in ("0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "noon"):
        said = CliRunner().invoke(app, ["collect", "--day", str(FIRST_DAY), "--root", str(ws.root), "--as-of", text])
        assert isinstance(said.exception, UsageError)


@pytest.mark.parametrize("quarantine", [False, True])
def test_rows_ingested_after_as_of_change_no_byte_whatever_is_wrong_with_them(ws: Workspace, quarantine: bool) -> None:
    """Each key a second time, and one row broken, brought after as_of. Complete logs leave out the requests whose candidates they touch."""
    params, root = ws.params(), Path(ws.logs(ws.params()))
    incomplete = params.model_copy(update={"logs": params.logs.model_copy(update={"complete": False})})
    before, without = collect_day(ws, params, FIRST_DAY), collect_day(ws, incomplete, FIRST_DAY)
    after = default_as_of(FIRST_DAY, 2) + dt.timedelta(minutes=1)
    for table in contract.TABLES:
        again = put(read(root, table).slice(0, 3), "ingest_time", [0, 1, 2], after)
        again = put(again, "item_id" if table == "items" else "request_id", [2], -5)
        pq.write_table(again, part(root, table).with_name("part-9.parquet"))
    torn = set(read(root, "candidates").slice(0, 2)["request_id"].to_pylist())
    found = collect_day(ws, params, FIRST_DAY, reopen=True, set_aside=quarantine)
    assert found.quarantined == {} and found.requests_torn == len(torn) and found.requests == before.requests - len(torn)
    assert found.late == {"requests": 3, "candidates": 3, "feedback": 3 + before.late.get("feedback", 0), "items": 3}
    assert collect_day(ws, incomplete, FIRST_DAY, set_aside=quarantine).id == without.id


def test_a_request_of_which_candidates_are_late_is_left_out_of_complete_logs(ws: Workspace) -> None:
    params, root = ws.params(), Path(ws.logs(ws.params()))
    torn = set(read(root, "candidates").take(pa.array([5, 310]))["request_id"].to_pylist())
    late_at = default_as_of(FIRST_DAY, 2) + dt.timedelta(hours=1)
    change(root, "candidates", lambda t: put(t, "ingest_time", [5, 310], late_at))
    whole = collect_day(ws, params, FIRST_DAY)
    assert whole.requests_torn == 2 and whole.late["candidates"] == 2
    assert len(torn) == 2 and set(samples(ws, FIRST_DAY)) == set(read(root, "requests")["request_id"].to_pylist()) - torn
    sampled = params.model_copy(update={"logs": params.logs.model_copy(update={"complete": False})})
    kept = collect_day(ws, sampled, FIRST_DAY)
    assert kept.requests_torn == 0 and kept.requests == whole.requests + 2


def test_samples_of_items_that_the_catalogue_lacks_are_counted_and_many_refuse_the_day(ws: Workspace) -> None:
    params, root = ws.params(), Path(ws.logs(ws.params()))
    collect_day(ws, params, FIRST_DAY)
    shown = [item for rows in samples(ws, FIRST_DAY).values() for kind, item, *_ in rows if kind < 2]
    one = shown[0]
    change(root, "items", lambda t: t.filter(pc.not_equal(t["item_id"], one)))
    few = collect_day(ws, params, FIRST_DAY, reopen=True)
    assert few.items_unknown >= shown.count(one) > 0
    before = partitions.load(ws, FIRST_DAY)
    change(root, "items", lambda t: t.filter(pc.invert(pc.is_in(t["item_id"], pa.array(shown)))))
    with pytest.raises(
        DataError, match=r"items/.*absent from the catalogue of its day: .* logs.max_unknown_share 1.00%; item_id=\d+, \d+, \d+;"
    ):
        collect_day(ws, params, FIRST_DAY, reopen=True)
    assert partitions.load(ws, FIRST_DAY) == before
    lenient = params.model_copy(update={"logs": params.logs.model_copy(update={"max_unknown_share": 1.0})})
    assert collect_day(ws, lenient, FIRST_DAY, reopen=True).items_unknown > few.items_unknown


def test_a_dry_run_does_all_of_it_and_keeps_nothing(ws: Workspace) -> None:
    words = ["collect", "--day", str(FIRST_DAY), "--root", str(ws.root), "--dry-run", "--json"]
    sound = CliRunner().invoke(app, words)
    assert "nothing of it was kept" in sound.stderr and partitions.find(ws, FIRST_DAY) is None
    change(Path(ws.logs(ws.params())), "items", lambda t: put(t, "price", [4], float("nan")))
    with pytest.raises(DataError, match="NaN or infinite value in price"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    broken = json.loads(CliRunner().invoke(app, [*words, "--quarantine"]).stdout)
    assert broken["quarantined"] == {"items": {"NaN or infinite value in price": 1}}
    assert not ws.samples.exists() and not ws.quarantine.exists() and not ws.late.exists()
    assert collect_day(ws, ws.params(), FIRST_DAY, set_aside=True).to_json() == broken
    assert "is closed and would stay" in CliRunner().invoke(app, words).stderr


def test_feedback_of_the_next_day_that_is_absent_is_told(ws: Workspace) -> None:
    tomorrow = FIRST_DAY + dt.timedelta(days=1)
    shutil.rmtree(Path(ws.logs(ws.params())) / "feedback" / f"day={tomorrow}")
    done = CliRunner().invoke(app, ["collect", "--day", str(FIRST_DAY), "--root", str(ws.root)])
    assert done.exit_code == 0 and f"without feedback of {tomorrow}" in done.stderr
    assert f"labels          {FIRST_DAY} finished, {tomorrow} absent" in done.stdout


def test_threads_and_the_split_into_files_change_no_byte(ws: Workspace) -> None:
    params = ws.params()
    whole = collect_day(ws, changed(params, threads=2), FIRST_DAY).samples_hash
    root = ws.logs(params)
    for table in ("requests", "candidates", "items"):
        rows = pa.concat_tables([pq.read_table(path) for path in contract.read_paths(root, table, FIRST_DAY)])
        folder = Path(root) / table / f"day={FIRST_DAY}"
        for path in folder.glob("*.parquet"):
            path.unlink()
        third = max(rows.num_rows // 3, 1)
        for n in range(4):
            pq.write_table(rows.slice(n * third, third if n < 3 else None), folder / f"part-{n}.parquet")
    split = collect_day(ws, changed(params, threads=1), FIRST_DAY, reopen=True).samples_hash
    assert split == whole


def test_a_closed_day_is_left_as_it_is_and_other_parameters_collect_it_anew(ws: Workspace) -> None:
    params = ws.params()
    first = collect_day(ws, params, FIRST_DAY)
    path = partitions.parquet_files(ws, [FIRST_DAY])[0]
    stamp = path.stat().st_mtime_ns
    assert collect_day(ws, params, FIRST_DAY) == first
    assert path.stat().st_mtime_ns == stamp
    fewer = collect_day(ws, changed(params, global_per_positive=1), FIRST_DAY)
    assert fewer.id != first.id
    assert fewer.rows_by_kind["GN"] < first.rows_by_kind["GN"]
    assert collect_day(ws, params, FIRST_DAY) == first


def test_requests_without_a_positive_are_dropped_where_asked(ws: Workspace) -> None:
    params = changed(ws.params(), requests_without_positive="drop")
    manifest = collect_day(ws, params, FIRST_DAY)
    rows = samples(ws, FIRST_DAY)
    assert manifest.requests == len(rows) > 0
    assert all(any(kind == 0 for kind, *_ in entries) for entries in rows.values())


def test_windows_as_a_share_of_the_list_equal_the_same_absolute_ones(ws: Workspace) -> None:
    params = ws.params()
    window = {"count": 10, "edges": [0.5]}
    shares = changed(params, rank={"below": 0.5, **window}, prerank={"below": 0.5, **window})
    collect_day(ws, shares, FIRST_DAY)
    positions = [(kind, position) for rows in samples(ws, FIRST_DAY).values() for kind, _, _, position in rows]
    assert min(position for kind, position in positions if kind == 2) == 41  # of 80 ranked
    assert min(position for kind, position in positions if kind == 3) == 151  # of 300 pre-ranked


def test_a_day_without_logs_names_the_days_there_are(ws: Workspace) -> None:
    with pytest.raises(DataError, match=r"2025-12-24.*2026-01-01") as refusal:
        collect_day(ws, ws.params(), dt.date(2025, 12, 24))
    assert "\n" not in str(refusal.value)
    assert partitions.collected_days(ws) == []


def test_broken_logs_leave_the_closed_day_as_it_was(ws: Workspace) -> None:
    params = ws.params()
    closed = collect_day(ws, params, FIRST_DAY)
    path = Path(contract.read_paths(ws.logs(params), "candidates", FIRST_DAY)[0])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=path.name):
        collect_day(ws, params, FIRST_DAY, reopen=True)
    assert partitions.load(ws, FIRST_DAY) == closed


def test_what_a_killed_collection_left_is_ignored_and_replaced(ws: Workspace) -> None:
    params = ws.params()
    left = ws.samples / f".day={FIRST_DAY}.new"
    left.mkdir(parents=True)
    (left / "part-0.parquet").write_bytes(b"half")
    assert partitions.collected_days(ws) == []
    collect_day(ws, params, FIRST_DAY)
    assert [entry.name for entry in ws.samples.iterdir()] == [f"day={FIRST_DAY}"]


def test_a_closed_day_whose_samples_are_gone_is_collected_again(ws: Workspace) -> None:
    first = collect_day(ws, ws.params(), FIRST_DAY)
    (partitions.folder(ws, FIRST_DAY) / "part-0.parquet").unlink()
    assert collect_day(ws, ws.params(), FIRST_DAY) == first
    assert partitions.parquet_files(ws, [FIRST_DAY])


def test_a_damaged_manifest_is_named_with_what_to_do(ws: Workspace) -> None:
    collect_day(ws, ws.params(), FIRST_DAY)
    path = partitions.folder(ws, FIRST_DAY) / "manifest.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"manifest\.json is damaged .* collect the day again"):
        collect_day(ws, ws.params(), FIRST_DAY)
