"""Drift of one day against the champion's training window, and the incidents that it opens and closes."""

import datetime as dt
from dataclasses import dataclass

from flows.alerts import Told, settle_look
from flows.judge import bundle_of, champion_of
from flows.talk import current
from hap.days import parse_day
from hap.errors import NotFound
from hap.monitoring.drift import DriftResult, report_drift
from hap.params import Params
from hap.samples.collect import collect_day
from hap.workspace import Workspace, workspace_lock


@dataclass(frozen=True)
class Watched:
    """What drifted, and what was told of it."""

    drift: DriftResult
    told: Told


def drift_day(ws: Workspace, day: dt.date) -> Watched:
    """Collect the day where that is missing, compare it, write the page and its JSON, and settle its findings into incidents.

    Raises:
        NotFound: no champion yet, so there is no reference.
        DataError: no logs for the day.
    """
    params = ws.params()
    champion = champion_of(ws, params)
    if champion is None:
        raise NotFound("no champion yet, so there is no training window to compare with; promote one with `hapctl promote --model vN`")
    window = window_of(ws, params, champion)
    with workspace_lock(ws, f"drift --day {day}", dt.datetime.now(dt.UTC)):
        for needed in (*window, day):
            current().bar("drift", None, f"samples of {needed}")
            collect_day(ws, params, needed)
    return compare(ws, params, window, day)


def compare(ws: Workspace, params: Params, window: list[dt.date], day: dt.date) -> Watched:
    """Compare a collected day with collected ones, and settle what is found. Needs no lock of the workspace."""
    result = report_drift(ws, params, window, day)
    return Watched(result, settle_look(ws, params, result.look, result.html))


def window_of(ws: Workspace, params: Params, version: int) -> list[dt.date]:
    """The days that a version was trained on."""
    return [parse_day(text) for text in bundle_of(ws, params, version).info["window"]]
