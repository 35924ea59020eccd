"""What every watcher of a day is given."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from hap.monitoring.findings import Look
from hap.monitoring.report import Labels
from hap.params import Params
from hap.workspace import Workspace


@dataclass(frozen=True)
class Subject:
    """A day to look at, beside the champion and the days that it was trained on."""

    ws: Workspace
    params: Params
    day: dt.date
    champion: int  # the version that served when the day ended; where none did, the one that serves now
    window: tuple[dt.date, ...]  # of the days it was trained on those that are still there, oldest first: the reference
    labels: Labels = "matured"  # whether every label of the day that counts has had its time to arrive


Watcher = Callable[[Subject], Look]


@dataclass(frozen=True)
class Watch:
    """A watcher as the flow runs it; `name` is the one that its looks bear, by which it alone closes what it opened."""

    name: str
    title: str  # above its part of the page
    look: Watcher
    needs_labels: bool = False  # whether it has nothing to say before the day's labels have matured
