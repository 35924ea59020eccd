"""Incidents: what is wrong, since when, who knows, and what was told to whom; folded from the ledger's rows.

Rows of the action `alert`, by state:
    opened, grew, closed   an incident's messages; each names its places, and is written before it is delivered
    told, untold           a delivery of a message to a place that worked, or did not
    settled                a day was looked at by a watcher, with its findings and the causes that it could not judge
Rows of the actions `ack` and `snooze`, in the state `noted`, are a person's.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from hap.errors import NotFound
from hap.params import SEVERITIES, Alerts, Severity
from hap.registry.ledger import Row

Event = Literal["opened", "grew", "closed"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An incident as one day saw it; `value` and `limit` are in the finding's own units."""

    day: str
    severity: Severity
    said: str
    value: float | None = None
    limit: float | None = None
    do: str = ""

    @property
    def excess(self) -> float:
        """How far beyond its limit, 1 at it; 1 where that cannot be said."""
        return self.value / self.limit if self.value is not None and self.limit else 1.0


@dataclass(frozen=True, kw_only=True)
class Note:
    """Who acknowledged or snoozed, when and why; `number` is its row, `until` a snooze's end."""

    number: int
    by: str
    at: dt.datetime
    reason: str
    until: dt.datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Message:
    """One thing to be told about an incident; `number` is its row, `figure` what it says."""

    number: int
    event: Event
    at: dt.datetime
    figure: Figure
    places: tuple[str, ...]
    page: str | None = None
    told: frozenset[str] = frozenset()
    untold: dict[str, str] = field(default_factory=dict)  # why the last try at a place failed


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One cause from its opening to its end. `number` is the row that opened it."""

    number: int
    cause: str
    watcher: str
    since: str  # the day that opened it
    last: Figure
    messages: tuple[Message, ...]
    acked: Note | None = None
    snoozed: Note | None = None
    closed: dt.datetime | None = None

    @property
    def severity(self) -> Severity:
        """As the last day saw it."""
        return self.last.severity

    @property
    def said_last(self) -> Figure:
        """What the last message told."""
        return self.messages[-1].figure

    @property
    def worst_said(self) -> Severity:
        """The worst severity that a message told."""
        return min((message.figure.severity for message in self.messages), key=SEVERITIES.index)

    def is_silent(self, now: dt.datetime) -> bool:
        """Whether a snooze is in force."""
        return self.snoozed is not None and self.snoozed.until is not None and now < self.snoozed.until

    def keeps_back(self, message: Message, now: dt.datetime) -> bool:
        """Whether a message that could not be told before the snooze waits for its end: whoever snoozed knows what it says.

        What was written since is not: only a worse severity is, and the end of the incident, with which all is told. Which came first
        is told by their rows, since whoever snoozes and whoever watches may have different clocks.
        """
        return self.closed is None and self.snoozed is not None and self.is_silent(now) and message.number < self.snoozed.number

    def waiting(self, alerts: Alerts) -> list[tuple[Message, tuple[str, ...]]]:
        """The messages that are still to be told, each with its places, oldest first.

        A place that params.yaml no longer names is not waited for. What an open incident told none of its own places goes to
        those that are named now, each of them.
        """
        named, found = alerts.every_place(), []
        for message in self.messages:
            places = tuple(place for place in message.places if place in named)
            if not places and not message.told & set(message.places) and self.closed is None:
                places = alerts.places(message.figure.severity)
            if left := tuple(place for place in places if place not in message.told):
                found.append((message, left))
        return found

    def as_json(self, alerts: Alerts) -> dict[str, Any]:
        """The incident, with its last figure and what is still untold."""
        return {
            **{name: getattr(self, name) for name in ("number", "cause", "severity", "watcher", "since")},
            "opened": self.messages[0].at.isoformat(),
            "closed": self.closed.isoformat() if self.closed else None,
            "last": {**asdict(self.last), "excess": self.last.excess},
            "page": self.messages[-1].page,
            "acked": _note_json(self.acked),
            "snoozed": _note_json(self.snoozed),
            "undelivered": [
                {"event": message.event, "place": place, "why": message.untold.get(place)}
                for message, places in self.waiting(alerts)
                for place in places
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The latest day that a watcher looked at, and its findings as they were written.

    `pending` holds the causes which that day could not judge, each with the latest day that did ("" where none): an earlier
    day whose labels come in later still speaks of these.
    """

    day: str
    findings: list[dict[str, Any]]
    pending: dict[str, str] = field(default_factory=dict)

    def judged(self, cause: str) -> str:
        """The latest day that judged the cause."""
        return self.pending.get(cause, self.day)


@dataclass(frozen=True)
class Incidents:
    """Every incident, oldest first, and how far each watcher has come."""

    all: tuple[Incident, ...]
    settled: dict[str, Settled]

    @property
    def open(self) -> list[Incident]:
        """Those that stand, the worst first."""
        return sorted(
            (one for one in self.all if one.closed is None),
            key=lambda one: (SEVERITIES.index(one.severity), -one.last.excess, one.cause),
        )

    def named(self, cause: str) -> Incident:
        """The open incident of a cause.

        Raises:
            NotFound: there is none; the message names those that are open.
        """
        for one in self.open:
            if one.cause == cause:
                return one
        causes = ", ".join(one.cause for one in self.open)
        raise NotFound(f"no incident {cause!r} is open; " + (f"open are: {causes}" if causes else "none is; see `hapctl alerts --all`"))


def incidents(rows: Iterable[Row]) -> Incidents:
    """Fold the ledger's rows into incidents."""
    known: dict[int, Incident] = {}
    settled: dict[str, Settled] = {}
    for row in rows:
        said = row.evidence
        if row.action == "alert" and row.state == "opened":
            message = _message(row, "opened")
            known[row.id] = Incident(
                number=row.id,
                cause=said["cause"],
                watcher=said["watcher"],
                since=said["figure"]["day"],
                last=message.figure,
                messages=(message,),
            )
        elif row.action == "alert" and row.state == "settled":
            settled[said["watcher"]] = _settled(settled.get(said["watcher"]), said)
            for finding in said["findings"]:
                for one in known.values():
                    if one.closed is None and (one.watcher, one.cause) == (said["watcher"], finding["cause"]):
                        known[one.number] = replace(one, last=Figure(**finding["figure"]))
        elif row.action in ("alert", "ack", "snooze") and said.get("incident") in known:
            known[said["incident"]] = _after(known[said["incident"]], row)
    return Incidents(tuple(known.values()), settled)


def words_of(rows: Sequence[Row]) -> list[str]:
    """What each row says to a person: its reason; of a delivery that failed also what could not be told, and where."""
    by_id = {row.id: row for row in rows}
    return [_untold_text(row, by_id) if row.state == "untold" else row.reason for row in rows]


def _untold_text(row: Row, by_id: Mapping[int, Row]) -> str:
    """The row's reason is the failure alone; what it failed to tell is in the rows that it names."""
    said = row.evidence
    message, opened = by_id.get(said.get("message", 0)), by_id.get(said.get("incident", 0))
    if message is None or opened is None:  # nothing that hap wrote; as it is
        return row.reason
    return f"{message.state} of {opened.evidence['cause']} not told to {said['place']}: {row.reason}"


def promotions_held(rows: Iterable[Row]) -> str | None:
    """Why promotions are held, where an incident that pages is open; names the worst."""
    paging = [one for one in incidents(rows).open if one.severity == "page"]
    if not paging:
        return None
    worst, more = paging[0], f" and {len(paging) - 1} more" if len(paging) > 1 else ""
    return (
        f"promotions are held: {worst.cause} is open since {worst.since} ({worst.last.said}){more}, and drift.blocks_promotion "
        "is set; see `hapctl alerts`, or promote with --force --reason TEXT"
    )


def _settled(before: Settled | None, said: Mapping[str, Any]) -> Settled:
    """How far a watcher has come after a row that says what it saw of a day."""
    day, unjudged = said["day"], said["unjudged"]
    if before is not None and day < before.day:
        pending = {cause: judged if cause in unjudged else max(judged, day) for cause, judged in before.pending.items()}
        return replace(before, pending=pending)
    pending = {cause: before.judged(cause) if before else "" for cause in unjudged}
    return Settled(day=day, findings=said["findings"], pending=pending)


def _after(one: Incident, row: Row) -> Incident:
    """The incident after a row that speaks of it."""
    said = row.evidence
    if row.action == "ack":
        return replace(one, acked=Note(number=row.id, by=row.actor, at=row.at, reason=row.reason))
    if row.action == "snooze":
        until = dt.datetime.fromisoformat(said["until"])
        return replace(one, snoozed=Note(number=row.id, by=row.actor, at=row.at, reason=row.reason, until=until))
    if row.state == "grew":
        message = _message(row, "grew")
        return replace(one, last=message.figure, messages=(*one.messages, message))
    if row.state == "closed":
        return replace(one, closed=row.at, messages=(*one.messages, _message(row, "closed")))
    return replace(one, messages=tuple(_delivered(message, row) for message in one.messages))


def _delivered(message: Message, row: Row) -> Message:
    if message.number != row.evidence["message"]:
        return message
    place = row.evidence["place"]
    if row.state == "told":
        left = {other: why for other, why in message.untold.items() if other != place}
        return replace(message, told=message.told | {place}, untold=left)
    return replace(message, untold={**message.untold, place: row.reason})


def _message(row: Row, event: Event) -> Message:
    said = row.evidence
    return Message(
        number=row.id, event=event, at=row.at, figure=Figure(**said["figure"]), places=tuple(said["places"]), page=said.get("page")
    )


def _note_json(note: Note | None) -> dict[str, Any] | None:
    if note is None:
        return None
    return {"by": note.by, "at": note.at.isoformat(), "reason": note.reason, "until": note.until.isoformat() if note.until else None}
