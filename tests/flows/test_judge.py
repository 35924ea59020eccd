"""The gate's step on real versions: whatever is wrong with the days or with a version, a verdict is written and nothing passes."""

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from hap.logs.simulator import simulate
from hap.project import project_file
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
    """The day's samples after `change`, as a table."""
    (path,) = (ws.samples / f"day={day}").glob("*.parquet")
    path.chmod(0o644)
    table = change(pq.read_table(path))
    path.unlink()  # DVC's cache may hold the same file
    pq.write_table(table, path)


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


def test_a_version_that_was_never_registered_is_an_error_in_one_line(ws):
    done = hapctl("gate", "run", "--model", "v9", "--root", ws.root)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: v9 is not registered; registered: v1, v2")
