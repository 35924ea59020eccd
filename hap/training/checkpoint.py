"""Checkpoints of a training: whole or absent, the latest few kept, found again by what is trained and on what.

One file is one moment: model, optimizers, schedule, place in the data, random state, and the best weights so far.
"""

import io
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from hap import durable

_NAME = re.compile(r"step-(\d{9})\.pt")


def save_checkpoint(folder: Path, key: str, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` steps and drop all but the latest `keep`.

    Args:
        key: what is trained on what; only a training of the same key takes it up.
    """
    buffer = io.BytesIO()
    torch.save({"key": key, "step": step, "torch_rng": torch.get_rng_state(), **state}, buffer)
    path = folder / f"step-{step:09d}.pt"
    durable.write_bytes(path, buffer.getvalue())
    for old in _steps(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(folder: Path, key: str) -> dict[str, Any] | None:
    """The latest state of this key, with torch's random state put back; None where there is none.

    A file that cannot be read is passed over for the one before it.
    """
    for path in reversed(_steps(folder)):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError):
            continue
        if state.get("key") == key:
            torch.set_rng_state(state["torch_rng"])
            return state
    return None


def checkpoint_keys(folder: Path) -> dict[Path, str | None]:
    """The key of every finished checkpoint; None of one that cannot be read."""
    found: dict[Path, str | None] = {}
    for path in _steps(folder):
        try:
            found[path] = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("key")
        except (OSError, RuntimeError, EOFError, ValueError):
            found[path] = None
    return found


def drop_checkpoints(folder: Path) -> None:
    """Take all of them away: the training is finished."""
    shutil.rmtree(folder, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))
