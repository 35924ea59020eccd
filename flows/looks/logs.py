"""Brings what the watchers look at, the day and its reference; what cannot be brought is a finding.

A day is collected once its labels have matured, and closed by that. Before, it is collected apart, for the look alone: a day
that was closed without its labels would be trained on without them.
"""

import contextlib
import datetime as dt
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.alerts import patient
from flows.bundles import bundle_of
from flows.looks.subject import Subject
from flows.talk import current
from hap import durable
from hap.days import is_ripe, parse_day, start_of
from hap.errors import DataError, HapError
from hap.logs import contract
from hap.monitoring.findings import Finding, Look
from hap.monitoring.report import LOGS, Labels
from hap.params import Params
from hap.samples import partitions
from hap.samples.collect import collect_day, parameters
from hap.workspace import Workspace, workspace_lock

_TABLES = ("requests", "candidates", "items")  # without which a day is not logged; feedback comes later


@dataclass(frozen=True)
class Early(Workspace):
    """The workspace with samples of this process's own, in which an unripe day stands beside the closed ones."""

    @property
    def apart(self) -> Path:
        """What goes when the look ends."""
        return self.state / f"early-{os.getpid()}"

    @property
    def samples(self) -> Path:
        return self.apart / "samples"

    @property
    def quarantine(self) -> Path:
        return self.apart / "quarantine"

    @property
    def late(self) -> Path:
        return self.apart / "late"


@dataclass(frozen=True)
class Brought:
    """What there is to look at, and what is missing of it."""

    subject: Subject
    look: Look

    @property
    def blind(self) -> bool:
        """Whether the day or all of its reference is missing."""
        return any(finding.severity != "info" for finding in self.look.findings)


@contextlib.contextmanager
def bring(
    ws: Workspace, params: Params, day: dt.date, champion: int, now: dt.datetime, *, locked: bool = False, wait_s: float = 0
) -> Iterator[Brought]:
    """The day beside the champion's training window, collected where that is missing; what is apart goes when the block ends.

    Args:
        locked: whether the caller holds the workspace.
        wait_s: how long another command that holds it is waited for. It is held only where something has to be collected, so
            that a look and a retrain may go on side by side.

    Raises:
        DataError: the champion was trained on the day, or there cannot be logs of it.
        Busy: another command holds the workspace.
    """
    _refuse_impossible(ws, params, day, now)
    findings: list[Finding] = []
    labels: Labels = "matured" if is_ripe(day, params.collect.label_delay_hours, now) else "open"
    window = _window(ws, params, champion, day, findings)
    lacking = [needed for needed in (*window, day) if not _stands(ws, params, needed)]
    early = Early(ws.root) if labels == "open" and _closed(ws, day) is None else None
    whole = early or ws
    try:
        with _locked(ws, day, now, wait_s) if lacking and not locked else contextlib.nullcontext():
            lost = {needed: why for needed in window if (why := _collected(ws, params, needed, needed in lacking))}
            there = tuple(needed for needed in window if needed not in lost)
            if early:
                _link(ws, early, sorted({*there, *partitions.collected_days(ws)} - {day}))
            if why := _collected(whole, params, day, day in lacking):
                findings.append(_no_day(ws, params, day, why))
        if lost:
            findings.append(_no_reference(champion, lost, there))
        subject = Subject(whole, params, day, champion, there, labels)
        yield Brought(subject, Look(watcher=LOGS, day=str(day), findings=tuple(findings)))
    finally:
        if early:
            shutil.rmtree(early.apart, ignore_errors=True)


def _refuse_impossible(ws: Workspace, params: Params, day: dt.date, now: dt.datetime) -> None:
    """Refuse a day that nobody can have logs of: settled as a day without logs, a slip of the pen would outrank every real one.

    Raises:
        DataError: the day is not over, or lies before the first logged day, and nothing of it is there.
    """
    if _closed(ws, day) or any(contract.has_day(ws.logs(params), table, day) for table in _TABLES):
        return
    if now < start_of(day + dt.timedelta(days=1)):
        raise DataError(f"{day} is not over at {now:%Y-%m-%d %H:%M} UTC, and has no logs; give an earlier day")
    logged = contract.table_days(ws.logs(params), _TABLES[0])
    if logged and day < logged[0]:
        raise DataError(f"{day} lies before the first logged day, and has no samples; days logged: {contract.describe_days(logged)}")


def _window(ws: Workspace, params: Params, champion: int, day: dt.date, findings: list[Finding]) -> tuple[dt.date, ...]:
    try:
        window = tuple(parse_day(text) for text in bundle_of(ws, params, champion).info["window"])
    except HapError as error:
        said = f"the bundle of v{champion}, which names the days that it was trained on, cannot be read: {error}"
        findings.append(Finding(cause="reference:gone", severity="ticket", said=said, do="hapctl doctor"))
        return ()
    if day in window:
        raise DataError(
            f"v{champion} was trained on {day}, so there is nothing to compare the day with; give a day after {window[-1]}, its last one"
        )
    return window


def _stands(ws: Workspace, params: Params, day: dt.date) -> bool:
    """Whether the day is closed with the parameters of now, so that collecting it would change nothing."""
    closed = _closed(ws, day)
    return closed is not None and closed.parameters == parameters(params)


def _closed(ws: Workspace, day: dt.date) -> partitions.Manifest | None:
    """The day's manifest; None where it is not closed, or damaged: collecting it says which."""
    try:
        return partitions.find(ws, day)
    except DataError:
        return None


def _collected(ws: Workspace, params: Params, day: dt.date, collects: bool) -> str | None:
    """Have the day's samples; why they cannot be had, in words."""
    if collects:
        current().bar("drift", None, f"samples of {day}")
        try:
            collect_day(ws, params, day)
        except DataError as error:
            if _closed(ws, day) is None:  # else the samples of other parameters stand, which is better than none
                return str(error)
    return None if _closed(ws, day) else f"{day} has no samples"


@contextlib.contextmanager
def _locked(ws: Workspace, day: dt.date, now: dt.datetime, wait_s: float) -> Iterator[None]:
    """Hold the workspace, once whoever holds it is done."""
    with contextlib.ExitStack() as held:
        for attempt in patient(wait_s):
            with attempt:
                held.enter_context(workspace_lock(ws, f"drift --day {day}", now))
        yield


def _link(ws: Workspace, early: Early, days: Sequence[dt.date]) -> None:
    """Make the closed days appear beside the one that is collected apart; what a killed look left goes."""
    for left in ws.state.glob("early-*"):
        owner = left.name.removeprefix("early-")
        if left == early.apart or not owner.isdigit() or not durable.is_running(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    early.samples.mkdir(parents=True)
    for day in days:
        partitions.folder(early, day).symlink_to(partitions.folder(ws, day), target_is_directory=True)


def _no_day(ws: Workspace, params: Params, day: dt.date, why: str) -> Finding:
    """Nothing of the day can be judged: nobody knows whether it was an outage, so it wakes someone."""
    logs = ws.logs(params)
    absent = [table for table in _TABLES if not contract.has_day(logs, table, day)]
    if not absent:
        return Finding(cause="logs:refused", severity="page", said=why, do=f"hapctl collect --day {day} --dry-run")
    there = contract.describe_days(contract.table_days(logs, absent[0]))
    said = f"no finished logs of {day}: {', '.join(absent)}; days of {absent[0]}: {there}"
    return Finding(cause="logs:missing", severity="page", said=said, do=f"hapctl drift --day {day}")


def _no_reference(champion: int, lost: dict[dt.date, str], there: Sequence[dt.date]) -> Finding:
    """Of what v42 was trained on some days are lost, or all."""
    gone = contract.describe_days(sorted(lost))
    said = f"samples and logs of {gone}, which v{champion} was trained on, are gone: {next(iter(lost.values())).partition(';')[0]}"
    if there:
        said += f"; compared with {contract.describe_days(list(there))} alone"
    return Finding(cause="reference:gone", severity="info" if there else "ticket", said=said, do=f"hapctl restore v{champion} --into DIR")
