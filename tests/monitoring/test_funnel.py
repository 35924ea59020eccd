"""The funnel's figures against slow references, planted changes by name, and quiet days that stay quiet."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hap.evaluation.auc import gauc, request_aucs
from hap.evaluation.calibration import calibration, reliability
from hap.evaluation.evidence import MEMBERS
from hap.monitoring import funnel
from hap.monitoring.funnel import Counted, Funnelled, funnel_look
from hap.monitoring.scored import Scored
from hap.params import KINDS, MODELS, NEGATIVES, Funnel, Route
from hap.serving.merge import NAN_SCORE, hard_select, merge, routed_count

DAY = "2026-01-05"
RULES = Funnel()


def scored_day(seed, requests=300, users=120, candidates=24, share=0.3, light_noise=0.7, taste=0.0):
    """Requests whose clicks follow a relevance that expressive sees and light sees less of; `taste` is what a user's clicks share."""
    rng = np.random.default_rng(seed)
    user = rng.integers(1, users + 1, requests)
    counts = rng.integers(candidates // 2, candidates + 1, requests)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    owner = np.repeat(np.arange(requests), counts)
    seen = rng.normal(size=offsets[-1])
    expressive = seen + taste * np.random.default_rng(7).normal(size=users + 1)[user[owner]] - 1
    light = expressive + rng.normal(size=len(seen)) * light_noise
    stage = rng.choice(len(KINDS), size=len(seen), p=[0, 0.4, 0.3, 0.2, 0.1])
    clicked = rng.random(len(seen)) < 1 / (1 + np.exp(-expressive))
    kind = np.where((stage == 1) & clicked, 0, stage).astype(np.int8)
    return with_cascade(user, offsets, kind, light, expressive, Route(share=share))


def with_cascade(user, offsets, kind, light, expressive, route=None):
    cascade = np.empty(len(light))
    for start, end in pairwise(offsets):
        part = light[start:end].astype(np.float32)
        index = hard_select(part, routed_count(route or Route(share=0.3), end - start))
        cascade[start:end] = merge(part, index, expressive[start:end].astype(np.float32)[index])[0]
    light, expressive = (one.astype(np.float32).astype(np.float64) for one in (light, expressive))
    return Scored(user=user, offsets=offsets, kind=kind, light=light, expressive=expressive, cascade=cascade, whole=True)


def counted_of(scored, buckets=True):
    owner = scored.owner
    kinds = np.stack([np.bincount(owner[scored.kind == code], minlength=len(scored.user)) for code in range(len(KINDS))], axis=1)
    return Counted(user=scored.user, kinds=kinds, buckets={"Rank-50": kinds[:, 2], "Prerank-200": kinds[:, 3]} if buckets else {})


def verdict_of(scored):
    """What the gate writes of the same scores."""
    table = {
        member: {kind: gauc(found) for kind, found in request_aucs(getattr(scored, member), scored.kind, scored.offsets).items()}
        for member in MEMBERS
    }
    slopes, diagrams = {}, {}
    for model in MODELS:
        logit = getattr(scored, model)
        slopes[model] = {}
        for kind in NEGATIVES:
            rows = scored.clicked | (scored.kind == KINDS.index(kind))
            slopes[model][kind] = {"slope": calibration(logit[rows], scored.clicked[rows]).slope}
        bins = reliability(logit[scored.exposed], scored.clicked[scored.exposed])
        diagrams[model] = {name: getattr(bins, name).tolist() for name in ("predicted", "observed", "rows")}
    return {"requests": len(scored.user), "gauc": table, "detail": {"calibration": slopes, "reliability": diagrams}}


def look(now, before, *, sampled=None, counted=None, labelled=True, verdict=None, page_from=3.0, rules=RULES):
    seen = Funnelled(
        counted=counted or counted_of(now), counted_before=counted_of(before) if before else None, scored=now, scored_before=before,
        sampled=sampled or now, verdict=verdict if verdict is not None else verdict_of(before) if before else None, labelled=labelled,
    )  # fmt: skip
    return funnel_look(DAY, seen, rules, page_from)


def figures(found):
    return {one.name.removeprefix("funnel."): one for one in found.figures}


# Measures against slow references


def test_agreement_is_the_mean_of_scipys_spearman_over_the_routed_candidates_of_each_request():
    day = scored_day(1, requests=40)
    day = dataclasses.replace(day, light=np.round(day.light, 1), expressive=np.round(day.expressive, 1))  # ties
    expected = []
    for start, end in pairwise(day.offsets):
        routed = day.routed[start:end]
        if routed.sum() > 1:
            pair = day.light[start:end][routed], day.expressive[start:end][routed]
            alike = any(np.ptp(one) == 0 for one in pair)
            expected.append(0.0 if alike else stats.spearmanr(*pair).statistic)
    found = funnel.agreement(day)
    assert found.value == pytest.approx(np.mean(expected)) and found.requests == len(expected)


@given(seed=st.integers(0, 30), share=st.sampled_from([0.05, 0.3, 1.0]))
def test_routing_figures_agree_with_a_loop_over_requests(seed, share):
    day = scored_day(seed, requests=25, share=share)
    routed, edges, clicks, unrouted = 0, [], 0, 0
    for start, end in pairwise(day.offsets):
        inside = day.cascade[start:end] > 0
        routed += inside.sum()
        edges += [day.light[start:end][inside].min()] if inside.any() else []
        clicked = day.kind[start:end] == 0
        clicks, unrouted = clicks + clicked.sum(), unrouted + (clicked & ~inside).sum()
    assert funnel.routed_share(day).value == pytest.approx(routed / len(day.kind))
    assert funnel.edge_median(day).value == pytest.approx(np.median(edges))
    width = np.quantile(edges, 0.75) - np.quantile(edges, 0.25)
    assert funnel.edge_spread(day).value == pytest.approx(width / 1.349)
    found = funnel.unrouted_clicks(day)
    assert found.value == pytest.approx(unrouted / clicks) if clicks else not found.defined


def test_quality_figures_are_the_gates_own():
    day = scored_day(2)
    said = verdict_of(day)
    found = figures(look(day, day))
    for member in MEMBERS:
        for kind in NEGATIVES:
            assert found[f"gauc_{member}_{kind}"].value == pytest.approx(said["gauc"][member][kind])
    for model in MODELS:
        for kind in NEGATIVES:
            assert found[f"slope_{model}_{kind}"].value == pytest.approx(said["detail"]["calibration"][model][kind]["slope"])
        exposed = day.exposed
        predicted = (1 / (1 + np.exp(-getattr(day, model)[exposed]))).sum()
        assert found[f"rate_{model}"].value == pytest.approx(day.clicked[exposed].sum() / predicted)
        assert found[f"rate_{model}"].reference == pytest.approx(found[f"rate_{model}"].value)


def test_a_slopes_error_is_that_of_many_samples_of_users():
    found = []
    for seed in range(150):
        day = scored_day(seed, requests=60, users=25, taste=1.0)
        rows = day.exposed
        found.append(funnel.slope(day.light[rows], day.clicked[rows], day.owner[rows], day.user))
    assert np.mean([one.error() for one in found]) == pytest.approx(np.std([one.value for one in found]), rel=0.25)


def test_shares_are_of_what_the_logs_hold_and_gn_of_all_rows():
    counted = Counted(
        user=np.arange(2),
        kinds=np.array([[1, 3, 4, 2, 2], [0, 4, 4, 2, 0]]),
        buckets={"Rank-50": np.array([4, 4]), "Prerank-9": np.array([0, 1])},
    )
    found = {name: one.value for name, one in funnel.shares(counted).items()}
    assert found["share_EN"] == 7 / 20 and found["share_GN"] == 2 / 22 and found["bucket_Rank-50"] == 8 / 20 and "share_EP" not in found


# Planted changes


def causes(found):
    return {finding.cause for finding in found.findings}


def test_a_quiet_day_has_every_figure_and_no_finding():
    quiet = [look(scored_day(seed), scored_day(seed + 1000)) for seed in range(12)]
    assert [causes(one) for one in quiet] == [set()] * 12
    found = figures(quiet[0])
    assert len(found) == 4 + 2 + 5 + 12 + 10 and not quiet[0].unjudged and not quiet[0].missing
    for one in found.values():
        assert one.value is not None and one.lower <= one.value <= one.upper, one
        if one.name in ("funnel.share_EN", "funnel.share_GN"):
            assert one.least is None and one.most is None, "what follows from clicks is judged where clicks are"
            continue
        assert one.least < one.reference, one
        assert one.most is None if one.name.startswith("funnel.gauc") else one.most > one.reference


def test_a_light_model_whose_scores_are_shuffled_lowers_agreement_and_pages():
    before, day = scored_day(1, requests=600), scored_day(2, requests=600)
    shuffled = with_cascade(day.user, day.offsets, day.kind, np.random.default_rng(0).permutation(day.light), day.expressive)
    found = look(shuffled, before, labelled=False)
    assert causes(found) == {"funnel:agreement"}
    (finding,) = found.findings
    assert finding.severity == "page" and figures(found)["agreement"].value < 0.05
    assert finding.said.startswith("rank correlation of light and expressive where routed went from 0.")
    labelled = look(shuffled, before)
    assert causes(labelled) >= {"funnel:agreement", "funnel:gauc_light", "funnel:unrouted_clicks", "funnel:calibration_light"}
    assert "funnel:gauc_expressive" not in causes(labelled)


def test_another_routed_share_is_named_and_the_edge_goes_with_it():
    before, day = scored_day(1), scored_day(2, share=0.5)
    found = look(day, before, labelled=False)
    assert {"funnel:routed_share", "funnel:edge"} <= causes(found)
    assert figures(found)["routed_share"].value == pytest.approx(0.5, abs=0.03)


def test_clicks_that_move_to_unrouted_candidates_are_named_alone():
    before, day = scored_day(1), scored_day(2)
    unrouted = np.flatnonzero((day.kind == 1) & ~day.routed)
    kind = day.kind.copy()
    kind[unrouted[::4]] = 0
    found = look(dataclasses.replace(day, kind=kind), before, sampled=day, counted=counted_of(day))
    assert causes(found) == {"funnel:unrouted_clicks"}


def test_lost_order_is_named_by_the_model_that_lost_it_and_a_gain_is_none():
    before, day = scored_day(1), scored_day(2)
    rng = np.random.default_rng(0)
    blind = with_cascade(day.user, day.offsets, day.kind, day.light, rng.permutation(day.expressive))
    found = look(day, before, sampled=blind)
    assert {"funnel:gauc_expressive", "funnel:calibration_expressive"} <= causes(found)
    assert not causes(found) & {"funnel:gauc_light", "funnel:calibration_light"}
    gained = look(before, before, verdict=verdict_of(blind))
    assert "funnel:gauc_expressive" not in causes(gained)


def test_scores_that_became_bolder_keep_their_order_and_lose_their_calibration():
    before, day = scored_day(1), scored_day(2)
    bold = dataclasses.replace(day, expressive=day.expressive * 3)
    assert causes(look(day, before, sampled=bold)) == {"funnel:calibration_expressive"}


def test_a_kind_that_vanishes_and_a_bucket_that_is_new_are_one_finding():
    before, day = scored_day(1), scored_day(2)
    counts = counted_of(day)
    kinds = counts.kinds.copy()
    kinds[:, 3] = 0
    new = Counted(user=counts.user, kinds=kinds, buckets={"Rank-90": kinds[:, 2]})
    found = look(day, before, counted=new)
    assert causes(found) == {"cascade:candidates"}
    assert figures(found)["bucket_Rank-90"].reference == 0 and figures(found)["share_PRN"].value == 0
    assert "bucket Prerank-200" in found.findings[0].said and "bucket Rank-90" in found.findings[0].said


def test_severity_follows_the_parameter():
    before, day = scored_day(1), scored_day(2, share=0.5)
    assert {one.severity for one in look(day, before, page_from=100.0, labelled=False).findings} == {"ticket"}
    assert "page" in {one.severity for one in look(day, before, page_from=1.1, labelled=False).findings}


def test_a_change_that_few_users_make_is_no_finding():
    """Rows of one user are not independent: a day of ten busy users with tastes of their own is taken for what it is."""
    before, rules = scored_day(1, requests=400, users=400), Funnel(edge=0.5)
    few = [scored_day(seed, requests=400, users=10, taste=1.0) for seed in range(8)]
    alarmed = [one for one in few if "funnel:edge" in causes(look(one, before, labelled=False, rules=rules))]
    assert not alarmed
    as_rows = [dataclasses.replace(one, user=-np.arange(400)) for one in few]  # the same as if nobody knew whose they are
    assert any("funnel:edge" in causes(look(one, before, labelled=False, rules=rules)) for one in as_rows)


# What a day may lack


def test_without_labels_only_what_needs_none_is_judged():
    found = look(scored_day(2), scored_day(1), labelled=False)
    values = {name for name, one in figures(found).items() if one.value is not None}
    assert values == {
        "share_RN",
        "share_PRN",
        "bucket_Rank-50",
        "bucket_Prerank-200",
        "routed_share",
        "edge_median",
        "edge_spread",
        "agreement",
    }
    waiting = {f"funnel:gauc_{member}" for member in MEMBERS} | {f"funnel:calibration_{model}" for model in MODELS}
    assert found.unjudged == waiting | {"funnel:unrouted_clicks"} and causes(found) == set()
    assert len(found.figures) == len(look(scored_day(2), scored_day(1)).figures)


def test_no_click_leaves_what_rests_on_clicks_unjudged():
    day = scored_day(2)
    day = dataclasses.replace(day, kind=np.where(day.kind == 0, 1, day.kind).astype(np.int8))
    found = look(day, scored_day(1))
    assert {"funnel:gauc_light", "funnel:unrouted_clicks"} <= found.unjudged
    assert figures(found)["rate_light"].value == 0 and figures(found)["gauc_light_EN"].value is None


@pytest.mark.parametrize("requests", [0, 1])
def test_a_request_or_none_says_nothing(requests):
    day = scored_day(2).keep(np.arange(300) < requests)
    found = look(day, scored_day(1))
    assert found.missing and found.findings == ()
    assert all(math.isfinite(one.value) for one in found.figures if one.value is not None)


def test_a_kind_that_never_occurs_keeps_its_cause_judged_by_the_others():
    def without_gn(day):
        return dataclasses.replace(day, kind=np.where(day.kind == 4, 3, day.kind).astype(np.int8))

    found = look(without_gn(scored_day(2)), without_gn(scored_day(1)))
    assert figures(found)["gauc_light_GN"].value is None and causes(found) == set() and not found.unjudged


def test_without_a_reference_or_a_verdict_figures_stand_alone():
    found = look(scored_day(2), None, verdict={})
    assert causes(found) == set() and figures(found)["gauc_light_EN"].value is not None
    assert {"funnel:edge", "funnel:gauc_light", "cascade:candidates"} <= found.unjudged


def test_a_day_that_cannot_be_scored_still_has_its_shares():
    day, before = scored_day(2), scored_day(1)
    seen = Funnelled(
        counted=counted_of(day), counted_before=counted_of(before), scored=None, scored_before=None, sampled=None,
        verdict=verdict_of(before), labelled=True,
    )  # fmt: skip
    found = funnel_look(DAY, seen, RULES, 3.0)
    assert figures(found)["share_EN"].value is not None and figures(found)["agreement"].value is None
    assert "funnel:agreement" in found.unjudged and "cascade:candidates" not in found.unjudged


def test_a_model_that_gives_every_candidate_one_score_agrees_in_nothing():
    day = scored_day(2)
    flat = with_cascade(day.user, day.offsets, day.kind, np.zeros(len(day.kind)), day.expressive)
    found = look(flat, scored_day(1), labelled=False)
    assert figures(found)["agreement"].value == 0 and "funnel:agreement" in causes(found)
    assert figures(found)["edge_spread"].value == 0


def test_broken_scores_are_told_from_sound_ones_and_left_out():
    day = scored_day(2, requests=6)
    light, expressive, cascade = day.light.copy(), day.expressive.copy(), day.cascade.copy()
    light[day.offsets[1]], light[0] = np.nan, -500.0  # far below, and a number
    cascade[day.offsets[3]] = NAN_SCORE  # what the graphs answer of a NaN
    expressive[day.offsets[4]] = np.nan  # of one that was not routed
    spoiled = dataclasses.replace(day, light=light, expressive=expressive, cascade=cascade)
    assert np.flatnonzero(spoiled.broken).tolist() == [day.offsets[1], day.offsets[3], day.offsets[4]]
    sound = spoiled.sound()
    assert sound.user.tolist() == day.user[[0, 2, 5]].tolist() and np.isfinite(sound.light).all()
    kept = [day.kind[start:end] for start, end in pairwise(day.offsets)]
    assert sound.kind.tolist() == np.concatenate([kept[place] for place in (0, 2, 5)]).tolist()
    assert day.sound() is day
