"""The gate's step on real versions: whatever is wrong with the days or with a version, a verdict is written and nothing passes."""

import datetime as dt
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from flows import judge
from flows.bundles import bundle_of
from flows.page import page_path
from flows.partly import judge_version
from hap.errors import DataError
from hap.evaluation.evidence import gather
from hap.evaluation.gate import decide
from hap.evaluation.verdict import Verdict
from hap.logs.simulator import simulate
from hap.project import project_file
from hap.registry import versions
from hap.workspace import Workspace, init_workspace
from tests.conftest import FIRST_DAY
from tests.words import hapctl

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
DAYS = [FIRST_DAY + dt.timedelta(days=place) for place in range(4)]


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """v1 judged on the second day, v2 on the fourth; v1 knows a column that the logs have no longer since the third."""
    raw = yaml.safe_load(project_file("params.yaml").read_text())
    raw["train"] = {"days": 1, "epochs": 1, "batch_requests": 8, "log_steps": 5}
    raw["light"], raw["expressive"] = {"size": 16, "embedding_dim": 4}, {"size": 16, "embedding_dim": 4}
    raw["gate"] |= {"margin": 0.2, "min_requests": 50, "min_positives": 50, "floors": {"EN": 0.1, "RN": 0.1, "PRN": 0.1, "GN": 0.1}}
    ws = init_workspace(tmp_path_factory.mktemp("judge") / "ws", yaml.safe_dump(raw))
    simulate(ws.logs(ws.params()), DAYS[0], 2, 200, 5, ws.params().features)
    assert hapctl("retrain", "--day", DAYS[1], "--root", ws.root).returncode in (0, 5)
    raw["features"]["item"] = [one for one in raw["features"]["item"] if one["name"] != "quality"]
    ws.params_file.write_text(yaml.safe_dump(raw))
    simulate(ws.logs(ws.params()), DAYS[2], 2, 200, 5, ws.params().features)
    assert hapctl("retrain", "--day", DAYS[3], "--root", ws.root).returncode in (0, 5)
    return ws


@pytest.fixture
def ws(two_versions: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """In place, since MLflow's artifacts know where they lie; samples, verdicts and pages are put back afterwards."""
    kept = [two_versions.samples, two_versions.verdicts, two_versions.pages]
    for folder in kept:
        shutil.copytree(folder, tmp_path / folder.name)
    yield two_versions
    for folder in kept:
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(tmp_path / folder.name, folder, dirs_exist_ok=True)


def judged(ws: Workspace, *words: object) -> dict:
    """The verdict of v2, as it stands in its file after the command has said the same."""
    done = hapctl("gate", "run", "--model", "v2", "--root", ws.root, "--json", *words)
    answer = orjson.loads(done.stdout)
    assert done.returncode == {"pass": 0, "refuse": 3, "undecided": 5}[answer["verdict"]], done.stderr
    written = orjson.loads((ws.verdicts / "v2.json").read_bytes())
    assert written == {key: value for key, value in answer.items() if key != "page"}
    assert f'v2: <span class="word">{answer["verdict"]}' in Path(answer["page"]).read_text()
    return answer


def rewritten(ws: Workspace, day: dt.date, change) -> None:
    """The day's samples after `change`, as a table, and its manifest of them."""
    (path,) = (ws.samples / f"day={day}").glob("*.parquet")
    table = change(pq.read_table(path))
    path.unlink()  # DVC's cache may hold the same file
    pq.write_table(table, path)
    named = path.with_name("manifest.json")
    manifest = orjson.loads(named.read_bytes()) | {"samples_hash": hashlib.sha256(path.read_bytes()).hexdigest()}
    named.unlink()
    named.write_bytes(orjson.dumps(manifest))


def test_a_champion_whose_column_is_gone_leaves_it_undecided_and_the_column_is_named(ws):
    answer = judged(ws, "--against", "v1")
    assert answer["verdict"] == "undecided"
    assert answer["reasons"] == [
        f"v1 cannot be scored on these days: its schema needs 'cand_quality', which the samples of day={DAYS[3]} lack"
    ]


def test_a_challenger_whose_column_is_gone_is_refused(ws):
    rewritten(ws, DAYS[3], lambda table: table.drop_columns(["cand_price"]))
    answer = judged(ws)
    assert answer["verdict"] == "refuse" and len(answer["reasons"]) == 2
    assert answer["reasons"][0].startswith("v2 cannot be scored on these days: its schema needs 'cand_price'")


def test_a_day_without_a_manifest_is_undecided_and_says_how_to_collect_it(ws):
    shutil.rmtree(ws.samples / f"day={DAYS[3]}")
    answer = judged(ws)
    assert answer["verdict"] == "undecided"
    assert answer["reasons"][0] == f"{DAYS[3]} has no samples; collect them with `hapctl collect --day {DAYS[3]}`"


def test_a_day_that_has_no_logs_yet_is_undecided_and_makes_nobody_old(ws):
    answer = judged(ws, "--day", "2030-01-01")
    assert answer["verdict"] == "undecided" and answer["reasons"][0].startswith("2030-01-01 has no samples")


def test_a_day_whose_manifest_is_damaged_is_undecided(ws):
    manifest = ws.samples / f"day={DAYS[3]}" / "manifest.json"
    manifest.unlink()  # DVC's cache may hold the same file
    manifest.write_text("{")
    answer = judged(ws)
    assert answer["verdict"] == "undecided" and "manifest.json" in answer["reasons"][0] and answer["manifests"] == {}


@pytest.mark.parametrize("place", [-1, 2000])
def test_a_day_whose_samples_are_damaged_is_undecided_and_blames_no_version(ws, place):
    """At the end of the file Arrow finds no Parquet; inside it, it may find anything."""
    (path,) = (ws.samples / f"day={DAYS[3]}").glob("*.parquet")
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 0xFF
    path.unlink()
    path.write_bytes(damaged)
    answer = judged(ws)
    assert answer["verdict"] == "undecided" and answer["manifests"] == {}
    assert answer["reasons"][0].startswith(f"{path.parent} does not hold the samples that its manifest names (sha256 ")
    assert answer["reasons"][0].endswith(f"remove it and type `hapctl collect --day {DAYS[3]}`")


def test_a_day_that_it_was_trained_on_is_refused_as_leakage(ws):
    answer = judged(ws, "--day", DAYS[2])
    assert answer["verdict"] == "refuse"
    assert answer["reasons"][0] == f"v2 was trained or stopped on {DAYS[2]}, which it is judged on"


def test_labels_of_one_class_are_undecided(ws):
    def unclicked(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("cand_kind")
        lists = table["cand_kind"].combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
        kinds = pc.if_else(pc.equal(lists.flatten(), 0), 1, lists.flatten()).cast(lists.type.value_type)
        return table.set_column(place, "cand_kind", pa.ListArray.from_arrays(lists.offsets, kinds))

    rewritten(ws, DAYS[3], unclicked)
    answer = judged(ws)
    assert answer["verdict"] == "undecided"
    assert "every label is of one class" in answer["reasons"][0]


def test_a_declared_bucket_that_nothing_lies_in_is_undecided(ws):
    raw = yaml.safe_load(ws.params_file.read_text())
    declared = {**raw, "collect": {**raw.get("collect", {}), "rank": {"below": 50, "count": 10, "edges": [50, 5000]}}}
    ws.params_file.write_text(yaml.safe_dump(declared))
    try:
        answer = judged(ws)
    finally:
        ws.params_file.write_text(yaml.safe_dump(raw))
    assert answer["verdict"] == "undecided"
    assert answer["reasons"][0] == "bucket Rank-5000: no RN of these days lies in it; see collect's edges in params.yaml"


def test_a_version_that_was_never_registered_is_an_error_in_one_line(ws):
    done = hapctl("gate", "run", "--model", "v9", "--root", ws.root)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: v9 is not registered; registered: v1, v2")


def broken(error: Exception):
    def fail(*words: object, **more: object) -> None:
        raise error

    return fail


def judged_here(ws: Workspace, against: int | None = None) -> Verdict:
    """v2 judged in this process; what is returned is what was written."""
    verdict = judge_version(ws, 2, against, None)
    assert Verdict.from_json(orjson.loads((ws.verdicts / "v2.json").read_bytes())) == verdict
    return verdict


@pytest.mark.parametrize("part", ["describe_scores", "describe_whole", "slices_of", "_complete"])
def test_a_defect_on_the_way_leaves_it_undecided_and_names_its_traceback(ws, monkeypatch, part):
    monkeypatch.setattr(judge, part, broken(IndexError("list index\nout of range")))
    verdict = judged_here(ws)
    kept = ws.state / "gate-v2.txt"
    assert verdict.verdict == "undecided"
    assert verdict.reasons[0] == f"v2 could not be judged: IndexError: list index out of range; its traceback is in {kept}"
    assert "IndexError: list index" in kept.read_text() and 'v2: <span class="word">undecided' in page_path(ws, 2).read_text()


def test_a_defect_while_deciding_leaves_it_undecided_too(ws, monkeypatch):
    def fails_once(*words: object) -> Verdict:
        monkeypatch.setattr(judge, "decide", decide)
        raise KeyError("cascade")

    monkeypatch.setattr(judge, "decide", fails_once)
    verdict = judged_here(ws)
    assert verdict.verdict == "undecided" and verdict.reasons[0].startswith("v2 could not be judged: KeyError: 'cascade'; its traceback")


@pytest.mark.parametrize(("number", "outcome"), [(2, "refuse"), (1, "undecided")])
def test_a_score_that_is_not_finite_on_a_whole_request_is_found_though_all_samples_have_one(ws, monkeypatch, number, outcome):
    """Of the champion's it leaves the version undecided. v1 cannot be scored on these days, so v2's graphs stand in for its."""
    scored = judge.score_days

    def spoiled(bundle, files, label):
        scores, rows = scored(bundle, files, label)
        if label == f"scoring v{number} on whole requests":
            scores["expressive"][[5, 9]] = float("nan")
        return scores, rows

    bundle = bundle_of(ws, ws.params(), 2)
    monkeypatch.setattr(judge, "bundle_of", lambda ws, params, version: bundle)
    monkeypatch.setattr(judge, "score_days", spoiled)
    verdict = judged_here(ws, 1)
    rows = re.escape(f"v{number} on requests with all their candidates: 2 of ") + r"[0-9,]+ scores of expressive are NaN or infinite"
    assert verdict.verdict == outcome and sum(re.fullmatch(rows, reason) is not None for reason in verdict.reasons) == 1


def test_graphs_that_fail_while_scoring_are_refused_with_what_they_said(ws, monkeypatch):
    monkeypatch.setattr(judge, "score_days", broken(RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT")))
    verdict = judged_here(ws)
    assert verdict.verdict == "refuse"
    assert verdict.reasons[0] == "v2 cannot be scored on these days: RuntimeError: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT"


def test_a_disk_that_fails_gets_a_verdict_without_a_page_so_that_the_day_is_judged_again(ws, monkeypatch):
    monkeypatch.setattr(judge, "score_days", broken(OSError(5, "Input/output error", "samples")))
    with pytest.raises(OSError, match="Input/output error"):
        judge_version(ws, 2, None, None)
    written = orjson.loads((ws.verdicts / "v2.json").read_bytes())
    assert written["verdict"] == "undecided" and "Input/output error" in written["reasons"][0] and not page_path(ws, 2).exists()


def test_samples_that_no_one_may_read_get_a_verdict_too(ws, monkeypatch):
    monkeypatch.setattr(judge.partitions, "find", broken(PermissionError(13, "Permission denied", "samples")))
    with pytest.raises(PermissionError):
        judge_version(ws, 2, None, None)
    written = orjson.loads((ws.verdicts / "v2.json").read_bytes())
    assert written["verdict"] == "undecided" and "Permission denied" in written["reasons"][0] and written["manifests"] == {}


def test_logs_that_are_gone_are_nothing_to_a_first_version_which_has_only_floors(ws, monkeypatch):
    monkeypatch.setattr(judge, "write_complete", broken(DataError("no logs")))
    monkeypatch.setattr("flows.partly.opponent_of", lambda *words: None)
    assert not any("Recall@K" in reason for reason in judged_here(ws).reasons)
    assert "Recall@K: the judging days' logs cannot be read again: no logs" in judged_here(ws, 1).reasons


def test_a_stored_bundle_that_is_damaged_is_refused(ws, monkeypatch):
    monkeypatch.setattr(judge, "bundle_of", broken(DataError("the stored bundle of v2 has digest 0123, registered was 4567")))
    answer = judged_here(ws)
    assert answer.verdict == "refuse"
    assert answer.reasons[0] == "v2 cannot be judged: the stored bundle of v2 has digest 0123, registered was 4567"
    assert not page_path(ws, 2).exists()


def test_versions_of_different_schemas_are_compared_where_the_samples_hold_both(ws, monkeypatch):
    """The second day has the column that v1 knows and v2 does not."""
    scored = []
    monkeypatch.setattr(judge, "gather", lambda **given: scored.append(given) or gather(**given))
    verdict = judge_version(ws, 2, 1, DAYS[1])
    assert len(scored[0]["challenger"]["light"]) == len(scored[0]["champion"]["light"]) > 0
    assert (scored[0]["rows"] == scored[0]["champion_rows"]).all()
    assert verdict.champion_gauc["light"]["EN"] != verdict.gauc["light"]["EN"]
    assert f"v2 was trained or stopped on {DAYS[2]}, after a day that judges: it knows what came later" in verdict.reasons


def test_slices_of_new_ids_need_the_samples_that_were_trained_on(ws):
    shutil.rmtree(ws.samples / f"day={DAYS[2]}")
    verdict = judged_here(ws, 1)
    said = f"{DAYS[2]} was trained on and has no samples; `hapctl collect --day {DAYS[2]}` makes them"
    assert f"slices of new user_id: {said}" in verdict.reasons and f"slices of new item_id: {said}" in verdict.reasons
    assert verdict.slices and not any(name.endswith("new") for name in verdict.slices)


def test_a_version_that_no_longer_passes_is_no_longer_the_challenger(ws, monkeypatch):
    params = ws.params()
    versions.set_alias(ws, params, "challenger", 2)
    monkeypatch.setattr(judge, "score_days", broken(RuntimeError("no")))
    judged_here(ws)
    assert versions.get_alias(ws, params, "challenger") is None
    versions.set_alias(ws, params, "challenger", 1)
    judged_here(ws)
    assert versions.get_alias(ws, params, "challenger") == 1
