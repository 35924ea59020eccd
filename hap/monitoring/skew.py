"""From served requests beside their logs to findings: what the model is given at serving is not what it is trained on.

skew:COLUMN          a column of samples (user_id, hist_item_id, cand_price): another value was served than the logs give
skew:cand_item_id    candidates that were served or logged alone
skew:history_length  more events were served, or fewer; the events of such a request are not compared
skew:score           a score that the version's bundle does not give for what was served and the route that was taken
skew:routed          a route that light scores and K do not give; a tie within the tolerance may go either way
skew:unlogged        served requests that no log knows
skew:unwritten       no served request of the day was written down, though days before had some
skew:clock           served_at lies far from the request's event_time: the clocks of two hosts differ

Differences are facts and not samples of one: shares are compared with a limit as they are, once there are requests enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hap.monitoring.findings import Figure, Finding, Look, ranked
from hap.monitoring.served import EXAMPLES, Comparison, Example, Tally
from hap.params import Features, Severity, Skew

WATCHER = "skew"
OWN = ("history_length", "score", "routed", "unlogged", "clock")
UNWRITTEN = "skew:unwritten"
REQUESTS = "skew.requests"  # the figure of how many were compared
_COMPARED = "served requests compared with their logs"


@dataclass
class Served:
    """What became of the served requests that were chosen.

    `apart_s` is served_at - event_time of each one that a log knows, whatever day's.
    """

    comparison: Comparison
    apart_s: NDArray[np.float64]
    unlogged: Tally = field(default_factory=lambda: Tally("requests"))
    notes: list[str] = field(default_factory=list)

    def missed(self, requests: Sequence[int]) -> None:
        """Served requests that no log knows."""
        self.unlogged.differing += len(requests)
        room = EXAMPLES - len(self.unlogged.examples)
        self.unlogged.examples += [Example(request, None, "a request", "nothing") for request in requests[:room]]


def unwatched(day: str, why: str) -> Look:
    """The look at a day of which nothing can be said."""
    return Look(watcher=WATCHER, day=day, findings=(), missing=True, notes=(why,))


def look_at_nothing(day: str, folder: Path, before: str, served_with: Sequence[Features]) -> Look:
    """The look at a day of which no served request was written down, though enough of a day before were; it judges nothing else.

    Args:
        before: what is known of that day, in words.
        served_with: the declared features and the champion's, whose columns stay as they are.
    """
    said = (
        f"no served request of {day} lies below {folder}, {before}: what is served is no longer written down, so "
        "its skew is not watched; check that the clients still have log_to and give a request_id, and that they can write to the folder"
    )
    figure = Figure(name=REQUESTS, title=_COMPARED, value=0.0)
    found = Finding(cause=UNWRITTEN, severity="ticket", said=said, do="hapctl doctor", figure=REQUESTS)
    columns = {column for features in served_with for column in columns_of(features)}
    unjudged = frozenset(f"{WATCHER}:{name}" for name in (*columns, *OWN))
    return Look(watcher=WATCHER, day=day, findings=(found,), unjudged=unjudged, figures=(figure,))


def look_at_served(day: str, seen: Served, features: Features, settings: Skew) -> Look:
    """One finding for each column that differs in more than its share.

    Args:
        features: as params.yaml declares them; their columns are left unjudged where too few requests could be compared.
    """
    columns, apart = seen.comparison.columns, seen.apart_s
    findings, figures, unjudged = [], [], set()
    for column in dict.fromkeys([*columns_of(features), *sorted(columns)]):
        tally = columns.get(column)
        figures.append(_figure(column, tally, settings))
        if tally is None or not tally.compared or seen.comparison.requests < settings.min_requests:
            unjudged.add(f"skew:{column}")
        elif tally.share > settings.max_share:
            findings.append(_finding(day, column, tally, settings))
    if seen.comparison.requests >= settings.min_requests:
        declared = set(columns_of(features))
        findings += [_lost(day, column, why, column in declared, settings) for column, why in seen.comparison.absent.items()]
    if seen.unlogged.compared < settings.min_requests:
        unjudged.add("skew:unlogged")
    elif seen.unlogged.share > settings.max_share:
        findings.append(_finding(day, "unlogged", seen.unlogged, settings))
    figures.append(_figure("unlogged", seen.unlogged, settings))
    if len(apart) < settings.min_requests:
        unjudged.add("skew:clock")
    elif (far_s := float(np.quantile(np.abs(apart), 1 - settings.max_share))) > settings.clock_s:
        findings.append(_clock(day, apart, far_s, settings))
    figures.append(
        Figure(
            name="skew.clock",
            title="seconds from a request's event_time to its answer, median",
            value=round(float(np.median(apart)), 3) if len(apart) else None,
            least=-settings.clock_s,
            most=settings.clock_s,
        )
    )
    compared = Figure(name=REQUESTS, title=_COMPARED, value=float(seen.comparison.requests))
    notes = list(seen.notes)
    if seen.comparison.requests < settings.min_requests:
        notes.append(
            f"{seen.comparison.requests} served requests of {day} could be compared with their logs; skew.min_requests is "
            f"{settings.min_requests}, so no column is judged"
        )
    causes = {finding.cause for finding in findings}
    return Look(
        watcher=WATCHER,
        day=day,
        findings=tuple(ranked(findings)),
        unjudged=frozenset(unjudged - causes),
        figures=(compared, *figures),
        notes=tuple(notes),
    )


def columns_of(features: Features) -> list[str]:
    """Every column that can differ, by its name in samples; then the history's length, scores and routes."""
    named = [feature.name for feature in (*features.user, *features.context)]
    named += [f"hist_{feature.name}" for feature in features.history] + [f"cand_{feature.name}" for feature in features.item]
    return [*named, *OWN[:3]]


def _figure(column: str, tally: Tally | None, settings: Skew) -> Figure:
    unit = tally.unit if tally else ("candidates" if column.startswith("cand_") or column in ("score", "routed") else "requests")
    what = "that no log knows" if column == "unlogged" else f"whose {column} is not the one that was logged"
    what = f"whose {column} is not the bundle's" if column in ("score", "routed") else what
    value = tally.share if tally and tally.compared else None
    return Figure(name=f"skew.{column}", title=f"share of served {unit} {what}", value=value, most=settings.max_share)


def _finding(day: str, column: str, tally: Tally, settings: Skew) -> Finding:
    shown = "; ".join(map(str, tally.examples))
    beside = "no log knows" if column == "unlogged" else "differ from " + ("the bundle's" if column in ("score", "routed") else "the logs")
    said = f"{column}: {tally.differing:,} of {tally.compared:,} served {tally.unit} ({tally.share:.2%}) {beside}, such as {shown}"
    if column == "unlogged":
        ids = ", ".join(str(example.request_id) for example in tally.examples)
        said = f"{tally.differing:,} of {tally.compared:,} served requests ({tally.share:.2%}) are in no log, such as request {ids}"
    return Finding(
        cause=f"skew:{column}", severity=_severity(tally.share, settings), said=said, value=tally.share, limit=settings.max_share,
        do=f"hapctl show {day}", figure=f"skew.{column}",
    )  # fmt: skip


def _lost(day: str, column: str, why: str, declared: bool, settings: Skew) -> Finding:
    """A column that cannot be compared; one that params.yaml has given up is a matter of the next version."""
    said = f"{column}: the version that serves takes it, and {why if declared else 'params.yaml no longer declares it'}"
    severity: Severity = "page" if declared else "ticket"
    do = f"hapctl show {day}"
    return Finding(
        cause=f"skew:{column}", severity=severity, said=said, value=1.0, limit=settings.max_share, do=do, figure=f"skew.{column}"
    )


def _clock(day: str, apart_s: NDArray[np.float64], far_s: float, settings: Skew) -> Finding:
    beyond = int((np.abs(apart_s) > settings.clock_s).sum())
    said = (
        f"answers lie {np.median(apart_s):+.1f} s from the event_time of their requests at the median, and beyond {settings.clock_s:g} s "
        f"in {beyond:,} of {len(apart_s):,}: the clock of a host that serves, or of one that logs, is wrong"
    )
    do = f"hapctl show {day}"
    return Finding(cause="skew:clock", severity="ticket", said=said, value=far_s, limit=settings.clock_s, do=do, figure="skew.clock")


def _severity(share: float, settings: Skew) -> Severity:
    return "page" if share >= settings.page_share else "ticket"
