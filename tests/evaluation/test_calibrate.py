"""Calibration pairs differ by exactly what is said, and the counted rates are those of the gate."""

import numpy as np
import pytest

from hap.errors import UsageError
from hap.evaluation.auc import RequestAuc
from hap.evaluation.calibrate import OUTCOMES, Population, calibrate, calibration_text, coverage, draw_pairs, smallest
from hap.evaluation.evidence import ALL, SLICED, guarded
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


@pytest.mark.parametrize(("delta", "others"), [("zero", 0.0), ("minus_margin", 0.0), ("plus_margin", 0.02)])
def test_a_pair_of_the_whole_population_differs_by_what_is_said(delta, others, monkeypatch):
    people = population(requests=400)
    for place, pair in enumerate(draw_pairs(people, RULES, 400, delta, 5, 1)):
        harmed = people.quantities[place % len(people.quantities)]
        for quantity in people.quantities:
            expected = -0.02 if delta == "minus_margin" and quantity == harmed else others
            assert pair.truth[quantity] == expected
            ours, theirs = pair.evidence.challenger[quantity], pair.evidence.champion[quantity]
            found = np.average(ours.auc - theirs.auc, weights=ours.weight)
            assert found == pytest.approx(expected, abs=0.012)  # four hundred drawn requests


def test_shifted_differences_have_the_wanted_mean_over_the_population_exactly():
    from hap.evaluation.calibrate import _pair

    people = population(requests=200)
    truth = dict.fromkeys(people.quantities, -0.02)
    pair = _pair(people, 0, 1, truth, np.arange(200))
    for quantity in people.quantities:
        ours, theirs = pair.evidence.challenger[quantity], pair.evidence.champion[quantity]
        assert np.average(ours.auc - theirs.auc, weights=theirs.weight) == pytest.approx(-0.02, abs=1e-12)


def test_the_gate_passes_equal_models_and_seldom_harm_where_a_threshold_lets_half_of_it_through():
    found = calibrate(population(), RULES, [100, 1000], 25, 5, 1)
    large = found["rates"]["1000"]
    assert large["zero"]["pass"] > 0.95 and large["plus_margin"]["pass"] == 1 and large["minus_margin"]["pass"] <= 0.12
    assert found["threshold"]["1000"]["minus_margin"]["pass"] > 0.3
    assert found["smallest_requests"] in (1000, None) and found["threshold_smallest_requests"] is None
    for by_delta in found["rates"].values():
        for outcomes in by_delta.values():
            assert set(outcomes) == set(OUTCOMES) and sum(outcomes.values()) == pytest.approx(1)
    assert "a plain threshold passes" in calibration_text(found)


def test_few_requests_leave_equal_models_undecided_and_show_it():
    found = calibrate(population(noise=0.3), RULES, [60], 20, 20, 1)
    assert found["rates"]["60"]["zero"]["undecided"] > 0.9 and found["smallest_requests"] is None
    assert "none; try larger ones" in calibration_text(found)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    found = coverage(population(requests=600), RULES, 100, 1)
    assert 0.93 < found["mean"] < 0.97 and found["pairs"] == 100


def test_the_smallest_size_is_the_one_from_which_all_larger_ones_do():
    def at(zero, harm):
        return {"zero": {"pass": zero}, "minus_margin": {"pass": harm}}

    assert smallest({"100": at(0.96, 0.01), "200": at(0.9, 0.01), "400": at(0.97, 0.05), "800": at(1.0, 0.0)}) == 400
    assert smallest({"100": at(1.0, 0.0), "200": at(1.0, 0.06)}) is None


def test_one_model_cannot_be_paired():
    with pytest.raises(UsageError, match="two seeds or more"):
        calibrate(population(models=1), RULES, [100], 20, 20, 1)


def test_equal_seeds_give_equal_rates():
    people = population(requests=600)
    assert calibrate(people, RULES, [200], 5, 5, 4) == calibrate(people, RULES, [200], 5, 5, 4)
