"""The AUC of the served scores before labels arrive, from the scores alone; and by labels once they have.

Confidence-based performance estimation (CBPE: Kivimäki, Białek, Kuberski and Nurminen, arXiv 2505.05295, for metrics of a confusion
matrix; NannyML's documentation for AUC): where p(s) = P(click | s) is known, a row of score s counts as p(s) clicks and 1 - p(s)
of none. Over rows i and j, with K_ij 1 where s_i > s_j and one half where they tie,

    AUC = E[click_i (1 - click_j) K(s_i, s_j)] / E[click_i (1 - click_j)]
        = sum_{i != j} p_i (1 - p_j) K_ij / sum_{i != j} p_i (1 - p_j)

since a pooled AUC depends on the joint distribution of one row's score and click alone. (An AUC within requests does not: it needs
how the clicks of one request hang together, which no score says. Hence pooled over all exposed candidates, not GAUC.)

p is fitted on the reference, never on the day: by isotonic regression on the logit, one map for routed candidates and one for the
others, since their logits come from two models. A map that is fitted flatters itself a little; so it is used for the change alone,
and the day's estimate is what labels said of the reference plus what the map says of the day less what it says of the reference.

What it sees is a change of the scores' distribution: users or candidates whose clicks are easier or harder to tell, scores that
became coarse. **What it cannot see is concept drift**: it assumes that p is what it was. Where users change their taste, or an
input breaks so that scores mean something else, the estimate stays high and only labels tell; drift of the inputs is looked at
beside it for that reason. Nor does it see rows that nobody was shown.

Intervals are over users of both sides (hap.monitoring.clustered): the day's and the reference's rows, and the reference's labels,
whose influence on a step of the isotonic map is their distance to it over the step's rows. Letters: N rows, B steps of the map.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hap.monitoring.clustered import Measured, measured
from hap.monitoring.findings import Figure, Finding, Look, ranked
from hap.monitoring.scored import Scored
from hap.monitoring.watched import LEAST_REQUESTS
from hap.params import Severity
from hap.serving.merge import logit_and_ctr

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
WATCHER = "estimate"
LEAST_CLICKS = 20  # and as many of no click, to fit a map of its own
CAUSES = ("quality:estimate", "quality:realized")
AUC_FIGURES = {
    "estimate.auc": "AUC of the served scores of exposed candidates, estimated",
    "realized.auc": "AUC of the served scores of exposed candidates, by clicks",
}
RATE_FIGURES = {
    "estimate.click_rate": "clicks among exposed candidates, estimated",
    "realized.click_rate": "clicks among exposed candidates",
}


@dataclass(frozen=True, eq=False)
class Exposed:
    """The exposed candidates of some requests: N rows."""

    score: F64  # [N] as served
    user: I64  # [N]
    clicked: F64  # [N] 1 or 0; not read where labels are not complete
    requests: int

    @property
    def logit(self) -> F64:
        """The logit behind the served score [N]."""
        return logit_and_ctr(self.score)[0]


def exposed_of(scored: Scored) -> Exposed:
    """The exposed candidates, by their served score."""
    rows = scored.exposed
    owner = scored.owner[rows]
    return Exposed(scored.cascade[rows], scored.user[owner], scored.clicked[rows].astype(np.float64), len(np.unique(owner)))


class Soft(NamedTuple):
    """An AUC of rows that count as p clicks each."""

    value: float
    by_row: F64  # [N] what a row moves the value by
    by_p: F64  # [N] its derivative by the row's p


def soft_auc(score: F64, p: F64) -> Soft:
    """The AUC of the module's formula; with p the clicks themselves it is the AUC, and `by_row` DeLong's components.

    Args:
        score: [N], finite; p: [N] in [0, 1]. NaN where all p are 0, or all 1.
    """
    q = 1 - p
    clicks, rest = p.sum(), q.sum()
    nothing = np.zeros(len(score))
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = clicks * rest - (p * q).sum()  # without a row's pair with itself
    if not pairs > 0:
        return Soft(float("nan"), nothing, nothing)
    below = _mass_below(score, q)
    above = clicks - _mass_below(score, p)
    value = float((p * below).sum() / (clicks * rest))
    by_row = p * (below / rest - value) / clicks + q * (above / clicks - value) / rest
    by_p = (below / rest - value) / clicks - (above / clicks - value) / rest
    alone = float(((p * below).sum() - (p * q).sum() / 2) / pairs)
    return Soft(alone, by_row, by_p)


def _mass_below(score: F64, mass: F64) -> F64:
    """For each row the mass of the rows that score lower, of its ties one half."""
    _, place = np.unique(score, return_inverse=True)
    by_value = np.bincount(place, weights=mass)
    return np.asarray((np.cumsum(by_value) - by_value / 2)[place], np.float64)


@dataclass(frozen=True, eq=False)
class ClickMap:
    """P(click | served score) as B steps of rising logits, fitted on a reference."""

    unrouted: F64  # the least logit of each step of unrouted rows
    routed: F64  # the same of routed rows
    first_routed: int  # the routed rows' first step; 0 where both share their steps
    rate: F64  # [B] share of clicks
    rows: F64  # [B] of the reference

    def step(self, score: F64) -> I64:
        """The step that each served score falls on [N]; what lies below all is on the first one."""
        logit = logit_and_ctr(score)[0]
        low, high = (np.maximum(np.searchsorted(starts, logit, side="right") - 1, 0) for starts in (self.unrouted, self.routed))
        return np.asarray(np.where(score > 0, high + self.first_routed, low), np.int64)


def fit(reference: Exposed) -> ClickMap:
    """The map of the reference's labels: a part of its own for routed and unrouted rows where both have clicks and misses enough."""
    routed, clicked, logit = reference.score > 0, reference.clicked, reference.logit
    if all(min(clicked[rows].sum(), (1 - clicked[rows]).sum()) >= LEAST_CLICKS for rows in (~routed, routed)):
        (low, low_rate, low_rows), (high, high_rate, high_rows) = (_isotonic(logit[rows], clicked[rows]) for rows in (~routed, routed))
        return ClickMap(low, high, len(low), np.concatenate([low_rate, high_rate]), np.concatenate([low_rows, high_rows]))
    starts, rate, rows = _isotonic(logit, clicked)
    return ClickMap(starts, starts, 0, rate, rows)


def _isotonic(logit: F64, clicked: F64) -> tuple[F64, F64, F64]:
    """Starts, click rates and rows of the steps of the isotonic regression; equal logits share a step."""
    from scipy.optimize import isotonic_regression

    values, place = np.unique(logit, return_inverse=True)
    rows = np.bincount(place).astype(np.float64)
    fitted = isotonic_regression(np.bincount(place, weights=clicked) / rows, weights=rows)
    first = fitted.blocks[:-1]
    return values[first], fitted.x[first], np.add.reduceat(rows, first)


@dataclass(frozen=True, eq=False)
class Quality:
    """What is known of a day's served scores; the changes are against the reference."""

    reference: Measured  # AUC by labels
    estimate: Measured  # AUC without the day's labels
    estimated_change: Measured
    realized: Measured | None  # AUC by the day's labels; None before they are complete
    realized_change: Measured | None
    rate: tuple[Measured, Measured, Measured | None]  # click rate of exposed candidates: reference, estimate, realized


def quality(reference: Exposed, day: Exposed, labelled: bool) -> Quality | None:
    """Estimated and, with labels, realized quality of a day; None where either side has too little for an AUC."""
    before = _auc(reference, reference.clicked)
    if min(reference.requests, day.requests) < LEAST_REQUESTS or not before.defined:
        return None
    clicks = fit(reference)
    was, now = clicks.step(reference.score), clicks.step(day.score)
    ours, theirs = (soft_auc(side.score, clicks.rate[step]) for side, step in ((day, now), (reference, was)))
    if not np.isfinite([ours.value, theirs.value]).all():
        return None
    # One unit of a step's rate moves the day by the sum of its rows' derivatives, and the reference likewise.
    slope = _sum_by(now, ours.by_p, len(clicks.rate)) - _sum_by(was, theirs.by_p, len(clicks.rate))
    labels = slope[was] / clicks.rows[was] * (reference.clicked - clicks.rate[was])
    change = _joined(day, ours.by_row, reference, labels - theirs.by_row, ours.value - theirs.value)
    found = _auc(day, day.clicked) if labelled else None
    rate = _rates(reference, day, clicks, was, now, labelled)
    known = found if found is not None and found.defined else None
    return Quality(before, before.plus(change), change, known, known.minus(before) if known else None, rate)


def _auc(side: Exposed, clicked: F64) -> Measured:
    found = soft_auc(side.score, clicked)
    return measured(found.value, found.by_row, side.user, side.requests)


def _rates(
    reference: Exposed, day: Exposed, clicks: ClickMap, was: I64, now: I64, labelled: bool
) -> tuple[Measured, Measured, Measured | None]:
    """Click rates; in the reference the map's mean is that of the labels, so the day's needs no anchor."""
    before = _mean(reference, reference.clicked)
    p = clicks.rate[now]
    share = _sum_by(now, np.full(len(now), 1 / len(now)), len(clicks.rate))
    labels = share[was] / clicks.rows[was] * (reference.clicked - clicks.rate[was])
    estimate = _joined(day, (p - p.mean()) / len(p), reference, labels, float(p.mean()))
    return before, estimate, _mean(day, day.clicked) if labelled else None


def _mean(side: Exposed, values: F64) -> Measured:
    return measured(values.mean(), (values - values.mean()) / len(values), side.user, side.requests)


def _joined(day: Exposed, by_day: F64, reference: Exposed, by_reference: F64, value: float) -> Measured:
    """A value that rows of both sides have a part in."""
    both = measured(value, np.concatenate([by_day, by_reference]), np.concatenate([day.user, reference.user]), 0)
    return replace(both, requests=min(day.requests, reference.requests))


def _sum_by(step: I64, values: F64, steps: int) -> F64:
    return np.bincount(step, weights=values, minlength=steps).astype(np.float64)


def look_at(day: str, found: Quality | None, margin: float, page_from: float) -> Look:
    """What the day's quality comes to: a finding where the upper bound of a change lies below -margin.

    Args:
        margin: AUC that may be lost. page_from: times what had to be lost for a finding, from which it is a page.
    """
    if found is None:
        return Look(watcher=WATCHER, day=day, findings=(), unjudged=frozenset(CAUSES), figures=_figures(None, margin))
    findings = []
    unjudged = set()
    changes = (("estimate", "estimated from the scores", found.estimated_change), ("realized", "by the clicks", found.realized_change))
    for name, how, change in changes:
        if change is None or not np.isfinite(change.half_width()):
            unjudged.add(f"quality:{name}")
            continue
        limit, lost = margin + change.half_width(), -change.value
        if lost <= limit:
            continue
        severity: Severity = "page" if lost >= page_from * limit else "ticket"
        before = found.reference.value
        said = f"AUC of exposed candidates, {how}, went from {before:.4f} to {before - lost:.4f}: {lost:.3f} lost, more than {limit:.3f}"
        do = f"hapctl show {day}"
        findings.append(
            Finding(cause=f"quality:{name}", severity=severity, said=said, value=lost, limit=limit, do=do, figure=f"{name}.auc")
        )
    return Look(
        watcher=WATCHER, day=day, findings=tuple(ranked(findings)), unjudged=frozenset(unjudged),
        figures=_figures(found, margin),
    )  # fmt: skip


def _figures(found: Quality | None, margin: float) -> tuple[Figure, ...]:
    """Always the same ones; without a value where it is not known, or not yet."""
    if found is None:
        names = {name: title for part in (AUC_FIGURES, RATE_FIGURES) for name, title in part.items()}
        return tuple(Figure(name=name, title=title, value=None) for name, title in names.items())
    aucs = ((found.estimate, found.estimated_change), (found.realized, found.realized_change))
    before = found.rate[0].value
    return (
        *(
            _figure(*text, now, found.reference.value, change, margin)
            for text, (now, change) in zip(AUC_FIGURES.items(), aucs, strict=True)
        ),
        *(_figure(*text, now, before) for text, now in zip(RATE_FIGURES.items(), found.rate[1:], strict=True)),
    )


def _figure(name: str, title: str, now: Measured | None, before: float, change: Measured | None = None, margin: float = 0.0) -> Figure:
    half, noise = (one.half_width() if one is not None else np.inf for one in (now, change))
    bounded = now is not None and np.isfinite(half)
    return Figure(
        name=name,
        title=title,
        value=now.value if now is not None else None,
        lower=max(now.value - half, 0.0) if now is not None and bounded else None,
        upper=min(now.value + half, 1.0) if now is not None and bounded else None,
        reference=before,
        least=before - margin - noise if np.isfinite(noise) else None,
    )
