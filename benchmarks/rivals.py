"""An environment of other people's libraries, and what a fresh process there or here measures."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def make_rivals(venv: Path, shared: Sequence[str], rivals: Mapping[str, str]) -> str | None:
    """An environment with the rivals, unless it stands there; None, or why there is none.

    Args:
        shared: packages that the rivals get at the versions of this environment.
        rivals: name -> version.
    """
    python = venv / "bin" / "python"
    wanted = [f"{name}=={version(name).split('+')[0]}" for name in shared] + [f"{name}=={number}" for name, number in rivals.items()]
    marker = venv / "rivals.json"
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return None
    for command in ([sys.executable, "-m", "venv", str(venv)], [str(python), "-m", "pip", "install", "--quiet", *wanted]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    marker.write_text(json.dumps(wanted))
    return None


def fresh_process(words: Sequence[str], python: str = sys.executable) -> dict[str, Any]:
    """What a module printed last in a process of its own with one thread, or why it failed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([python, "-m", *words], capture_output=True, text=True, env=env)
    if done.returncode:
        return {"failed": ((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])[:300]}
    return json.loads(done.stdout.splitlines()[-1])
