"""How often the gate errs on data like this: verdicts on pairs of models whose true difference is known.

A population is the judged requests with the scores of several models that differ by their seed alone. A pair is two of them
and n requests drawn from the population. Before drawing, the differences of each quantity are shifted so that their mean over the
population is what is wanted, exactly: 0, or -margin for one quantity (in turn) with the others at 0, or +margin for all. The shape of
the differences stays as it is between retrained models. Harm sits in one quantity since that is the hardest to see: a challenger that
is worse everywhere fails many rules at once. Slices and Recall@K are not among the rules here.

Letters: R requests of the population, n of a pair, Q guarded quantities.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hap.errors import UsageError
from hap.evaluation.auc import RequestAuc
from hap.evaluation.evidence import ALL, BUDGETS, SLICED, Evidence, Quantity, guarded
from hap.evaluation.gate import decide
from hap.evaluation.interval import resample
from hap.params import Gate

DELTAS = ("minus_margin", "zero", "plus_margin")
OUTCOMES = ("pass", "refuse", "undecided")
AA_PASSES, HARM_PASSES = 0.95, 0.05  # what the smallest size must reach
COVERED = 0.95  # of the intervals whose coverage is counted

Table = Mapping[Quantity, RequestAuc]


@dataclass(frozen=True)
class Population:
    """AUC of each judged request by quantity, of several models on the same requests."""

    tables: Sequence[Table]
    expressive_kinds: tuple[str, ...]

    @property
    def requests(self) -> int:
        """Judged requests R."""
        return len(next(iter(self.tables[0].values())).auc)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What regression rules guard."""
        return (*guarded(self.expressive_kinds), (SLICED, ALL))


@dataclass(frozen=True)
class Pair:
    """A champion, and a challenger that differs from it by what is known."""

    evidence: Evidence
    truth: Mapping[Quantity, float]


def calibrate(
    population: Population,
    rules: Gate,
    sizes: Sequence[int],
    pairs: int,
    coverage_pairs: int,
    seed: int,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Rates of each verdict by size and true difference, of the gate and of a threshold on the plain differences.

    Args:
        sizes: requests of a pair.
        pairs: for each size and true difference.
        coverage_pairs: pairs of the population's own size on which intervals are counted.
        report: told (done, of) after each size and difference.

    Raises:
        UsageError: fewer than two models, which cannot differ.
    """
    if len(population.tables) < 2:
        raise UsageError("one model cannot be paired; calibrate with two seeds or more")
    rates: dict[str, Any] = {}
    threshold: dict[str, Any] = {}
    steps, done = len(sizes) * len(DELTAS), 0
    for size in sorted(sizes):
        rates[str(size)], threshold[str(size)] = {}, {}
        for delta in DELTAS:
            verdicts: list[str] = []
            plain: list[str] = []
            for pair in draw_pairs(population, rules, size, delta, pairs, seed):
                verdict = decide(pair.evidence, rules, seed)
                verdicts.append(verdict.verdict)
                changes = [rule.value for rule in verdict.rules if rule.name.endswith(".regression")]
                plain.append("pass" if all(value is not None and value > -rules.margin for value in changes) else "refuse")
            rates[str(size)][delta] = {name: verdicts.count(name) / len(verdicts) for name in OUTCOMES}
            threshold[str(size)][delta] = {name: plain.count(name) / len(plain) for name in OUTCOMES[:2]}
            done += 1
            if report:
                report(done, steps)
    return {
        "margin": rules.margin,
        "alpha": rules.alpha,
        "models": len(population.tables),
        "requests": population.requests,
        "pairs": pairs,
        "rates": rates,
        "threshold": threshold,
        "smallest_requests": smallest(rates),
        "threshold_smallest_requests": smallest(threshold),
        "coverage": coverage(population, rules, coverage_pairs, seed),
    }


def smallest(rates: Mapping[str, Any]) -> int | None:
    """The least size from which on equal models pass at least 95% and harm of the margin passes at most 5%; None: none tried."""
    found = None
    for size in sorted(map(int, rates), reverse=True):
        at = rates[str(size)]
        if at["zero"]["pass"] < AA_PASSES or at["minus_margin"]["pass"] > HARM_PASSES:
            break
        found = size
    return found


def draw_pairs(population: Population, rules: Gate, size: int, delta: str, pairs: int, seed: int) -> Iterator[Pair]:
    """Pairs of two of the models, in turn, on `size` requests drawn with replacement."""
    order = list(permutations(range(len(population.tables)), 2))
    for place in range(pairs):
        champion, challenger = order[place % len(order)]
        rng = np.random.default_rng([seed, size, DELTAS.index(delta), place])
        harmed = population.quantities[place % len(population.quantities)]
        wanted = {
            quantity: rules.margin if delta == "plus_margin" else -rules.margin if delta == "minus_margin" and quantity == harmed else 0.0
            for quantity in population.quantities
        }
        rows = rng.integers(0, population.requests, size)
        yield _pair(population, champion, challenger, wanted, rows)


def _pair(population: Population, champion: int, challenger: int, truth: Mapping[Quantity, float], rows: NDArray[np.int64]) -> Pair:
    ours: dict[Quantity, RequestAuc] = {}
    theirs: dict[Quantity, RequestAuc] = {}
    for quantity, shift in truth.items():
        base, other = population.tables[champion][quantity], population.tables[challenger][quantity]
        difference = other.auc - base.auc
        mean = np.nansum(difference * base.weight) / base.weight.sum() if base.weight.sum() else 0.0
        weight = base.weight[rows]
        theirs[quantity] = RequestAuc(base.auc[rows], weight)
        ours[quantity] = RequestAuc((base.auc + difference - mean + shift)[rows], weight)
    positives = theirs[SLICED, ALL].weight
    evidence = Evidence(
        version=2,
        against=1,
        days=("",),
        manifests=("",),
        expressive_kinds=population.expressive_kinds,
        requests=len(rows),
        clicked_requests=int((positives > 0).sum()),
        positives=int(positives.sum()),
        challenger=ours,
        champion=theirs,
        parity_max_abs_diff=0.0,
        budgets=dict.fromkeys(BUDGETS, 0.0),
    )
    return Pair(evidence, truth)


def coverage(population: Population, rules: Gate, pairs: int, seed: int) -> dict[str, float]:
    """Share of 95% intervals that hold the true difference, over pairs and quantities, and of the worst quantity."""
    hits: dict[Quantity, list[bool]] = {quantity: [] for quantity in population.quantities}
    side = (1 - COVERED) / 2
    draws = max(rules.bootstrap_draws, math.ceil(5 / side))
    for place, pair in enumerate(draw_pairs(population, rules, population.requests, "zero", pairs, seed + 1)):
        columns = [(pair.evidence.challenger[q].auc - pair.evidence.champion[q].auc, pair.evidence.champion[q].weight) for q in pair.truth]
        value, weight = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
        for quantity, drawn in zip(pair.truth, resample(value, weight, draws, seed + place), strict=True):
            interval = drawn.interval(side)
            hits[quantity].append(interval.lower <= pair.truth[quantity] <= interval.upper)
    by_quantity = {".".join(quantity): float(np.mean(found)) for quantity, found in hits.items() if found}
    if not by_quantity:
        return {}
    furthest = max(by_quantity.values(), key=lambda share: abs(share - COVERED))
    return {"pairs": pairs, "mean": float(np.mean(list(by_quantity.values()))), "furthest": furthest, **by_quantity}


def calibration_text(found: Mapping[str, Any]) -> str:
    """The rates as a table, and what follows from them."""
    from hap.tables import table

    rows = []
    for size, by_delta in found["rates"].items():
        for delta, name in zip(DELTAS, ("one GAUC lower by the margin", "equal", "all higher by the margin"), strict=True):
            gate, plain = by_delta[delta], found["threshold"][size][delta]
            rows.append([f"{int(size):,}", name, *[f"{gate[outcome]:.1%}" for outcome in OUTCOMES], f"{plain['pass']:.1%}"])
    lines = [table(["requests", "truth", *OUTCOMES, "a plain threshold passes"], rows), ""]
    protocol = f"margin {found['margin']:g}, alpha {found['alpha']:g}, {found['pairs']} pairs each"
    lines.append(f"{protocol}, of {found['models']} models that differ by seed; the day has {found['requests']:,} requests")
    lines.append(f"a rate near 5% of so many pairs has a standard error of {math.sqrt(0.05 * 0.95 / found['pairs']):.1%}")
    least = found["smallest_requests"]
    asked = f"equal models pass {AA_PASSES:.0%} and a loss of the margin passes {HARM_PASSES:.0%} at most"
    lines.append(f"smallest size tried at which {asked}: {f'{least:,} requests' if least else 'none; try larger ones (--sizes)'}")
    if covered := found["coverage"]:
        lines.append(
            f"95% intervals hold the truth in {covered['mean']:.1%} of {covered['pairs']} pairs, {covered['furthest']:.1%} furthest from it"
        )
    return "\n".join(lines)
