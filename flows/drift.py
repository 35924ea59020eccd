"""Drift of one day against the champion's training window."""

import datetime as dt

from flows.judge import bundle_of, champion_of
from flows.talk import current
from hap.days import parse_day
from hap.errors import NotFound
from hap.monitoring.drift import DriftResult, report_drift
from hap.samples.collect import collect_day
from hap.workspace import Workspace, workspace_lock


def drift_day(ws: Workspace, day: dt.date) -> DriftResult:
    """Collect the day where that is missing, compare it, and write the page and its JSON.

    Raises:
        NotFound: no champion yet, so there is no reference.
        DataError: no logs for the day.
    """
    params = ws.params()
    champion = champion_of(ws, params)
    if champion is None:
        raise NotFound("no champion yet, so there is no training window to compare with; promote one with `hapctl promote --model vN`")
    window = [parse_day(text) for text in bundle_of(ws, params, champion).info["window"]]
    with workspace_lock(ws, f"drift --day {day}", dt.datetime.now(dt.UTC)):
        for needed in (*window, day):
            current().bar("drift", None, f"samples of {needed}")
            collect_day(ws, params, needed)
    return report_drift(ws, params, window, day)
