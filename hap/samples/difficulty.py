"""Sample kinds and difficulty buckets of a candidate, as Ibis expressions.

The kind follows from the last stage that a candidate reached and its label; the bucket splits
a kind by the position in the stage it came from (`Rank-50`: ranked below 50). hap.md, "The samples".
"""

import ibis
import ibis.expr.types as ir

from hap.params import KINDS, Collect, Window

EP, EN, RN, PRN, GN = range(len(KINDS))
_NAMES = {RN: "Rank", PRN: "Prerank"}


def kind_of(stage: ir.StringValue, positive: ir.BooleanValue) -> ir.IntegerValue:
    """EP and EN are exposed; RN reached ranking or re-ranking; PRN reached pre-ranking only."""
    return ibis.cases(
        ((stage == "exposure") & positive, EP),
        (stage == "exposure", EN),
        (stage.isin(["rank", "rerank"]), RN),
        else_=PRN,
    ).cast("int8")


def windows(collect: Collect) -> dict[int, Window]:
    """The kinds that are sampled from a window of positions."""
    return {RN: collect.rank, PRN: collect.prerank}


def uses_shares(collect: Collect) -> bool:
    """Whether any window or bucket is given as a share of the stage's list."""
    return any(0 < edge < 1 for window in windows(collect).values() for edge in (window.below, *window.edges))


def _absolute(edge: float, list_length: ir.IntegerValue | None) -> ir.NumericValue:
    return list_length * edge if list_length is not None and 0 < edge < 1 else ibis.literal(edge)


def in_window(kind: ir.IntegerValue, position: ir.IntegerValue, list_length: ir.IntegerValue | None, collect: Collect) -> ir.BooleanValue:
    """Whether the candidate may be sampled; without a position a window keeps all of the kind."""
    inside = kind <= EN
    for code, window in windows(collect).items():
        below = position.isnull() | (position > _absolute(window.below, list_length))
        inside = inside | ((kind == code) & below)
    return inside


def bucket_of(kind: ir.IntegerValue, position: ir.IntegerValue, list_length: ir.IntegerValue | None, collect: Collect) -> ir.StringValue:
    """The largest edge below the position names the bucket; a kind without positions is one bucket."""
    cases = [(kind == EP, KINDS[EP]), (kind == EN, KINDS[EN]), (kind == GN, KINDS[GN])]
    for code, window in windows(collect).items():
        name = _NAMES[code]
        cases.append(((kind == code) & position.isnull(), name))
        for edge in sorted(window.edges, reverse=True):
            cases.append(((kind == code) & (position > _absolute(edge, list_length)), f"{name}-{edge:g}"))
        cases.append((kind == code, f"{name}-0"))
    return ibis.cases(*cases)
