"""Requests of a day beside those of the reference days: how many, when, how late, and with how many candidates.

traffic:volume       the day, or one of its hours, has far more requests or fewer
traffic:late         more requests than ever came too late to count; they count in the volume, so it is one cause
cascade:candidates   a request has more candidates or fewer; drift, which sees the sampled ones, has the same cause

A day is compared with the reference days of its own weekday, and with all of them where there is none. Changes are relative,
and a limit is widened by what chance does: requests of one user come and stay away together (Volume.crowding).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hap.monitoring.chance import deviations
from hap.monitoring.findings import Figure, Finding, Look, ranked
from hap.monitoring.volumes import HOURS, Volume
from hap.params import Severity, Traffic

WATCHER = "traffic"
CAUSES = frozenset({"traffic:volume", "traffic:late", "cascade:candidates"})
CHANCE = deviations()
CHANCE_HOUR = deviations(HOURS)  # of the one that moved most
LEAST_HOUR = 30  # requests of the reference's mean hour below which it is not judged


@dataclass(frozen=True)
class Columns:
    """Shares by column: of missing values, and of ids that the days before did not have."""

    null: Mapping[str, float]
    unseen: Mapping[str, float]


def look_at_traffic(today: Volume, reference: Sequence[Volume], columns: Columns, reference_columns: Columns, settings: Traffic) -> Look:
    """The day's requests beside the reference's; missing values and unseen ids are figures, and drift judges them."""
    day = str(today.day)
    same = [past for past in reference if past.day.weekday() == today.day.weekday()]
    chosen, against = same or list(reference), _against(today, same, reference)
    usual = _mean([past.requests for past in chosen])
    figures = _column_figures(columns, reference_columns)
    if usual < settings.min_requests:
        note = f"a reference day has {usual:.0f} requests; traffic.min_requests is {settings.min_requests}, so volume is not judged"
        figures = [Figure(name="traffic.requests", title="requests", value=float(today.requests)), *figures]
        return Look(watcher=WATCHER, day=day, findings=(), unjudged=CAUSES, figures=tuple(figures), notes=(note,))
    crowding = max(today.crowding, _mean([past.crowding for past in chosen]))
    noise = math.sqrt(crowding / usual * (1 + 1 / len(chosen)))  # of a relative change of the whole day
    volume, volume_figures = _volume(today, chosen, usual, noise, against, settings)
    late, late_figure = _late(today, chosen, crowding, settings)
    lists, lists_figure = _candidates(today, reference, settings)
    findings = [finding for finding in (volume, late, lists) if finding]
    unjudged = frozenset({"cascade:candidates"}) if lists_figure.most is None else frozenset()
    notes = () if same else (f"volume is compared with {against}",)
    return Look(
        watcher=WATCHER,
        day=day,
        findings=tuple(ranked(findings)),
        unjudged=unjudged,
        figures=(*volume_figures, late_figure, lists_figure, *figures),
        notes=notes,
    )


def _against(today: Volume, same: Sequence[Volume], reference: Sequence[Volume]) -> str:
    name = f"{today.day:%A}"
    if same:
        return f"{len(same)} {name}{'s' if len(same) > 1 else ''} of the reference ({', '.join(str(past.day) for past in same)})"
    return f"all {len(reference)} reference days, none of which is a {name}"


def _volume(
    today: Volume, chosen: Sequence[Volume], usual: float, noise: float, against: str, settings: Traffic
) -> tuple[Finding | None, list[Figure]]:
    limit = math.hypot(settings.volume, CHANCE * noise)
    change = today.requests / usual - 1
    hours = _hours(today, chosen, settings)
    worst = max(hours, key=lambda hour: abs(hours[hour][0]) / hours[hour][1], default=None)
    figures = [
        Figure(
            name="traffic.requests", title="requests", value=float(today.requests), reference=usual,
            least=max(usual * (1 - limit), 0.0), most=usual * (1 + limit),
        ),
        Figure(
            name="traffic.worst_hour", title="relative change of the hour that changed most, over its limit",
            value=None if worst is None else abs(hours[worst][0]) / hours[worst][1], most=1.0,
        ),
    ]  # fmt: skip
    off = sorted(hour for hour, (moved, most) in hours.items() if abs(moved) > most)
    said = ", ".join(f"{hours[hour][0]:+.0%} from {hour:02d}:00" for hour in off)
    whole = f"{today.requests:,} requests, {change:+.0%} of {usual:,.0f} on {against}"
    if abs(change) > limit:
        more = f"; by hour {said}" if off else ""
        said = f"{whole}; {limit:.0%} is allowed{more}"
        return _finding("traffic:volume", today, said, abs(change), limit, "traffic.requests", settings), figures
    if off and worst is not None:
        moved, most = hours[worst]
        single = f"{whole}; single hours moved: {said}"
        return _finding("traffic:volume", today, single, abs(moved), most, "traffic.worst_hour", settings), figures
    return None, figures


def _hours(today: Volume, chosen: Sequence[Volume], settings: Traffic) -> dict[int, tuple[float, float]]:
    """Relative change and limit of each hour that has requests enough."""
    crowding = max(today.hour_crowding, _mean([past.hour_crowding for past in chosen]))
    found = {}
    for hour in range(HOURS):
        usual = _mean([past.hours[hour] + past.late[hour] for past in chosen])
        if usual >= LEAST_HOUR:
            limit = math.hypot(settings.hour, CHANCE_HOUR * math.sqrt(crowding / usual * (1 + 1 / len(chosen))))
            found[hour] = ((today.hours[hour] + today.late[hour]) / usual - 1, limit)
    return found


def _late(today: Volume, chosen: Sequence[Volume], crowding: float, settings: Traffic) -> tuple[Finding | None, Figure]:
    share = sum(today.late) / today.requests if today.requests else 0.0
    usual = sum(sum(past.late) for past in chosen) / sum(past.requests for past in chosen)
    likely = max(usual, settings.late)
    limit = math.hypot(settings.late, CHANCE * math.sqrt(likely * (1 - likely) * crowding / max(today.requests, 1)))
    figure = Figure(
        name="traffic.late", title="share of requests ingested too late to count", value=share, reference=usual, most=usual + limit
    )
    if share - usual <= limit:
        return None, figure
    said = (
        f"{sum(today.late):,} of {today.requests:,} requests ({share:.1%}) were ingested too late to count, {usual:.1%} on the days "
        "that it is compared with; what was collected lacks them"
    )
    return _finding("traffic:late", today, said, share - usual, limit, figure.name, settings), figure


def _candidates(today: Volume, reference: Sequence[Volume], settings: Traffic) -> tuple[Finding | None, Figure]:
    known = [past for past in reference if past.candidates is not None]
    usual = _mean([past.candidates or 0.0 for past in known]) or None
    name, title = "traffic.candidates", "candidates of a request, mean"
    if usual is None or today.candidates is None:
        return None, Figure(name=name, title=title, value=today.candidates, reference=usual)
    before = sum(past.requests for past in known)
    # How lists vary is not counted; at most as much as they are long.
    limit = math.hypot(settings.candidates, CHANCE * math.sqrt(1 / max(today.requests, 1) + 1 / before))
    figure = Figure(
        name=name, title=title, value=today.candidates, reference=usual, least=max(usual * (1 - limit), 0.0), most=usual * (1 + limit)
    )
    change = today.candidates / usual - 1
    if abs(change) <= limit:
        return None, figure
    said = f"a request has {today.candidates:.1f} candidates, {change:+.0%} of the reference's {usual:.1f}; {limit:.0%} is allowed"
    return _finding("cascade:candidates", today, said, abs(change), limit, figure.name, settings), figure


def _column_figures(columns: Columns, reference: Columns) -> list[Figure]:
    """One figure for each column that either side has."""
    figures = []
    kinds = (
        ("null", "missing values", columns.null, reference.null),
        ("unseen", "ids that the days before lack", columns.unseen, reference.unseen),
    )
    for kind, title, now, before in kinds:
        for column in dict.fromkeys([*now, *before]):
            figures.append(
                Figure(
                    name=f"traffic.{kind}_{column}",
                    title=f"share of {title} in {column}",
                    value=now.get(column),
                    reference=before.get(column),
                )
            )
    return figures


def _finding(cause: str, today: Volume, said: str, value: float, limit: float, figure: str, settings: Traffic) -> Finding:
    severity: Severity = "page" if cause == "traffic:volume" and value >= settings.page_from * limit else "ticket"
    return Finding(cause=cause, severity=severity, said=said, value=value, limit=limit, do=f"hapctl show {today.day}", figure=figure)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
