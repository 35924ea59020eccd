"""What every watcher of a day is given."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from hap.monitoring.findings import Look
from hap.params import Params
from hap.workspace import Workspace


@dataclass(frozen=True)
class Subject:
    """A day to look at, beside the champion and the days that it was trained on."""

    ws: Workspace
    params: Params
    day: dt.date
    champion: int  # the version that serves
    window: tuple[dt.date, ...]  # the days it was trained on, oldest first: the reference


Watcher = Callable[[Subject], Look]
