"""The funnel of a day as figures: shares of the kinds, what is routed, and how well it is ordered.

Figures that need no label: shares of RN, PRN and of their difficulty buckets, the routed share, the light score at the routing edge,
and how far light and expressive agree on what is routed. Figures that wait for labels: the other shares, clicks on unrouted
candidates, GAUC by kind, and calibration. Each has an interval over users (hap.monitoring.clustered) and is a finding where it
moved beyond its limit (hap.monitoring.watched). GAUC is one where it fell: a rise needs nobody. Shares of EN and GN are figures alone:
they follow from the exposed share and from clicks, which the inputs and labels judge.

cascade:candidates          shares of RN, PRN and of their buckets among the samples, which the inputs and traffic see, too
funnel:routed_share         candidates that the expressive model rescores
funnel:edge                 light score of the last routed candidate of a request: its median, or its spread
funnel:agreement            order of the routed candidates by light and by expressive
funnel:unrouted_clicks      clicks on candidates that were not routed
funnel:gauc_MEMBER          GAUC of light, expressive or the cascade
funnel:calibration_MODEL    slope by kind, or clicks over predicted ones, of light or expressive
funnel:scores               the champion cannot score the day, or answers what is no number
funnel:labels               the day was closed before its labels were complete, so what waits for them is not judged

Letters: R requests, N candidates of all of them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hap.evaluation.auc import request_aucs
from hap.evaluation.calibration import calibration
from hap.evaluation.evidence import MEMBERS
from hap.monitoring.clustered import Measured, measured, quantile, ratio, undefined
from hap.monitoring.findings import Finding, Look
from hap.monitoring.scored import Scored
from hap.monitoring.watched import Known, Watched, look_at
from hap.params import KINDS, MODELS, NEGATIVES, Funnel

WATCHER = "funnel"
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
GN = KINDS.index("GN")
NORMAL_IQR = 1.349  # interquartile range of a normal distribution, in standard deviations
UNLABELLED = ("share_RN", "share_PRN", "bucket_")  # shares that clicks have no part in


@dataclass(frozen=True, eq=False, kw_only=True)
class Counted:
    """Rows of the samples of R requests, by kind and by difficulty bucket."""

    user: I64  # [R]
    kinds: I64  # [R, len(KINDS)]
    buckets: Mapping[str, I64]  # of RN and PRN, each [R]


@dataclass(frozen=True, eq=False, kw_only=True)
class Funnelled:
    """All that a look at the funnel is made of; None is what could not be had."""

    counted: Counted  # the day's samples
    counted_before: Counted | None  # those of the champion's training window
    scored: Scored | None  # the day's requests, with all candidates where the logs hold them
    scored_before: Scored | None  # those of the reference
    sampled: Scored | None  # the day's requests with the candidates that are sampled, as the gate judges
    verdict: Mapping[str, Any] | None  # the champion's
    labelled: bool  # whether the day's labels are complete


def funnel_look(day: str, seen: Funnelled, rules: Funnel, page_from: float, findings: Sequence[Finding] = ()) -> Look:
    """What the funnel of a day comes to.

    Args:
        findings: what is known before any figure, such as a column that the champion needs and the day lacks.
    """
    watched = [
        *watch_shares(seen.counted, seen.counted_before, rules, seen.labelled),
        *watch_routing(seen.scored, seen.scored_before, rules, seen.labelled),
        *watch_quality(seen.sampled if seen.labelled else None, seen.verdict, rules),
    ]
    return look_at(WATCHER, day, watched, page_from, len(seen.counted.user), findings)


# What is measured


def shares(counted: Counted) -> dict[str, Measured]:
    """Shares of the rows by name: a kind's and a bucket's of what the logs hold, GN's of all, since GN are drawn by us."""
    logged, drawn = counted.kinds[:, :GN].sum(axis=1), counted.kinds[:, GN]
    found = {f"share_{kind}": ratio(counted.kinds[:, place], logged, counted.user) for place, kind in enumerate(KINDS[:GN]) if place}
    found["share_GN"] = ratio(drawn, logged + drawn, counted.user)
    return found | {f"bucket_{name}": ratio(rows, logged, counted.user) for name, rows in sorted(counted.buckets.items())}


def routed_share(scored: Scored) -> Measured:
    """Share of the candidates that are routed."""
    counts = np.diff(scored.offsets)
    return ratio(np.bincount(scored.owner[scored.routed], minlength=len(counts)), counts, scored.user)


def edges(scored: Scored) -> tuple[F64, I64]:
    """The light score of each request's last routed candidate, and whose request it is; requests without one are left out."""
    lowest = np.full(len(scored.user), np.inf)
    np.minimum.at(lowest, scored.owner[scored.routed], scored.light[scored.routed])
    known = np.isfinite(lowest)
    return lowest[known], scored.user[known]


def edge_median(scored: Scored) -> Measured:
    """The edge that half of the requests lie below."""
    values, user = edges(scored)
    return quantile(values, 0.5, user)


def edge_spread(scored: Scored) -> Measured:
    """Interquartile range of the edges, in standard deviations of a normal distribution that is as wide."""
    values, user = edges(scored)
    if not len(values):
        return undefined()
    width = quantile(values, 0.75, user).minus(quantile(values, 0.25, user))
    return Measured(width.value / NORMAL_IQR, width.users, width.influence / NORMAL_IQR, width.requests)


def agreement(scored: Scored) -> Measured:
    """Spearman's rank correlation of light and expressive over the routed candidates of a request, mean over requests.

    Ties share their ranks. A request with two routed candidates or more counts; where a model gives all of them one score, it
    agrees in nothing: 0.
    """
    return ratio(*_rank_correlations(scored))


def _rank_correlations(scored: Scored) -> tuple[F64, F64, I64]:
    owner, requests = scored.owner[scored.routed], len(scored.user)
    counts = np.bincount(owner, minlength=requests)
    centred = []
    for score in (scored.light[scored.routed], scored.expressive[scored.routed]):
        centred.append(_ranks(score, owner) - ((counts - 1) / 2)[owner])
    product, mine, other = (
        np.bincount(owner, weights=one * two, minlength=requests) for one, two in (centred, centred[:1] * 2, centred[1:] * 2)
    )
    scale = np.sqrt(mine * other)
    correlation = np.divide(product, scale, out=np.zeros(requests), where=scale > 0)
    return correlation, (counts > 1).astype(np.float64), scored.user


def _ranks(values: F64, owner: I64) -> F64:
    """Ranks from 0 within each owner's values, ties at their mean; owners lie together."""
    order = np.lexsort((values, owner))
    ordered, of = values[order], owner[order]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]) | (of[1:] != of[:-1])])[: len(ordered)])
    ends = np.append(starts[1:], len(ordered))
    mean = np.repeat((starts + ends - 1) / 2, ends - starts)
    ranks = np.empty(len(values))
    ranks[order] = mean - np.searchsorted(of, of)  # less what the owners before have
    return ranks


def unrouted_clicks(scored: Scored) -> Measured:
    """Share of the clicks that fell on candidates which were not routed."""
    clicks = np.bincount(scored.owner[scored.clicked], minlength=len(scored.user))
    unrouted = np.bincount(scored.owner[scored.clicked & ~scored.routed], minlength=len(scored.user))
    return ratio(unrouted, clicks, scored.user)


def gaucs(scored: Scored) -> dict[tuple[str, str], Measured]:
    """GAUC by member and kind."""
    found = {}
    for member in MEMBERS:
        for kind, grouped in request_aucs(getattr(scored, member), scored.kind, scored.offsets).items():
            found[member, kind] = ratio(np.nan_to_num(grouped.auc) * grouped.weight, grouped.weight, scored.user)
    return found


def slopes(scored: Scored) -> dict[tuple[str, str], Measured]:
    """Calibration slope by model and kind (hap.evaluation.calibration), its variance by the sandwich over users."""
    found = {}
    for model in MODELS:
        for kind in NEGATIVES:
            rows = scored.clicked | (scored.kind == KINDS.index(kind))
            found[model, kind] = slope(getattr(scored, model)[rows], scored.clicked[rows], scored.owner[rows], scored.user)
    return found


def slope(logit: F64, clicked: NDArray[np.bool_], owner: I64, user: I64) -> Measured:
    """Slope of the logistic regression of clicks on logits, [N] each; undefined where the logits separate, or are all alike.

    Args:
        owner: [N] the request of each row; user: [R].
    """
    fitted = calibration(logit, clicked)
    if not (math.isfinite(fitted.slope) and math.isfinite(fitted.intercept)) or not np.ptp(logit):
        return undefined()
    p = 1 / (1 + np.exp(-np.clip(fitted.intercept + fitted.slope * logit, -500, 500)))
    weight = p * (1 - p)
    centre = float((weight * logit).sum() / weight.sum())  # so that slope and level do not disturb each other
    influence = (clicked - p) * (logit - centre) / float((weight * (logit - centre) ** 2).sum())
    return measured(fitted.slope, influence, user[owner], len(np.unique(owner)))


def observed_rate(scored: Scored, model: str) -> Measured:
    """Clicks over those that the model predicts, among exposed candidates, which are logged whole."""
    chosen, requests = scored.exposed, len(scored.user)
    predicted = 1 / (1 + np.exp(-getattr(scored, model)[chosen]))
    clicks = np.bincount(scored.owner[chosen], weights=scored.clicked[chosen], minlength=requests)
    return ratio(clicks, np.bincount(scored.owner[chosen], weights=predicted, minlength=requests), scored.user)


# Beside their reference


def watch_shares(now: Counted, before: Counted | None, rules: Funnel, labelled: bool) -> Iterator[Watched]:
    """Kinds and buckets. Which exposed candidate is EP or EN, and how many GN are drawn, follows from labels."""
    mine, theirs = shares(now), shares(before) if before else {}
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        what, _, kind = name.partition("_")
        found = mine.get(name) or _none_of(now)
        yield Watched(
            name=f"funnel.{name}",
            title=f"share of {'bucket ' if what == 'bucket' else ''}{kind} among {'all' if kind == 'GN' else 'logged'} rows",
            cause="cascade:candidates" if name.startswith(UNLABELLED) else None,
            now=found if labelled or name.startswith(UNLABELLED) else undefined(),
            before=(theirs.get(name) or _none_of(before)) if before else None,
            allowed=rules.share,
            range=(0.0, 1.0),
        )


def _none_of(counted: Counted) -> Measured:
    """The share of a bucket that no row is in."""
    return ratio(np.zeros(len(counted.user)), counted.kinds[:, :GN].sum(axis=1), counted.user)


def watch_routing(now: Scored | None, before: Scored | None, rules: Funnel, labelled: bool) -> Iterator[Watched]:
    """What is routed, and what is clicked all the same."""
    spread = edge_spread(before).value if before is not None else math.nan
    edge = rules.edge * (spread if math.isfinite(spread) else 0.0)
    plain: dict[str, tuple[str, Callable[[Scored], Measured], float, tuple[float, float]]] = {
        "routed_share": ("share of the candidates that are routed", routed_share, rules.routed_share, (0.0, 1.0)),
        "edge_median": ("light score at the routing edge, median", edge_median, edge, (-math.inf, math.inf)),
        "edge_spread": ("light score at the routing edge, spread", edge_spread, edge, (0.0, math.inf)),
        "agreement": ("rank correlation of light and expressive where routed", agreement, rules.agreement, (-1.0, 1.0)),
        "unrouted_clicks": ("share of the clicks on unrouted candidates", unrouted_clicks, rules.unrouted_clicks, (0.0, 1.0)),
    }
    for name, (title, measure, allowed, span) in plain.items():
        known = now is not None and (labelled or measure is not unrouted_clicks)
        yield Watched(
            name=f"funnel.{name}",
            title=title,
            cause=f"funnel:{'edge' if name.startswith('edge') else name}",
            now=measure(now) if known and now is not None else undefined(),
            before=measure(before) if before is not None else None,
            allowed=allowed,
            range=span,
        )


def watch_quality(now: Scored | None, verdict: Mapping[str, Any] | None, rules: Funnel) -> Iterator[Watched]:
    """GAUC and calibration of sampled requests, beside what the champion's verdict said of its judging day."""
    gauc, detail = (verdict or {}).get("gauc", {}), (verdict or {}).get("detail", {})
    relative = len(now.user) / max(int((verdict or {}).get("requests", 0)), 1) if now is not None else 0.0
    found: dict[tuple[str, str], Measured] = gaucs(now) if now is not None else {}
    for member in MEMBERS:
        for kind in NEGATIVES:
            yield Watched(
                name=f"funnel.gauc_{member}_{kind}",
                title=f"GAUC of {member} against {kind}",
                cause=f"funnel:gauc_{member}",
                now=found.get((member, kind)) or undefined(),
                before=Known(gauc.get(member, {}).get(kind), relative),
                allowed=rules.gauc,
                side="fall",
                range=(0.0, 1.0),
            )
    found = slopes(now) if now is not None else {}
    for model in MODELS:
        judged = detail.get("calibration", {}).get(model, {})
        rate = _judged_rate(detail.get("reliability", {}).get(model))
        figures: list[tuple[str, str, Measured | None, float | None]] = []
        for kind in NEGATIVES:
            slope_of = f"calibration slope of {model} against {kind}"
            figures.append((f"slope_{model}_{kind}", slope_of, found.get((model, kind)), judged.get(kind, {}).get("slope")))
        clicks = observed_rate(now, model) if now is not None else None
        figures.append((f"rate_{model}", f"clicks on exposed candidates over those that {model} predicts", clicks, rate))
        for name, title, value, reference in figures:
            share = rules.rate if name.startswith("rate") else rules.slope
            yield Watched(
                name=f"funnel.{name}",
                title=title,
                cause=f"funnel:calibration_{model}",
                now=value or undefined(),
                before=Known(reference, relative),
                allowed=share * abs(reference or 0.0),
            )


def _judged_rate(diagram: Mapping[str, Sequence[float]] | None) -> float | None:
    """`observed_rate` from a verdict's reliability diagram."""
    if not diagram or not diagram["rows"]:
        return None
    rows = np.asarray(diagram["rows"])
    predicted = float((rows * np.asarray(diagram["predicted"])).sum())
    return float((rows * np.asarray(diagram["observed"])).sum()) / predicted if predicted else None
