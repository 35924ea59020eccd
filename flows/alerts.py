"""What a watcher saw becomes incidents in the ledger, and these are told."""

import datetime as dt
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tenacity

from flows.talk import current
from hap.days import parse_span
from hap.errors import Busy, UsageError
from hap.monitoring.alerts import Changes, apply
from hap.monitoring.delivery import Delivery, deliver
from hap.monitoring.findings import Look
from hap.params import Params
from hap.registry import incidents as incidents_of
from hap.registry.incidents import Incident, Incidents
from hap.registry.ledger import Entry, default_actor, open_ledger
from hap.tables import table
from hap.workspace import Workspace, exclusive


@dataclass(frozen=True)
class Told:
    """What a day changed, and what was told of it."""

    changes: Changes
    deliveries: list[Delivery] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line for each incident that opened, grew or closed, and for each delivery."""
        lines = [f"opened  {one.severity:<6}  {one.cause}" for one in self.changes.opened]
        lines += [f"grew    {one.severity:<6}  {one.cause}" for _, one in self.changes.grown]
        lines += [f"closed  {one.severity:<6}  {one.cause}" for one in self.changes.closed]
        return lines + [delivery_text(one) for one in self.deliveries]

    def to_json(self) -> dict[str, Any]:
        """The causes that opened, grew and closed, and the deliveries."""
        return {
            "opened": [one.cause for one in self.changes.opened],
            "grew": [one.cause for _, one in self.changes.grown],
            "closed": [one.cause for one in self.changes.closed],
            "deliveries": [delivery_json(one) for one in self.deliveries],
        }


def settle_looks(ws: Workspace, params: Params, looks: Sequence[Look], page: Path | None = None) -> Changes:
    """Settle what the watchers saw of a day into the ledger; `tell` is what tells it.

    Raises:
        Busy: another command settled all the while.
        HapError: the ledger cannot be used.
    """
    changes = Changes()
    for attempt in patient(20):
        with attempt:
            now = dt.datetime.now(dt.UTC)
            with exclusive(ws, "alerts", "settles alerts", f"alerts of {looks[0].day}", now):
                for look in looks:
                    settled, _ = apply(open_ledger(ws, params), look, params.alerts, now, None if page is None else str(page))
                    changes += settled
    return changes


def tell(ws: Workspace, params: Params) -> list[Delivery]:
    """Tell what waits, from this day or an earlier one. A failed delivery is no failure here."""
    # Who delivers now may have read the ledger before this day was settled: it is waited for, as long as it can take.
    alerts = params.alerts
    longest_s = 20 + len(alerts.every_place()) * alerts.attempts * alerts.deadline_s
    deliveries: list[Delivery] = []
    try:
        for attempt in patient(longest_s):
            with attempt:
                deliveries = deliver_waiting(ws, params)
    except Busy as busy:
        current().say(f"  {busy}")
    return deliveries


def patient(seconds: float) -> tenacity.Retrying:
    """Tries that go on while another command holds what is needed, for so many seconds."""
    return tenacity.Retrying(
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(0.2),
        retry=tenacity.retry_if_exception_type(Busy),
        reraise=True,
    )


def deliver_waiting(ws: Workspace, params: Params) -> list[Delivery]:
    """Tell every message that waits, and write down how that went.

    Raises:
        Busy: another command delivers.
    """
    ledger, host = open_ledger(ws, params), socket.gethostname()

    def note(one: Delivery) -> None:
        now, place = dt.datetime.now(dt.UTC), one.place
        evidence = {"incident": one.incident.number, "cause": one.incident.cause, "message": one.message.number, "place": place}
        if one.sent.arrived:
            what = f"{one.message.event} of {one.incident.cause} told to {place}"
            ledger.append(Entry(at=now, actor=default_actor(), action="alert", state="told", reason=what, evidence=evidence))
        elif one.message.untold.get(place) != one.sent.why:  # the same failure again is not written again
            ledger.append(Entry(at=now, actor=default_actor(), action="alert", state="untold", reason=one.sent.why, evidence=evidence))

    with exclusive(ws, "delivery", "delivers alerts", "delivering alerts", dt.datetime.now(dt.UTC)):
        known = incidents_of.incidents(ledger.rows())
        return deliver(known, params.alerts, str(ws.root), host, note, dt.datetime.now(dt.UTC), dict(os.environ))


def known_incidents(ws: Workspace, params: Params) -> Incidents:
    """Every incident of the workspace."""
    return incidents_of.incidents(open_ledger(ws, params).rows())


def undelivered(known: Incidents, params: Params, now: dt.datetime) -> list[dict[str, str | None]]:
    """What waits to be told: cause, event, place, why the last try failed (None before the first), and the snooze that keeps it back."""
    return [
        {
            "cause": one.cause,
            "event": message.event,
            "place": place,
            "why": message.untold.get(place),
            "snoozed_until": one.snoozed.until.isoformat() if one.keeps_back(message, now) and one.snoozed and one.snoozed.until else None,
        }
        for one in known.all
        for message, places in one.waiting(params.alerts)
        for place in places
    ]


def alerts_text(shown: list[Incident], params: Params, now: dt.datetime) -> str:
    """The incidents as a table, and under it what each says and what to type."""
    rows = [
        [
            one.severity,
            one.cause,
            one.since,
            one.last.day,
            f"{one.last.value:.3g}, {one.last.excess:.1f} x limit" if one.last.value is not None else None,
            _state(one, now),
            "; ".join(f"{message.event}: {', '.join(places)}" for message, places in one.waiting(params.alerts)) or None,
        ]
        for one in shown
    ]
    lines = [table(["severity", "cause", "since", "seen", "figure", "state", "undelivered"], rows)]
    for one in shown:
        if one.closed is None:
            lines += ["", one.cause, f"  {one.last.said}", f"  next: {one.last.do}"]
            lines += [f"  page: {one.messages[-1].page}"] if one.messages[-1].page else []
            if not any(message.told for message in one.messages) and not params.alerts.places(one.severity):
                lines.append(f"  told nobody: alerts.{one.severity} in params.yaml names no place")
    return "\n".join(lines)


def _state(one: Incident, now: dt.datetime) -> str:
    if one.closed is not None:
        return f"closed {one.messages[-1].figure.day}"
    states = [f"acked by {one.acked.by}"] if one.acked else []
    if one.snoozed and one.snoozed.until and one.is_silent(now):
        states.append(f"snoozed by {one.snoozed.by} until {one.snoozed.until:%Y-%m-%d %H:%M}")
    return ", ".join(states) or "open"


def delivery_text(one: Delivery) -> str:
    """One line on one delivery."""
    what = f"{one.message.event} {one.incident.cause}"
    return f"told    {one.place}: {what}" if one.sent.arrived else f"untold  {one.place}: {what}: {one.sent.why}"


def delivery_json(one: Delivery) -> dict[str, Any]:
    """The same as a value."""
    return {
        "cause": one.incident.cause,
        "event": one.message.event,
        "place": one.place,
        "arrived": one.sent.arrived,
        "why": one.sent.why or None,
    }


def parse_until(text: str, now: dt.datetime) -> dt.datetime:
    """A time: 2026-01-05T09:00, in UTC unless it says otherwise, or a span from now, such as 30m, 8h or 2d.

    Raises:
        UsageError: it is neither.
    """
    try:
        if (span := parse_span(text)) is not None:
            return now + span
        until = dt.datetime.fromisoformat(text.strip())
        return (until if until.tzinfo else until.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"--until {text!r} is not a time; write 2026-01-05T09:00 (UTC), or 30m, 8h or 2d from now") from None
