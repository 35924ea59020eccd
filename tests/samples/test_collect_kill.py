"""Collection killed at any point of its run: the next run gives the same bytes and leaves nothing behind."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hap.days import default_as_of
from hap.logs.side import read_side, side_tables
from hap.samples import collect, late, partitions
from hap.samples.collect import collect_day
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.logs.bad_files import change, put

RUN = """
import datetime as dt, sys
from pathlib import Path
from hap.samples import engines, expression
from hap.samples.collect import collect_day
from hap.workspace import Workspace
ws = Workspace(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
collect_day(ws, ws.params(), dt.date.fromisoformat(sys.argv[2]), set_aside=sys.argv[3] == "quarantine")
"""


def begin(ws: Workspace, quarantine: bool) -> "subprocess.Popen[str]":
    """A process that has imported everything and begins to collect when it is told."""
    words = [sys.executable, "-c", RUN, str(ws.root), str(FIRST_DAY), "quarantine" if quarantine else "refuse"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> float:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return time.monotonic()


def tree(ws: Workspace) -> dict[str, bytes]:
    """Every file and folder of the workspace but its logs."""
    paths = [path for path in sorted(ws.root.rglob("*")) if path.relative_to(ws.root).parts[0] != "logs"]
    return {str(path.relative_to(ws.root)): path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.mark.parametrize("where", ["staged", "sealed", "closed", "half published"])
def test_a_reopening_killed_around_its_marker_leaves_side_rows_that_its_manifest_knows(
    logged_workspace: Workspace, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = Workspace(tmp_path / "ws")
    shutil.copytree(logged_workspace.root, ws.root, ignore=shutil.ignore_patterns(".git", ".dvc", "samples", "late", "quarantine"))
    root = Path(ws.logs(ws.params()))
    old = collect_day(ws, ws.params(), FIRST_DAY)
    sides = {table: read_side(ws.late, table, FIRST_DAY) for table in side_tables(ws.late, FIRST_DAY)}
    change(root, "requests", lambda t: put(put(t, "user_id", [5], 0), "ingest_time", [3], default_as_of(FIRST_DAY, 3)))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if where == "staged":
            patched.setattr(collect, "seal", killed)
        elif where == "sealed":
            patched.setattr("hap.durable.os.replace", killed)
        elif where == "closed":
            patched.setattr(late, "forget", killed)
            patched.setattr(collect, "publish", killed)
        else:
            patched.setattr(late, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_day(ws, ws.params(), FIRST_DAY, set_aside=True, reopen=True)
    shutil.rmtree(ws.state / "collect", ignore_errors=True)
    found = partitions.load(ws, FIRST_DAY)
    if where in ("staged", "sealed"):
        assert found == old
        collect.settle(ws, FIRST_DAY)
        assert side_tables(ws.quarantine, FIRST_DAY) == []
        assert {table: read_side(ws.late, table, FIRST_DAY) for table in side_tables(ws.late, FIRST_DAY)} == sides
    else:
        assert found.quarantined["requests"] == {"id 0 or negative in user_id": 1} and found.late["requests"] == 1
        collect.settle(ws, FIRST_DAY)
        assert {table: read_side(ws.late, table, FIRST_DAY).num_rows for table in side_tables(ws.late, FIRST_DAY)} == found.late
        counted = {table: sum(rules.values()) for table, rules in found.quarantined.items()}
        assert {t: read_side(ws.quarantine, t, FIRST_DAY).num_rows for t in side_tables(ws.quarantine, FIRST_DAY)} == counted
    assert not list(ws.quarantine.glob(".day=*")) and not list(ws.late.glob(".day=*"))


@pytest.mark.parametrize(
    ("points", "quarantine"),
    [(1, False), pytest.param(10, False, marks=pytest.mark.long), pytest.param(2, True, marks=pytest.mark.long)],
)
def test_collection_killed_at_random_points_is_finished_by_the_next_run(
    logged_workspace: Workspace, tmp_path: Path, points: int, quarantine: bool
) -> None:
    ws = Workspace(tmp_path / "ws")
    shutil.copytree(logged_workspace.root, ws.root, ignore=shutil.ignore_patterns(".git", ".dvc", "samples", "late", "quarantine"))
    if quarantine:
        change(Path(ws.logs(ws.params())), "requests", lambda t: put(t, "user_id", [5], 0))
    with begin(ws, quarantine) as whole:
        begun = go(whole)
        assert whole.wait() == 0
        took_s = time.monotonic() - begun
    expected, manifest = tree(ws), partitions.load(ws, FIRST_DAY)
    assert bool(manifest.quarantined) == quarantine

    chance = random.Random(20260101)
    killed = 0
    while killed < points:
        for folder in (ws.samples, ws.quarantine, ws.late):
            shutil.rmtree(folder, ignore_errors=True)
        with begin(ws, quarantine) as process:
            go(process)
            time.sleep(took_s * (killed + chance.random()) / points)  # spread over the run, each place by chance
            process.kill()
            ended = process.wait()
            assert ended in (0, -9)
            if ended == 0:  # it had ended already: runs are not equally quick
                took_s *= 0.8
                continue
        killed += 1
        assert collect_day(ws, ws.params(), FIRST_DAY, set_aside=quarantine) == manifest
        assert tree(ws) == expected
