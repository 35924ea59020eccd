"""What a verdict rests on: both versions' scores on the judging days as AUC per request, and what is wrong with them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hap.evaluation.auc import RequestAuc, by_request, rank, together
from hap.params import MODELS, NEGATIVES

MEMBERS = ("light", "expressive", "cascade")  # cascade: the ensemble's final score

SLICED = "cascade"  # what users see: judged on slices and on all kinds together, too
ALL = "all"  # the kinds of negatives together

BUDGETS = {  # what a version may take -> how a person reads it
    "p99_ms": "p99 of the ensemble in process: {0:.1f} ms",
    "operations": "operations of the ensemble over those of expressive on all: {0:.2f}",
    **{f"{model}.age_days": f"days from the newest training day of {model} to the judging day: {{0:.0f}}" for model in MODELS},
}
RECALL = "recall"  # of the cascade's first K, on requests with all their candidates

Quantity = tuple[str, str]  # (member, kind); or SLICED with ALL, RECALL, another figure of whole requests, or a slice's name


def guarded(expressive_kinds: Sequence[str]) -> tuple[Quantity, ...]:
    """The one list of what a challenger may not be worse at.

    Light on every kind, since it scores every candidate; expressive on the two hard kinds, which it exists for, and on
    the others where it was trained on them; the cascade on every kind, since its order is what users see.
    """
    expressive = [kind for kind in NEGATIVES if kind in ("EN", "RN") or kind in expressive_kinds]
    kinds = {"light": NEGATIVES, "expressive": tuple(expressive), "cascade": NEGATIVES}
    return tuple((member, kind) for member in MEMBERS for kind in kinds[member])


@dataclass(frozen=True)
class Finding:
    """A fact that alone keeps a version from passing, as a sentence."""

    outcome: Literal["refuse", "undecided"]
    text: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """Everything a verdict rests on; R requests of the judging days, in one order for both versions."""

    version: int
    against: int | None  # the champion; None where there is none yet
    days: tuple[str, ...]  # judging days, YYYY-MM-DD
    manifests: Mapping[str, str]  # day -> id of its samples; a day without any is absent
    expressive_kinds: tuple[str, ...]  # what the challenger's expressive model was trained on
    requests: int  # R
    clicked_requests: int  # those with at least one positive: only they enter a GAUC
    positives: int
    challenger: Mapping[Quantity, RequestAuc]  # each [R]; a quantity that could not be measured is absent
    champion: Mapping[Quantity, RequestAuc] = field(default_factory=dict)
    slices: Mapping[str, int] = field(default_factory=dict)  # positives of each slice
    whole: Mapping[str, Any] = field(default_factory=dict)  # the cascade on requests with all their candidates, recorded
    detail: Mapping[str, Any] = field(default_factory=dict)  # hap.evaluation.detail, recorded
    parity_max_abs_diff: float | None = None  # exported graphs against PyTorch; None: not measured
    budgets: Mapping[str, float | None] = field(default_factory=dict)  # by the name in BUDGETS; None: not measured
    cost: Mapping[str, Any] = field(default_factory=dict)  # recorded beside the verdict, not judged
    findings: tuple[Finding, ...] = ()

    @property
    def whole_is_capped(self) -> bool:
        """Whether days with more requests would have no more of them with all their candidates."""
        return bool(self.whole) and self.whole["requests"] >= self.whole.get("most", math.inf)

    def digest(self) -> str:
        """sha256 of all of it: equal evidence, equal digest."""
        described = (self.version, self.against, self.days, self.expressive_kinds, self.requests, self.clicked_requests)
        named = [sorted(part.items()) for part in (self.manifests, self.cost, self.slices, self.whole, self.detail, self.budgets)]
        measured = (self.positives, self.parity_max_abs_diff, *named, self.findings)
        sha = hashlib.sha256(repr((described, measured)).encode())
        for side in (self.challenger, self.champion):
            for quantity in sorted(side):
                sha.update(repr(quantity).encode())
                sha.update(np.ascontiguousarray(side[quantity].auc).tobytes())
                sha.update(np.ascontiguousarray(side[quantity].weight).tobytes())
        return sha.hexdigest()


def gather(
    *,
    version: int,
    against: int | None,
    days: Sequence[str],
    manifests: Mapping[str, str],
    expressive_kinds: Sequence[str],
    kind: ArrayLike,
    offsets: ArrayLike,
    challenger: Mapping[str, ArrayLike],
    champion: Mapping[str, ArrayLike] | None = None,
    rows: NDArray[np.int64] | None = None,
    champion_rows: NDArray[np.int64] | None = None,
    slices: Mapping[str, NDArray[np.bool_]] | None = None,
    figures: Mapping[str, tuple[RequestAuc, RequestAuc | None]] | None = None,
    whole: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
    parity_max_abs_diff: float | None = None,
    budgets: Mapping[str, float | None] | None = None,
    cost: Mapping[str, Any] | None = None,
    trained_on: Sequence[str] = (),
    champion_trained_on: Sequence[str] = (),
    findings: Sequence[Finding] = (),
) -> Evidence:
    """Turn scores into evidence; what is wrong with them becomes a finding, never an exception.

    Args:
        kind: [N] place of each judged row's kind in KINDS.
        offsets: [R+1] where each request's rows begin and end.
        challenger: member -> [N] scores of the rows, from the challenger's bundle.
        champion: the same from the champion's bundle; None where there is none or it cannot be scored.
        rows, champion_rows: I64[N, 2], request and item of each row that the scores belong to; compared where both are given.
        slices: by name, the rows [N] of it.
        figures: by name, such as RECALL, what each request has of it and what it weighs, of challenger and champion.
        whole: what else is known of the cascade on requests with all their candidates.
        detail: what `hap.evaluation.detail.describe_scores` says of the scores.
        trained_on: days that the challenger was trained or stopped on.
        champion_trained_on: the same of the champion.
        findings: what the caller already knows, such as why the champion cannot be scored.

    Raises:
        DataError: kind and offsets do not describe the same rows.
    """
    codes, bounds = np.asarray(kind, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
    found = list(findings)
    if shared := sorted(set(days) & set(trained_on)):
        found.append(Finding("refuse", f"v{version} was trained or stopped on {', '.join(shared)}, which it is judged on"))
    found += _later(f"v{version}", "it knows what came later", days, trained_on)
    unfair: list[Finding] = []
    if shared := sorted(set(days) & set(champion_trained_on)):
        unfair.append(Finding("undecided", f"v{against} was trained or stopped on {', '.join(shared)}: the comparison would favour it"))
    unfair += _later(f"v{against}", "the comparison would favour it", days, champion_trained_on)
    found += unfair
    if len(manifests) < len(days) and not findings:
        found.append(Finding("undecided", f"{len(days)} judging days have {len(manifests)} manifests: collect the days first"))
    parts = dict(slices or {})
    # Without any scores the caller's findings say why; that every member lacks them would only repeat it.
    ours = _measure(f"v{version}", "refuse", challenger, codes, bounds, parts, found) if challenger or not findings else {}
    other = _first_difference(rows, champion_rows) if champion is not None and rows is not None and champion_rows is not None else None
    if other is not None:
        found.append(Finding("undecided", f"v{against} was scored on other rows, or in another order, than v{version}: {other}"))
    comparable = champion if other is None and not unfair else None  # else a loss that is none of the challenger's would refuse it
    theirs = _measure(f"v{against}", "undecided", comparable, codes, bounds, parts, found) if comparable is not None else {}
    for name, (mine, its) in (figures or {}).items():
        ours[SLICED, name] = mine
        if its is not None and comparable is not None:
            theirs[SLICED, name] = its
    if against is not None and champion is None and not findings:
        found.append(Finding("undecided", f"v{against} has no scores on these requests, so there is nothing to compare with"))
    clicks = np.concatenate(([0], np.cumsum(codes == 0)))
    return Evidence(
        version=version,
        against=against,
        days=tuple(days),
        manifests=dict(manifests),
        expressive_kinds=tuple(expressive_kinds),
        requests=bounds.size - 1,
        clicked_requests=int((np.diff(clicks[bounds]) > 0).sum()),
        positives=int(clicks[-1]),
        challenger=ours,
        champion=theirs,
        slices={name: int((mask & (codes == 0)).sum()) for name, mask in parts.items()},
        whole=dict(whole or {}),
        detail=dict(detail or {}),
        parity_max_abs_diff=parity_max_abs_diff,
        budgets=dict(budgets or {}),
        cost=dict(cost or {}),
        findings=tuple(found),
    )


def _later(label: str, consequence: str, days: Sequence[str], trained_on: Sequence[str]) -> list[Finding]:
    """What stands against a version that was trained on days after one that judges."""
    later = sorted(day for day in set(trained_on) - set(days) if days and day > min(days))
    said = f"{label} was trained or stopped on {', '.join(later)}, after a day that judges: {consequence}"
    return [Finding("undecided", said)] if later else []


def _first_difference(rows: NDArray[np.int64], others: NDArray[np.int64]) -> str | None:
    """Where two versions' rows part, in words; None where they are the same. Numbers of rows are told by the scores."""
    least = min(len(rows), len(others))
    apart = np.flatnonzero((rows[:least] != others[:least]).any(axis=1))
    if not apart.size:
        return None
    place = int(apart[0])
    (request, item), (its_request, its_item) = rows[place].tolist(), others[place].tolist()
    return f"row {place + 1:,} is item {its_item} of request {its_request} for the one, item {item} of request {request} for the other"


def _measure(
    label: str,
    blame: Literal["refuse", "undecided"],
    scores: Mapping[str, ArrayLike],
    kind: NDArray[np.int64],
    offsets: NDArray[np.int64],
    slices: Mapping[str, NDArray[np.bool_]],
    found: list[Finding],
) -> dict[Quantity, RequestAuc]:
    """AUC per request of each member; scores that cannot be judged go to `found` with the outcome `blame`."""
    measured: dict[Quantity, RequestAuc] = {}
    for member in MEMBERS:
        if member not in scores:
            found.append(Finding("undecided", f"{member}: {label} has no scores"))
            continue
        values = np.asarray(scores[member], dtype=np.float64).ravel()
        if values.size != kind.size:
            found.append(Finding(blame, f"{member}: {label} gave {values.size:,} scores for {kind.size:,} rows"))
        elif bad := int((~np.isfinite(values)).sum()):
            found.append(Finding(blame, f"{member}: {bad:,} of {values.size:,} scores of {label} are NaN or infinite"))
        else:
            ranked = rank(values, kind, offsets)
            measured |= {(member, name): auc for name, auc in by_request(ranked).items()}
            ranked = together(ranked, ALL)
            measured[member, ALL] = by_request(ranked)[ALL]
            if member == SLICED:
                measured |= {(member, name): by_request(ranked, mask[ranked.row])[ALL] for name, mask in slices.items()}
    return measured
