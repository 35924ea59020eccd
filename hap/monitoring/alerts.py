"""From what a watcher saw of a day to incidents that open, are told again because they grew, or close.

`settle` decides, on values alone; `apply` writes that into the ledger, and `letter` is what a person reads. Nothing is
delivered here: a message is a row first, so that whatever is killed afterwards, it is told (hap/monitoring/delivery.py).
"""

import datetime as dt
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hap.errors import UsageError
from hap.monitoring.findings import Finding, Look
from hap.params import SEVERITIES, Alerts
from hap.registry.incidents import Figure, Incident, Incidents, Message, Settled, incidents
from hap.registry.ledger import Entry, Ledger, Row, State

Kind = Literal["failure", "warning", "info", "success"]  # Apprise's words
KINDS: dict[str, Kind] = {"page": "failure", "ticket": "warning", "info": "info"}


@dataclass(frozen=True)
class Changes:
    """What a day changes about the incidents; each in the order of causes."""

    opened: tuple[Finding, ...] = ()
    grown: tuple[tuple[Incident, Finding], ...] = ()
    closed: tuple[Incident, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.opened or self.grown or self.closed)

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(self.opened + other.opened, self.grown + other.grown, self.closed + other.closed)


@dataclass(frozen=True)
class Letter:
    """One message as it is delivered: plain text. `key` is the same for all messages of an incident."""

    title: str
    body: str
    kind: Kind
    key: str


def settle(look: Look, known: Collection[Incident], now: dt.datetime, grow: float, settled: Settled | None = None) -> Changes:
    """What to open, what to tell again because it grew, and what to close because its cause is gone.

    An incident has grown when its severity is worse than any that was told, or its figure, over its limit, is `grow` times
    the largest that was told. A snoozed one is told again for a worse severity alone; an acknowledged one like any other.
    A cause that the day could not judge neither opens nor closes.

    Args:
        known: the incidents that are open.
        settled: how far this watcher has come; of a cause that a later day judged, an earlier day changes nothing.
    """
    if look.missing:
        return Changes()
    found = {
        finding.cause: finding for finding in sorted(look.findings, key=lambda one: one.cause) if _speaks(look, finding.cause, settled)
    }
    standing = {one.cause: one for one in sorted(known, key=lambda one: one.cause) if one.watcher == look.watcher}
    others = {one.cause for one in known} - set(standing)
    return Changes(
        opened=tuple(finding for cause, finding in found.items() if cause not in standing and cause not in others),
        grown=tuple((standing[cause], finding) for cause, finding in found.items() if _has_grown(standing.get(cause), finding, now, grow)),
        closed=tuple(one for cause, one in standing.items() if cause not in found and _speaks(look, cause, settled)),
    )


def _speaks(look: Look, cause: str, settled: Settled | None) -> bool:
    """Whether the look has the latest word on a cause."""
    return cause not in look.unjudged and (settled is None or look.day >= settled.judged(cause))


def _has_grown(one: Incident | None, finding: Finding, now: dt.datetime, grow: float) -> bool:
    if one is None:
        return False
    if SEVERITIES.index(finding.severity) < SEVERITIES.index(one.worst_said):
        return True
    largest = max(message.figure.excess for message in one.messages)
    return not one.is_silent(now) and figure_of(finding, "").excess >= grow * largest


def figure_of(finding: Finding, day: str) -> Figure:
    """A finding as a day's figure; what is not finite cannot be written down and compared."""
    value, limit = (number if number is not None and math.isfinite(number) else None for number in (finding.value, finding.limit))
    return Figure(day=day, severity=finding.severity, said=finding.said, value=value, limit=limit, do=finding.do)


def apply(ledger: Ledger, look: Look, alerts: Alerts, now: dt.datetime, page: str | None = None) -> tuple[Changes, Incidents]:
    """Settle a day into the ledger; returns what changed, and the incidents as they stand then.

    Doing it again changes nothing, and a kill on the way is made good by doing it again: what is open is read anew, and the
    row `settled` is the last.
    """
    before = incidents(ledger.rows())
    latest = before.settled.get(look.watcher)
    changes = settle(look, before.open, now, alerts.grow, latest)

    def write(state: State, reason: str, **evidence: Any) -> None:
        evidence |= {"watcher": look.watcher}
        ledger.append(Entry(at=now, actor=look.watcher, action="alert", state=state, reason=reason, evidence=evidence))

    for finding in changes.opened:
        figure = figure_of(finding, look.day)
        places = alerts.places(finding.severity)
        write("opened", f"{finding.cause}: {finding.said}", cause=finding.cause, figure=asdict(figure), places=places, page=page)
    for one, finding in changes.grown:
        figure, places = figure_of(finding, look.day), alerts.places(finding.severity)
        write("grew", f"{finding.cause}: {finding.said}", incident=one.number, figure=asdict(figure), places=places, page=page)
    for one in changes.closed:
        addressed = {place for message in one.messages for place in (*message.places, *message.told)}
        figure = Figure(day=look.day, severity=one.worst_said, said=f"{one.cause} healed")
        places = tuple(place for place in alerts.every_place() if place in addressed)
        write("closed", f"{one.cause} healed", incident=one.number, figure=asdict(figure), places=places, page=page)
    spoken = [one for one in look.findings if _speaks(look, one.cause, latest)]
    findings = [{"cause": one.cause, "figure": asdict(figure_of(one, look.day))} for one in spoken]
    if not look.missing and (latest is None or _is_news(look, findings, latest)):
        count = f"{len(findings)} findings" if len(findings) != 1 else "1 finding"
        write("settled", f"{look.watcher} of {look.day}: {count}", day=look.day, findings=findings, unjudged=sorted(look.unjudged))
    return changes, incidents(ledger.rows())


def _is_news(look: Look, findings: list[dict[str, Any]], latest: Settled) -> bool:
    """Whether a look tells more than what is settled: another day or other findings, or of an earlier day what no later one could judge."""
    if look.day < latest.day:
        return any(judged < look.day for cause, judged in latest.pending.items() if cause not in look.unjudged)
    return (look.day, findings, set(look.unjudged)) != (latest.day, latest.findings, set(latest.pending))


def acknowledge(ledger: Ledger, cause: str, *, actor: str, now: dt.datetime, reason: str = "") -> Row:
    """Write down that somebody knows of an incident.

    Raises:
        NotFound: no incident of this cause is open.
    """
    number = incidents(ledger.rows()).named(cause).number
    evidence = {"incident": number, "cause": cause}
    return ledger.append(Entry(at=now, actor=actor, action="ack", state="noted", reason=reason, evidence=evidence))


def snooze(ledger: Ledger, cause: str, *, until: dt.datetime, actor: str, now: dt.datetime, reason: str = "") -> Row:
    """Keep an incident silent until a time, unless its severity gets worse.

    Raises:
        NotFound: no incident of this cause is open.
        UsageError: the time has passed.
    """
    number = incidents(ledger.rows()).named(cause).number
    if until <= now:
        raise UsageError(f"--until {until:%Y-%m-%d %H:%M} UTC has passed, it is {now:%Y-%m-%d %H:%M}; give a later time")
    evidence = {"incident": number, "cause": cause, "until": until.isoformat()}
    return ledger.append(Entry(at=now, actor=actor, action="snooze", state="noted", reason=reason, evidence=evidence))


def letter(one: Incident, message: Message, workspace: str, host: str) -> Letter:
    """What is told: what is broken, since when, the figure, and what to type. A recovery is one line.

    Args:
        workspace: its folder on `host`, for whoever has several.
    """
    said = message.figure
    key = f"hap {host} {workspace} {one.number}"
    if message.event == "closed":
        line = f"{one.cause} healed on {said.day}; it was open since {one.since}."
        return Letter(f"[healed] {one.cause}", line, "success", key)
    grew = ", grew" if message.event == "grew" else ""
    since = one.since if said.day == one.since else f"{one.since}; this is of {said.day}"
    lines = {
        "What": said.said,
        "Since": since,
        "Figure": _figure_text(said),
        "Where": f"on {host}: cd {workspace}",
        "Do": said.do,
        "Quiet": f"hapctl ack {one.cause}   or   hapctl snooze {one.cause} --until 8h",
        "Page": message.page,
    }
    body = "\n".join(f"{name + ':':<8}{text}" for name, text in lines.items() if text)
    return Letter(f"[{said.severity}{grew}] {one.cause}", body, KINDS[said.severity], key)


def _figure_text(said: Figure) -> str | None:
    if said.value is None or not said.limit:
        return None
    return f"{said.value:.3g}, {said.excess:.1f} times its limit of {said.limit:.3g}"
