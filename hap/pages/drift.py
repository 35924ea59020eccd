"""The page for whoever is on call: is it broken, since when, what changed, what to do; then the trends, the columns, and who looked.

Everything shown is read from the day's report, the reports of the days before it, the incidents and the moves in the ledger,
and the runbook; nothing is measured here, and nothing depends on the clock, so equal records give equal bytes.
"""

import datetime as dt
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hap.days import day_range, parse_day, start_of
from hap.monitoring.causes import category_in_words
from hap.monitoring.findings import Figure, Finding
from hap.monitoring.report import HISTORY_DAYS, LOGS, WATCH, WORDS, Report, columns_file, page_file, report_file
from hap.monitoring.runbook import SOURCE, Line, line_of, read_runbook
from hap.pages.template import environment
from hap.pages.trend import Move, bar, is_wrong, plain, trend
from hap.params import SEVERITIES
from hap.registry.incidents import Incident, Incidents
from hap.registry.ledger import Row, previous_served
from hap.registry.versions import label

if TYPE_CHECKING:
    from markupsafe import Markup

LEAST_DAYS = 7  # that a trend shows at least, the page's own among them; at most HISTORY_DAYS
SHORT = 160  # letters of a finding in the headline
NAMED = 3  # findings beside the worst that the headline names
SHOWN = 8  # trends of one watcher that are open at once; the others unfold
DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Page:
    """What a page is made of."""

    report: Report
    earlier: tuple[Report, ...]  # of the days before, oldest first
    incidents: Incidents
    rows: tuple[Row, ...]  # of the ledger
    root: str  # the workspace's folder, where commands are typed
    there: frozenset[str]  # the names of the pages that stand beside this one

    @property
    def day(self) -> dt.date:
        return parse_day(self.report.day)

    @property
    def first(self) -> dt.date:
        """The first day that trends show: as far back as there are looks, a week at least."""
        known = parse_day(self.earlier[0].day) if self.earlier else self.day
        return max(self.day - (HISTORY_DAYS - 1) * DAY, min(known, self.day - (LEAST_DAYS - 1) * DAY))

    @property
    def days(self) -> list[str]:
        """The days that trends show."""
        return [str(day) for day in day_range(self.first, self.day)]

    @cached_property
    def moves(self) -> list[Row]:
        """The rows by which another version served, oldest first."""
        return [row for row in self.rows if row.state == "served" and row.to_version is not None]

    @cached_property
    def moves_by_then(self) -> list[Row]:
        """Those up to the end of the page's day: what was promoted later has no part in what the day shows.

        Where nothing served by then, as in a simulated past, the day is judged by what came to serve later: then all of them.
        """
        return [row for row in self.moves if row.at < start_of(self.day + DAY)] or self.moves


@dataclass(frozen=True)
class Trend:
    """A figure over the days of the page."""

    anchor: str
    watcher: str
    figure: Figure  # as it was last measured
    wrong: bool  # on the page's day
    closeness: float  # to its limit, 1 at it
    picture: str
    said: str  # the picture in words


@dataclass(frozen=True)
class Card:
    """A finding as it is shown."""

    finding: Finding
    watcher: str
    since: str
    days: int  # from then on, the page's day among them
    known: tuple[str, ...]  # who said that they know, or keep it silent
    picture: str | None
    trend: str | None  # the anchor of its trend
    line: Line | None


def render(page: Page) -> str:
    """The page, one file."""
    report = page.report
    trends = _trends(page)
    cards = _cards(page, {one.figure.name: one.anchor for one in trends})
    wrong = [card for card in cards if card.finding.severity != "info"]
    first = {card.trend for card in cards} | {one.anchor for one in trends if one.wrong}
    detail: Mapping[str, Any] = next((seen.detail for seen in report.seen if "columns" in seen.detail), {})
    names = {
        "columns": columns_file(Path(), report.day).name,
        "report": report_file(Path(), report.day).name,
        "before": next((name for one in reversed(page.earlier) if (name := page_file(Path(), one.day).name) in page.there), None),
    }
    return (
        environment()
        .get_template("drift.html")
        .render(
            report=report,
            word=WORDS[report.state],
            sentences=_sentences(page, wrong),
            actions=_actions(page, wrong),
            changed=_changed(page, wrong),
            cards=cards,
            first_trends=[one for one in trends if one.anchor in first],
            groups=[(seen, [one for one in trends if one.watcher == seen.watcher and one.anchor not in first]) for seen in report.seen],
            columns=_columns(detail.get("columns", {})),
            problem=detail.get("problem"),
            names=names,
            there=page.there,
            moves=[row for row in reversed(page.moves) if row.at >= start_of(page.first)],
            root=page.root,
            runbook=SOURCE,
            history_days=len(page.days),
            shown=SHOWN,
            about=(LOGS, WATCH),
            quoted=shlex.quote,
            in_html=_in_html,
            dated=_dated,
            plain=plain,
            label=label,
        )
    )


def _sentences(page: Page, wrong: Sequence[Card]) -> list[str]:
    """The state of the day in words."""
    report = page.report
    if wrong:
        worst, others = wrong[0], len(wrong) - 1
        said = [f"{worst.finding.cause} since {worst.since}{_days(worst.days)}: {_short(worst.finding.said)}."]
        if others:
            pages = sum(card.finding.severity == "page" for card in wrong[1:])
            oldest = min(card.since for card in wrong[1:])
            which = f", {pages} of them wake{'s' if pages == 1 else ''} someone" if pages else " can wait until the morning"
            named = ", ".join(card.finding.cause for card in wrong[1 : 1 + NAMED])
            left = f" and {others - NAMED} other{'s' * (others > NAMED + 1)}" if others > NAMED else ""
            said.append(f"{others} more{which}: {named}{left}; the oldest is open since {oldest}.")
    elif report.state == "unjudged":
        said = ["No watcher could judge the day."]
    else:
        watchers = [seen for seen in report.seen if seen.watcher not in (LOGS, WATCH) and not seen.missing]
        figures = sum(figure.value is not None for seen in watchers for figure in seen.figures)
        said = [f"Nothing is wrong: {len(watchers)} watcher{'s' * (len(watchers) != 1)} judged {figures} figures."]
    if not wrong:
        before = _last_wrong(page)
        said.append(
            f"The last day that was not quiet is {before[0]}: {before[1]}." if before else "No day before is known on which anything was."
        )
    return said


def _short(said: str) -> str:
    """The beginning of what a finding says, for the first screen; its card has the rest."""
    return said.rstrip(".") if len(said) <= SHORT else f"{said[:SHORT].rpartition(' ')[0]} …"


def _days(number: int) -> str:
    return "" if number == 1 else f", {number} days"


def _last_wrong(page: Page) -> tuple[str, str] | None:
    """The latest day before the page's on which something was wrong, and what."""
    found = [(one.day, one.wrong[0].cause) for one in page.earlier if one.wrong]
    found += [(one.last.day, one.cause) for one in page.incidents.all if one.worst_said != "info" and one.last.day < page.report.day]
    return max(found, default=None)


def _cards(page: Page, anchors: Mapping[str, str]) -> list[Card]:
    """Every finding, the worst first."""
    cards = []
    for seen in page.report.seen:
        for finding in seen.findings:
            incident = _incident(page, finding.cause)
            streak = _first_of_streak(page, finding.cause)
            since = min(incident.since, streak) if incident else streak
            known = finding.value is not None and finding.limit is not None
            cards.append(
                Card(
                    finding=finding,
                    watcher=seen.title,
                    since=since,
                    days=(page.day - parse_day(since)).days + 1,
                    known=_known(incident),
                    picture=bar(finding.value, finding.limit) if known else None,  # type: ignore[arg-type]
                    trend=anchors.get(finding.figure) if finding.figure else None,
                    line=line_of(_runbook(), finding.cause),
                )
            )
    return sorted(cards, key=lambda one: (SEVERITIES.index(one.finding.severity), -one.finding.excess, one.finding.cause))


def _incident(page: Page, cause: str) -> Incident | None:
    """The incident of a cause that stood on the page's day."""
    for one in page.incidents.all:
        closed = one.messages[-1].figure.day if one.closed else None
        if one.cause == cause and one.since <= page.report.day and (closed is None or closed > page.report.day):
            return one
    return None


def _first_of_streak(page: Page, cause: str) -> str:
    """The first of the days in a row that have the finding: a day that was looked at after later ones opens no incident, and dates none."""
    first = page.report.day
    for one in reversed(page.earlier):
        if cause not in {finding.cause for finding in one.findings}:
            break
        first = one.day
    return first


def _known(incident: Incident | None) -> tuple[str, ...]:
    said = []
    if incident and incident.acked:
        said.append(f"{incident.acked.by} knows{f': {incident.acked.reason}' if incident.acked.reason else ''}")
    if incident and incident.snoozed and incident.snoozed.until:
        said.append(f"kept silent until {incident.snoozed.until:%Y-%m-%d %H:%M} UTC by {incident.snoozed.by}")
    return tuple(said)


def _trends(page: Page) -> list[Trend]:
    """Every figure of the page's days, those closest to their limits first."""
    reports = {one.day: one for one in (*page.earlier, page.report)}
    series: dict[tuple[str, str], dict[str, Figure]] = {}
    for day in page.days:
        for seen in reports[day].seen if day in reports else ():
            for figure in seen.figures:
                series.setdefault((seen.watcher, figure.name), {})[day] = figure
    moves = [Move(row.at, label(int(row.to_version or 0)), row.action == "rollback") for row in page.moves]
    found = []
    for place, ((watcher, _), by_day) in enumerate(sorted(series.items())):
        if all(figure.value is None for figure in by_day.values()):
            continue
        latest = by_day[max(by_day)]
        today = by_day.get(page.report.day)
        found.append(
            Trend(
                anchor=f"t{place}",
                watcher=watcher,
                figure=latest,
                wrong=today is not None and is_wrong(today),
                closeness=_closeness(today),
                picture=trend([by_day.get(day) for day in page.days], page.first, moves),
                said=_in_words(latest, today),
            )
        )
    return sorted(found, key=lambda one: -one.closeness)


def _closeness(figure: Figure | None) -> float:
    """How near a figure is to its limits: 1 at one of them, more beyond."""
    if figure is None or figure.value is None:
        return 0.0
    above = figure.value / figure.most if figure.most else 0.0
    below = figure.least / figure.value if figure.least is not None and figure.value else 0.0
    return max(above, below)


def _in_words(latest: Figure, today: Figure | None) -> str:
    value = "not measured on the day" if today is None or today.value is None else plain(today.value)
    limits = [f"{word} {plain(limit)}" for word, limit in (("at least", latest.least), ("at most", latest.most)) if limit is not None]
    compared = [f"compared with {plain(latest.reference)}"] if latest.reference is not None else []
    return "; ".join([value, *limits, *compared])


def _actions(page: Page, wrong: Sequence[Card]) -> list[tuple[str, str]]:
    """What to type, each with why: back to the former version, where one was promoted since and that can help; the worst finding's own."""
    if not wrong:
        return []
    found = []
    last, before = page.moves[-1] if page.moves else None, previous_served(page.rows)
    # A rollback takes away what serves now: of a past day that another version has followed, it would be the wrong one.
    if last is not None and last in page.moves_by_then and last.action == "promote" and before is not None:
        for card in wrong:
            if card.line and card.line.rolls_back and last.at >= start_of(parse_day(card.since) - DAY):
                promoted = f"{label(last.to_version or 0)} was promoted on {last.at:%Y-%m-%d %H:%M} UTC"
                why = f"{promoted}, {card.finding.cause} is open since {card.since}. Go back to {label(before)}:"
                found.append((why, f"hapctl rollback --reason {shlex.quote(card.finding.cause)}"))
                break
    for card in wrong:
        if card.finding.do and card.finding.do not in [command for _, command in found]:
            found.append((f"Look closer at {card.finding.cause}:", card.finding.do))
            break
    cause = shlex.quote(wrong[0].finding.cause)
    found.append(("Say that you know, or keep it silent for the night:", f"hapctl ack {cause}"))
    return [*found, ("", f"hapctl snooze {cause} --until 8h")]


def _changed(page: Page, wrong: Sequence[Card]) -> list[str]:
    """Which versions came and went from the day before the oldest finding to the end of the page's day."""
    if not wrong:
        return []
    since = min(parse_day(card.since) for card in wrong) - DAY
    found = [
        f"{label(row.to_version or 0)} {'was promoted' if row.action == 'promote' else 'came back by rollback'} on "
        f"{row.at:%Y-%m-%d %H:%M} UTC by {row.actor}{f': {row.reason}' if row.reason else ''}"
        for row in page.moves_by_then
        if row.at >= start_of(since)
    ]
    if found or not page.moves_by_then:
        return found
    last = page.moves_by_then[-1]
    return [f"no version since {since}: {label(last.to_version or 0)} serves since {last.at:%Y-%m-%d %H:%M} UTC"]


def _columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The judged columns, those furthest beyond their thresholds first."""
    rows = []
    for name, one in columns.items():
        ratio = one["value"] / one["threshold"] if one["value"] is not None and one["threshold"] else None
        moved = category_in_words(*one["moved"]) if one.get("moved") and one["drifted"] else None
        rows.append({"name": name, **one, "ratio": ratio, "said": one["note"] or moved})
    return sorted(rows, key=lambda row: (not row["drifted"], -(row["ratio"] or 0.0), row["name"]))


@cache
def _runbook() -> Mapping[str, Line]:
    return read_runbook()


def _dated(text: str) -> "Markup":
    """Text from data, escaped, with its dates kept in one piece: a line breaks at their hyphens otherwise."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\d{4}-\d{2}-\d{2}", r'<span class="whole">\g<0></span>', str(escape(text))))


def _in_html(text: str, day: str) -> "Markup":
    """The runbook's Markdown as HTML, with the day in its commands. Only the packaged runbook comes here, never data."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("commonmark", {"html": False}).render(re.sub(r"\b(day|show) D\b", rf"\1 {parse_day(day)}", text)))
