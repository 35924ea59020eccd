"""Run one DVC stage: in a session of its own, killed as a group, its progress passed on.

After a kill -9 of hapctl a stage's command would live on and write beside the next retrain, so each
running group is written down and the next holder of the workspace's lock ends what is left.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from flows.talk import current
from hap import durable
from hap.errors import HapError
from hap.workspace import Workspace

QUIET = {
    "DVC_NO_ANALYTICS": "true",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GIT_CONFIG_COUNT": "0",
}


class _DvcBusy(HapError):
    """DVC's own lock was held for a moment by the stage beside this one."""


# Two stages run side by side and each takes DVC's repository lock for a moment at its start and end.
@retry(retry=retry_if_exception_type(_DvcBusy), stop=stop_after_attempt(20), wait=wait_random(0.2, 1.0), reraise=True)
def dvc(ws: Workspace, *words: str, name: str, timeout_s: float = 24 * 3600) -> None:
    """Run one dvc command in the workspace.

    Args:
        name: what the progress bar calls it.

    Raises:
        HapError: the command failed or ran past `timeout_s`; the message is the stage's own error line.
    """
    run_module(ws, "dvc", *words, name=name, timeout_s=timeout_s)


def run_module(ws: Workspace, module: str, *words: str, name: str, timeout_s: float = 24 * 3600) -> list[str]:
    """Run a Python module in the workspace, in a session of its own, and return the lines it printed.

    Raises:
        HapError: as `dvc`.
    """
    environment = {**os.environ, **QUIET, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *words],
        cwd=ws.root,
        env=environment,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines: list[str] = []
    with _written_down(ws, process):
        reader = threading.Thread(target=_listen, args=(process, name, lines), daemon=True)
        reader.start()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise HapError(f"{module} {words[0]} ran longer than {timeout_s:.0f} s and was stopped") from None
        finally:
            if process.poll() is None:
                _end_group(process.pid)
                process.wait()
            reader.join(timeout=10)
            if process.stdout is not None and not reader.is_alive():
                process.stdout.close()
    if process.returncode:
        raise _failure(" ".join(("dvc", *words)) if module == "dvc" else module, lines)
    return lines


def repro(ws: Workspace, stage: str, name: str) -> None:
    """Bring one stage up to date: a no-op where nothing changed, from the run cache where it was run before."""
    dvc(ws, "repro", "--single-item", stage, name=name)


def end_orphans(ws: Workspace) -> list[str]:
    """End stages that a killed command left running; call with the workspace's lock held. Returns what was ended."""
    ended = []
    for note in sorted(_notes(ws).glob("*.json")):
        with contextlib.suppress(FileNotFoundError, orjson.JSONDecodeError, psutil.NoSuchProcess):
            said = orjson.loads(note.read_bytes())
            # The group's leader may be gone while members live; a reused pid has another start time.
            members = [p for p in psutil.process_iter(["pid", "create_time"]) if _group_of(p.pid) == said["pid"]]
            if members and min(p.info["create_time"] for p in members) >= said["started"] - 1.0:
                _end_group(said["pid"])
                ended.append(said["words"])
        note.unlink(missing_ok=True)
    return ended


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _notes(ws: Workspace) -> Path:
    return ws.state / "stages"


@contextlib.contextmanager
def _written_down(ws: Workspace, process: "subprocess.Popen[str]") -> Iterator[None]:
    note = _notes(ws) / f"{process.pid}.json"
    words = " ".join(map(str, process.args[4:])) if isinstance(process.args, list) else str(process.args)
    durable.write_json(note, {"pid": process.pid, "words": words, "started": psutil.Process(process.pid).create_time()})
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _end_group(group: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        gone = [p for p in psutil.process_iter() if _group_of(p.pid) == group]
        _, alive = psutil.wait_procs(gone, timeout=5)
        if not alive:
            return


def _listen(process: "subprocess.Popen[str]", name: str, lines: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("hap:progress "):
            shown: dict[str, Any] = orjson.loads(line.removeprefix("hap:progress "))
            share = (shown["epoch"] - 1 + shown["step"] / shown["steps"]) / shown["of"]
            losses = " ".join(f"{term} {value:.3f}" for term, value in shown["loss"].items())
            speed = f"{shown['samples_per_s']:,.0f} samples/s, {shown['eta_s']:.0f} s left"
            current().bar(name, share, f"epoch {shown['epoch']}/{shown['of']}, {speed}, {losses}")
        elif line.startswith("note: "):
            current().say(f"  {line.rstrip()}")
        else:
            lines.append(line.rstrip())


def _failure(command: str, lines: list[str]) -> HapError:
    text = "\n".join(lines)
    if "Unable to acquire lock" in text or ("rwlock" in text and "is busy" in text):
        return _DvcBusy(f"{command}: the workspace's DVC lock stays taken; is another dvc running in it?")
    # A stage says `error: ...` in words for a person; a crash ends with its traceback's last line; DVC's summary follows.
    said = [line for line in lines if line.startswith("error: ")]
    last = [line for line in lines if line.strip() and not line.startswith(("ERROR: ", "Running stage", "> ", " "))]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if said:
        return HapError(said[0].removeprefix("error: "))
    return HapError(f"{command}: {': '.join([*errors[:1], *last[-1:]]) or 'no message'}")
