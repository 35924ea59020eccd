"""A look at a day: every watcher, the incidents that it opens and closes, the report and the page.

A look is idempotent: the same day of the same logs gives the same report and page, and opens nothing twice. The order of writing is the
order in which a kill hurts least: incidents into the ledger, the page, then the report, which says that the day was looked
at; last the messages, which the next look tells where this one could not.
"""

import datetime as dt
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.alerts import Told, settle_looks, tell
from flows.due import champion_of_day
from flows.looks.logs import bring
from flows.looks.subject import Subject, Watch
from flows.looks.watchers import WATCHERS
from flows.talk import current
from hap import durable
from hap.days import default_as_of, parse_day
from hap.errors import HapError
from hap.monitoring.causes import WATCHER as INPUTS
from hap.monitoring.causes import gathered
from hap.monitoring.findings import Finding, Look
from hap.monitoring.labels import WATCHER as LABELS
from hap.monitoring.labels import yielded
from hap.monitoring.report import HISTORY_DAYS, WATCH, Report, Seen, earlier_reports, page_file, report_file, write_report
from hap.pages.drift import Page, render
from hap.params import Params
from hap.registry.incidents import incidents
from hap.registry.ledger import open_ledger
from hap.workspace import Workspace


@dataclass(frozen=True)
class Looked:
    """What a look at a day came to, what was told of it, and where it lies."""

    report: Report
    told: Told
    html: Path
    json: Path

    def to_json(self) -> dict[str, Any]:
        """The report, with the paths and what was told."""
        return {**self.report.to_json(), "html": str(self.html), "json": str(self.json), "alerts": self.told.to_json()}


def look_at_day(ws: Workspace, day: dt.date, now: dt.datetime, *, locked: bool = False, wait_s: float = 0) -> Looked:
    """Look at a day: collect what is missing, run every watcher, settle what they found, write report and page, tell.

    Args:
        now: settles whether the day's labels have matured.
        locked, wait_s: see flows.looks.logs.bring.

    Raises:
        NotFound: no champion yet, so there is no reference.
        DataError: the champion was trained on the day, or there cannot be logs of it.
        Busy: another command holds the workspace.
        HapError: the ledger cannot be used, or the pages cannot be written; what was found is settled and told first.
    """
    params = ws.params()
    champion = champion_of_day(open_ledger(ws, params).rows(), day)
    with bring(ws, params, day, champion, now, locked=locked, wait_s=wait_s) as brought:
        seen = [Seen.of(brought.look, "Logs"), *run(brought.subject, WATCHERS, blind=brought.blind)]
    subject = brought.subject
    report = Report(day=str(day), labels=subject.labels, champion=champion, reference=tuple(map(str, subject.window)), seen=tuple(seen))
    report = report.as_kept()  # what is shown is what is kept
    page = page_file(ws.pages, day)
    changes = settle_looks(ws, params, report.looks, page)
    unwritten = None
    try:
        durable.write_text(page, page_of(ws, params, report))
        write_report(ws.pages, report)
    except OSError as error:
        unwritten = error.strerror or str(error)
    except Exception:
        tell(ws, params)  # whatever is wrong with the page, people hear of the day
        raise
    told = Told(changes, tell(ws, params))
    if unwritten:
        raise HapError(
            f"the page of {day} cannot be written into {ws.pages}: {unwritten}; {_count(report)}, in `hapctl alerts`; "
            f"mend the folder, then `hapctl drift --day {day}`"
        )
    return Looked(report, told, page, report_file(ws.pages, day))


def look_at_days(ws: Workspace, days: Sequence[dt.date], now: dt.datetime) -> Iterator[Looked]:
    """Look at each day, oldest first, so that incidents open and close in their order.

    Raises:
        HapError: as `look_at_day`; the earlier days stay, and the range can be looked at again.
    """
    for day in sorted(days):
        yield look_at_day(ws, day, now)


def run(subject: Subject, watchers: Sequence[Watch], *, blind: bool = False) -> list[Seen]:
    """What each watcher saw; one that fails is a finding, and does not stop the others.

    Args:
        blind: whether the day or all of its reference is missing, which is a finding already: then a watcher that cannot look
            has nothing to see.
    """
    looks: list[tuple[Look, str, str | None]] = []  # with its title, and why it saw nothing
    failures: list[Finding] = []
    idle = set()
    for place, watch in enumerate(watchers):
        current().bar("drift", place / len(watchers), watch.title)
        nothing = Look(watcher=watch.name, day=str(subject.day), findings=(), missing=True)
        if watch.needs_labels and subject.labels == "open":
            ripe = default_as_of(subject.day, subject.params.collect.label_delay_hours)
            looks.append((nothing, watch.title, f"waits for the day's labels, until {ripe:%Y-%m-%d %H:%M} UTC"))
            idle.add(watch.name)
            continue
        try:
            looks.append((watch.look(subject), watch.title, None))
        except Exception as error:  # whatever one watcher does, the others look
            looks.append((nothing, watch.title, f"could not look: {_in_words(error)}"))
            if blind:
                idle.add(watch.name)
            else:
                failures.append(_failure(subject, watch, error))
    unjudged = frozenset(f"{WATCH}:{name}" for name in idle)
    about = Look(watcher=WATCH, day=str(subject.day), findings=tuple(failures), unjudged=unjudged)
    told = _each_cause_once([look for look, _, _ in looks])
    seen = [Seen.of(look, title, note) for look, (_, title, note) in zip(told, looks, strict=True)]
    return [*seen, Seen.of(about, "The watchers themselves")]


def _each_cause_once(looks: Sequence[Look]) -> list[Look]:
    """The looks of a day, of which one alone speaks of each cause: of clicks labels does, where it could judge them."""
    by_name = {look.watcher: look for look in looks}
    if {INPUTS, LABELS} <= by_name.keys():
        by_name[INPUTS] = yielded(by_name[INPUTS], by_name[LABELS])
    return gathered(list(by_name.values()))


def _in_words(error: Exception) -> str:
    said = " ".join(str(error).split())[:500]
    return said if isinstance(error, HapError) else f"{type(error).__name__}: {said}"


def _failure(subject: Subject, watch: Watch, error: Exception) -> Finding:
    """A watcher that did not work is somebody's work for the morning; its traceback is kept where a report of it can quote it."""
    said = f"{watch.name} could not look: {_in_words(error)}"
    if not isinstance(error, HapError):
        kept = subject.ws.state / "watch" / f"{watch.name}.txt"
        try:
            durable.write_text(kept, "".join(traceback.format_exception(error)))
            said += f"; its traceback is in {kept}"
        except OSError:
            said += "; its traceback cannot be kept"
    return Finding(cause=f"{WATCH}:{watch.name}", severity="ticket", said=said, do=f"hapctl drift --day {subject.day}")


def _count(report: Report) -> str:
    number = len(report.wrong)
    return "nothing is wrong" if not number else f"{number} finding{'s' if number > 1 else ''}"


def page_of(ws: Workspace, params: Params, report: Report) -> str:
    """The page of a day, from its report, the reports before it, and the ledger."""
    rows = open_ledger(ws, params).rows()
    there = frozenset(path.name for path in ws.pages.glob("*.html")) if ws.pages.is_dir() else frozenset[str]()
    earlier = earlier_reports(ws.pages, parse_day(report.day), HISTORY_DAYS - 1)
    return render(Page(report=report, earlier=tuple(earlier), incidents=incidents(rows), rows=tuple(rows), root=str(ws.root), there=there))
