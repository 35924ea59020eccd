"""From judged columns to findings: which columns speak of one cause, and how bad that is.

input:NAME          a declared feature in whatever way it moved (value, presence, new ids, concentration), or history_length
labels:click_rate   clicks among what was exposed
cascade:candidates  how many candidates are logged, and how they fall into exposed, ranked and pre-ranked
catalogue:GN        global negatives for each positive: the day's catalogue has too few items, or others

Every judged column is a figure, too: its distance from the training window, of which a trend is drawn.
"""

from collections.abc import Mapping, Sequence

from hap.monitoring.columns import Column, ColumnDrift
from hap.monitoring.findings import Figure, Finding, Look, as_one, ranked
from hap.params import Severity

WATCHER = "inputs"
CAUSES = {"click_rate": "labels:click_rate", "GN_per_EP": "catalogue:GN"}
LEAST_ROWS = 20  # on each side; spread and shares of fewer say nothing
OF_CLICKS = frozenset({"click_rate", "GN_per_EP"})  # columns that say nothing before labels have matured
METHODS = {"wasserstein": "Wasserstein distance in sd", "jensenshannon": "Jensen-Shannon distance", "psi": "PSI"}


def cause_of(column: Column) -> str:
    """The cause that a judged column speaks of."""
    if column.source == "cand_kind":
        return CAUSES.get(column.name, "cascade:candidates")
    return "input:history_length" if column.source == "hist_age_hours" else f"input:{column.source}"


def look_at(day: str, columns: Sequence[Column], judged: Mapping[str, ColumnDrift], page_from: float) -> Look:
    """What the judged columns of a day come to: one finding for each cause, led by its worst column.

    A column that is drifted `page_from` times its threshold, or whose values are lost, is a page; one that is drifted, a
    ticket; one that has values which the reference lacks, information. What has too few rows on either side is not judged.
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
                said=in_words(column.name, one),
                value=one.value,
                limit=one.threshold,
                do=f"hapctl show {day}",
                figure=_figure_name(column),
            )
            found.setdefault(cause, []).append(finding)
    findings = [as_one(ranked(several)) for several in found.values()]
    missing = not any(one.current_rows >= LEAST_ROWS for one in judged.values())
    return Look(
        watcher=WATCHER,
        day=day,
        findings=tuple(ranked(findings)),
        unjudged=frozenset(unjudged - set(found)),
        missing=missing,
        figures=tuple(_figure(column, judged[column.name]) for column in columns if column.name in judged),
    )


def in_words(name: str, one: ColumnDrift) -> str:
    """What became of a column: method, figure, threshold and means, or why it was not compared."""
    if one.method is None or one.value is None or one.threshold is None:
        return f"{name}: {one.note}"
    moved = ""
    if one.reference_mean is not None and one.current_mean is not None:
        moved = f"; its mean went from {one.reference_mean:.4g} to {one.current_mean:.4g}"
    return f"{name}: {one.method} {one.value:.3f} over {one.threshold:.3f}{moved}"


def _severity(one: ColumnDrift, page_from: float) -> Severity:
    if not one.drifted:
        return "info"
    lost = one.method is None
    return "page" if lost or one.value is None or not one.threshold or one.value >= page_from * one.threshold else "ticket"


def _figure_name(column: Column) -> str:
    return f"{WATCHER}.{column.name}"


def _figure(column: Column, one: ColumnDrift) -> Figure:
    method = f", {METHODS[one.method]}" if one.method else ""
    return Figure(name=_figure_name(column), title=f"{column.name}{method}", value=one.value, most=one.threshold)
