"""What a person sees while a flow runs: steps with their seconds and progress bars, on stderr.

One `Talk` is current at a time; tasks of a flow reach it without passing it through Prefect, which
would want to serialize it.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

LINE_S = 60.0  # between two lines of a step's progress, where they go to a file


class Talk:
    """Steps and bars on stderr; `seconds` keeps how long each step took. A terminal gets live bars, a file a line a minute."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.seconds: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._lines: dict[str, float] = {}  # when each step began, or had its latest line
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._depth = 0

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; its seconds are shown when it ends, and summed where a name comes twice."""
        begun = time.perf_counter()
        with self._live():
            self.bar(name, None, "")
            try:
                yield
            finally:
                took = time.perf_counter() - begun
                self._drop(name)
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.say(f"  {name:<28}{took:7.1f} s")

    def bar(self, name: str, share: float | None, note: str) -> None:
        """Show how far a step is: `share` 0..1, or None where that is unknown."""
        with self._lock:
            if self._progress is not None:
                if name not in self._bars:
                    self._bars[name] = self._progress.add_task(name, total=None)
                self._progress.update(self._bars[name], total=None if share is None else 1.0, completed=share or 0.0, note=note)
                return
            now = time.monotonic()
            due = self._lines.setdefault(name, now) + LINE_S
            if share is None or now < due:
                return
            self._lines[name] = now
        self.say(f"  {name:<28}{share:7.0%}  {note}".rstrip())

    def _drop(self, name: str) -> None:
        with self._lock:
            self._lines.pop(name, None)
            if self._progress is not None and name in self._bars:
                self._progress.remove_task(self._bars.pop(name))

    @contextlib.contextmanager
    def _live(self) -> Iterator[None]:
        with self._lock:
            self._depth += 1
            if self._progress is None and self.console.is_terminal:
                columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description:<26}"), BarColumn(24), TimeElapsedColumn()]
                self._progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
                self._progress.start()
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0 and self._progress is not None:
                    self._progress.stop()
                    self._progress, self._bars = None, {}


_current = Talk(quiet=True)


def current() -> Talk:
    """The talk of the command that is running; silent where none was set."""
    return _current


@contextlib.contextmanager
def talking(talk: Talk) -> Iterator[Talk]:
    """Make `talk` the current one for the block."""
    global _current
    before, _current = _current, talk
    try:
        yield talk
    finally:
        _current = before
        sys.stderr.flush()
