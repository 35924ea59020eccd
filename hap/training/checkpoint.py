"""Checkpoints of a training: whole or absent, the latest few kept, found again by what is trained and on what.

One file is one moment: model, optimizers, schedule, place in the data, random state, and the best weights so far.
"""

import io
import pickle
import re
import shutil
import zipfile
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
        state = _read(path)
        if state is not None and state.get("key") == key:
            torch.set_rng_state(state["torch_rng"])
            return state
    return None


def checkpoint_keys(folder: Path) -> dict[Path, str | None]:
    """The key of every finished checkpoint; None of one that cannot be read."""
    found = {path: _read(path, whole=False) for path in _steps(folder)}
    return {path: None if state is None else state.get("key") for path, state in found.items()}


def _read(path: Path, *, whole: bool = True) -> dict[str, Any] | None:
    """What a file holds, None of one that is damaged.

    Args:
        whole: whether every byte is needed, and so held against its checksum: torch would give zeros for a page that the disk lost.
    """
    try:
        if whole:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=not whole)
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, zipfile.BadZipFile, pickle.UnpicklingError):
        return None
    return state


def drop_checkpoints(folder: Path) -> None:
    """Take all of them away: the training is finished."""
    shutil.rmtree(folder, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))
