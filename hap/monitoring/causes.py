"""From judged columns to findings: which columns speak of one cause, and how bad that is; and one finding for each cause of a day.

input:NAME          a declared feature in whatever way it moved (value, presence, new ids, concentration), or history_length; what
                    moved in candidates and in histories alike is told once, as the candidates'
labels:click_rate   clicks among what was exposed
cascade:candidates  how many candidates are logged, and how they fall into exposed, ranked and pre-ranked
catalogue:GN        global negatives for each positive: the day's catalogue has too few items, or others
model:behind        several of the model's own figures moved and nothing else did that day: it is old, or it is not what was judged

Every judged column is a figure, too: its distance from the training window, of which a trend is drawn.

Several watchers may see one cause: traffic counts the candidates of a request, inputs and the funnel how they fall into stages.
`gathered` makes one finding of that, so that one incident opens, and closes when none of them sees it any more. It also takes what
follows from a broken input, from lost feedback or from a changed cascade into the finding of that: the model's figures move with them.
Where nothing of that kind was found they move together all the same, so two or more of them are one finding, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hap.monitoring.columns import Column, ColumnDrift
from hap.monitoring.findings import Figure, Finding, Look, as_one, ranked
from hap.params import SEVERITIES, Severity

WATCHER = "inputs"
CAUSES = {"click_rate": "labels:click_rate", "GN_per_EP": "catalogue:GN"}
LEAST_ROWS = 20  # on each side; spread and shares of fewer say nothing
OF_CLICKS = frozenset({"click_rate", "GN_per_EP"})  # columns that say nothing before labels have matured
TOLD_BY = {"cascade:candidates": WATCHER}  # who tells what several watchers see, so that one watcher opens and closes it
SHOWN_LETTERS = 40  # of a category, in a sentence
MISSING = "missing"  # the method of presence: shares of the rows without a value
ROOTS, EFFECTS = ("input", "cascade"), ("funnel", "quality")  # kinds: the second follow from the first, and from lost feedback
LABELS = "funnel:labels"  # found, or left unjudged, where what needs the day's labels was not judged
APART = frozenset({"funnel:scores", LABELS})  # answers that are no numbers, and what is said of the look itself
BEHIND, BEHIND_BY = "model:behind", "funnel"  # and the watcher that tells it
METHODS = {"wasserstein": "Wasserstein distance in sd", "jensenshannon": "Jensen-Shannon distance", "psi": "PSI"}


def cause_of(column: Column) -> str:
    """The cause that a judged column speaks of."""
    if column.source == "cand_kind":
        return CAUSES.get(column.name, "cascade:candidates")
    return f"input:{'history_length' if column.name == 'history_length' else column.source}"


def look_at(day: str, columns: Sequence[Column], judged: Mapping[str, ColumnDrift], page_from: float) -> Look:
    """What the judged columns of a day come to: one finding for each cause, led by its worst column.

    A column that is drifted `page_from` times its threshold, or whose values are lost, is a page; one that is drifted, a
    ticket; one that has values which the reference lacks, information. What has too few rows on either side is not judged, and where
    either side has too few requests, nothing is.
    """
    found: dict[str, list[Finding]] = {}
    unjudged = set()
    for column in columns:
        if (one := judged.get(column.name)) is None:
            continue
        cause, new = cause_of(column), one.reference_rows == 0 and one.current_rows > 0
        if one.method is None and not one.drifted and not (new and column.role != "seen"):
            unjudged |= {cause} if column.role != "seen" else set()  # a window of one day never has earlier days to look ids up in
        elif one.drifted or one.method is None:
            finding = Finding(
                cause=cause,
                severity=_severity(one, page_from),
                said=in_words(column.of, one),
                value=one.value,
                limit=one.threshold,
                do=f"hapctl show {day}",
                figure=_figure_name(column),
            )
            found.setdefault(cause, []).append(finding)
    findings, told = _with_histories([as_one(ranked(several)) for several in found.values()])
    # The candidates of one request are many rows of one thing, so requests count where columns have them.
    counted = [judged[column.name] for column in columns if column.level == "request" and column.name in judged] or [*judged.values()]
    before, now = (max((getattr(one, side) for one in counted), default=0) for side in ("reference_rows", "current_rows"))
    missing = min(before, now) < LEAST_ROWS
    return Look(
        watcher=WATCHER,
        day=day,
        findings=() if missing else tuple(ranked(findings)),
        unjudged=frozenset(unjudged - set(found) | told),
        missing=missing,
        figures=tuple(_figure(column, judged[column.name]) for column in columns if column.name in judged),
    )


def _with_histories(findings: list[Finding]) -> tuple[list[Finding], set[str]]:
    """The findings with what histories show of an item's feature told with the candidates', where these are as bad; and what was told so.

    An unknown category, or another taste, is in both: one thing, one incident.
    """
    by_cause = {one.cause: one for one in findings}
    told = set()
    for one in findings:
        twin = by_cause.get(one.cause.replace("input:hist_", "input:cand_", 1)) if one.cause.startswith("input:hist_") else None
        if twin is not None and SEVERITIES.index(one.severity) >= SEVERITIES.index(twin.severity):
            by_cause[twin.cause] = as_one([twin, by_cause.pop(one.cause)])
            told.add(one.cause)
    return list(by_cause.values()), told


def gathered(looks: Sequence[Look]) -> list[Look]:
    """The looks of a day, with what several watchers found of one cause in the words of the one that tells it.

    The others' words become part of its finding. Their own incident, from a day on which it could not look, stays as it is while the
    cause is found. Where it saw nothing of the day, each speaks for itself.
    """
    told = list(looks)
    for cause, name in TOLD_BY.items():
        place = next((place for place, look in enumerate(told) if look.watcher == name and not look.missing), None)
        several = [finding for look in told for finding in look.findings if finding.cause == cause]
        if place is None or not several:
            continue
        told = [_without(look, cause) for look in told]
        teller = told[place]
        findings = ranked([*teller.findings, as_one(ranked(several))])
        told[place] = replace(teller, findings=tuple(findings), unjudged=teller.unjudged - {cause})
    return _with_effects(told)


def _with_effects(looks: list[Look]) -> list[Look]:
    """The looks with what follows from the worst root of the day told there: an effect never goes into a milder cause."""
    roots = [one for look in looks for one in look.findings if one.kind in ROOTS or one.cause == "labels:outage"]
    root = next(iter(ranked(roots)), None)
    found = _effects(looks)
    if root is None or root.severity == "info":
        return _behind(looks, found, told=())
    told = [one for one in found if SEVERITIES.index(one.severity) >= SEVERITIES.index(root.severity)]
    looks = _behind(looks, [one for one in found if one not in told], told)
    if not told:
        return looks
    looks = _without_all(looks, told)
    whole = replace(root, said=f"{root.said}; with it moved {_named(told)}")
    return [replace(look, findings=tuple(whole if one is root else one for one in look.findings)) for look in looks]


def _behind(looks: list[Look], effects: list[Finding], told: Sequence[Finding]) -> list[Look]:
    """The looks with two effects or more as one finding; one alone speaks for itself.

    A champion that ages moves one figure after another: without this, each of them rings on a day of its own. While any of them is
    found, here or with its root, the incident of all stays as it is; and so it does before the day's labels are in, since most of them
    need these: an earlier day whose labels have matured still has the word.

    Args:
        effects: the worst first; told: those that are told with their root.
    """
    place = next((place for place, look in enumerate(looks) if look.watcher == BEHIND_BY and not look.missing), None)
    waits = any(LABELS in look.unjudged or any(one.cause == LABELS for one in look.findings) for look in looks)
    if place is None or not (effects or told or waits):
        return looks
    if len(effects) < 2:
        return _put(looks, place, replace(looks[place], unjudged=looks[place].unjudged | {BEHIND}))
    worst = effects[0]
    whole = replace(worst, cause=BEHIND, said=f"{worst.said}; what moved is {_named(effects)}")
    looks = _without_all(looks, effects)
    return _put(looks, place, replace(looks[place], findings=tuple(ranked([*looks[place].findings, whole]))))


def _effects(looks: Sequence[Look]) -> list[Finding]:
    """What is said of the model's own figures, the worst first."""
    return ranked(one for look in looks for one in look.findings if one.kind in EFFECTS and one.cause not in APART)


def _named(effects: Sequence[Finding]) -> str:
    return ", ".join(f"{effect.cause} ({effect.excess:.1f} times its limit)" for effect in effects)


def _without_all(looks: list[Look], findings: Sequence[Finding]) -> list[Look]:
    for finding in findings:
        looks = [_without(look, finding.cause) for look in looks]
    return looks


def _put(looks: list[Look], place: int, look: Look) -> list[Look]:
    return [*looks[:place], look, *looks[place + 1 :]]


def _without(look: Look, cause: str) -> Look:
    """A look that leaves a cause to another watcher."""
    kept = tuple(finding for finding in look.findings if finding.cause != cause)
    return look if len(kept) == len(look.findings) else replace(look, findings=kept, unjudged=look.unjudged | {cause})


def in_words(name: str, one: ColumnDrift) -> str:
    """What became of a column: method, figure, threshold, and its means or the category that moved most; or why it was not compared."""
    if one.method is None or one.value is None or one.threshold is None:
        return f"{name}: {one.note}"
    if one.method == MISSING:
        now, before = one.current_mean or 0.0, one.reference_mean or 0.0
        allowed = f"{_percent(one.threshold)} of rows more or less are allowed"
        return f"{name} is missing on {_percent(now)} of rows, {_percent(before)} in the training window; {allowed}"
    moved = ""
    if one.reference_mean is not None and one.current_mean is not None:
        moved = f"; its mean went from {one.reference_mean:.4g} to {one.current_mean:.4g}"
    elif one.moved is not None:
        moved = f"; {category_in_words(*one.moved)}"
    return f"{name}: {one.method} {one.value:.3f} over {one.threshold:.3f}{moved}"


def category_in_words(category: str, before: float, now: float) -> str:
    """What became of the category of a column that moved most."""
    named = category if len(category) <= SHOWN_LETTERS else f"{category[:SHOWN_LETTERS]}…"
    return f"{named!r} went from {_percent(before)} to {_percent(now)} of rows"


def _severity(one: ColumnDrift, page_from: float) -> Severity:
    if not one.drifted:
        return "info"
    lost = one.method is None
    return "page" if lost or one.value is None or not one.threshold or one.value >= page_from * one.threshold else "ticket"


def _figure_name(column: Column) -> str:
    return f"{WATCHER}.{column.name}"


def _figure(column: Column, one: ColumnDrift) -> Figure:
    if one.method == MISSING and one.reference_mean is not None and one.threshold is not None:
        return Figure(
            name=_figure_name(column),
            title=f"share of rows without {column.of}",
            value=one.current_mean,
            reference=one.reference_mean,
            least=max(one.reference_mean - one.threshold, 0.0),
            most=one.reference_mean + one.threshold,
        )
    method = f", {METHODS[one.method]}" if one.method else ""
    return Figure(name=_figure_name(column), title=f"{column.name}{method}", value=one.value, most=one.threshold)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
