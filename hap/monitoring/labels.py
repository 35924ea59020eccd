"""Feedback of a day beside that of the reference days: what was lost, what was not wanted, and what came later than usual.

labels:outage      hours in which exposures went on and feedback fell away, or a day without any: it was lost
labels:interest    clicks fell, and in most hours and most values of every category: people want less of it
labels:click_rate  clicks rose, or fell in some places only; a position or a category that moved by itself is named
labels:delay       clicks are ingested later after their exposure than they were

Hours that are silent are left out of what is said of interest, so one outage is one cause. Where every exposure has a row of
feedback, clicked or not, rows are what is counted: a fall of interest leaves them where they are, so an hour that lacks a fifth of
its rows lost them, and so did a day that lacks them evenly. Elsewhere an hour is silent below half of the day's own better hours: a
fall of interest lowers them all.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hap.monitoring.chance import deviations
from hap.monitoring.findings import Figure, Finding, Look, ranked
from hap.monitoring.rates import LEVELS, OTHER, Rate, Side, seconds_of
from hap.params import Labels, Severity

WATCHER = "labels"
RATE_CAUSES = frozenset({"labels:outage", "labels:interest", "labels:click_rate"})
CAUSES = RATE_CAUSES | {"labels:delay"}
CHANCE = deviations()
CHANCE_LOCAL = deviations(30)  # of some thirty places, or of 24 hours, the one that moved most
LEAST_LOCAL = 30  # expected clicks of an hour or a place below which it is not judged
NOTHING = 0.1  # of what was expected: below it feedback has stopped, whatever the day's better hours say
EVERY_EXPOSURE = 0.9  # rows of feedback per exposure in the reference: so many are one for each, but for what was always lost
BETTER_HOURS = 0.9  # quantile of the hours' levels that silent ones are measured against
QUANTILES = {"median": 0.5, "p95": 0.95}


@dataclass(frozen=True)
class Outage:
    """Hours without their feedback, and what they lost as a share of the day's expected feedback."""

    hours: tuple[int, ...]
    lost: float
    by_rows: bool  # whether rows of feedback were counted, or clicks
    no_click: bool = False  # feedback came, and none of it was a click


@dataclass(frozen=True)
class Place:
    """A value of a column that moved: its relative change of clicks per exposure, and the limit of it."""

    column: str
    value: str
    change: float
    limit: float

    def __str__(self) -> str:
        return f"{self.column} {self.value} ({self.change:+.0%})"


def find_outage(today: Side, reference: Side, settings: Labels) -> Outage:
    """The day's silent hours."""
    rows = today.feedback is not None and reference.feedback is not None
    now, before = (today.feedback or {}, reference.feedback or {}) if rows else (today.hours, reference.hours)
    clicks = _expected(today.hours, reference.hours)
    if sum(clicks.values()) >= LEAST_LOCAL and today.overall.clicks < NOTHING * sum(clicks.values()):
        came = sum(rate.clicks for rate in now.values()) if rows else 0.0
        silent_rows = came < NOTHING * sum(_expected(now, before).values())
        return Outage(tuple(sorted(today.hours)), 1 - today.overall.clicks / sum(clicks.values()), rows, rows and not silent_rows)
    expected = _expected(now, before)
    crowding = max(_sum(now.values()).crowding, _sum(before.values()).crowding)
    level = min(_upper({hour: now[hour].clicks / expected[hour] for hour in expected if expected[hour] >= LEAST_LOCAL}, expected), 1.0)
    below = settings.silent_below
    if rows and _sum(before.values()).rate >= EVERY_EXPOSURE:
        below = settings.rows_below
        if level < below:  # the day's better hours miss as much: what is lost is a part of every hour's
            return Outage(tuple(sorted(today.hours)), 1 - _sum(now.values()).clicks / sum(expected.values()), rows)
        level = 1.0
    silent, lost = [], 0.0
    for hour, usual in expected.items():
        if usual < LEAST_LOCAL:
            continue
        missing = level * usual - now[hour].clicks
        if now[hour].clicks < below * level * usual and missing > CHANCE_LOCAL * math.sqrt(crowding * level * usual):
            silent.append(hour)
            lost += missing
    return Outage(tuple(sorted(silent)), lost / sum(expected.values()) if silent else 0.0, rows)


def _expected(now: Mapping[int, Rate], before: Mapping[int, Rate]) -> dict[int, float]:
    """What each hour's exposures would bring at the reference's rate of that hour, or of all hours where it had few."""
    whole = _sum(before.values())
    found = {}
    for hour, rate in now.items():
        there = before.get(hour, Rate())
        few = LEAST_LOCAL / max(whole.rate, 1e-9)  # so many exposures of the whole day are added
        found[hour] = rate.exposures * (there.clicks + LEAST_LOCAL) / (there.exposures + few) if whole.clicks else 0.0
    return found


def _upper(values: Mapping[int, float], weights: Mapping[int, float]) -> float:
    """A quantile of weighted values; 1 where there are none."""
    passed, whole = 0.0, sum(weights[key] for key in values)
    for key in sorted(values, key=lambda one: values[one]):
        passed += weights[key]
        if passed >= BETTER_HOURS * whole:
            return values[key]
    return 1.0


def look_at_labels(day: str, today: Side, reference: Side, outage: Outage, rest: tuple[Side, Side], settings: Labels) -> Look:
    """What became of the day's feedback.

    Args:
        outage: what `find_outage` found.
        rest: both sides without the silent hours; the same as `today` and `reference` where there are none.
    """
    figures = _figures(today, reference, outage, settings)
    expected = today.overall.exposures * reference.overall.rate
    if reference.overall.clicks < settings.min_clicks or expected < settings.min_clicks:
        note = (
            f"the reference has {reference.overall.clicks:,.0f} clicks, and the day's exposures would bring {expected:,.0f}: fewer than "
            f"labels.min_clicks {settings.min_clicks}, so none is missed"
        )
        return Look(watcher=WATCHER, day=day, findings=(), unjudged=CAUSES, figures=tuple(figures), notes=(note,))
    findings, unjudged, notes = [], set(), [*today.notes, *reference.notes]
    if outage.lost > settings.outage:
        findings.append(_outage(day, outage, settings))
    now, before = rest
    if now.overall.exposures * before.overall.rate < settings.min_clicks:
        unjudged |= {"labels:interest", "labels:click_rate"}
    elif moved := _moved(day, now, before, outage, settings):
        findings.append(moved)
    if today.delays is None or reference.delays is None:
        unjudged.add("labels:delay")
        notes.append(
            "there are no feedback logs of the day, or of any reference day: delays are not judged, and an outage is told by clicks"
        )
    elif sum(today.delays.values()) < settings.min_clicks or sum(reference.delays.values()) < settings.min_clicks:
        unjudged.add("labels:delay")
    elif late := _later(day, today, reference, settings):
        findings.append(late)
    return Look(
        watcher=WATCHER,
        day=day,
        findings=tuple(ranked(findings)),
        unjudged=frozenset(unjudged),
        figures=tuple(figures),
        notes=tuple(notes),
    )


def _outage(day: str, outage: Outage, settings: Labels) -> Finding:
    what = "rows of feedback" if outage.by_rows else "clicks"
    hours = _spans(outage.hours)
    said = f"exposures went on and {what} fell away in {len(outage.hours)} hours ({hours} UTC): {outage.lost:.0%} of the day's are lost"
    if outage.no_click:
        said = "feedback came for the whole day and next to none of it is a click: what marks a click is broken"
    return _finding(day, "labels:outage", said, outage.lost, settings.outage, "labels.lost", settings)


def _moved(day: str, now: Side, before: Side, outage: Outage, settings: Labels) -> Finding | None:
    """What became of clicks per exposure, in what is left of the day."""
    change, limit = _change(now.overall, before.overall, settings.click_rate, CHANCE)
    places = _places(now, before, settings)
    without = f" outside of {_spans(outage.hours)} UTC" if outage.hours else ""
    rates = f"from {before.overall.rate:.4f} to {now.overall.rate:.4f}"
    whole = f"clicks per exposure{without} went {rates} ({change:+.0%}; {limit:.0%} is allowed)"
    named = "; beyond that " + ", ".join(map(str, places[:3])) if places else ""
    if abs(change) > limit:
        spread = _spread(now, before)
        if change < 0 and min(spread.values()) >= settings.spread:
            shares = ", ".join(f"{share:.0%} of {name}" for name, share in spread.items())
            return _finding(day, "labels:interest", f"{whole}; they fell in {shares}", abs(change), limit, "labels.click_rate", settings)
        return _finding(day, "labels:click_rate", whole + named, abs(change), limit, "labels.click_rate", settings)
    if places:
        worst = places[0]
        said = f"clicks per exposure moved in places: {', '.join(map(str, places[:3]))}; {worst.limit:.0%} is allowed for the first"
        return _finding(day, "labels:click_rate", said, abs(worst.change), worst.limit, place_figure(worst.column, worst.value), settings)
    return None


def _change(now: Rate, before: Rate, threshold: float, chance: float) -> tuple[float, float]:
    """Relative change of a rate, and its limit: the threshold widened by what chance does to both rates."""
    change = now.rate / before.rate - 1
    # A day without clicks has noise, too: that of as many as were expected.
    noise = before.variance + max(now.variance, before.rate / now.exposures)
    return change, math.hypot(threshold, chance * math.sqrt(noise) / before.rate)


def _places(now: Side, before: Side, settings: Labels) -> list[Place]:
    """Values of columns that moved against the whole, the worst first; with few expected clicks none is judged."""
    level = now.overall.rate / before.overall.rate if before.overall.rate else 1.0
    found = []
    for column, values in _shown(now, before).items():
        for value, (here, there) in values.items():
            if min(here.exposures * there.rate, there.clicks) < LEAST_LOCAL:
                continue
            change, limit = _change(here, there, settings.local, CHANCE_LOCAL)
            against = (1 + change) / level - 1 if level else change
            if abs(against) > limit:
                found.append(Place(column, value, against, limit))
    return sorted(found, key=lambda place: -abs(place.change) / place.limit)


def _spread(now: Side, before: Side) -> dict[str, float]:
    """Share of hours, and of each category, in which clicks per exposure fell; by the clicks that were expected there."""

    def fallen(pairs: Sequence[tuple[Rate, Rate]]) -> float:
        known = [(here.exposures * there.rate, here.rate < there.rate) for here, there in pairs if there.clicks]
        return sum(weight for weight, fell in known if fell) / (sum(weight for weight, _ in known) or 1.0)

    hours = fallen([(rate, before.hours.get(hour, Rate())) for hour, rate in now.hours.items()])
    groups = {column: fallen(list(values.values())) for column, values in _shown(now, before).items() if column != "cand_position"}
    return {"hours": hours, **groups}


def _shown(now: Side, before: Side) -> dict[str, dict[str, tuple[Rate, Rate]]]:
    """Both sides' rates by column and value; the most exposed values, of both sides, each and all others together."""
    found: dict[str, dict[str, tuple[Rate, Rate]]] = {}
    for column in dict.fromkeys([*before.groups, *now.groups]):
        here, there = now.groups.get(column, {}), before.groups.get(column, {})
        exposed = {value: here.get(value, Rate()).exposures + there.get(value, Rate()).exposures for value in {*here, *there}}
        named = sorted(exposed, key=lambda value: (-exposed[value], value))[:LEVELS]
        pairs = {value: (here.get(value, Rate()), there.get(value, Rate())) for value in sorted(named, key=_in_order)}
        if others := sorted(set(exposed) - set(named)):
            pairs[OTHER] = (_sum(here.get(value, Rate()) for value in others), _sum(there.get(value, Rate()) for value in others))
        found[column] = pairs
    return found


def _later(day: str, today: Side, reference: Side, settings: Labels) -> Finding | None:
    """The worse of median and p95, where it grew; today's is taken from as few ranks below as chance may move it."""
    worst: tuple[float, str] | None = None
    for name, share in QUANTILES.items():
        usual, least = quantile(reference.delays or {}, share), quantile(today.delays or {}, share, -CHANCE, today.overall.crowding)
        if usual is not None and least is not None and (worst is None or least / usual > worst[0]):
            worst = (least / usual, name)
    if worst is None or worst[0] <= settings.delay:
        return None
    name = worst[1]
    now, usual = (quantile(side.delays or {}, QUANTILES[name]) or 0.0 for side in (today, reference))
    said = (
        f"clicks are ingested {_span(now)} after their exposure ({name}), {_span(usual)} in the reference; clicks that come after "
        "collect.label_delay_hours count for nobody"
    )
    return _finding(day, "labels:delay", said, worst[0], settings.delay, delay_figure(name), settings)


def quantile(delays: Mapping[int, int], share: float, shift: float = 0.0, crowding: float = 1.0) -> float | None:
    """Seconds that a share of the clicks stays below; None without clicks.

    Args:
        shift: standard deviations of the rank by which a lower or higher one is taken (the sign test's interval).
        crowding: how much more the rank varies than if clicks were independent.
    """
    count = sum(delays.values())
    if not count:
        return None
    rank = share * count + shift * math.sqrt(share * (1 - share) * count * crowding)
    passed = 0
    for bucket in sorted(delays):
        passed += delays[bucket]
        if passed >= max(rank, 1.0):
            return seconds_of(bucket)
    return seconds_of(max(delays))


def place_figure(column: str, value: str) -> str:
    """The name of the click rate of one value of a column."""
    return f"labels.click_rate_{column}_{value}"


def delay_figure(quantile: str) -> str:
    """The name of a quantile of the delays."""
    return f"labels.delay_{quantile}_s"


def _figures(today: Side, reference: Side, outage: Outage, settings: Labels) -> list[Figure]:
    figures = [
        _rate_figure("labels.click_rate", "clicks per exposure", today.overall, reference.overall, settings.click_rate, CHANCE),
        Figure(name="labels.lost", title="share of the day's feedback lost in silent hours", value=outage.lost, most=settings.outage),
        Figure(name="labels.silent_hours", title="hours with exposures and without their feedback", value=float(len(outage.hours))),
    ]
    for name, share in QUANTILES.items():
        now, usual = (quantile(side.delays or {}, share) for side in (today, reference))
        most = None if usual is None else usual * settings.delay
        title = f"seconds from exposure to ingested click, {name}"
        figures.append(Figure(name=delay_figure(name), title=title, value=now, reference=usual, most=most))
    for column, values in _shown(today, reference).items():
        for value, (here, there) in values.items():
            name, title = place_figure(column, value), f"clicks per exposure, {column} {value}"
            figures.append(_rate_figure(name, title, here, there, settings.local, CHANCE_LOCAL))
    return figures


def _rate_figure(name: str, title: str, now: Rate, before: Rate, threshold: float, chance: float) -> Figure:
    """A click rate with an interval of 95% and the bounds of what is allowed."""
    wide = 1.96 * math.sqrt(now.variance)
    limit = _change(now, before, threshold, chance)[1] if before.clicks and now.exposures else None
    return Figure(
        name=name, title=title, value=now.rate if now.exposures else None, reference=before.rate if before.exposures else None,
        lower=max(now.rate - wide, 0.0) if now.exposures else None, upper=min(now.rate + wide, 1.0) if now.exposures else None,
        least=None if limit is None else max(before.rate * (1 - limit), 0.0), most=None if limit is None else before.rate * (1 + limit),
    )  # fmt: skip


def yielded(drift: Look, labels: Look) -> Look:
    """Drift's look without its word on clicks where this watcher has judged them: one cause rings once.

    Where this watcher found something, drift's incident, if one is open, is left as it is; else drift closes it. A day
    without clicks has no negatives drawn for them either, so an outage also answers for a catalogue that is not there at all.
    """
    found = RATE_CAUSES & {finding.cause for finding in labels.findings}
    if labels.missing or labels.day != drift.day or (labels.unjudged & RATE_CAUSES and not found):
        return drift
    echoes = {"catalogue:GN"} & {one.cause for one in drift.findings if one.value is None} if "labels:outage" in found else set()
    kept = tuple(finding for finding in drift.findings if finding.cause not in RATE_CAUSES | echoes)
    unjudged = drift.unjudged - RATE_CAUSES | echoes
    return replace(drift, findings=kept, unjudged=unjudged | {"labels:click_rate"} if found else unjudged)


def _finding(day: str, cause: str, said: str, value: float, limit: float, figure: str, settings: Labels) -> Finding:
    severity: Severity = "page" if value >= settings.page_from * limit and cause != "labels:delay" else "ticket"
    return Finding(cause=cause, severity=severity, said=said, value=value, limit=limit, do=f"hapctl show {day}", figure=figure)


def _sum(rates: Iterable[Rate]) -> Rate:
    """Several rates as one; a user of two of them counts as two."""
    whole = Rate()
    for rate in rates:
        whole = Rate(*(mine + more for mine, more in zip(_parts(whole), _parts(rate), strict=True)))
    return whole


def _parts(rate: Rate) -> tuple[float, float, float, float, float]:
    return rate.exposures, rate.clicks, rate.cc, rate.ce, rate.ee


def _spans(hours: Sequence[int]) -> str:
    """Hours as spans: 12:00 to 18:00."""
    spans: list[list[int]] = []
    for hour in hours:
        if spans and hour == spans[-1][1]:
            spans[-1][1] = hour + 1
        else:
            spans.append([hour, hour + 1])
    return ", ".join(f"{begin:02d}:00 to {end:02d}:00" for begin, end in spans)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _in_order(value: str) -> tuple[float, str]:
    return (float(value), value) if value.lstrip("-").isdigit() else (math.inf, value)
