"""Brings what the watchers look at, the day and its reference; what cannot be brought is a finding.

A day is collected once its labels have matured, and closed by that. Before, it is collected apart, for the look alone: a day
that was closed without its labels would be trained on without them.
"""

import contextlib
import datetime as dt
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.alerts import patient
from flows.bundles import bundle_of
from flows.looks.subject import Subject
from flows.talk import current
from hap.days import is_ripe, parse_day
from hap.errors import DataError, HapError
from hap.logs import contract
from hap.monitoring.findings import Finding, Look
from hap.monitoring.report import LOGS, Labels
from hap.params import Params
from hap.samples import partitions
from hap.samples.collect import collect_day, parameters
from hap.workspace import Workspace, workspace_lock


@dataclass(frozen=True)
class Early(Workspace):
    """The workspace with samples of its own, in which an unripe day stands beside the closed ones."""

    @property
    def _apart(self) -> Path:
        return self.state / "early"

    @property
    def samples(self) -> Path:
        return self._apart / "samples"

    @property
    def quarantine(self) -> Path:
        return self._apart / "quarantine"

    @property
    def late(self) -> Path:
        return self._apart / "late"


@dataclass(frozen=True)
class Brought:
    """What there is to look at, and what is missing of it."""

    subject: Subject
    look: Look


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
        DataError: the champion was trained on the day.
        Busy: another command holds the workspace.
    """
    findings: list[Finding] = []
    labels: Labels = "matured" if is_ripe(day, params.collect.label_delay_hours, now) else "open"
    window = _window(ws, params, champion, day, findings)
    lacking = [needed for needed in (*window, day) if not _stands(ws, params, needed)]
    apart = labels == "open" and partitions.find(ws, day) is None
    whole: Workspace = Early(ws.root) if apart else ws
    try:
        with _locked(ws, day, now, wait_s) if lacking and not locked else contextlib.nullcontext():
            lost = {needed: why for needed in window if (why := _collected(ws, params, needed, needed in lacking))}
            there = tuple(needed for needed in window if needed not in lost)
            if apart:
                _link(ws, whole, there)
            if why := _collected(whole, params, day, day in lacking):
                findings.append(_no_day(ws, params, day, why))
        if lost:
            findings.append(_no_reference(champion, lost, there))
        subject = Subject(whole, params, day, champion, there, labels)
        yield Brought(subject, Look(watcher=LOGS, day=str(day), findings=tuple(findings)))
    finally:
        if apart:
            shutil.rmtree(whole.samples.parent, ignore_errors=True)


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
    closed = partitions.find(ws, day)
    return closed is not None and closed.parameters == parameters(params)


def _collected(ws: Workspace, params: Params, day: dt.date, collects: bool) -> str | None:
    """Have the day's samples; why they cannot be had, in words."""
    if collects:
        current().bar("drift", None, f"samples of {day}")
        try:
            collect_day(ws, params, day)
        except DataError as error:
            if partitions.find(ws, day) is None:  # else the samples of other parameters stand, which is better than none
                return str(error)
    return None if partitions.find(ws, day) else f"{day} has no samples"


@contextlib.contextmanager
def _locked(ws: Workspace, day: dt.date, now: dt.datetime, wait_s: float) -> Iterator[None]:
    """Hold the workspace, once whoever holds it is done."""
    with contextlib.ExitStack() as held:
        for attempt in patient(wait_s):
            with attempt:
                held.enter_context(workspace_lock(ws, f"drift --day {day}", now))
        yield


def _link(ws: Workspace, apart: Workspace, days: Sequence[dt.date]) -> None:
    """Make the closed days appear beside the one that is collected apart."""
    shutil.rmtree(apart.samples.parent, ignore_errors=True)
    apart.samples.mkdir(parents=True)
    for day in days:
        partitions.folder(apart, day).symlink_to(partitions.folder(ws, day), target_is_directory=True)


def _no_day(ws: Workspace, params: Params, day: dt.date, why: str) -> Finding:
    """Nothing of the day can be judged: nobody knows whether it was an outage, so it wakes someone."""
    logs = ws.logs(params)
    absent = [table for table in ("requests", "candidates", "items") if not contract.has_day(logs, table, day)]
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
