"""Which days wait: for a retrain, and for a look. `hapctl status` asks it, so nothing heavy is imported here."""

import contextlib
import datetime as dt
from collections.abc import Sequence

import orjson

from flows.bundles import bundle_of
from flows.scratch import gate_copy
from hap.days import is_ripe, parse_day, start_of, training_window
from hap.errors import DataError, HapError, NotFound
from hap.logs import contract
from hap.monitoring.report import HISTORY_DAYS, LOGS, read_report
from hap.params import Params
from hap.registry import ledger as journal
from hap.registry.ledger import Row, open_ledger
from hap.registry.local import bundle_folder
from hap.samples import partitions
from hap.serving.bundle import read_info
from hap.workspace import Workspace

DAY = dt.timedelta(days=1)


def unfinished_days(ws: Workspace, params: Params, now: dt.datetime) -> list[dt.date]:
    """Every ripe logged day that has a whole training window and no verdict yet, oldest first."""
    logged = set(contract.logged_days(ws.logs(params)))
    judged = {orjson.loads(path.read_bytes())["day"] for path in ws.verdicts.glob("v*.json")}
    ripe = [day for day in sorted(logged) if is_ripe(day, params.collect.label_delay_hours, now) and day.isoformat() not in judged]
    known = logged | set(partitions.collected_days(ws))
    return [day for day in ripe if set(training_window(day, params.train.days, params.gate.days)) <= known]


def champion_of_day(rows: Sequence[Row], day: dt.date) -> int:
    """The version that served when the day ended; where none did, as in a simulated past, the one that serves now.

    Raises:
        NotFound: none ever served.
    """
    then = journal.moment_of(rows, start_of(day + DAY)).by
    champion = then.to_version if then else journal.served(rows)
    if champion is None:
        raise NotFound("no champion yet, so there is no training window to compare with; promote one with `hapctl promote --model vN`")
    return champion


def due_days(ws: Workspace, params: Params, now: dt.datetime, *, fetch: bool = True) -> list[dt.date]:
    """The days that a look is due for, oldest first, of the last `HISTORY_DAYS`.

    The newest whole day; days that were missed; days whose labels have matured since they were looked at; days whose logs
    have come in since they were missing. Days that their champion was trained on, or earlier ones, are nobody's.

    Args:
        fetch: whether MLflow is asked for a bundle that is not on this host.

    Raises:
        NotFound: no champion yet.
        HapError: the ledger cannot be used.
    """
    rows = open_ledger(ws, params).rows()
    newest = now.astimezone(dt.UTC).date() - DAY
    logged = set(contract.logged_days(ws.logs(params)))
    ends: dict[int, dt.date | None] = {}  # the last day that a version was trained on; None where its bundle is lost
    due = []
    for day in (newest - n * DAY for n in range(HISTORY_DAYS - 1, -1, -1)):
        champion = champion_of_day(rows, day)
        if champion not in ends:
            ends[champion] = _last_trained_on(ws, params, champion, fetch)
        end = ends[champion]
        expected = day == newest or (bool(logged) and min(logged) <= day <= max(logged))
        if expected and (end is None or day > end) and _is_due(ws, params, day, day in logged, now):
            due.append(day)
    return due


def _last_trained_on(ws: Workspace, params: Params, version: int, fetch: bool) -> dt.date | None:
    for folder in (bundle_folder(ws, version), gate_copy(ws, version)):
        with contextlib.suppress(HapError, LookupError):
            return parse_day(read_info(folder)["window"][-1])
    try:
        return parse_day(bundle_of(ws, params, version).info["window"][-1]) if fetch else None
    except HapError:
        return None


def _is_due(ws: Workspace, params: Params, day: dt.date, logged: bool, now: dt.datetime) -> bool:
    try:
        report = read_report(ws.pages, day)
    except DataError:
        return True
    if report is None or (report.labels == "open" and is_ripe(day, params.collect.label_delay_hours, now)):
        return True
    return logged and any(finding.cause.startswith(f"{LOGS}:") for finding in report.findings)
