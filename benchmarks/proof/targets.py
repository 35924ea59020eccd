"""What was asked, answered from the measured figures: a claim, whether the intervals carry it, and the sentence that says so.

An answer is yes, no, or open: open where an interval holds both, or where trials are missing. What a world was not asked has none.
"""

from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.proof.study import SHOWN_AT
from benchmarks.proof.variants import COMPARED, DISTILLED, OURS, PUBLISHED
from hap.evaluation.cascade import SHARES

Answer = Literal["yes", "no", "open"]
Found = dict[str, Any]
RIVALS = ("infonce+bce", "bce")
EASIER = ("RN", "PRN", "GN")  # than EN, where GHCL need only not be worse
GAIN = 0.01  # asked of the expressive model
ROUTED, KEPT, COST = 0.3, 0.995, 0.4
MISSING = "the trials for it are not finished"
ROUTES = {"light": "", "distilled": " by the distilled light model", "published": " by the published light model"}


def answer_all(world: Found) -> list[Found]:
    """Every question, of one world's results; once all of its trials are finished, those that they can answer."""
    answers = []
    for model in COMPARED:
        for rival in RIVALS:
            difference = world["differences"].get(model, {}).get(rival)
            answers += [_above(model, rival, difference), _not_below(model, rival, difference)]
            if model == "expressive":
                answers.append(_by_at_least(model, rival, difference))
    beyond = world["beyond"].get("light", {})
    answers.append(_interests(beyond.get(OURS + PUBLISHED)))
    answers.append(_distilled(beyond.get(DISTILLED)))
    answers += [_keeps(world["routing"], curve) for curve in ROUTES]
    answers += [_costs(world["routing"]), _more_is_worse(world["routing"])]
    answers.append(_gap_grows(world["size_gap"], world["size_gap_differences"]))
    whole = world["trials"]["finished"] == world["trials"]["planned"]
    return [one for one in answers if not whole or one["sentence"] != MISSING]


def _above(model: str, rival: str, difference: Found | None) -> Found:
    asked = f"{model}: {OURS} above {rival} on RN, PRN and GN"
    if difference is None:
        return _missing(asked)
    answer = _all([_sign(difference[kind]) for kind in EASIER])
    return _said(asked, answer, "; ".join(f"{kind} {shown(difference[kind], sign=True)}" for kind in EASIER))


def _not_below(model: str, rival: str, difference: Found | None) -> Found:
    asked = f"{model}: {OURS} not below {rival} on EN"
    if difference is None:
        return _missing(asked)
    one = difference["EN"]
    answer: Answer = "no" if one["hi"] < 0 else "yes" if one["lo"] >= 0 else "open"
    more = {"no": "it is below", "yes": "it is not", "open": f"no loss is shown, and a loss of {max(-one['lo'], 0):.4f} is not ruled out"}
    return _said(asked, answer, f"EN {shown(one, sign=True)}: {more[answer]}")


def _by_at_least(model: str, rival: str, difference: Found | None) -> Found:
    asked = f"{model}: {OURS} above {rival} by at least {GAIN} on RN, PRN and GN"
    if difference is None:
        return _missing(asked)
    answer = _all([_sign(difference[kind], GAIN) for kind in EASIER])
    values = ", ".join(f"{kind} {difference[kind]['value']:+.4f}" for kind in EASIER)
    reached = sum(difference[kind]["value"] >= GAIN for kind in EASIER)
    certain = sum(difference[kind]["lo"] >= GAIN for kind in EASIER)
    return _said(asked, answer, f"{values}: {reached} of {len(EASIER)} values reach it, {certain} with their whole interval")


def _interests(published: Found | None) -> Found:
    asked = "light, with interests: above the published light model on every kind"
    if published is None:
        return _missing(asked)
    difference = {kind: {"value": -one["value"], "lo": -one["hi"], "hi": -one["lo"]} for kind, one in published.items()}
    answer = _all([_sign(one) for one in difference.values()])
    return _said(asked, answer, "; ".join(f"{kind} {shown(one, sign=True)}" for kind, one in difference.items()))


def _distilled(difference: Found | None) -> Found:
    asked = f"light, distilled from expressive: above {OURS} alone on every kind"
    if difference is None:
        return _missing(asked)
    answer = _all([_sign(one) for one in difference.values()])
    return _said(asked, answer, "; ".join(f"{kind} {shown(one, sign=True)}" for kind, one in difference.items()))


def _keeps(routing: Found | None, curve: str) -> Found:
    asked = f"routing {ROUTED:.0%}{ROUTES[curve]}: at least {KEPT:.1%} of expressive-on-all's Recall@{SHOWN_AT}"
    if routing is None or curve not in routing["curves"]:
        return _missing(asked)
    one = point(routing, curve, ROUTED)[f"at_{SHOWN_AT}"]["relative"]
    by_value, surely = (_least_share(routing["curves"][curve], edge) for edge in ("value", "lo"))
    return _said(
        asked,
        _sign(one, KEPT),
        f"it keeps {shown(one, digits=3)}; least share that does: {by_value} by the value, {surely} by the lower bound",
    )


def _least_share(curve: list[Found], edge: str) -> str:
    """The least routed share from which on KEPT of the recall is kept up to 100%, by the value or the interval's edge."""
    enough = None
    for one in reversed(curve):
        if not one[f"at_{SHOWN_AT}"]["relative"][edge] >= KEPT:
            break
        enough = one["share"]
    return "none" if enough is None else f"{enough:.0%}"


def _costs(routing: Found | None) -> Found:
    asked = f"routing {ROUTED:.0%}: at most {COST} of expressive-on-all's operations"
    if routing is None:
        return _missing(asked)
    ratio = point(routing, "light", ROUTED)["flops_ratio"]
    return _said(
        asked, "yes" if ratio <= COST else "no", f"{ratio:.3f} of them, at {routing['candidates']:.0f} candidates a request on average"
    )


def _more_is_worse(routing: Found | None) -> Found:
    asked = f"expressive trained on hard kinds only: Recall@{SHOWN_AT} is highest below 100% routed"
    if routing is None or "hard" not in routing["curves"]:
        return _missing(asked)
    peak = routing["peak"]["hard"][str(SHOWN_AT)]
    answer = "no" if peak["share"] == SHARES[-1] else _sign(peak["above_all"])
    return _said(
        asked,
        answer,
        f"highest at {peak['share']:.0%}, above 100% by {shown(peak['above_all'], sign=True)}; the share is chosen on the same requests",
    )


def _gap_grows(gap: Found | None, between: Found | None) -> Found:
    asked = "heavy over published light: a larger gain on each hard kind (EN, RN) than on each easy one (PRN, GN)"
    if gap is None or between is None:
        return _missing(asked)
    gains = ", ".join(f"{kind} {one['value']:+.4f}" for kind, one in gap.items())
    pairs = "; ".join(f"{pair.replace('|', ' above ')} {shown(one, sign=True)}" for pair, one in between.items())
    return _said(asked, _all([_sign(one) for one in between.values()]), f"gains {gains}. {pairs}")


def point(routing: Found, curve: str, share: float) -> Found:
    """A curve's point at a share."""
    found: Found = next(one for one in routing["curves"][curve] if one["share"] == share)
    return found


def shown(one: Found, digits: int = 4, sign: bool = False) -> str:
    """value [lo, hi]"""
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{one['value']:{form}} [{one['lo']:{form}}, {one['hi']:{form}}]"


def _sign(one: Found, limit: float = 0.0) -> Answer:
    """Whether the interval lies above the limit, below it, or holds it; no interval decides nothing."""
    return "yes" if one["lo"] > limit else "no" if one["hi"] < limit else "open"


def _all(answers: Sequence[Answer]) -> Answer:
    return "no" if "no" in answers else "yes" if all(answer == "yes" for answer in answers) else "open"


def _said(asked: str, answer: Answer, sentence: str) -> Found:
    return {"asked": asked, "answer": answer, "sentence": sentence}


def _missing(asked: str) -> Found:
    return _said(asked, "open", MISSING)
