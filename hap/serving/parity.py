"""Whether a served answer is the golden one: scores, route and order, with equal candidates at the cut told from real differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hap.serving.bundle import Golden

TIE = 1e-5  # light logits closer than this, relative above 1, may fall on either side of the cut
TOP = 20


@dataclass(frozen=True)
class Parity:
    """One request against its golden answer.

    max_abs_diff: largest score difference among candidates routed alike.
    order_agreement: share of neighbours in the golden order, apart by more than TIE, that keep their order.
    top_overlap: share of the golden top 20 found in the top 20.
    routing_agreement: share of candidates routed alike; `ties` are those that differ and lie at the cut, `misrouted` the others.
    """

    name: str
    candidates: int
    max_abs_diff: float
    order_agreement: float
    top_overlap: float
    routing_agreement: float
    ties: int
    misrouted: int


def compare(golden: Golden, score: NDArray[np.float32], routed: NDArray[np.bool_]) -> Parity:
    """Score F32[N] and routed BOOL[N] against the golden answer; a NaN or a wrong length is an infinite difference."""
    count = len(golden.score)
    if len(score) != count or len(routed) != count or np.isnan(score).any():
        return Parity(golden.name, count, float("inf"), 0.0, 0.0, 0.0, 0, count)
    if not count:
        return Parity(golden.name, 0, 0.0, 1.0, 1.0, 1.0, 0, 0)
    alike = routed == golden.routed
    tied = ~alike & _at_the_cut(golden)
    difference = np.abs(score.astype(np.float64) - golden.score)[alike]
    order = np.argsort(-golden.score[alike], kind="stable")
    expected, found = golden.score[alike][order], score[alike][order]
    apart = expected[:-1] - expected[1:] > TIE
    top = min(TOP, count)
    shared = set(np.argsort(-golden.score, kind="stable")[:top].tolist()) & set(np.argsort(-score, kind="stable")[:top].tolist())
    return Parity(
        name=golden.name,
        candidates=count,
        max_abs_diff=float(difference.max()) if len(difference) else 0.0,
        order_agreement=float((found[:-1] > found[1:])[apart].mean()) if apart.any() else 1.0,
        top_overlap=len(shared) / top,
        routing_agreement=float(alike.mean()),
        ties=int(tied.sum()),
        misrouted=int((~alike & ~tied).sum()),
    )


def asked(golden: Sequence[Golden]) -> list[tuple[str, Golden]]:
    """(ensemble, request) as callers ask: `hap` for every request, and `hap_all` where everything is routed."""
    return [(ensemble, entry) for entry in golden for ensemble in (("hap", "hap_all") if entry.routed.all() else ("hap",))]


def summary(found: Sequence[Parity]) -> dict[str, Any]:
    """The worst of each figure, and in `worst` the request that lies furthest off."""
    worst = max(found, key=lambda entry: (entry.misrouted, entry.max_abs_diff))
    return {
        "requests": len(found),
        "max_abs_diff": max(entry.max_abs_diff for entry in found),
        "order_agreement": min(entry.order_agreement for entry in found),
        "top_overlap": min(entry.top_overlap for entry in found),
        "routing_agreement": min(entry.routing_agreement for entry in found),
        "ties": sum(entry.ties for entry in found),
        "misrouted": sum(entry.misrouted for entry in found),
        "worst": worst.name,
    }


def fault(found: Mapping[str, Any], system: str, reference: str, tolerance: float) -> str | None:
    """What is wrong with a `summary`, in words that a person acts on; None where it agrees."""
    if found["max_abs_diff"] <= tolerance and not found["misrouted"]:  # NaN is no agreement
        return None
    return (
        f"{system} differs by {found['max_abs_diff']:.2g} from {reference} with {found['misrouted']} misrouted candidates "
        f"(worst: {found['worst']}); gate.max_parity allows {tolerance:g}"
    )


def _at_the_cut(golden: Golden) -> NDArray[np.bool_]:
    """BOOL[N]: candidates whose light logit is that of the last one routed or the first one not."""
    known = ~np.isnan(golden.light)
    edges = [part for part in (golden.light[golden.routed & known], golden.light[~golden.routed & known]) if len(part)]
    if len(edges) < 2:
        return np.zeros(len(golden.light), bool)
    last, first = edges[0].min(), edges[1].max()
    slack = TIE * max(1.0, abs(float(last)))
    return (golden.light >= first - slack) & (golden.light <= last + slack) & (abs(last - first) <= 2 * slack)
