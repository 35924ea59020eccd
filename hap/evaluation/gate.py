"""The verdict on a challenger: pass, refuse or undecided, from scores and measurements as values.

Guarded is each (member, kind) pair of `guarded`. A floor rule bounds the challenger's own GAUC, a regression
rule its difference to the champion on the same requests; both are judged by one-sided bounds at level alpha:
    pass       every rule's lower bound lies above its limit (an intersection-union test, no correction)
    refuse     at least one rule's value lies below its limit, Holm over all rules; or a hard finding
    undecided  anything else, with the number of requests that would decide
docs/gate.md gives the statistics. Rule names read MEMBER.KIND.floor and MEMBER.KIND.regression.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hap.evaluation.auc import RequestAuc, gauc, request_aucs
from hap.evaluation.interval import Resampled, resample
from hap.params import KINDS, NEGATIVES, Gate

MEMBERS = ("light", "expressive", "cascade")  # cascade: the ensemble's final score
EXIT_CODES = {"pass": 0, "refuse": 3, "undecided": 5}
TAIL_DRAWS = 5  # draws expected beyond the strictest level of Holm: with fewer, no p-value could reach it

SHOWN_REASONS = 8  # on one screen; verdict.json has them all

Outcome = Literal["pass", "refuse", "undecided"]
Quantity = tuple[str, str]  # (member, kind)


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
    against: int | None  # the champion; None for the first version
    days: tuple[str, ...]  # judging days, YYYY-MM-DD
    manifests: tuple[str, ...]  # ids of their samples
    expressive_kinds: tuple[str, ...]  # what the challenger's expressive model was trained on
    requests: int  # R
    clicked_requests: int  # those with at least one positive: only they enter a GAUC
    positives: int
    challenger: Mapping[Quantity, RequestAuc]  # each [R]; a quantity that could not be measured is absent
    champion: Mapping[Quantity, RequestAuc] = field(default_factory=dict)
    parity_max_abs_diff: float | None = None  # exported graphs against PyTorch; None: not measured
    cost: Mapping[str, Any] = field(default_factory=dict)  # recorded beside the verdict, not judged
    findings: tuple[Finding, ...] = ()

    def digest(self) -> str:
        """sha256 of all of it: equal evidence, equal digest."""
        described = (self.version, self.against, self.days, self.manifests, self.expressive_kinds, self.requests, self.clicked_requests)
        measured = (self.positives, self.parity_max_abs_diff, sorted(self.cost.items()), self.findings)
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
    manifests: Sequence[str],
    expressive_kinds: Sequence[str],
    kind: ArrayLike,
    offsets: ArrayLike,
    challenger: Mapping[str, ArrayLike],
    champion: Mapping[str, ArrayLike] | None = None,
    parity_max_abs_diff: float | None = None,
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
    if shared := sorted(set(days) & set(champion_trained_on)):
        found.append(Finding("undecided", f"v{against} was trained or stopped on {', '.join(shared)}: the comparison would favour it"))
    if len(manifests) < len(days):
        found.append(Finding("undecided", f"{len(days)} judging days have {len(manifests)} manifests: collect the days first"))
    ours = _measure(f"v{version}", "refuse", challenger, codes, bounds, found)
    theirs = _measure(f"v{against}", "undecided", champion, codes, bounds, found) if champion is not None else {}
    if against is not None and champion is None and not findings:
        found.append(Finding("undecided", f"v{against} has no scores on these requests, so there is nothing to compare with"))
    clicks = np.concatenate(([0], np.cumsum(codes == 0)))
    return Evidence(
        version=version,
        against=against,
        days=tuple(days),
        manifests=tuple(manifests),
        expressive_kinds=tuple(expressive_kinds),
        requests=bounds.size - 1,
        clicked_requests=int((np.diff(clicks[bounds]) > 0).sum()),
        positives=int(clicks[-1]),
        challenger=ours,
        champion=theirs,
        parity_max_abs_diff=parity_max_abs_diff,
        cost=dict(cost or {}),
        findings=tuple(found),
    )


def _measure(
    label: str,
    blame: Literal["refuse", "undecided"],
    scores: Mapping[str, ArrayLike],
    kind: NDArray[np.int64],
    offsets: NDArray[np.int64],
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
            measured |= {(member, name): auc for name, auc in request_aucs(values, kind, offsets).items()}
    return measured


@dataclass(frozen=True)
class Rule:
    """One rule as judged: `value` with its one-sided bounds, and the `bound` it had to stay above (parity: below)."""

    name: str
    value: float | None
    lower: float | None
    upper: float | None
    bound: float
    outcome: Outcome
    p_value: float | None = None  # of "no harm beyond the bound"; Holm reads it
    requests: int | None = None  # that define the value


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says about one version, and why."""

    version: int
    against: int | None
    day: str  # the last judging day
    days: tuple[str, ...]
    verdict: Outcome
    reasons: tuple[str, ...]
    rules: tuple[Rule, ...]
    gauc: dict[str, dict[str, float | None]]  # of the challenger: member -> kind
    champion_gauc: dict[str, dict[str, float | None]] | None
    requests: int
    positives: int
    manifests: tuple[str, ...]
    needs_requests: int | None  # undecided: how many would decide, if the values stay; None: no number would, or none is needed
    alpha: float
    margin: float
    draws: int
    parity_max_abs_diff: float | None
    cost: dict[str, Any]
    evidence: str  # sha256 of what was judged

    @property
    def exit_code(self) -> int:
        """0 pass, 3 refuse, 5 undecided."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """verdict.json; NaN does not occur, an undefined number is null."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Verdict":
        """A verdict read back from verdict.json."""
        lists = {name: tuple(raw[name]) for name in ("days", "reasons", "manifests")}
        return cls(**{**raw, **lists, "rules": tuple(Rule(**rule) for rule in raw["rules"])})


def decide(evidence: Evidence, rules: Gate, seed: int = 0) -> Verdict:
    """Judge the evidence by the rules; any evidence gets a verdict, and only sound evidence can pass."""
    quantities = guarded(evidence.expressive_kinds)
    judged, draws = _judge(evidence, rules, quantities, seed)
    judged = _holm(judged, rules.alpha)
    findings = [*evidence.findings, *_shortage(evidence, rules), *_unmeasured(evidence, judged, rules)]
    parity, parity_findings = _parity(evidence.parity_max_abs_diff, rules.max_parity)
    findings += parity_findings
    outcomes = {finding.outcome for finding in findings} | {rule.outcome for _, rule in judged}
    verdict: Outcome = "refuse" if "refuse" in outcomes else "undecided" if "undecided" in outcomes else "pass"
    plain = [rule for _, rule in judged]
    return Verdict(
        version=evidence.version,
        against=evidence.against,
        day=evidence.days[-1] if evidence.days else "",
        days=evidence.days,
        verdict=verdict,
        reasons=tuple(_reasons(verdict, evidence, rules, findings, plain)),
        rules=(*plain, *parity),
        gauc=_table(evidence.challenger),
        champion_gauc=_table(evidence.champion) if evidence.against is not None else None,
        requests=evidence.requests,
        positives=evidence.positives,
        manifests=evidence.manifests,
        needs_requests=_needed(evidence, rules, judged) if verdict == "undecided" else None,
        alpha=rules.alpha,
        margin=rules.margin,
        draws=draws,
        parity_max_abs_diff=_finite(evidence.parity_max_abs_diff),
        cost=dict(evidence.cost),
        evidence=evidence.digest(),
    )


Judged = tuple[Resampled | None, Rule]


def _judge(evidence: Evidence, rules: Gate, quantities: Sequence[Quantity], seed: int) -> tuple[list[Judged], int]:
    """Every floor and regression rule at level alpha, on one set of draws; outcome refuse is left to Holm."""
    floors = {str(kind): floor for kind, floor in rules.floors.items()}
    # A kind without a floor has the floor 0: each quantity keeps a rule, so that an unmeasured one never passes.
    wanted: list[tuple[str, Quantity, float]] = [("floor", q, floors.get(q[1], 0.0)) for q in quantities]
    if evidence.against is not None:
        wanted += [("regression", q, -rules.margin) for q in quantities]
    draws = max(rules.bootstrap_draws, math.ceil(TAIL_DRAWS * len(wanted) / rules.alpha))
    columns: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    place: dict[tuple[str, Quantity], int] = {}
    for sort, quantity, _ in wanted:
        ours, theirs = evidence.challenger.get(quantity), evidence.champion.get(quantity)
        if ours is None or (sort == "regression" and theirs is None):
            continue
        place[sort, quantity] = len(columns)
        columns.append((ours.auc - theirs.auc if sort == "regression" and theirs is not None else ours.auc, ours.weight))
    drawn: list[Resampled] = []
    if columns:
        value, weight = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
        drawn = resample(value, weight, draws, seed)
    judged: list[Judged] = []
    for sort, quantity, bound in wanted:
        name = f"{quantity[0]}.{quantity[1]}.{sort}"
        if (sort, quantity) not in place:
            judged.append((None, Rule(name, None, None, None, bound, "undecided")))
            continue
        result = drawn[place[sort, quantity]]
        interval = result.interval(rules.alpha)
        enough = result.requests >= rules.min_requests and result.weight >= rules.min_positives
        rule = Rule(
            name,
            _finite(interval.point),
            max(interval.lower, 0.0) if sort == "floor" else interval.lower,
            interval.upper,
            bound,
            "pass" if enough and interval.lower > bound else "undecided",
            result.p_below(bound) if enough else None,
            result.requests,
        )
        judged.append((result, rule))
    return judged, draws


def _holm(judged: list[Judged], alpha: float) -> list[Judged]:
    """Mark as refused the rules whose harm stands after Holm's correction over all rules that were put."""
    order = sorted((rule.p_value, index) for index, (_, rule) in enumerate(judged) if rule.p_value is not None)
    marked = list(judged)
    for step, (p_value, index) in enumerate(order):
        if p_value > alpha / (len(judged) - step):
            break
        result, rule = judged[index]
        marked[index] = (result, dataclasses.replace(rule, outcome="refuse"))
    return marked


def _shortage(evidence: Evidence, rules: Gate) -> list[Finding]:
    """Whether there is enough to decide at all."""
    if not evidence.requests:
        return [Finding("undecided", "no request was judged")]
    if not evidence.positives:
        return [Finding("undecided", f"none of the {evidence.requests:,} requests has a positive: every label is of one class")]
    short = []
    if evidence.clicked_requests < rules.min_requests:
        short.append(f"{evidence.clicked_requests:,} requests with a positive (gate.min_requests is {rules.min_requests:,})")
    if evidence.positives < rules.min_positives:
        short.append(f"{evidence.positives:,} positives (gate.min_positives is {rules.min_positives:,})")
    return [Finding("undecided", f"too little to decide: {' and '.join(short)}")] if short else []


def _unmeasured(evidence: Evidence, judged: Sequence[Judged], rules: Gate) -> list[Finding]:
    """Members not measured, kinds that are empty or rest on too little; silent where a broader finding says it already."""
    if not evidence.findings and any(result is None for result, _ in judged):
        absent = sorted({" on ".join(rule.name.split(".")[:2]) for result, rule in judged if result is None})
        return [Finding("undecided", f"not measured: {', '.join(absent)}")]
    if evidence.clicked_requests < rules.min_requests or evidence.positives < rules.min_positives:
        return []
    found = []
    for kind in NEGATIVES:
        used = [result for result, rule in judged if result is not None and rule.name.split(".")[1] == kind]
        if not used:
            continue
        if not used[0].requests:
            found.append(Finding("undecided", f"{kind}: no request holds both a positive and a negative of this kind"))
        elif used[0].requests < rules.min_requests or used[0].weight < rules.min_positives:
            rests = f"{kind}: only {used[0].requests:,} requests with {used[0].weight:,.0f} positives hold this kind"
            found.append(Finding("undecided", f"{rests} ({rules.min_requests:,} and {rules.min_positives:,} are needed)"))
    return found


def _parity(measured: float | None, limit: float) -> tuple[tuple[Rule, ...], list[Finding]]:
    """The exported graphs must score as PyTorch does."""
    if measured is None:
        text = "parity: the exported graphs were not compared with PyTorch"
        return (Rule("parity", None, None, None, limit, "undecided"),), [Finding("undecided", text)]
    if measured <= limit:
        return (Rule("parity", measured, None, None, limit, "pass"),), []
    text = f"parity: exported scores differ from PyTorch's by {measured:.2g}, more than gate.max_parity {limit:.2g}"
    if not math.isfinite(measured):
        text = "parity: exported scores differ from PyTorch's by NaN or infinity"
    return (Rule("parity", _finite(measured), None, None, limit, "refuse"),), [Finding("refuse", text)]


def _needed(evidence: Evidence, rules: Gate, judged: Sequence[Judged]) -> int | None:
    """Requests that would decide if every value stayed as it is and intervals shrank with the square root.

    With a value below its limit, the quickest refusal; else the slowest pass.
    """
    if any(finding.outcome == "undecided" for finding in evidence.findings) or not evidence.clicked_requests:
        return None  # more of the same would not help
    passes, refusals, least = [], [], 1.0
    for result, rule in judged:
        if result is None or result.requests < 2:
            return None
        least = max(least, rules.min_requests / result.requests, rules.min_positives / result.weight)
        if rule.outcome == "pass":
            continue
        gap = result.point - rule.bound
        if gap > 0:
            passes.append(((result.point - result.lower(rules.alpha)) / gap) ** 2)
        elif gap < 0:
            refusals.append(((result.upper(rules.alpha / len(judged)) - result.point) / gap) ** 2)
        else:
            return None
    factor = max(least, min(refusals) if refusals else max(passes, default=1.0))
    return math.ceil(evidence.requests * factor)


def _reasons(verdict: Outcome, evidence: Evidence, rules: Gate, findings: Sequence[Finding], judged: Sequence[Rule]) -> list[str]:
    """Sentences, the ones that carry the verdict and no others."""
    reasons = [finding.text for finding in findings if finding.outcome == verdict]
    reasons += [
        _sentence(rule, verdict, rules) for rule in judged if rule.outcome == verdict and rule.p_value is not None and verdict != "pass"
    ]
    if evidence.against is None:
        reasons.append("first version: there is no champion to compare with, so only floors were judged")
    if verdict == "pass":
        reasons.insert(0, _pass_sentence(evidence, judged, rules))
    return reasons


def _sentence(rule: Rule, verdict: Outcome, rules: Gate) -> str:
    member, kind, sort = rule.name.split(".")
    value, lower, upper = rule.value or 0.0, rule.lower or 0.0, rule.upper or 0.0
    if sort == "floor":
        level = f"{member}: GAUC on {kind} is {_number(value)} [{_number(lower)}, {_number(upper)}]"
        return f"{level}, {'below' if verdict == 'refuse' else 'too uncertain against'} the floor {_number(rule.bound)}"
    if verdict == "refuse":
        loss = f"fell by {_number(-value)} [{_number(-upper)}, {_number(-lower)}]"
        return f"{member}: GAUC on {kind} {loss}, more than the margin {_number(rules.margin)}"
    change = f"changed by {value:+.3f} [{lower:+.3f}, {upper:+.3f}]".replace("0.", ".")
    return f"{member}: GAUC on {kind} {change}, which neither shows nor excludes a loss of more than {_number(rules.margin)}"


def _pass_sentence(evidence: Evidence, judged: Sequence[Rule], rules: Gate) -> str:
    """What was passed, and the rule that came closest to its limit."""
    sort = "floor" if evidence.against is None else "regression"
    closest = min((rule for rule in judged if rule.name.endswith(sort)), key=lambda rule: (rule.lower or 0.0) - rule.bound)
    member, kind, _ = closest.name.split(".")
    lower = closest.lower or 0.0
    if evidence.against is None:
        count = f"all {len(judged)} GAUC lie above their floors"
        return f"{count}; closest is {member} on {kind}, at least {_number(lower)} against {_number(closest.bound)}"
    count = f"no worse than v{evidence.against} on all {len(judged) // 2} guarded GAUC, and above every floor"
    worst = f"a loss of at most {_number(-lower)}" if lower < 0 else f"a gain of at least {_number(lower)}"
    return f"{count}; closest is {member} on {kind}: {worst}, with {_number(rules.margin)} allowed"


def verdict_text(verdict: Verdict) -> str:
    """The verdict on one screen, for a person."""
    compared = "the first version, floors only" if verdict.against is None else f"against v{verdict.against}"
    days = verdict.days[0] if len(verdict.days) == 1 else f"{verdict.days[0]} to {verdict.days[-1]}" if verdict.days else "no day"
    lines = [
        f"v{verdict.version}: {verdict.verdict.upper()} ({compared})",
        f"judged on {days}: {verdict.requests:,} requests, {verdict.positives:,} positives",
        *[f"  - {reason}" for reason in verdict.reasons[:SHOWN_REASONS]],
    ]
    if (more := len(verdict.reasons) - SHOWN_REASONS) > 0:
        lines.append(f"  - and {more} more in verdict.json")
    if verdict.needs_requests is not None:
        lines.append(f"  - about {float(f'{verdict.needs_requests:.2g}'):,.0f} requests would decide, if the values stay as they are")
    lines += ["", "GAUC         " + "".join(f"{kind:<26}" for kind in NEGATIVES).rstrip()]
    rules = {rule.name: rule for rule in verdict.rules}
    for member in MEMBERS:
        cells = [
            _cell(verdict.gauc[member][kind], rules.get(f"{member}.{kind}.regression"), rules.get(f"{member}.{kind}.floor"))
            for kind in NEGATIVES
        ]
        lines.append(f"{member:<13}" + "".join(f"{cell:<26}" for cell in cells).rstrip())
    lines.append(f"each cell: GAUC and its change against the champion, each bound at {1 - verdict.alpha:.0%}; ! refused, ? undecided")
    if verdict.parity_max_abs_diff is not None:
        lines.append(f"parity: {verdict.parity_max_abs_diff:.2g} at most between the exported graphs and PyTorch")
    return "\n".join(lines)


def _cell(value: float | None, regression: Rule | None, floor: Rule | None) -> str:
    outcomes = {rule.outcome for rule in (regression, floor) if rule}
    mark = "!" if "refuse" in outcomes else "?" if "undecided" in outcomes else ""
    text = "-" if value is None else _number(value)
    if regression and regression.value is not None and regression.lower is not None and regression.upper is not None:
        change = f"{regression.value:+.3f} [{regression.lower:+.3f},{regression.upper:+.3f}]"
        text += " " + change.replace("0.", ".")
    return text + mark


def _table(measured: Mapping[Quantity, RequestAuc]) -> dict[str, dict[str, float | None]]:
    """GAUC by member and kind, null where nothing defines it."""
    table: dict[str, dict[str, float | None]] = {}
    for member in MEMBERS:
        row = {kind: measured.get((member, kind)) for kind in KINDS[1:]}
        table[member] = {kind: _finite(gauc(grouped)) if grouped is not None else None for kind, grouped in row.items()}
    return table


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(value: float) -> str:
    """Three decimals without the leading zero, as GAUC is read: .031"""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
