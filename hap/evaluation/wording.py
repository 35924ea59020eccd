"""A verdict in words: the sentences that carry it, and all of it on one screen."""

from collections.abc import Mapping, Sequence

from hap.evaluation.evidence import ALL, BUDGETS, MEMBERS, RECALL, SLICED, Evidence, Finding
from hap.evaluation.verdict import Outcome, Rule, Verdict
from hap.params import NEGATIVES

SHOWN_REASONS = 8  # on one screen; verdict.json has them all


def reasons(verdict: Outcome, evidence: Evidence, findings: Sequence[Finding], judged: Sequence[Rule]) -> list[str]:
    """Sentences, the ones that carry the verdict and no others."""
    said = [finding.text for finding in findings if finding.outcome == verdict]
    said += [
        _sentence(rule, verdict, evidence) for rule in judged if rule.outcome == verdict and rule.p_value is not None and verdict != "pass"
    ]
    if evidence.against is None:
        said.append("there is no champion to compare with, so only floors were judged")
    if verdict == "pass":
        said.insert(0, _pass_sentence(evidence, judged))
    return said


def _sentence(rule: Rule, verdict: Outcome, evidence: Evidence) -> str:
    member, kind, sort = rule.name.split(".")
    value, lower, upper = rule.value or 0.0, rule.lower or 0.0, rule.upper or 0.0
    if sort == "floor":
        level = f"{member}: {_what(kind)} is {_number(value)} [{_number(lower)}, {_number(upper)}]"
        return f"{level}, {'below' if verdict == 'refuse' else 'too uncertain against'} the floor {_number(rule.bound)}"
    if verdict == "refuse":
        loss = f"fell by {_number(-value)} [{_number(-upper)}, {_number(-lower)}]"
        return f"{member}: {_what(kind)} {loss}, more than the margin {_number(-rule.bound)}"
    change = f"changed by {value:+.3f} [{lower:+.3f}, {upper:+.3f}]".replace("0.", ".")
    said = f"{member}: {_what(kind)} {change}, which neither shows nor excludes a loss of more than {_number(-rule.bound)}"
    if kind == RECALL and evidence.whole_is_capped:
        said += f"; it rests on {evidence.whole['requests']:,} requests, and gate.recall.requests lets in no more"
    return said


def _what(kind: str) -> str:
    """The figure that a rule of this name judges."""
    return "Recall@K" if kind == RECALL else f"GAUC on {kind}"


def _pass_sentence(evidence: Evidence, judged: Sequence[Rule]) -> str:
    """What was passed, and the rule that came closest to its limit."""
    sort = "floor" if evidence.against is None else "regression"
    closest = min((rule for rule in judged if rule.name.endswith(sort)), key=lambda rule: (rule.lower or 0.0) - rule.bound)
    member, kind, _ = closest.name.split(".")
    lower = closest.lower or 0.0
    if evidence.against is None:
        count = f"all {len(judged)} GAUC lie above their floors"
        return f"{count}; closest is {member} on {kind}, at least {_number(lower)} against {_number(closest.bound)}"
    compared = [rule for rule in judged if rule.name.endswith("regression")]
    slices = sum(rule.name.split(".")[1] not in (*NEGATIVES, ALL, RECALL) for rule in compared)
    recall = any(rule.name.split(".")[1] == RECALL for rule in compared)
    named = [f"{len(compared) - slices - recall} guarded GAUC"]
    named += [f"{slices} slice{'s' * (slices > 1)}"] * bool(slices) + ["Recall@K"] * recall
    guarded = ", ".join(named)
    count = f"no worse than v{evidence.against} on all {guarded}, and above every floor"
    worst = f"a loss of at most {_number(-lower)}" if lower < 0 else f"a gain of at least {_number(lower)}" if lower > 0 else "no loss"
    return f"{count}; closest is {member} on {kind}: {worst}, with {_number(-closest.bound)} allowed"


def needed_text(verdict: Verdict) -> str | None:
    """How many requests would decide, to two digits; None where no number is known."""
    if verdict.needs_requests is None:
        return None
    return f"about {float(f'{verdict.needs_requests:.2g}'):,.0f} requests would decide, if the values stay as they are"


def verdict_text(verdict: Verdict) -> str:
    """The verdict on one screen, for a person."""
    compared = "no champion, floors only" if verdict.against is None else f"against v{verdict.against}"
    days = verdict.days[0] if len(verdict.days) == 1 else f"{verdict.days[0]} to {verdict.days[-1]}" if verdict.days else "no day"
    lines = [
        f"v{verdict.version}: {verdict.verdict.upper()} ({compared})",
        f"judged on {days}: {verdict.requests:,} requests, {verdict.positives:,} positives",
        *[f"  - {reason}" for reason in verdict.reasons[:SHOWN_REASONS]],
    ]
    if (more := len(verdict.reasons) - SHOWN_REASONS) > 0:
        lines.append(f"  - and {more} more in verdict.json")
    if needed := needed_text(verdict):
        lines.append(f"  - {needed}")
    lines += ["", "GAUC         " + "".join(f"{kind:<26}" for kind in NEGATIVES).rstrip()]
    rules = {rule.name: rule for rule in verdict.rules}
    for member in MEMBERS:
        cells = [
            _cell(verdict.gauc[member][kind], rules.get(f"{member}.{kind}.regression"), rules.get(f"{member}.{kind}.floor"))
            for kind in NEGATIVES
        ]
        lines.append(f"{member:<13}" + "".join(f"{cell:<26}" for cell in cells).rstrip())
    lines.append(f"each cell: GAUC and its change against the champion, each bound at {1 - verdict.alpha:.0%}; ! refused, ? undecided")
    if overall := rules.get(f"{SLICED}.{ALL}.regression"):
        lines.append(f"{SLICED} on all kinds together, change: {_change(overall)}")
    if verdict.slices:
        lines.append(_slices_line(verdict, rules))
    if verdict.whole:
        lines.append(_recall_line(verdict, rules))
    budgets = {rule.name: rule for rule in verdict.rules if rule.name in BUDGETS}
    lines += [f"{BUDGETS[name].format(rule.value)}, at most {rule.bound:g}" for name, rule in budgets.items() if rule.value is not None]
    if verdict.parity_max_abs_diff is not None:
        lines.append(f"parity: {verdict.parity_max_abs_diff:.2g} at most between the exported graphs and PyTorch")
    return "\n".join(lines)


def _slices_line(verdict: Verdict, rules: Mapping[str, Rule]) -> str:
    """How many slices were judged, and the one that fared worst."""
    guards = [name for name, one in verdict.slices.items() if one["guarded"]]
    small = len(verdict.slices) - len(guards)
    said = f"slices: {len(guards)} guarded" + (f", {small} reported only (no champion, or too few clicks)" if small else "")
    changes = {name: rules[f"cascade.{name}.regression"] for name in guards}
    known = {name: rule for name, rule in changes.items() if rule.value is not None}
    if not known:
        return said
    worst = min(known, key=lambda name: known[name].value or 0.0)
    return f"{said}; lowest change on {worst}: {_change(known[worst])}"


def _recall_line(verdict: Verdict, rules: Mapping[str, Rule]) -> str:
    """What the cascade finds of the clicks, and whether that was judged."""
    whole = verdict.whole
    said = f"Recall@{whole['k']} of the cascade: {_number(whole['recall'])}, {whole['relative']:.1%} of expressive on all"
    said += f" ({whole['requests']:,} requests, {whole['positives']:,} clicks, {whole['routed_share']:.0%} routed)"
    if rule := rules.get(f"{SLICED}.{RECALL}.regression"):
        return f"{said}; change {_change(rule)}"
    if change := verdict.reported.get(f"{SLICED}.{RECALL}"):
        said += f"; change {_bounded(change['value'], change['lower'], change['upper'])}"
    return said if verdict.against is None else f"{said}; reported only (too few clicks)"


def _change(rule: Rule) -> str:
    return _bounded(rule.value, rule.lower, rule.upper)


def _bounded(value: float | None, lower: float | None, upper: float | None) -> str:
    """-.004 [-.009,+.001]"""
    if value is None or lower is None or upper is None:
        return "not measured"
    return f"{value:+.3f} [{lower:+.3f},{upper:+.3f}]".replace("0.", ".")


def _cell(value: float | None, regression: Rule | None, floor: Rule | None) -> str:
    outcomes = {rule.outcome for rule in (regression, floor) if rule}
    mark = "!" if "refuse" in outcomes else "?" if "undecided" in outcomes else ""
    text = "-" if value is None else _number(value)
    if regression and regression.value is not None:
        text += f" {_change(regression)}"
    return text + mark


def _number(value: float) -> str:
    """Three decimals without the leading zero, as GAUC is read: .031"""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
