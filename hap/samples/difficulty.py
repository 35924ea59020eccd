"""Sample kinds and difficulty buckets of a candidate, as Ibis expressions.

The kind follows from the last stage that a candidate reached and its label; the bucket splits
a kind by the position in the stage it came from (`Rank-50`: ranked below 50). hap.md, "The samples".
A candidate is logged once, with its last stage, so what is negative twice counts at the furthest stage.
"""

import math
from collections.abc import Collection
from fractions import Fraction

import ibis
import ibis.expr.types as ir

from hap.params import KINDS, Collect, Window

EP, EN, RN, PRN, GN = range(len(KINDS))
_NAMES = {RN: "Rank", PRN: "Prerank"}
_POSITIONS = {EP: "exposure_position", EN: "exposure_position", RN: "rank_position", PRN: "prerank_position"}


def exposed(candidates: ir.Table) -> ir.Table:
    """EP and EN, which differ by their label alone."""
    return candidates.filter(candidates.stage == "exposure")


def of_kind(candidates: ir.Table, kind: int) -> ir.Table:
    """RN reached ranking or re-ranking and was not exposed; PRN reached pre-ranking only."""
    stage = candidates.stage
    if kind == PRN:
        return candidates.filter(stage == "prerank")
    return candidates.filter(stage != "prerank", stage != "exposure")  # as `isin` a scan cannot skip rows by it


def position_of(candidates: ir.Table, kind: int) -> ir.IntegerColumn:
    """The position in the stage that the kind is named after; re-ranked items keep the one in ranking."""
    return candidates[_POSITIONS[kind]]


def windows(collect: Collect) -> dict[int, Window]:
    """The kinds that are sampled from a window of positions."""
    return {RN: collect.rank, PRN: collect.prerank}


def list_lengths(candidates: ir.Table, collect: Collect) -> ir.Table | None:
    """request_id and length_KIND, the length of each request's ranked and pre-ranked list; None where no edge is a share of it."""
    if not any(_is_share(edge) for window in windows(collect).values() for edge in (window.below, *window.edges)):
        return None
    lengths = {f"length_{kind}": position_of(candidates, kind).max() for kind in windows(collect)}
    return candidates.group_by("request_id").agg(**lengths)


def in_window(rows: ir.Table, window: Window) -> ir.BooleanValue:
    """Whether the row's `position` may be sampled; without a position a window keeps all of the kind."""
    return rows.position.isnull() | (_beyond(rows, window.below))


def bucket_of(rows: ir.Table, kind: int, collect: Collect) -> ir.StringValue:
    """The largest edge below the position names the bucket; a kind without positions is one bucket."""
    if kind not in _NAMES:
        return ibis.literal(KINDS[kind])
    name, edges = _NAMES[kind], sorted(windows(collect)[kind].edges, reverse=True)
    cases = [(rows.position.isnull(), name), *[(_beyond(rows, edge), f"{name}-{edge:g}") for edge in edges]]
    return ibis.cases(*cases, else_=f"{name}-0")


def empty_buckets(collect: Collect, known: Collection[str]) -> dict[str, int]:
    """Buckets that an edge declares and no row lies in, each with its kind; of kinds that have rows with positions.

    Args:
        known: the buckets that rows lie in.
    """
    return {
        name: kind
        for kind, window in windows(collect).items()
        if any(bucket.startswith(f"{_NAMES[kind]}-") for bucket in known)
        for name in (f"{_NAMES[kind]}-{edge:g}" for edge in _reachable(window))
        if name not in known
    }


def _reachable(window: Window) -> list[float]:
    """The edges that a position of the window can lie behind, with no larger one before it."""
    edges = sorted(window.edges)
    comparable = not window.below or all(_is_share(edge) == _is_share(window.below) for edge in edges)
    return [edge for edge, larger in zip(edges, [*edges[1:], math.inf], strict=True) if not comparable or larger > window.below]


def _is_share(edge: float) -> bool:
    return 0 < edge < 1


def _beyond(rows: ir.Table, edge: float) -> ir.BooleanValue:
    """Whether `position` is greater than the edge, in whole numbers: engines differ in how they round 0.29 * 100."""
    if _is_share(edge):
        share = Fraction(str(edge))
        return rows.position.cast("int64") * share.denominator > rows.list_length.cast("int64") * share.numerator
    return rows.position > math.floor(edge)
