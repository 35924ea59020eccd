"""How often the gate errs on data like this: verdicts on pairs of models whose true difference is known.

A population is the judged requests with the scores of several models that differ by their seed alone. A pair is two of them
and n requests drawn from the population, with the challenger's GAUC shifted so that over the population the two are equal,
exactly. It is judged at several true differences: 0, or -margin for one quantity (each in turn) with the others at 0, or
+margin for all. Harm sits in one quantity since that is the hardest to see: a challenger that is worse everywhere fails many
rules at once. Slices and Recall@K are not among the rules here.

A true difference moves every request's difference by one number. Spread and pivots stay, so a pair is resampled once for all of
them; and as the gate's seed is one, the draws are made once for many pairs.

Letters: R requests of the population, n of a pair, Q guarded quantities.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, islice, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hap.errors import UsageError
from hap.evaluation.auc import RequestAuc, gauc
from hap.evaluation.evidence import ALL, BUDGETS, SLICED, Evidence, Quantity, guarded
from hap.evaluation.gate import Judgement, Questions, ask, judge
from hap.evaluation.interval import Resampled, resample
from hap.params import Gate

DELTAS = ("minus_margin", "zero", "plus_margin")
OUTCOMES = ("pass", "refuse", "undecided")
AA_PASSES, HARM_PASSES = 0.95, 0.05  # what the smallest size must reach
COVERED = 0.95  # of the intervals whose coverage is counted

AT_ONCE = 250_000  # requests of the pairs that are resampled together, and
MOST_PAIRS = 20  # pairs at most: what they need is some hundreds of megabytes

Table = Mapping[Quantity, RequestAuc]
Truth = Mapping[Quantity, float]


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

    @cached_property
    def gaucs(self) -> Sequence[Truth]:
        """GAUC of each model over the whole population, 0 where nothing defines it."""
        return [{quantity: float(np.nan_to_num(gauc(table[quantity]))) for quantity in self.quantities} for table in self.tables]


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
        sizes: requests of a pair; the population's own number is counted, too.
        pairs: for each size; each is judged at every true difference.
        coverage_pairs: pairs of the population's own size on which intervals are counted.
        report: told (done, of) in pairs.

    Raises:
        UsageError: fewer than two models, which cannot differ.
    """
    if len(population.tables) < 2:
        raise UsageError("one model cannot be paired; calibrate with two seeds or more")
    truths = {delta: true_differences(population.quantities, rules.margin, delta) for delta in DELTAS}
    rates: dict[str, Any] = {}
    threshold: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    sizes = sorted({*sizes, population.requests})
    for place, size in enumerate(sizes):
        passed: dict[str, list[float]] = {delta: [] for delta in DELTAS}
        counts, plain = ({delta: Counter[str]() for delta in DELTAS} for _ in range(2))
        found = resampled_pairs(population, size, pairs, seed, lambda evidence: ask(evidence, rules))
        for done, (evidence, questions, drawn) in enumerate(found, 1):
            for delta in DELTAS:
                judged = [judge_at(truth, evidence, rules, questions, drawn) for truth in truths[delta]]
                counts[delta].update(found.outcome for found in judged)
                plain[delta].update(_threshold(found, rules.margin) for found in judged)
                passed[delta].append(float(np.mean([found.outcome == "pass" for found in judged])))
            if report:
                report(place * pairs + done, len(sizes) * pairs)
        rates[str(size)] = {delta: _shares(counts[delta], OUTCOMES) for delta in DELTAS}
        threshold[str(size)] = {delta: _shares(plain[delta], OUTCOMES[:2]) for delta in DELTAS}
        errors[str(size)] = {delta: float(np.std(passed[delta], ddof=1) / math.sqrt(pairs)) for delta in DELTAS}
    return {
        "margin": rules.margin,
        "alpha": rules.alpha,
        "models": len(population.tables),
        "requests": population.requests,
        "today": today(rates, threshold, population.requests),
        "pairs": pairs,
        "rates": rates,
        "pass_errors": errors,
        "spreads": spreads(population),
        "seed_noise": seed_noise(population),
        "threshold": threshold,
        "smallest_requests": smallest(rates),
        "threshold_smallest_requests": smallest(threshold),
        "coverage": coverage(population, rules, coverage_pairs, seed),
    }


def today(rates: Mapping[str, Any], threshold: Mapping[str, Any], requests: int) -> dict[str, dict[str, float]]:
    """At the day's own number of requests: how often the gate, and a plain threshold, refuse or pass wrongly, and pass equal models."""
    return {
        name: {
            "false_refuse": at["zero"]["refuse"],
            "false_pass": at["minus_margin"]["pass"],
            "power": at["zero"]["pass"],
        }
        for name, at in (("gate", rates[str(requests)]), ("threshold", threshold[str(requests)]))
    }


def spreads(population: Population) -> dict[str, float]:
    """By quantity, what the standard error of a difference is over the square root of the requests n: mean over pairs of models."""
    found = {}
    for quantity in population.quantities:
        weight = population.tables[0][quantity].weight
        aucs = [np.where(weight > 0, table[quantity].auc, 0.0) for table in population.tables]
        errors = []
        for (champion, ours), (challenger, theirs) in combinations(enumerate(aucs), 2):
            lead = population.gaucs[challenger][quantity] - population.gaucs[champion][quantity]
            errors.append(np.sqrt((((theirs - ours - lead) * weight) ** 2).sum()) / max(weight.sum(), 1.0))
        found[".".join(quantity)] = float(np.mean(errors) * math.sqrt(population.requests))
    return found


def seed_noise(population: Population) -> dict[str, float]:
    """By quantity, the largest difference of GAUC between two of the models: what training again can change by itself."""
    by_quantity = {quantity: [model[quantity] for model in population.gaucs] for quantity in population.quantities}
    return {".".join(quantity): max(found) - min(found) for quantity, found in by_quantity.items()}


def smallest(rates: Mapping[str, Any]) -> int | None:
    """The least size at which harm of the margin passes at most 5%, and from which on equal models pass at least 95%; None: none tried.

    Harm asks for no more of larger sizes: its rate tends to alpha from below, where 5% is a matter of chance in what was drawn.
    """
    found = None
    for size in sorted(map(int, rates), reverse=True):
        at = rates[str(size)]
        if at["zero"]["pass"] < AA_PASSES:
            break
        if at["minus_margin"]["pass"] <= HARM_PASSES:
            found = size
    return found


def true_differences(quantities: Sequence[Quantity], margin: float, delta: str) -> list[Truth]:
    """What a pair is judged at: for -margin once with each quantity harmed and the others equal, else once."""
    if delta == "minus_margin":
        return [{quantity: -margin if quantity == harmed else 0.0 for quantity in quantities} for harmed in quantities]
    return [dict.fromkeys(quantities, margin if delta == "plus_margin" else 0.0)]


def equal_pairs(population: Population, size: int, pairs: int, seed: int) -> Iterator[Evidence]:
    """Two of the models, in turn, on `size` requests drawn with replacement, shifted so that they are equal over the population."""
    order = list(permutations(range(len(population.tables)), 2))
    for place in range(pairs):
        rows = np.random.default_rng([seed, size, place]).integers(0, population.requests, size)
        yield _evidence(population, *order[place % len(order)], rows)


def _evidence(population: Population, champion: int, challenger: int, rows: NDArray[np.int64]) -> Evidence:
    ours: dict[Quantity, RequestAuc] = {}
    theirs: dict[Quantity, RequestAuc] = {}
    for quantity in population.quantities:
        base, other = population.tables[champion][quantity], population.tables[challenger][quantity]
        lead = population.gaucs[challenger][quantity] - population.gaucs[champion][quantity]
        weight = base.weight[rows]
        theirs[quantity] = RequestAuc(base.auc[rows], weight)
        ours[quantity] = RequestAuc(other.auc[rows] - lead, weight)
    positives = theirs[SLICED, ALL].weight
    return Evidence(
        version=2,
        against=1,
        days=("",),
        manifests={"": ""},
        expressive_kinds=population.expressive_kinds,
        requests=len(rows),
        clicked_requests=int((positives > 0).sum()),
        positives=int(positives.sum()),
        challenger=ours,
        champion=theirs,
        parity_max_abs_diff=0.0,
        budgets=dict.fromkeys(BUDGETS, 0.0),
    )


def resampled_pairs(
    population: Population, size: int, pairs: int, seed: int, asking: Callable[[Evidence], Questions]
) -> Iterator[tuple[Evidence, Questions, Sequence[Resampled]]]:
    """Equal pairs with their bootstrap; the draws are made once for many pairs, as the gate's seed is one too."""
    found = equal_pairs(population, size, pairs, seed)
    while batch := list(islice(found, max(1, min(MOST_PAIRS, AT_ONCE // size)))):
        asked = [asking(evidence) for evidence in batch]
        value, weight = (np.concatenate([getattr(one, name) for one in asked], axis=1) for name in ("value", "weight"))
        drawn = iter(resample(value, weight, asked[0].draws, seed))
        for evidence, questions in zip(batch, asked, strict=True):
            yield evidence, questions, list(islice(drawn, len(questions.column)))


def judge_at(truth: Truth, evidence: Evidence, rules: Gate, questions: Questions, drawn: Sequence[Resampled]) -> Judgement:
    """The verdict on an equal pair had the challenger been better by `truth`: that moves values and bounds and leaves the spread."""
    moved = [drawn[column].moved(truth[question.quantity]) for question, column in questions.column.items()]
    return judge(evidence, rules, questions, moved)


def _threshold(found: Judgement, margin: float) -> str:
    """What two plain numbers per rule would have decided."""
    changes = [rule.value for _, rule in found.judged if rule.name.endswith(".regression")]
    return "pass" if all(value is not None and value > -margin for value in changes) else "refuse"


def _shares(counted: Counter[str], names: Sequence[str]) -> dict[str, float]:
    return {name: counted[name] / counted.total() for name in names}


def coverage(population: Population, rules: Gate, pairs: int, seed: int) -> dict[str, float]:
    """Share of 95% intervals that hold the true difference, over pairs and quantities, and of the worst quantity."""
    hits: dict[Quantity, list[bool]] = {quantity: [] for quantity in population.quantities}
    side = (1 - COVERED) / 2

    def differences(evidence: Evidence) -> Questions:
        asked = ask(evidence, rules)
        column = {question: place for question, place in asked.column.items() if question.sort == "regression"}
        chosen = list(column.values())
        column = {question: place for place, question in enumerate(column)}
        draws = max(rules.bootstrap_draws, math.ceil(5 / side))
        return replace(asked, column=column, value=asked.value[:, chosen], weight=asked.weight[:, chosen], draws=draws)

    for _, questions, drawn in resampled_pairs(population, population.requests, pairs, seed + 1, differences):
        for question, column in questions.column.items():
            interval = drawn[column].interval(side)
            hits[question.quantity].append(interval.lower <= 0 <= interval.upper)
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
    for name, what in (("gate", "the gate"), ("threshold", "a plain threshold")):
        at = found["today"][name]
        errors = f"{at['false_refuse']:.1%} false refuse, {at['false_pass']:.1%} false pass, power {at['power']:.1%}"
        lines.append(f"at the day's {found['requests']:,} requests {what} has {errors}")
    for delta, name in (("minus_margin", "a loss of the margin"), ("zero", "equal models")):
        largest = max(errors[delta] for errors in found["pass_errors"].values())
        lines.append(f"standard error of how often {name} pass: {largest:.1%} at most")
    asked = f"equal models pass {AA_PASSES:.0%} and a loss of the margin passes {HARM_PASSES:.0%} at most"
    lines.append(f"smallest size tried at which {asked}: {_smallest_text(found)}")
    widest = max(found["spreads"], key=found["spreads"].get)
    lines.append(f"the widest difference is that of {widest}: on n requests its standard error is {found['spreads'][widest]:.3f} / sqrt(n)")
    noisiest = max(found["seed_noise"], key=found["seed_noise"].get)
    apart = f"up to {found['seed_noise'][noisiest]:.3f} apart ({noisiest})"
    lines.append(f"before they were made equal, models that differ by seed alone were {apart}")
    if covered := found["coverage"]:
        lines.append(
            f"95% intervals hold the truth in {covered['mean']:.1%} of {covered['pairs']} pairs, {covered['furthest']:.1%} furthest from it"
        )
    return "\n".join(lines)


def _smallest_text(found: Mapping[str, Any]) -> str:
    """The size, or what keeps every one that was tried from being it."""
    if least := found["smallest_requests"]:
        return f"{least:,} requests"
    powerful = smallest({size: {**at, "minus_margin": {"pass": 0.0}} for size, at in found["rates"].items()})
    if powerful is None:
        return "none; try larger ones (--sizes)"
    harm, error = found["rates"][str(powerful)]["minus_margin"]["pass"], found["pass_errors"][str(powerful)]["minus_margin"]
    return (
        f"none; equal models do from {powerful:,} on, where a loss passes {harm:.1%} with a standard error of {error:.1%}: "
        "more pairs (--pairs), or sizes between (--sizes), tell"
    )
