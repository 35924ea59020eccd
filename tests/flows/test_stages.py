"""A stage runs in a group of its own, passes its words on, and leaves nothing behind."""

import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import orjson
import psutil
import pytest

from flows.stages import dvc, end_orphans, repro
from flows.talk import Talk, talking
from hap.errors import HapError
from hap.training.loop import Progress
from hap.workspace import Workspace, init_workspace

TOLD = orjson.dumps(asdict(Progress(epoch=1, of=2, step=5, steps=10, loss={"bce": 0.25}, samples_per_s=5, eta_s=3))).decode()
STAGES = """stages:
  good: {cmd: echo fine > out.txt, outs: [out.txt]}
  refused: {cmd: 'echo "error: price is missing from the logs" >&2; exit 1'}
  crashed: {cmd: "python -c 'raise KeyError(1)'"}
  slow: {cmd: sleep 300}
  told: {cmd: 'echo hap:progress "TOLD"; echo "note: the others have nothing to read"'}
"""


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = init_workspace(tmp_path_factory.mktemp("stages") / "ws")
    (made.root / "dvc.yaml").write_text(STAGES.replace("TOLD", TOLD.replace('"', '\\"')))
    return made


def sleepers(ws: Workspace) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(ws.root) and "sleep" in process.name():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_stage_runs_and_is_a_no_op_the_second_time(ws: Workspace) -> None:
    repro(ws, "good", "good")
    stamp = (ws.root / "out.txt").stat().st_mtime_ns
    repro(ws, "good", "good")
    assert (ws.root / "out.txt").stat().st_mtime_ns == stamp


def test_a_refusal_comes_back_in_the_stages_own_words(ws: Workspace) -> None:
    with pytest.raises(HapError) as refusal:
        repro(ws, "refused", "refused")
    assert str(refusal.value) == "price is missing from the logs"


def test_a_crash_is_one_line_with_its_last_one(ws: Workspace) -> None:
    with pytest.raises(HapError, match="KeyError: 1") as refusal:
        repro(ws, "crashed", "crashed")
    assert "\n" not in str(refusal.value)


def test_progress_reaches_the_bar_and_notes_a_person(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float | None, str]] = []
    said: list[str] = []
    talk = Talk(quiet=True)
    monkeypatch.setattr(talk, "bar", lambda *shown: seen.append(shown))
    monkeypatch.setattr(talk, "say", said.append)
    with talking(talk):
        repro(ws, "told", "told")
    assert seen == [("told", 0.25, "epoch 1/2, 5 samples/s, 3 s left, bce 0.250")]
    assert said == ["  note: the others have nothing to read"]


def test_a_timeout_ends_the_whole_group(ws: Workspace) -> None:
    with pytest.raises(HapError, match="longer than 4 s"):
        dvc(ws, "repro", "--single-item", "slow", name="slow", timeout_s=4)
    assert sleepers(ws) == []
    assert list((ws.state / "stages").iterdir()) == []


def test_what_a_killed_command_left_running_is_ended_by_the_next(ws: Workspace) -> None:
    code = "import sys; from pathlib import Path; from flows.stages import repro; from hap.workspace import Workspace\n"
    code += "repro(Workspace(Path(sys.argv[1])), 'slow', 'slow')"
    top = Path(__file__).parents[2]
    killed = subprocess.Popen([sys.executable, "-c", code, str(ws.root)], env={**os.environ, "PYTHONPATH": str(top)})
    deadline = time.monotonic() + 300
    while not sleepers(ws) and time.monotonic() < deadline:
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    assert sleepers(ws), "the stage outlives the command that was killed"
    assert len(end_orphans(ws)) == 1
    assert sleepers(ws) == []
    assert end_orphans(ws) == []
    repro(ws, "good", "good")
