"""The verdict on a challenger: pass, refuse or undecided, from scores and measurements as values.

Guarded is each (member, kind) pair of `evidence.guarded`; and of the cascade, whose order users see, all kinds together, each
slice with clicks enough, and Recall@K on requests with all their candidates. A floor rule bounds the challenger's own GAUC on
a kind, a regression rule its difference to the champion on the same requests; both are judged by one-sided bounds at level alpha:
    pass       every rule's lower bound lies above its limit (an intersection-union test, no correction)
    refuse     at least one rule's value lies below its limit, Holm over all rules; or a hard finding
    undecided  anything else, with the number of requests that would decide
Parity, p99, operations and age are measured once and judged against their limit.
docs/gate.md gives the statistics. Rule names read MEMBER.KIND.floor and MEMBER.KIND.regression, with `all`, `recall` or a slice for KIND.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hap.evaluation import wording
from hap.evaluation.auc import RequestAuc, gauc
from hap.evaluation.evidence import ALL, BUDGETS, MEMBERS, RECALL, SLICED, Evidence, Finding, Quantity, guarded
from hap.evaluation.interval import Resampled, resample
from hap.evaluation.verdict import Outcome, Rule, Verdict
from hap.params import NEGATIVES, Gate

COUNTLESS = 10**9  # requests that no one waits for: a value lies on its limit then, give or take rounding
TAIL_DRAWS = 5  # draws expected beyond the strictest level of Holm: with fewer, no p-value could reach it


class Question(NamedTuple):
    """One rule that a bound judges."""

    sort: Literal["floor", "regression"]
    quantity: Quantity
    bound: float

    @property
    def name(self) -> str:
        return f"{self.quantity[0]}.{self.quantity[1]}.{self.sort}"


@dataclass(frozen=True, eq=False)
class Questions:
    """Every floor and regression rule, and what the requests say of each of the M that were measured."""

    asked: Sequence[Question]
    column: Mapping[Question, int]  # of `value` and `weight`; what was not measured has none
    value: NDArray[np.float64]  # [R, M]
    weight: NDArray[np.float64]  # [R, M]
    draws: int  # enough for Holm's strictest level


Judged = tuple[Resampled | None, Rule]


class Judgement(NamedTuple):
    """What the rules say, before it is written down as a verdict."""

    outcome: Outcome
    judged: Sequence[Judged]  # in the order of the questions
    once: Sequence[Rule]  # parity and budgets, measured once
    findings: Sequence[Finding]


def decide(evidence: Evidence, rules: Gate, seed: int = 0) -> Verdict:
    """Judge the evidence by the rules; any evidence gets a verdict, and only sound evidence can pass."""
    questions = ask(evidence, rules)
    drawn = resample(questions.value, questions.weight, questions.draws, seed) if questions.column else []
    verdict, judged, once, findings = judge(evidence, rules, questions, drawn)
    plain = [rule for _, rule in judged]
    return Verdict(
        version=evidence.version,
        against=evidence.against,
        day=evidence.days[-1] if evidence.days else "",
        days=evidence.days,
        verdict=verdict,
        reasons=tuple(wording.reasons(verdict, evidence, findings, plain)),
        rules=(*plain, *once),
        gauc=_table(evidence.challenger),
        champion_gauc=_table(evidence.champion) if evidence.against is not None else None,
        slices=_slices(evidence, rules),
        reported=_reported(evidence, rules, questions.asked, seed),
        whole={**evidence.whole, "guarded": evidence.against is not None and guards_recall(evidence, rules)} if evidence.whole else {},
        detail=dict(evidence.detail),
        requests=evidence.requests,
        positives=evidence.positives,
        manifests=dict(evidence.manifests),
        needs_requests=_needed(evidence, rules, judged, once) if verdict == "undecided" else None,
        alpha=rules.alpha,
        margin=rules.margin,
        draws=questions.draws,
        parity_max_abs_diff=_finite(evidence.parity_max_abs_diff),
        cost=dict(evidence.cost),
        evidence=evidence.digest(),
    )


def ask(evidence: Evidence, rules: Gate) -> Questions:
    """The rules that bounds judge, with the columns to draw from: a challenger's own GAUC for a floor, else its difference."""
    quantities = guarded(evidence.expressive_kinds)
    floors = {str(kind): floor for kind, floor in rules.floors.items()}
    # A kind without a floor has the floor 0: each quantity keeps a rule, so that an unmeasured one never passes.
    asked = [Question("floor", quantity, floors.get(quantity[1], 0.0)) for quantity in quantities]
    if evidence.against is not None:
        asked += [Question("regression", quantity, -rules.margin) for quantity in (*quantities, (SLICED, ALL))]
        asked += [Question("regression", (SLICED, name), -rules.slice_margin) for name in guarded_slices(evidence, rules)]
        if guards_recall(evidence, rules):
            asked.append(Question("regression", (SLICED, RECALL), -rules.recall.margin))
    value, weight = [], []
    column: dict[Question, int] = {}
    for question in asked:
        ours, theirs = evidence.challenger.get(question.quantity), evidence.champion.get(question.quantity)
        if ours is None or (question.sort == "regression" and theirs is None):
            continue
        column[question] = len(column)
        value.append(ours.auc - theirs.auc if question.sort == "regression" and theirs is not None else ours.auc)
        weight.append(ours.weight)
    draws = max(rules.bootstrap_draws, math.ceil(TAIL_DRAWS * len(asked) / rules.alpha))
    empty = np.zeros((evidence.requests, 0))
    return Questions(asked, column, np.stack(value, axis=1) if column else empty, np.stack(weight, axis=1) if column else empty, draws)


def judge(evidence: Evidence, rules: Gate, questions: Questions, drawn: Sequence[Resampled]) -> Judgement:
    """Every rule's outcome and what they come to. That parity or a budget was not measured is told where no broader finding says why.

    Args:
        drawn: [M] what was resampled of the questions' columns.
    """
    judged = _holm([_bounded(question, rules, questions, drawn) for question in questions.asked], rules.alpha)
    parity, parity_findings = _parity(evidence.parity_max_abs_diff, rules.max_parity)
    budgets, budget_findings = _budgets(evidence, rules)
    once = [finding for finding in (*parity_findings, *budget_findings) if finding.outcome == "refuse" or not evidence.findings]
    findings = [*evidence.findings, *_shortage(evidence, rules), *_unmeasured(evidence, judged, rules), *once]
    outcomes = {finding.outcome for finding in findings} | {rule.outcome for _, rule in judged}
    outcome: Outcome = "refuse" if "refuse" in outcomes else "undecided" if "undecided" in outcomes else "pass"
    return Judgement(outcome, judged, (*parity, *budgets), findings)


def _bounded(question: Question, rules: Gate, questions: Questions, drawn: Sequence[Resampled]) -> Judged:
    """One rule at level alpha; the outcome refuse is left to Holm."""
    if question not in questions.column:
        return None, Rule(question.name, None, None, None, question.bound, "undecided")
    result = drawn[questions.column[question]]
    interval = result.interval(rules.alpha)
    enough = result.requests >= rules.min_requests and result.weight >= rules.min_positives
    rule = Rule(
        question.name,
        _finite(interval.point),
        max(interval.lower, 0.0) if question.sort == "floor" else interval.lower,
        interval.upper,
        question.bound,
        "pass" if enough and interval.lower > question.bound else "undecided",
        result.p_below(question.bound) if enough else None,
        result.requests,
    )
    return result, rule


def guarded_slices(evidence: Evidence, rules: Gate) -> list[str]:
    """The slices with clicks enough to guard; the others are reported."""
    return [name for name, positives in evidence.slices.items() if positives >= rules.slice_min_positives]


def guards_recall(evidence: Evidence, rules: Gate) -> bool:
    """Whether Recall@K rests on clicks enough to judge; below it is reported."""
    measured = evidence.challenger.get((SLICED, RECALL))
    return measured is not None and measured.weight.sum() >= rules.recall.min_positives


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
        return [] if evidence.findings else [Finding("undecided", "no request was judged")]
    if not evidence.positives:
        return [Finding("undecided", f"none of the {evidence.requests:,} requests has a positive: every label is of one class")]
    short = []
    if evidence.clicked_requests < rules.min_requests:
        short.append(f"{evidence.clicked_requests:,} requests with a positive (gate.min_requests is {rules.min_requests:,})")
    if evidence.positives < rules.min_positives:
        short.append(f"{evidence.positives:,} positives (gate.min_positives is {rules.min_positives:,})")
    return [Finding("undecided", f"too little to decide: {' and '.join(short)}")] if short else []


def _unmeasured(evidence: Evidence, judged: Sequence[Judged], rules: Gate) -> list[Finding]:
    """Members not measured, kinds that are empty, and what rests on too little; silent where a broader finding says it already."""
    if not evidence.findings and any(result is None for result, _ in judged):
        absent = sorted({" on ".join(rule.name.split(".")[:2]) for result, rule in judged if result is None})
        return [Finding("undecided", f"not measured: {', '.join(absent)}")]
    if evidence.clicked_requests < rules.min_requests or evidence.positives < rules.min_positives:
        return []
    found = []
    by_name: dict[str, Resampled] = {}  # of all members alike
    for result, rule in judged:
        if result is not None:
            by_name.setdefault(rule.name.split(".")[1], result)
    for name, used in by_name.items():
        kind = " of this kind" if name in NEGATIVES else ""
        if not used.requests:
            found.append(Finding("undecided", f"{name}: no request holds both a positive and a negative{kind}"))
        elif used.requests < rules.min_requests or used.weight < rules.min_positives:
            rests = f"{name}: only {used.requests:,} requests with {used.weight:,.0f} positives hold {'this kind' if kind else 'it'}"
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


def _budgets(evidence: Evidence, rules: Gate) -> tuple[list[Rule], list[Finding]]:
    """What a version may take, where params.yaml sets a limit; measured once, so without bounds."""
    judged, found = [], []
    for name, words in BUDGETS.items():
        key = f"max_{name.split('.')[-1]}"  # the members' ages have one limit
        limit = getattr(rules, key)
        if limit is None:
            continue
        value = evidence.budgets.get(name)
        outcome: Outcome = "undecided" if value is None or not math.isfinite(value) else "pass" if value <= limit else "refuse"
        judged.append(Rule(name, _finite(value), None, None, limit, outcome))
        if value is None or outcome == "undecided":
            found.append(Finding("undecided", f"{name} was not measured, and gate.{key} is {limit:g}"))
        elif outcome == "refuse":
            found.append(Finding("refuse", f"{words.format(value)}, more than gate.{key} {limit:g}"))
    return judged, found


def _needed(evidence: Evidence, rules: Gate, judged: Sequence[Judged], once: Sequence[Rule]) -> int | None:
    """Requests that would decide if every value stayed as it is and intervals shrank with the square root; None: no number would.

    With a value below its limit, the quickest refusal; else the slowest pass.
    """
    unknown = "undecided" in {finding.outcome for finding in evidence.findings} | {rule.outcome for rule in once}
    if unknown or not evidence.clicked_requests:
        return None  # more of the same would not help
    passes, refusals, least = [], [], 1.0
    for result, rule in judged:
        if result is None or result.requests < 2:
            return None
        least = max(least, rules.min_requests / result.requests, rules.min_positives / result.weight)
        if rule.outcome == "pass":
            continue
        if rule.name.split(".")[1] == RECALL and evidence.whole_is_capped:
            passes.append(math.inf)  # another rule may refuse all the same
            continue
        gap = result.point - rule.bound
        if gap > 0:
            passes.append(((result.point - result.lower(rules.alpha)) / gap) ** 2)
        elif gap < 0:
            refusals.append(((result.upper(rules.alpha / len(judged)) - result.point) / gap) ** 2)
        else:
            return None
    needed = evidence.requests * max(least, min(refusals) if refusals else max(passes, default=1.0))
    return math.ceil(needed) if needed < COUNTLESS else None


def _table(measured: Mapping[Quantity, RequestAuc]) -> dict[str, dict[str, float | None]]:
    """GAUC by member and kind, and of all kinds together; null where nothing defines it."""
    table: dict[str, dict[str, float | None]] = {}
    for member in MEMBERS:
        row = {kind: measured.get((member, kind)) for kind in (*NEGATIVES, ALL)}
        table[member] = {kind: _finite(gauc(grouped)) if grouped is not None else None for kind, grouped in row.items()}
    return table


def _reported(evidence: Evidence, rules: Gate, asked: Sequence[Question], seed: int) -> dict[str, dict[str, float | None]]:
    """Every change against the champion that no rule judges, with its bounds."""
    judged = {question.quantity for question in asked if question.sort == "regression"}
    others = [quantity for quantity in evidence.challenger if quantity in evidence.champion and quantity not in judged]
    if not others:
        return {}
    change = np.stack([evidence.challenger[one].auc - evidence.champion[one].auc for one in others], axis=1)
    weight = np.stack([evidence.challenger[one].weight for one in others], axis=1)
    found = [one.interval(rules.alpha) for one in resample(change, weight, rules.bootstrap_draws, seed)]
    bounds = [{"value": _finite(one.point), "lower": one.lower, "upper": one.upper} for one in found]
    return {".".join(quantity): one for quantity, one in zip(others, bounds, strict=True)}


def _slices(evidence: Evidence, rules: Gate) -> dict[str, dict[str, Any]]:
    """What is known of each slice, guarded or not."""
    guards = set(guarded_slices(evidence, rules)) if evidence.against is not None else set()
    table = {}
    for name, positives in evidence.slices.items():
        ours, theirs = evidence.challenger.get((SLICED, name)), evidence.champion.get((SLICED, name))
        table[name] = {
            "positives": positives,
            "gauc": _finite(gauc(ours)) if ours is not None else None,
            "champion_gauc": _finite(gauc(theirs)) if theirs is not None else None,
            "guarded": name in guards,
        }
    return table


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
