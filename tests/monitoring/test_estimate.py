"""AUC without labels: the formula against a double loop, its intervals against draws, and what it can see and what it cannot."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.isotonic import IsotonicRegression

from hap.evaluation.auc import auc
from hap.evaluation.delong import pooled_auc
from hap.monitoring.estimate import Exposed, exposed_of, fit, look_at, quality, soft_auc
from tests.monitoring.test_funnel import scored_day

ROWS = 12
SCORES = arrays(np.float64, ROWS, elements=st.sampled_from([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]))
SHARES = arrays(np.float64, ROWS, elements=st.floats(0, 1).map(lambda p: round(p, 9)))  # shares of counted rows: none is 5e-324


def exposures(seed, requests=1500, users=400, width=1.0, shift=0.0, steep=1.0, taste=0.0, each=6):
    """Exposed candidates whose click probability follows their logit, routed ones by a curve of their own, and a taste of their
    user that no score knows."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(rng.integers(1, users + 1, requests), each)
    own = np.random.default_rng(99).normal(size=users + 1)[owner] * taste
    logit = rng.normal(size=len(owner)) * width + shift
    routed = rng.random(len(owner)) < 0.6
    p = 1 / (1 + np.exp(-np.where(routed, steep * logit - 0.5, 0.5 * steep * logit - 1.5) - own))
    score = np.where(routed, np.logaddexp(0, logit), -np.logaddexp(0, -logit))
    clicked = (rng.random(len(owner)) < p).astype(float)
    return Exposed(score, owner, clicked, requests), p


@given(score=SCORES, p=SHARES)
def test_the_estimate_is_the_expected_share_of_pairs_in_order(score, p):
    in_order = pairs = 0.0
    for i in range(ROWS):
        for j in range(ROWS):
            if i != j:
                weight = p[i] * (1 - p[j])
                pairs += weight
                in_order += weight * ((score[i] > score[j]) + (score[i] == score[j]) / 2)
    found = soft_auc(score, p)
    if pairs > 1e-9:
        assert found.value == pytest.approx(in_order / pairs, abs=1e-9)
    else:
        assert np.isnan(found.value) or pairs > 0


@given(score=SCORES, clicked=arrays(np.bool_, ROWS))
def test_with_clicks_in_place_of_probabilities_it_is_the_auc_with_delongs_influence(score, clicked):
    found = soft_auc(score, clicked.astype(float))
    expected = pooled_auc(score, clicked, ~clicked, np.arange(ROWS + 1))
    assert found.value == pytest.approx(auc(score[clicked], score[~clicked]), nan_ok=True)
    assert found.by_row == pytest.approx(expected.influence, abs=1e-12)


@given(score=SCORES, p=arrays(np.float64, ROWS, elements=st.floats(0.1, 0.9)), row=st.integers(0, ROWS - 1))
def test_derivatives_are_those_of_small_steps(score, p, row):
    """With every row a hundred times, so that a row's pair with itself weighs nothing."""
    many, shares = np.tile(score, 100), np.tile(p, 100)
    found, step = soft_auc(many, shares), 1e-4
    up, down = shares.copy(), shares.copy()
    up[row], down[row] = p[row] + step, p[row] - step
    slope = (soft_auc(many, up).value - soft_auc(many, down).value) / (2 * step)
    assert found.by_p[row] == pytest.approx(slope, rel=0.05, abs=1e-6)
    more = soft_auc(np.append(many, score[row]), np.append(shares, p[row])).value
    assert found.by_row[row] == pytest.approx(more - found.value, rel=0.05, abs=2e-6)


@given(seed=st.integers(0, 100))
def test_the_order_of_rows_does_not_matter(seed):
    side, _ = exposures(1, requests=60)
    order = np.random.default_rng(seed).permutation(len(side.score))
    shuffled = Exposed(side.score[order], side.user[order], side.clicked[order], side.requests)
    plain, other = quality(side, side, True), quality(shuffled, side, True)
    assert other.estimate.value == pytest.approx(plain.estimate.value)
    assert other.estimate.half_width() == pytest.approx(plain.estimate.half_width())


def test_the_map_is_isotonic_in_each_route_and_keeps_the_click_rate():
    side, _ = exposures(2)
    found = fit(side)
    rate = found.rate[found.step(side.score)]
    for rows in (side.score > 0, side.score <= 0):
        slow = IsotonicRegression().fit(side.logit[rows], side.clicked[rows]).predict(side.logit[rows])
        assert rate[rows] == pytest.approx(slow)
        assert rate[rows].mean() == pytest.approx(side.clicked[rows].mean())
    assert found.step(np.array([-60.0, -1e-9, 1e-9, 60.0])).tolist() == [0, found.first_routed - 1, found.first_routed, len(found.rate) - 1]


def test_a_route_with_hardly_a_click_shares_the_map_of_the_other():
    side, _ = exposures(2)
    lonely = dataclasses.replace(side, clicked=np.where(side.score > 0, side.clicked, 0.0))
    found = fit(lonely)
    assert found.first_routed == 0 and found.rate[found.step(side.score)].mean() == pytest.approx(lonely.clicked.mean())


@pytest.mark.parametrize("width, shift", [(1.0, 0.0), (0.5, 0.0), (1.6, 0.4)])
def test_where_the_map_holds_the_estimate_is_the_auc_that_labels_tell_later(width, shift):
    """One curve, other scores: a day of requests that are harder, or easier, to tell apart."""
    reference, _ = exposures(3, requests=4000)
    day, _ = exposures(4, requests=4000, width=width, shift=shift)
    found = quality(reference, day, True)
    assert found.estimate.value == pytest.approx(found.realized.value, abs=0.015)
    assert abs(found.estimate.value - found.realized.value) < found.estimate.half_width() + found.realized.half_width()
    assert found.rate[1].value == pytest.approx(found.rate[2].value, abs=0.015)


def test_equal_scores_change_nothing_and_leave_the_reference():
    side, _ = exposures(5)
    found = quality(side, side, False)
    assert found.estimated_change.value == 0 and found.estimated_change.half_width() == pytest.approx(0, abs=1e-9)
    assert found.estimate.value == found.reference.value == pytest.approx(auc(side.score[side.clicked > 0], side.score[side.clicked == 0]))
    assert found.rate[1].value == pytest.approx(found.rate[0].value) and found.realized is None


def test_the_half_width_is_that_of_drawing_users_again():
    """Both sides drawn again by user, the map fitted anew each time; the slow way to the same interval."""
    reference, _ = exposures(6, requests=500, users=120, taste=1.5)
    day, _ = exposures(7, requests=500, users=120, taste=1.5, width=0.7)
    day = dataclasses.replace(day, user=day.user + 1000)
    found, rng, drawn = quality(reference, day, False), np.random.default_rng(0), []
    for _ in range(200):
        sides = [drawn_again(side, rng) for side in (reference, day)]
        again = quality(*sides, False)
        drawn.append((again.estimate.value, again.estimated_change.value, again.rate[1].value))
    spread = np.std(drawn, axis=0)
    assert found.estimate.error() == pytest.approx(spread[0], rel=0.2)
    assert found.estimated_change.error() == pytest.approx(spread[1], rel=0.25)
    assert found.rate[1].error() == pytest.approx(spread[2], rel=0.25)
    as_rows = np.sqrt(reference.clicked.mean() * (1 - reference.clicked.mean()) / len(reference.clicked))
    assert found.rate[0].error() > 1.5 * as_rows  # what a user's clicks share hardly moves an order, but it moves a rate


def drawn_again(side, rng):
    users = np.unique(side.user)
    rows = {user: np.flatnonzero(side.user == user) for user in users}
    taken = [rows[user] for user in rng.choice(users, len(users))]
    at = np.concatenate(taken)
    return Exposed(side.score[at], np.repeat(np.arange(len(taken)), [len(one) for one in taken]), side.clicked[at], side.requests)


# What becomes a finding


def judged(reference, day, labelled=True, margin=0.02, page_from=3.0):
    return look_at("2026-01-05", quality(reference, day, labelled), margin, page_from)


def causes(found):
    return {finding.cause for finding in found.findings}


def test_a_quiet_day_has_every_figure_and_no_finding():
    for seed in range(10, 20):
        found = judged(exposures(seed)[0], exposures(seed + 100)[0])
        assert causes(found) == set() and not found.unjudged
        figures = {one.name: one for one in found.figures}
        assert list(figures) == ["estimate.auc", "realized.auc", "estimate.click_rate", "realized.click_rate"]
        for one in figures.values():
            assert one.lower <= one.value <= one.upper and (one.least is None or one.least < one.reference)


def test_scores_that_say_less_are_seen_before_labels():
    reference, day = exposures(1, requests=3000)[0], exposures(2, requests=3000, width=0.3)[0]
    found = judged(reference, day, labelled=False)
    assert causes(found) == {"quality:estimate"} and found.unjudged == {"quality:realized"}
    (finding,) = found.findings
    figure = found.figures[0]
    assert figure.value < figure.least and finding.value > finding.limit
    assert finding.said.startswith("AUC of exposed candidates, estimated from the scores, went from 0.")
    assert causes(judged(reference, day)) == {"quality:estimate", "quality:realized"}


def test_another_taste_is_seen_by_labels_alone():
    """Concept drift: the scores are as they were, their meaning is not."""
    found = judged(exposures(1, requests=3000)[0], exposures(2, requests=3000, steep=0.1)[0])
    assert causes(found) == {"quality:realized"}
    assert judged(exposures(1, requests=3000)[0], exposures(2, requests=3000, steep=0.1)[0], page_from=1.01).findings[0].severity == "page"


def test_a_loss_within_the_margin_and_a_gain_are_no_findings():
    reference = exposures(1, requests=3000)[0]
    assert causes(judged(reference, exposures(2, requests=3000, width=0.93)[0])) == set()
    assert causes(judged(reference, exposures(2, requests=3000, width=1.8)[0])) == set()
    assert causes(judged(reference, exposures(2, requests=3000, width=0.3)[0], margin=0.5)) == set()


@pytest.mark.parametrize("side", ["reference", "day"])
def test_too_little_on_either_side_is_not_judged(side):
    whole, few = exposures(1)[0], exposures(2, requests=10)[0]
    found = judged(few, whole) if side == "reference" else judged(whole, few)
    assert found.findings == () and found.unjudged == {"quality:estimate", "quality:realized"}
    assert [one.value for one in found.figures] == [None] * 4


def test_no_click_on_the_day_leaves_the_estimate_and_no_click_in_the_reference_leaves_nothing():
    whole = exposures(1)[0]
    silent = dataclasses.replace(whole, clicked=np.zeros(len(whole.clicked)))
    found = judged(whole, silent)
    assert found.unjudged == {"quality:realized"} and found.figures[0].value is not None
    assert found.figures[1].value is None and found.figures[3].value == 0
    assert judged(silent, whole).unjudged == {"quality:estimate", "quality:realized"}


def test_one_user_bounds_nothing():
    one = dataclasses.replace(exposures(1)[0], user=np.ones(9000, np.int64))
    found = judged(one, one)
    assert found.findings == () and found.unjudged == {"quality:estimate", "quality:realized"}
    assert found.figures[0].lower is None and found.figures[0].value is not None


def test_only_exposed_candidates_count_by_their_served_score():
    day = scored_day(1)
    found = exposed_of(day)
    rows = day.kind <= 1
    assert found.score.tolist() == day.cascade[rows].tolist() and found.clicked.tolist() == (day.kind[rows] == 0).tolist()
    assert found.user.tolist() == day.user[day.owner[rows]].tolist() and found.requests == len(np.unique(day.owner[rows]))
