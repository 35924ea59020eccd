"""How old what serves is, and whether days wait for their verdict longer than they should.

stale:data         both members are older than the limit: no newer training ever reached the champion
stale:light        the light member alone is; stale:expressive: the expressive one alone
stale:order        the light member is older than the expressive one, and neither is beyond the limit
schedule:missed    days with complete logs have no verdict by the time that they should

A member's age counts from the newest day that it was trained on, to the day watched: what it cannot know of. No clock is
read: a day looked at again says the same.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hap.days import default_as_of
from hap.monitoring.findings import Figure, Finding, Look, ranked
from hap.params import MODELS

WATCHER = "staleness"
CAUSES = frozenset({"stale:data", "stale:light", "stale:expressive", "stale:order"})
MISSED = "schedule:missed"


@dataclass(frozen=True)
class Champion:
    """What serves: the newest day that each member was trained on (None: it does not say), and since when it serves."""

    version: int
    newest: Mapping[str, dt.date | None]
    since: dt.datetime | None


def member_windows(info: Mapping[str, object]) -> dict[str, dt.date | None]:
    """The newest training day of each member, from bundle.json: its own window where the members differ, else the version's."""
    version = info.get("window")
    members = info.get("members")
    own = members if isinstance(members, Mapping) else {}
    found: dict[str, dt.date | None] = {}
    for name in MODELS:
        days = own.get(name, version)
        found[name] = max(dt.date.fromisoformat(day) for day in days) if isinstance(days, Sequence) and days else None
    return found


def unknown_age(day: dt.date, why: str) -> Look:
    """The look at a champion whose age cannot be told."""
    return Look(watcher=WATCHER, day=str(day), findings=(), unjudged=CAUSES, notes=(f"the champion's age is not judged: {why}",))


def look_at_age(day: dt.date, champion: Champion, max_age_days: int | None, served_until: dt.datetime) -> Look:
    """The champion's age on a day.

    Args:
        max_age_days: None judges no age; the members' order is judged all the same.
        served_until: the end of what is looked at, for how long the champion has served.
    """
    if not any(champion.newest.values()):
        return unknown_age(day, f"the bundle of v{champion.version} does not say what its members were trained on")
    ages = {name: (day - newest).days if newest else None for name, newest in champion.newest.items()}
    known = {name: age for name, age in ages.items() if age is not None}
    unjudged = {f"stale:{name}" for name, age in ages.items() if age is None}
    notes = [f"the {name} model of v{champion.version} does not say what it was trained on" for name, age in ages.items() if age is None]
    unjudged |= {"stale:data", "stale:order"} if notes else set()
    found = _too_old(day, champion.version, known, max_age_days) if max_age_days is not None else []
    if not found and len(known) == len(MODELS) and known["light"] > known["expressive"]:
        found.append(_order(champion.version, known))
    if max_age_days is None:
        notes.append("neither staleness.max_age_days nor gate.max_age_days is set, so no age is too old")
    return Look(
        watcher=WATCHER,
        day=str(day),
        findings=tuple(found),
        unjudged=frozenset(unjudged - {finding.cause for finding in found}),
        figures=(*_figures(ages, max_age_days), _served(champion, served_until)),
        notes=tuple(notes),
    )


def _too_old(day: dt.date, version: int, ages: Mapping[str, int], limit: int) -> list[Finding]:
    """One finding: of the data where every member is beyond the limit, else of the member that is."""
    old = {name: age for name, age in ages.items() if age > limit}
    if not old:
        return []
    if len(old) == len(ages) and len(ages) > 1:
        cause, (age, name) = "stale:data", min((age, name) for name, age in old.items())
        said = f"v{version} serves and was last trained on data of {age} days before {day}; {limit} are allowed"
    else:
        ((name, age),) = old.items()
        others = "".join(f"; its {other} model on data of {ages[other]} days before" for other in ages if other != name)
        cause, said = f"stale:{name}", f"the {name} model of v{version} was trained on data of {age} days before {day}{others}"
        said += f"; {limit} are allowed"
    figure, do = f"stale.{name}_days", f"hapctl retrain --day {day}"
    return [Finding(cause=cause, severity="ticket", said=said, value=float(age), limit=float(limit), do=do, figure=figure)]


def _order(version: int, ages: Mapping[str, int]) -> Finding:
    said = (
        f"the light model of v{version} is older than its expressive one: trained on data of {ages['light']} days before the day, "
        f"the expressive one of {ages['expressive']}; light chooses what expressive scores"
    )
    older = float(ages["light"] - ages["expressive"])
    return Finding(cause="stale:order", severity="ticket", said=said, value=older, limit=1.0, do="hapctl models", figure="stale.light_days")


def _figures(ages: Mapping[str, int | None], limit: int | None) -> list[Figure]:
    most = None if limit is None else float(limit)
    return [
        Figure(
            name=f"stale.{name}_days",
            title=f"days from the newest data that the {name} model was trained on",
            value=None if age is None else float(age),
            most=most,
        )
        for name, age in ages.items()
    ]


def _served(champion: Champion, until: dt.datetime) -> Figure:
    days = None if champion.since is None else round((until - champion.since).total_seconds() / 86_400, 2)
    return Figure(name="stale.served_days", title="days that the champion has served", value=days)


def look_at_schedule(
    day: dt.date, unfinished: Sequence[dt.date], label_delay_hours: float, overdue_hours: float | None, at: dt.datetime
) -> Look:
    """Days that are without a verdict longer than they may be.

    Args:
        unfinished: ripe days with logs and a whole training window, and without a verdict.
        overdue_hours: after a day is ripe; None judges no day.
        at: the time of the look. A day that was not overdue then is none of its business.
    """
    if overdue_hours is None:
        return Look(watcher=WATCHER, day=str(day), findings=())
    waits = {one: (at - default_as_of(one, label_delay_hours)).total_seconds() / 3600 for one in sorted(unfinished)}
    missed = [one for one, hours in waits.items() if hours > overdue_hours]
    figure = Figure(
        name="schedule.missed_days",
        title=f"days without a verdict {overdue_hours:g} hours after they were ripe",
        value=float(len(missed)),
        most=0.0,
    )
    findings = []
    if missed:
        listed = ", ".join(map(str, missed[:3])) + (f" and {len(missed) - 3} more" if len(missed) > 3 else "")
        said = (
            f"{len(missed)} {'day has' if len(missed) == 1 else 'days have'} complete logs and no verdict: {listed}; the oldest has been "
            f"ripe for {waits[missed[0]]:.0f} hours, {overdue_hours:g} are allowed"
        )
        do = f"hapctl retrain --day {missed[0]}"
        findings = [Finding(cause=MISSED, severity="ticket", said=said, value=float(len(missed)), limit=1.0, do=do, figure=figure.name)]
    return Look(watcher=WATCHER, day=str(day), findings=tuple(findings), figures=(figure,))


def together(looks: Sequence[Look]) -> Look:
    """Several looks of this watcher at one day as one."""
    return Look(
        watcher=WATCHER,
        day=looks[0].day,
        findings=tuple(ranked(finding for look in looks for finding in look.findings)),
        unjudged=frozenset().union(*(look.unjudged for look in looks)),
        figures=tuple(figure for look in looks for figure in look.figures),
        notes=tuple(note for look in looks for note in look.notes),
    )
