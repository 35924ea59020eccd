"""Handmade days for the page: reports with figures of their own, incidents as the ledger folds them, and promotions."""

import datetime as dt
import math
from dataclasses import replace

from hap.monitoring.alerts import acknowledge, apply, snooze
from hap.monitoring.findings import Figure, Finding
from hap.monitoring.report import Report, Seen
from hap.pages.drift import Page
from hap.params import Alerts
from hap.registry.incidents import incidents
from hap.registry.ledger import Entry
from tests.monitoring.test_alerts import Book

LAST = dt.date(2026, 3, 31)
EVIL = "<script>document.title='evil'</script>"
COLUMNS = (
    *("cand_price", "cand_quality", "cand_age_hours", "cand_item_id_rank", "activity", "hour"),
    *("user_id_rank", "user_id_seen", "history_length", "candidates", EVIL),
)
THERE = frozenset({"v1.html", "v2.html", "drift-2026-03-31-columns.html", "drift-2026-03-30.html"})


def day(before_last: int) -> str:
    return str(LAST - dt.timedelta(days=before_last))


def at(before_last: int, hour: int = 3) -> dt.datetime:
    return dt.datetime.combine(LAST - dt.timedelta(days=before_last), dt.time(hour, 12), dt.UTC)


def price(value: float, severity="page") -> Finding:
    return Finding(
        cause="input:cand_price", severity=severity, value=value, limit=0.12, do=f"hapctl show {LAST}", figure="inputs.cand_price",
        said=f"cand_price: wasserstein {value:.3f} over 0.120; its mean went from 2.104 to 6.31",
    )  # fmt: skip


def share(value: float) -> Finding:
    """Below its limit."""
    said = f"share of exposed negatives {value} below 0.1"
    return Finding(cause="funnel:share_EN", severity="ticket", value=value, limit=0.1, said=said, figure="funnel.share_EN")


def report(before_last: int, *found: Finding, labels="matured", missing=False, evil=False) -> Report:
    """A day with the findings; their figures have the findings' values."""
    values = {finding.cause.partition(":")[2]: finding.value for finding in found}
    wave = [0.03 + 0.02 * math.sin(before_last / 3 + place) for place in range(len(COLUMNS))]
    inputs = [
        Figure(name=f"inputs.{name}", title=f"{name}, distance", value=values.get(name, low), most=0.12)
        for name, low in zip(COLUMNS, wave, strict=True)
    ]
    level = values.get("share_EN", 0.2 + 0.01 * math.sin(before_last))
    funnel = [
        Figure(name="funnel.share_EN", title="share of exposed negatives", value=level, lower=level - 0.02, upper=level + 0.02,
               reference=0.2, least=0.1, most=0.4),
        Figure(name="funnel.candidates", title="candidates of a request", value=300 + 9 * math.cos(before_last), reference=300.0),
        Figure(name="funnel.lost", title="requests without an answer", value=None),
    ]  # fmt: skip
    columns = {
        figure.title.partition(",")[0]: {
            "method": "wasserstein", "value": figure.value, "threshold": 0.12, "drifted": (figure.value or 0) > 0.12,
            "reference_mean": 2.104, "current_mean": 6.31 if (figure.value or 0) > 0.12 else 2.1,
            "reference_rows": 20_000, "current_rows": 18_204, "note": None,
        }
        for figure in inputs
    }  # fmt: skip
    mine = [one for one in found if not one.cause.startswith("funnel:")]
    if evil:
        mine.append(Finding(cause=f"input:{EVIL}", severity="info", said=f"{EVIL} is new", do=f"hapctl show {EVIL}"))
    seen = [
        Seen(watcher="logs", title="Logs"),
        Seen(
            watcher="inputs", title="Inputs, against the training window", findings=tuple(mine), figures=() if missing else tuple(inputs),
            missing=missing, detail={} if missing else {"columns": columns, "page": "x", "problem": None},
        ),
        Seen(
            watcher="funnel", title="The funnel", findings=tuple(one for one in found if one.cause.startswith("funnel:")),
            figures=() if missing else tuple(funnel), unjudged=("funnel:lost",), missing=missing,
        ),
        Seen(watcher="labels", title="Labels", missing=True, note="waits for the day's labels, until 2026-04-01 02:00 UTC"),
        Seen(watcher="watch", title="The watchers themselves"),
    ]  # fmt: skip
    return Report(day=day(before_last), labels=labels, champion=2, reference=(day(9), day(8)), seen=tuple(seen))


def page(*days: Report, promoted: int | None = 20, back: int | None = None, known: bool = False, there=THERE) -> Page:
    """The page of the last of the days, with v2 promoted so many days before it, and v1 before that."""
    book = Book()
    book.append(Entry(at=at(25), actor="ann", action="promote", state="served", to_version=1, reason="first launch"))
    if promoted is not None:
        book.append(Entry(at=at(promoted), actor=EVIL, action="promote", state="served", from_version=1, to_version=2, reason=EVIL))
    if back is not None:
        book.append(Entry(at=at(back), actor="ann", action="rollback", state="served", from_version=2, to_version=1))
    for one in days:
        for look in one.looks:
            apply(book, look, Alerts(), at(-1))
    if known:
        acknowledge(book, "input:cand_price", actor="ann", now=at(-1), reason=EVIL)
        snooze(book, "input:cand_price", until=at(-2), actor="bob", now=at(-1))
    rows = book.rows()
    kept = [one.as_kept() for one in days]
    return Page(report=kept[-1], earlier=tuple(kept[:-1]), incidents=incidents(rows), rows=tuple(rows), root="/srv/feeds", there=there)


def quiet_month() -> list[Report]:
    """Thirty days, one of them without a look, and one, long ago, on which something was wrong."""
    days = [report(before) for before in range(29, -1, -1) if before != 17]
    return [replace(report(24, price(0.2, "ticket"))) if one.day == day(24) else one for one in days]


def broken_month() -> list[Report]:
    """As above, broken for the last three days since a promotion, with hostile names."""
    days = quiet_month()
    days[-3:] = [report(2, price(0.2, "ticket")), report(1, price(0.4)), report(0, price(0.42), share(0.06), evil=True, labels="open")]
    return days
