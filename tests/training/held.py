"""`python -m tests.training.held ...`: hap.training's stages, of which a training stays where a test means to kill it.

Where the workspace holds HOLD, a training stops two steps after its first checkpoint at or beyond the step that is written
there, for as long as the file is there: however slow whoever kills it is, it cannot have ended before.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from hap.training import loop
from hap.training.__main__ import main

HOLD = Path(".hap") / "hold"
LATER = 2  # steps that a kill undoes

_saves, _takes = loop.save_checkpoint, loop._Run._take
_reached: list[int] = []


def _held() -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return int(HOLD.read_text())
    return None


def save(folder: Path, key: str, step: int, *more: Any) -> Path:
    path = _saves(folder, key, step, *more)
    if (asked := _held()) is not None and step >= asked and not _reached:
        _reached.append(step)
    return path


def take(run: loop._Run, *words: Any) -> None:
    while _reached and run.done >= _reached[0] + LATER and _held() is not None:
        time.sleep(0.01)
    _takes(run, *words)


if __name__ == "__main__":
    loop.save_checkpoint, loop._Run._take = save, take  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
