"""Calibration pairs differ by exactly what is said, and the counted rates are those of the gate."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from hap.errors import UsageError
from hap.evaluation import calibrate as module
from hap.evaluation.auc import RequestAuc
from hap.evaluation.calibrate import (
    DELTAS,
    OUTCOMES,
    Population,
    calibrate,
    calibration_text,
    coverage,
    equal_pairs,
    judge_at,
    resampled_pairs,
    seed_noise,
    smallest,
    spreads,
    true_differences,
)
from hap.evaluation.evidence import ALL, SLICED, guarded
from hap.evaluation.gate import ask, decide
from hap.evaluation.interval import resample
from hap.params import NEGATIVES, Gate

RULES = Gate(min_requests=50, min_positives=50, margin=0.02, bootstrap_draws=300)


def population(models=3, requests=3000, noise=0.05, seed=1):
    """Models whose AUC of a request share what is hard in it."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 4, requests).astype(float)
    quantities = (*guarded(NEGATIVES), (SLICED, ALL))
    hard = {quantity: rng.uniform(0.6, 0.9, requests) for quantity in quantities}
    tables = [{q: RequestAuc(hard[q] + rng.normal(0, noise, requests), weight) for q in quantities} for _ in range(models)]
    return Population(tables, NEGATIVES)


def test_equal_pairs_of_the_whole_population_do_not_differ(monkeypatch):
    people = population(requests=400)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: SimpleNamespace(integers=lambda low, high, size: np.arange(400)))
    for evidence in equal_pairs(people, 400, 5, 1):
        for quantity in people.quantities:
            ours, theirs = evidence.challenger[quantity], evidence.champion[quantity]
            assert np.average(ours.auc - theirs.auc, weights=theirs.weight) == pytest.approx(0, abs=1e-12)
            assert np.std(ours.auc - theirs.auc) > 0.05


def test_harm_sits_in_each_quantity_in_turn():
    quantities = population().quantities
    harmed = true_differences(quantities, 0.02, "minus_margin")
    assert [[quantity for quantity in quantities if truth[quantity] == -0.02] for truth in harmed] == [[one] for one in quantities]
    assert [set(truth.values()) for truth in harmed] == [{-0.02, 0.0}] * len(quantities)
    assert true_differences(quantities, 0.02, "zero") == [dict.fromkeys(quantities, 0.0)]
    assert true_differences(quantities, 0.02, "plus_margin") == [dict.fromkeys(quantities, 0.02)]


@pytest.mark.parametrize("at_once", [1, 350, 10_000])
def test_a_pair_resampled_once_gets_the_verdicts_of_the_gate_on_scores_that_differ_so(at_once, monkeypatch):
    """The slow way: the challenger's AUC of every request is moved, and the whole gate decides on it."""
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    people, seen = population(noise=0.1), set()
    truths = [truth for delta in DELTAS for truth in true_differences(people.quantities, 0.02, delta)]
    truths += true_differences(people.quantities, 0.09, "minus_margin")  # harm that is refused
    for evidence, questions, drawn in resampled_pairs(people, 150, 4, 1, lambda evidence: ask(evidence, RULES)):
        for truth in truths:
            found = judge_at(truth, evidence, RULES, questions, drawn)
            moved = {quantity: RequestAuc(one.auc + truth[quantity], one.weight) for quantity, one in evidence.challenger.items()}
            verdict = decide(dataclasses.replace(evidence, challenger=moved), RULES, 1)
            assert found.outcome == verdict.verdict
            for (_, rule), slow in zip(found.judged, verdict.rules, strict=False):
                assert (rule.name, rule.outcome, rule.p_value) == (slow.name, slow.outcome, slow.p_value)
                assert (rule.value, rule.lower, rule.upper) == pytest.approx((slow.value, slow.lower, slow.upper), abs=1e-12)
            seen.add(found.outcome)
    assert seen == set(OUTCOMES)


def test_the_gate_passes_equal_models_and_seldom_harm_where_a_threshold_lets_half_of_it_through():
    found = calibrate(population(requests=1000), RULES, [100, 1000], 25, 5, 1)
    large = found["rates"]["1000"]
    assert large["zero"]["pass"] > 0.95 and large["plus_margin"]["pass"] == 1 and large["minus_margin"]["pass"] <= 0.12
    assert found["threshold"]["1000"]["minus_margin"]["pass"] > 0.3
    assert found["smallest_requests"] in (1000, None) and found["threshold_smallest_requests"] is None
    for by_delta in found["rates"].values():
        for outcomes in by_delta.values():
            assert set(outcomes) == set(OUTCOMES) and sum(outcomes.values()) == pytest.approx(1)
    assert "a plain threshold passes" in calibration_text(found)


def test_the_days_own_number_of_requests_is_counted_and_told_whatever_sizes_are_asked_for():
    found = calibrate(population(requests=300), RULES, [100], 20, 5, 1)
    assert set(found["rates"]) == set(found["threshold"]) == {"100", "300"}
    at, plain = found["rates"]["300"], found["threshold"]["300"]
    assert found["today"] == {
        "gate": {"false_refuse": at["zero"]["refuse"], "false_pass": at["minus_margin"]["pass"], "power": at["zero"]["pass"]},
        "threshold": {"false_refuse": plain["zero"]["refuse"], "false_pass": plain["minus_margin"]["pass"], "power": plain["zero"]["pass"]},
    }
    said = f"at the day's 300 requests the gate has {at['zero']['refuse']:.1%} false refuse, {at['minus_margin']['pass']:.1%} false pass"
    assert f"{said}, power {at['zero']['pass']:.1%}" in calibration_text(found)
    assert f"a plain threshold has {plain['zero']['refuse']:.1%} false refuse" in calibration_text(found)


def test_spreads_are_the_standard_errors_of_the_intervals():
    people = population(models=2, requests=400)
    found = spreads(people)
    for quantity in people.quantities:
        ours, theirs = (table[quantity] for table in people.tables)
        error = resample((theirs.auc - ours.auc)[:, None], ours.weight[:, None], 100, 1)[0].error
        assert found[".".join(quantity)] == pytest.approx(error * np.sqrt(400))


def test_seed_noise_is_how_far_the_models_lie_apart():
    people = population(models=3, requests=400)
    for quantity in people.quantities:
        gaucs = [np.average(table[quantity].auc, weights=table[quantity].weight) for table in people.tables]
        assert seed_noise(people)[".".join(quantity)] == pytest.approx(np.ptp(gaucs), abs=1e-12)


def test_few_requests_leave_equal_models_undecided_and_show_it():
    found = calibrate(population(noise=0.3, requests=80), RULES, [60], 20, 20, 1)
    assert found["rates"]["60"]["zero"]["undecided"] > 0.9 and found["smallest_requests"] is None
    assert "none; try larger ones" in calibration_text(found)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    found = coverage(population(requests=600), RULES, 100, 1)
    assert 0.93 < found["mean"] < 0.97 and found["pairs"] == 100


def test_the_smallest_size_is_the_one_from_which_on_equal_models_pass():
    """Harm need not stay under 5% at larger sizes, where its rate is alpha give or take the draw."""

    def at(zero, harm):
        return {"zero": {"pass": zero}, "minus_margin": {"pass": harm}}

    assert smallest({"100": at(0.96, 0.01), "200": at(0.9, 0.01), "400": at(0.97, 0.05), "800": at(1.0, 0.0)}) == 400
    assert smallest({"100": at(0.9, 0.0), "200": at(1.0, 0.06)}) is None
    assert smallest({"100": at(1.0, 0.06), "200": at(1.0, 0.05), "400": at(1.0, 0.051)}) == 200


def test_where_only_chance_keeps_a_size_from_being_the_smallest_the_text_says_so():
    found = calibrate(population(requests=1000), RULES, [100, 1000], 20, 20, 1)
    found["rates"]["1000"]["minus_margin"]["pass"] = 0.061
    found["pass_errors"]["1000"]["minus_margin"] = 0.012
    said = calibration_text({**found, "smallest_requests": smallest(found["rates"])})
    assert "none; equal models do from 1,000 on, where a loss passes 6.1% with a standard error of 1.2%: more pairs (--pairs)" in said


def test_one_model_cannot_be_paired():
    with pytest.raises(UsageError, match="two seeds or more"):
        calibrate(population(models=1), RULES, [100], 20, 20, 1)


def test_equal_seeds_give_equal_rates():
    people = population(requests=600)
    assert calibrate(people, RULES, [200], 5, 5, 4) == calibrate(people, RULES, [200], 5, 5, 4)
