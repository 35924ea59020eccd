"""What all watchers saw of one day, as it is kept: pages/drift-D.json, and what stands beside it.

The page of the day is rendered from this report and from those of the days before it; nothing else keeps what was measured.
"""

import contextlib
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from hap import durable
from hap.days import day_range, parse_day
from hap.errors import DataError, HapError
from hap.monitoring.findings import Figure, Finding, Look, ranked
from hap.tables import table

HISTORY_DAYS = 30  # how far back reports are shown, and days that were missed are looked at
SCHEMA = 3  # raised when a reader of the old one would be misled
Labels = Literal["open", "matured"]
State = Literal["page", "ticket", "quiet", "unjudged"]
WORDS: dict[State, str] = {"page": "broken", "ticket": "needs a look", "quiet": "quiet", "unjudged": "not judged"}
LOGS, WATCH = "logs", "watch"  # what speaks of the look itself: whether there was anything to look at, and whether the watchers worked


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one watcher saw, or why it saw nothing."""

    watcher: str
    title: str  # in words
    findings: tuple[Finding, ...] = ()
    figures: tuple[Figure, ...] = ()
    unjudged: tuple[str, ...] = ()
    missing: bool = False
    note: str | None = None  # what it could not look at, and why
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, look: Look, title: str, note: str | None = None) -> "Seen":
        """What a look came to."""
        return cls(
            watcher=look.watcher,
            title=title,
            findings=look.findings,
            figures=look.figures,
            unjudged=tuple(sorted(look.unjudged)),
            missing=look.missing,
            note=note or "; ".join(look.notes) or None,
            detail=look.detail,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields without the watcher, which is the key."""
        return {
            "title": self.title,
            "findings": [one.to_json() for one in self.findings],
            "figures": [one.to_json() for one in self.figures],
            "unjudged": list(self.unjudged),
            "missing": self.missing,
            "note": self.note,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """One day, beside the champion of that day and the days that it was trained on."""

    day: str
    labels: Labels  # whether every label that counts for the day had had its time to arrive
    champion: int
    reference: tuple[str, ...]
    seen: tuple[Seen, ...]  # in the order in which the watchers looked

    @property
    def findings(self) -> list[Finding]:
        """Of all watchers, the worst first."""
        return ranked(finding for one in self.seen for finding in one.findings)

    @property
    def looks(self) -> list[Look]:
        """What incidents are settled from."""
        return [
            Look(watcher=one.watcher, day=self.day, findings=one.findings, unjudged=frozenset(one.unjudged), missing=one.missing)
            for one in self.seen
        ]

    @property
    def wrong(self) -> list[Finding]:
        """The findings that page or are a ticket, the worst first."""
        return [one for one in self.findings if one.severity != "info"]

    @property
    def state(self) -> State:
        """The worst severity, where something is wrong; quiet, where a watcher could judge the day."""
        if wrong := self.wrong:
            return "page" if wrong[0].severity == "page" else "ticket"
        return "unjudged" if all(one.missing for one in self.seen if one.watcher not in (LOGS, WATCH)) else "quiet"

    @property
    def exit_code(self) -> int:
        """4 when something is wrong, else 0."""
        return 4 if self.wrong else 0

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "schema": SCHEMA,
            "day": self.day,
            "labels": self.labels,
            "champion": self.champion,
            "reference": list(self.reference),
            "state": self.state,
            "looks": {one.watcher: one.to_json() for one in self.seen},
        }

    def as_kept(self) -> "Report":
        """The report as it is read again: what is not a finite number is None."""
        return Report.from_json(orjson.loads(orjson.dumps(self.to_json(), option=orjson.OPT_SERIALIZE_NUMPY)))

    @classmethod
    def from_json(cls, raw: Any) -> "Report":
        """As it was kept.

        Raises:
            DataError: it is of another schema, or no such report.
        """
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, dict) else None
            raise DataError(f"schema {found} is not {SCHEMA}; `hapctl drift --day D` writes it again")
        try:
            report = cls(
                day=str(parse_day(raw["day"])),
                labels=raw["labels"],
                champion=int(raw["champion"]),
                reference=tuple(raw["reference"]),
                seen=tuple(_seen(watcher, one) for watcher, one in raw["looks"].items()),
            )
            _ = report.findings  # ranks them, which a severity that is none refuses
            return report
        except (HapError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"no report of a day: {type(error).__name__} {' '.join(str(error).split())}") from None


def _seen(watcher: str, raw: Mapping[str, Any]) -> Seen:
    return Seen(
        watcher=watcher,
        title=raw["title"],
        findings=tuple(Finding(**{name: value for name, value in one.items() if name != "kind"}) for one in raw["findings"]),
        figures=tuple(Figure(**one) for one in raw["figures"]),
        unjudged=tuple(raw["unjudged"]),
        missing=raw["missing"],
        note=raw["note"],
        detail=raw["detail"],
    )


def report_text(report: Report) -> str:
    """The day in a line, and a table of its findings."""
    reference = " to ".join(dict.fromkeys((report.reference[0], report.reference[-1]))) if report.reference else "days that are gone"
    line = f"{report.day}: {WORDS[report.state]}; v{report.champion}, trained on {reference}; labels {report.labels}"
    rows = [
        [
            one.severity,
            one.cause,
            f"{one.value:.3g}, limit {one.limit:.3g}" if one.value is not None and one.limit is not None else None,
            one.said,
        ]
        for one in report.findings
    ]
    return f"{line}\n{table(['severity', 'cause', 'figure', ''], rows)}" if rows else line


def report_file(pages: Path, day: dt.date | str) -> Path:
    """Where the report of a day lies."""
    return pages / f"drift-{day}.json"


def page_file(pages: Path, day: dt.date | str) -> Path:
    """Where the page of a day lies."""
    return pages / f"drift-{day}.html"


def columns_file(pages: Path, day: dt.date | str) -> Path:
    """Where Evidently's page of a day's columns lies."""
    return pages / f"drift-{day}-columns.html"


def reported_days(pages: Path) -> list[dt.date]:
    """The days that have a report, oldest first, sound or not."""
    days = []
    for path in pages.glob("drift-*.json"):
        with contextlib.suppress(HapError):
            days.append(parse_day(path.stem.removeprefix("drift-")))
    return sorted(days)


def columns_files(pages: Path) -> dict[dt.date, Path]:
    """Evidently's pages by day: large, and made again by a look at the day."""
    found = {}
    for path in sorted(pages.glob("drift-*-columns.html")):
        with contextlib.suppress(HapError):
            found[parse_day(path.name.removeprefix("drift-").removesuffix("-columns.html"))] = path
    return found


def write_report(pages: Path, report: Report) -> Path:
    """Keep the report of a day; durable when this returns."""
    path = report_file(pages, report.day)
    durable.write_json(path, report.to_json())
    return path


def read_report(pages: Path, day: dt.date | str) -> Report | None:
    """The report of a day; None where there is none.

    Raises:
        DataError: it is damaged, or of another schema.
    """
    path = report_file(pages, day)
    try:
        return Report.from_json(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, DataError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def earlier_reports(pages: Path, day: dt.date, days: int) -> list[Report]:
    """The sound reports of the `days` days before a day, oldest first."""
    found = []
    for past in day_range(day - dt.timedelta(days=days), day - dt.timedelta(days=1)):
        with contextlib.suppress(DataError):
            if (report := read_report(pages, past)) is not None:
                found.append(report)
    return found
