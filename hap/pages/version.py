"""The page of one version: what it is, how well it ranks, what it costs, where it comes from, and the verdict. Also its model card.

Everything shown is read from the verdict, the bundle, and the training's record; nothing is measured here.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hap.days import parse_day
from hap.evaluation.evidence import ALL, BUDGETS, MEMBERS, SLICED
from hap.evaluation.verdict import Rule, Verdict
from hap.evaluation.wording import needed_text
from hap.pages import figures
from hap.pages.template import environment
from hap.params import MODELS, NEGATIVES
from hap.registry.versions import Version, label
from hap.serving.agreement import kind_of
from hap.serving.bundle import Bundle
from hap.training.conflict import draw_conflict

Spent = Mapping[str, Any]  # what a training took: spent/MODEL.json
SHOWN_CANDIDATES = 1000  # of a request, for operations
WHOLE_FIGURES = {
    "recall": "clicks found (Recall@K)",
    "hit_rate": "requests with a click found (hit rate)",
    "ndcg": "NDCG@K",
    "agreement": "first K shared with expressive on all",
    "rank_agreement": "rank correlation with expressive on all",
}
ORDINARY_SLICES = 12  # in the figure, the worst first; the table has all
NEXT = {
    "pass": "hapctl promote --model {model}",
    "refuse": "hapctl show {model}",
    "undecided": "hapctl gate run --model {model}",
}


@dataclass(frozen=True)
class Subject:
    """What a page is about."""

    registered: Version
    verdict: Verdict
    bundle: Bundle
    training: Mapping[str, Any] | None  # training.json of the version's run; None where the registry has none


def render(subject: Subject) -> str:
    """The page, one file with everything in it."""
    templates = environment().overlay()
    templates.filters = {**templates.filters, "figure": _figure, "signed": _signed, "plain": _plain}
    template = templates.get_template("version.html")
    verdict, training = subject.verdict, subject.training
    return template.render(
        label=label(verdict.version),
        against=label(verdict.against) if verdict.against is not None else None,
        verdict=verdict,
        registered=subject.registered,
        bundle=subject.bundle,
        training=training,
        models={name: training["models"][name] for name in MODELS} if training else {},
        spent=training["spent"] if training else {},
        kinds=NEGATIVES,
        members=MEMBERS,
        needed=needed_text(verdict),
        next_command=_next(verdict),
        quality=_quality(verdict),
        slices=_slices(verdict),
        whole_changes=_whole_changes(verdict) if verdict.whole else [],
        parity=subject.bundle.parity(),
        compared=_compared(subject.bundle.parity()),
        costs=_costs(subject),
        budgets={BUDGETS[rule.name].format(rule.value): rule for rule in verdict.rules if rule.name in BUDGETS and rule.value is not None},
        pictures=_pictures(subject),
    )


def _next(verdict: Verdict) -> str:
    """What to type now. The same requests would leave it undecided again, so where more of them decide it is a later day."""
    words = NEXT[verdict.verdict].format(model=label(verdict.version))
    return words if verdict.needs_requests is None else f"{words} --day {parse_day(verdict.day) + dt.timedelta(days=1)}"


def _rules(verdict: Verdict) -> dict[str, Rule]:
    return {rule.name: rule for rule in verdict.rules}


def _quality(verdict: Verdict) -> list[dict[str, Any]]:
    """A row for each member and kind: GAUC with its bounds, and the change against the champion with its own."""
    rules, rows = _rules(verdict), []
    for member in MEMBERS:
        for kind in (*NEGATIVES, ALL):
            value = verdict.gauc[member][kind]
            if value is None:
                continue
            before = (verdict.champion_gauc or {}).get(member, {}).get(kind)
            row = {"member": member, "kind": kind, "value": value, "champion": before}
            row |= {"floor": rules.get(f"{member}.{kind}.floor"), "regression": rules.get(f"{member}.{kind}.regression")}
            row["reported"] = verdict.reported.get(f"{member}.{kind}")
            rows.append(row)
    return rows


def _slices(verdict: Verdict) -> list[dict[str, Any]]:
    """Slices, the worst change first, each with its bounds; `rule` where it was judged."""
    rules = _rules(verdict)
    rows = []
    for name, one in verdict.slices.items():
        rule = rules.get(f"{SLICED}.{name}.regression")
        change = _bounds(rule) if rule else verdict.reported.get(f"{SLICED}.{name}", dict.fromkeys(("value", "lower", "upper")))
        rows.append({"name": name, **one, "change": change, "rule": rule})
    return sorted(rows, key=lambda row: (row["change"]["value"] is None, row["change"]["value"] or 0.0))


def _whole_changes(verdict: Verdict) -> list[dict[str, Any]]:
    """What whole requests tell of the cascade: its figures, those of expressive on all, and the change against the champion."""
    rules, rows = _rules(verdict), []
    for figure, title in WHOLE_FIGURES.items():
        rule = rules.get(f"{SLICED}.{figure}.regression")
        change = _bounds(rule) if rule else verdict.reported.get(f"{SLICED}.{figure}")
        on_all = verdict.whole["expressive_on_all"][figure]
        rows.append({"title": title, "value": verdict.whole[figure], "on_all": on_all, "change": change, "rule": rule})
    return rows


def _compared(parity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The golden requests by kind, real ones as one: the worst of each figure."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for one in parity["by_request"]:
        kinds.setdefault(kind_of(one["name"]), []).append(one)
    rows = []
    for kind, found in kinds.items():
        sizes = sorted(one["candidates"] for one in found)
        row = {"name": f"{len(found)} {kind} requests" if len(found) > 1 else found[0]["name"], "least": sizes[0], "most": sizes[-1]}
        row["max_abs_diff"] = max(one["max_abs_diff"] for one in found)
        row["misrouted"] = sum(one["misrouted"] for one in found)
        row |= {name: min(one[name] for one in found) for name in ("top_overlap", "routing_agreement")}
        rows.append(row)
    return rows


def _costs(subject: Subject) -> list[dict[str, Any]]:
    """What serving and training take: light alone, the cascade, expressive on all; and what each .001 of GAUC above light costs."""
    cost, verdict = subject.bundle.cost(), subject.verdict
    operations = {
        name: cost["operations"][name]["per_request"] + SHOWN_CANDIDATES * cost["operations"][name]["per_candidate"] for name in MODELS
    }
    budget = _rules(verdict).get("operations")
    cascade = budget.value * operations["expressive"] if budget and budget.value is not None else None
    spent: Mapping[str, Spent] = subject.training["spent"] if subject.training else {}
    rows = [
        _cost_row("light alone", "light", verdict, operations["light"], cost["bytes"]["light.onnx"], None, [spent.get("light")]),
        _cost_row(
            "cascade", SLICED, verdict, cascade,
            sum(cost["bytes"][f"{name}.onnx"] for name in ("light", "hard_select", "expressive")),
            cost["in_process"]["cpu_ms"]["hap"], [spent.get(name) for name in MODELS],
        ),
        _cost_row(
            "expressive on all", "expressive", verdict, operations["expressive"], cost["bytes"]["expressive_all.onnx"],
            cost["in_process"]["cpu_ms"]["expressive_all"], [spent.get("expressive")],
        ),
    ]  # fmt: skip
    first = rows[0]
    for row in rows[1:]:
        thousandths = (row["gauc"] - first["gauc"]) * 1000 if row["gauc"] is not None and first["gauc"] is not None else 0.0
        if thousandths > 0:
            row["per_thousandth"] = {
                name: (row[name] - first[name]) / thousandths if row[name] is not None and first[name] is not None else None
                for name in ("operations", "bytes", "cpu_s")
            }
    return rows


def _cost_row(
    name: str, member: str, verdict: Verdict, operations: float | None, size: int, cpu_ms: float | None, spent: Sequence[Spent | None]
) -> dict[str, Any]:
    known = [one for one in spent if one is not None]
    whole = len(known) == len(spent)
    return {
        "name": name,
        "gauc": verdict.gauc[member][ALL],
        "operations": operations,
        "bytes": size,
        "cpu_ms": cpu_ms,
        "cpu_s": sum(one["cpu_s"] for one in known) if whole else None,
        "peak_mb": max(one["peak_mb"] for one in known) if whole else None,
        "per_thousandth": None,
    }


def _pictures(subject: Subject) -> dict[str, str]:
    """The figures by name, as data URIs; one without data is left out."""
    verdict, drawn = subject.verdict, {}
    rows = _quality(verdict)
    by_member = {member: [_level(row) for row in rows if row["member"] == member and row["kind"] != ALL] for member in MEMBERS}
    if by_member := {member: found for member, found in by_member.items() if found}:
        drawn["levels"] = figures.picture(lambda: figures.levels(by_member))
    if verdict.against is not None:
        compared = {member: [_change(row) for row in rows if row["member"] == member and row["regression"]] for member in MEMBERS}
        if compared := {member: found for member, found in compared.items() if found}:
            drawn["changes"] = figures.picture(lambda: figures.changes(compared, -verdict.margin))
        judged = [row for row in _slices(verdict) if row["rule"]][:ORDINARY_SLICES]
        if judged:
            sliced = {"cascade, by slice": [_slice_change(row) for row in judged]}
            drawn["slices"] = figures.picture(lambda: figures.changes(sliced, judged[0]["rule"].bound))
    buckets = verdict.detail.get("buckets", {})
    if len(buckets) > len({one["kind"] for one in buckets.values()}):
        by_bucket = {
            member: [_bucket(name, one, member) for name, one in buckets.items() if member in one["members"]] for member in MEMBERS
        }
        if by_bucket := {member: found for member, found in by_bucket.items() if found}:
            drawn["buckets"] = figures.picture(lambda: figures.levels(by_bucket))
    if verdict.whole:
        best = verdict.whole["best"]["share"] if verdict.whole["best"] else None
        whole = verdict.whole
        drawn["routing"] = figures.picture(lambda: figures.routing(whole["curve"], whole["k"], whole["routed_share"], best))
    diagrams = {model: bins for model, bins in verdict.detail.get("reliability", {}).items() if bins["rows"]}
    if diagrams:
        drawn["reliability"] = figures.picture(lambda: figures.reliability(diagrams))
    if subject.training:
        models = {name: subject.training["models"][name] for name in MODELS}
        drawn["training"] = figures.picture(lambda: figures.training(models))
        for name, seen in models.items():
            if looks := seen["curves"]["conflict"]:
                drawn[f"conflict-{name}"] = figures.picture(partial(draw_conflict, looks, f"{name}: norms"))
    return drawn


def _level(row: Mapping[str, Any]) -> dict[str, Any]:
    floor: Rule | None = row["floor"]
    bounds = {"lower": floor.lower if floor else None, "upper": floor.upper if floor else None}
    return {"name": row["kind"], "value": row["value"], "champion": row["champion"], "colour": figures.KIND_COLOURS[row["kind"]], **bounds}


def _change(row: Mapping[str, Any]) -> dict[str, Any]:
    rule: Rule = row["regression"]
    name = "all kinds" if row["kind"] == ALL else row["kind"]
    return {"name": name, "colour": figures.KIND_COLOURS.get(row["kind"], figures.INK), **_bounds(rule)}


def _slice_change(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": row["name"], "colour": figures.MEMBER_COLOURS[SLICED], **row["change"]}


def _bounds(rule: Rule) -> dict[str, float | None]:
    return {"value": rule.value, "lower": rule.lower, "upper": rule.upper}


def _bucket(name: str, one: Mapping[str, Any], member: str) -> dict[str, Any]:
    found = one["members"][member]
    value, change = found["value"]["value"], found.get("change", {}).get("value")
    champion = value - change if value is not None and change is not None else None
    return {"name": name, "champion": champion, "colour": figures.KIND_COLOURS[one["kind"]], **found["value"]}


def _figure(value: float | None, digits: int = 3) -> str:
    """.031, or a dash for what is undefined."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:+.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:+.{digits}f}"


def _plain(value: float | None) -> str:
    """A quantity of any size, three digits of it: 1.23 M, 4.56 k, 0.123."""
    if value is None:
        return "–"
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
