"""Retrain a range of days, oldest first; a day that has its verdict already costs next to nothing."""

import datetime as dt
from collections.abc import Sequence

from flows.daily import Outcome, retrain_day
from flows.prefect_server import prefect_api
from flows.talk import current
from hap.workspace import Workspace


def backfill(ws: Workspace, days: Sequence[dt.date]) -> list[Outcome]:
    """Retrain each day in turn; a refusal or an undecided verdict is an outcome, not a stop.

    Raises:
        HapError: a day could not be retrained; the earlier ones stay, and the range can be run again.
    """
    outcomes = []
    with prefect_api(ws):
        for day in days:
            current().say(f"{day}")
            outcomes.append(retrain_day(ws, day))
    return outcomes
