import dataclasses

import numpy as np
import orjson
import pytest

from hap.evaluation.auc import RequestAuc
from hap.evaluation.evidence import MEMBERS, Evidence, guarded
from hap.evaluation.gate import decide
from hap.evaluation.verdict import Verdict
from hap.evaluation.wording import verdict_text
from hap.params import MODELS, NEGATIVES, Gate
from tests.evaluation.judged import KIND, RULES, evidence, first, harmed, judged_day

YOUNG = {f"{member}.age_days": 1.0 for member in MODELS}


def test_an_equal_challenger_passes():
    verdict = decide(evidence(), RULES)
    assert verdict.verdict == "pass" and verdict.exit_code == 0 and verdict.needs_requests is None
    assert verdict.reasons[0].startswith("no worse than v1 on all 13 guarded GAUC, and above every floor")
    assert verdict.reasons[0].endswith(": no loss, with .010 allowed")


def test_a_better_challenger_passes():
    assert decide(evidence(challenger=harmed(by=-0.2)), RULES).verdict == "pass"


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_harm_to_one_kind_of_one_member_is_refused_with_that_reason(member, code):
    verdict = decide(evidence(challenger=harmed(members=(member,), kinds=(code,), by=0.5)), RULES)
    kind = NEGATIVES[code - 1]
    assert verdict.verdict == "refuse" and verdict.exit_code == 3
    refused = [rule.name for rule in verdict.rules if rule.outcome == "refuse"]
    assert set(refused) - {"cascade.all.regression"} == {f"{member}.{kind}.regression"} and len(verdict.reasons) == len(refused)
    assert verdict.reasons[0].startswith(f"{member}: GAUC on {kind} fell by .") and verdict.reasons[0].endswith("more than the margin .010")


def small_harm_everywhere(by):
    """Every negative of the cascade a little higher."""
    return harmed(members=("cascade",), by=by)


def test_harm_to_all_kinds_together_is_its_own_rule():
    verdict = decide(evidence(challenger=small_harm_everywhere(0.3)), RULES)
    assert "cascade: GAUC on all fell by" in " ".join(verdict.reasons)
    assert "cascade on all kinds together, change: -." in verdict_text(verdict)


def sliced(by=0.0, floor=500, requests=1200, **rules):
    """Two slices of the clicks, `content_type=1` and `=2`; in the second the clicks of the challenger's cascade fall by `by`."""
    kind, _, scores = judged_day(requests)
    second = np.repeat(np.arange(requests) % 4 == 0, KIND.size)
    worse = scores | {"cascade": scores["cascade"] - by * ((kind == 0) & second)}
    parts = {"content_type=1": ~second, "content_type=2": second}
    return decide(
        evidence(challenger=worse, slices=parts, requests=requests), RULES.model_copy(update={"slice_min_positives": floor, **rules})
    )


def test_harm_to_one_slice_only_is_refused_with_that_reason():
    verdict = sliced(by=0.3, floor=300)
    assert verdict.verdict == "refuse"
    said = [reason for reason in verdict.reasons if "content_type" in reason]
    assert len(said) == 1 and said[0].startswith("cascade: GAUC on content_type=2 fell by .")
    assert said[0].endswith("more than the margin .020")
    untouched = next(rule for rule in verdict.rules if rule.name == "cascade.content_type=1.regression")
    assert untouched.value == 0 and untouched.outcome == "pass"


def test_a_slice_with_few_clicks_is_reported_and_does_not_judge():
    verdict = sliced(by=0.02, floor=500)
    assert verdict.slices["content_type=2"] | {"gauc": 0, "champion_gauc": 0} == {
        "positives": 300, "gauc": 0, "champion_gauc": 0, "guarded": False,
    }  # fmt: skip
    assert verdict.slices["content_type=2"]["gauc"] < verdict.slices["content_type=2"]["champion_gauc"]
    assert not any("content_type=2" in rule.name for rule in verdict.rules)
    assert "slices: 1 guarded, 1 reported only" in verdict_text(verdict)


def test_a_slice_of_clicks_enough_in_too_few_requests_is_undecided_and_says_so():
    verdict = sliced(floor=300, requests=1200, min_requests=301)
    assert verdict.verdict == "undecided"
    assert verdict.reasons == ("content_type=2: only 300 requests with 300 positives hold it (301 and 100 are needed)",)


def test_what_no_rule_judges_is_reported_with_the_bounds_of_its_change():
    verdict = sliced(by=0.02, floor=500)
    reported = verdict.reported["cascade.content_type=2"]
    one = verdict.slices["content_type=2"]
    assert reported["value"] == pytest.approx(one["gauc"] - one["champion_gauc"])
    assert reported["lower"] < reported["value"] < reported["upper"] < 0
    judged = {rule.name.removesuffix(".regression") for rule in verdict.rules if rule.name.endswith("regression")}
    assert verdict.reported.keys() | judged >= {f"{member}.{kind}" for member in MEMBERS for kind in (*NEGATIVES, "all")}
    assert not verdict.reported.keys() & judged
    assert decide(first(), RULES).reported == {}


def test_an_equal_challenger_passes_on_its_slices_too():
    verdict = sliced()
    assert verdict.verdict == "pass" and "on all 13 guarded GAUC, 1 slice," in verdict.reasons[0]


def recalled(change, clicks=1200):
    """The verdict where the challenger's recall changes by `change` on every tenth request."""
    rng = np.random.default_rng(5)
    theirs = rng.random(1200)
    ours = theirs + change * (np.arange(1200) % 10 == 0)
    weight = (np.arange(1200) < clicks).astype(float)
    whole = {"k": 20, "recall": 0.5, "relative": 0.98, "requests": clicks, "positives": clicks, "routed_share": 0.3}
    return decide(evidence(figures={"recall": (RequestAuc(ours, weight), RequestAuc(theirs, weight))}, whole=whole), RULES)


def test_lost_recall_of_the_cascade_is_refused_with_that_reason():
    verdict = recalled(-0.6)
    assert verdict.verdict == "refuse" and verdict.reasons[0].startswith("cascade: Recall@K fell by .06")
    assert verdict.reasons[0].endswith("more than the margin .030")
    text = verdict_text(verdict)
    assert "Recall@20 of the cascade: .500, 98.0% of expressive on all (1,200 requests, 1,200 clicks, 30% routed); change -.06" in text


def test_recall_on_few_clicks_is_reported_and_does_not_judge():
    verdict = recalled(-0.6, clicks=900)
    assert verdict.verdict == "pass" and not verdict.whole["guarded"]
    assert "30% routed); change -.06" in verdict_text(verdict) and "reported only (too few clicks)" in verdict_text(verdict)


def test_kept_recall_passes():
    assert "13 guarded GAUC, Recall@K, and above every floor" in recalled(0.1).reasons[0]


@pytest.mark.parametrize(
    ("measured", "outcome", "said"),
    [
        ({"operations": 1.2, **YOUNG}, "refuse", "operations of the ensemble over those of expressive on all: 1.20, more than"),
        ({"operations": 0.4}, "undecided", "light.age_days was not measured, and gate.max_age_days is 7"),
        ({"operations": float("nan"), **YOUNG}, "undecided", "operations was not measured"),
    ],
)
def test_a_version_that_takes_more_than_its_budget_is_refused_and_one_not_measured_never_passes(measured, outcome, said):
    verdict = decide(evidence(budgets=measured), RULES)
    assert verdict.verdict == outcome and any(reason.startswith(said) for reason in verdict.reasons)
    orjson.dumps(verdict.to_json())


@pytest.mark.parametrize("member", MODELS)
def test_the_age_of_each_member_is_judged(member):
    other = next(name for name in MODELS if name != member)
    verdict = decide(evidence(budgets={"operations": 0.4, **YOUNG, f"{member}.age_days": 8.0}), RULES)
    said = f"days from the newest training day of {member} to the judging day: 8, more than gate.max_age_days 7"
    assert verdict.verdict == "refuse" and verdict.reasons == (said,)
    outcomes = {rule.name: rule.outcome for rule in verdict.rules}
    assert outcomes[f"{member}.age_days"] == "refuse" and outcomes[f"{other}.age_days"] == "pass"


def test_a_budget_for_p99_is_judged_where_one_is_set():
    tight = RULES.model_copy(update={"max_p99_ms": 4.0})
    assert "p99 of the ensemble in process: 5.0 ms, more than gate.max_p99_ms 4" in decide(evidence(), tight).reasons
    assert decide(evidence(), RULES.model_copy(update={"max_p99_ms": 6.0})).verdict == "pass"


def test_harm_to_an_unguarded_kind_does_not_refuse():
    hurt = harmed(members=("expressive",), kinds=(3, 4), by=0.5)
    assert decide(evidence(challenger=hurt), RULES).verdict == "refuse"
    verdict = decide(evidence(challenger=hurt, expressive_kinds=["EN", "RN"]), RULES)
    assert verdict.verdict == "pass" and verdict.gauc["expressive"]["GN"] is not None


def test_guarded_is_every_kind_except_easy_ones_an_expressive_model_never_saw():
    assert len(guarded(NEGATIVES)) == 12
    assert [kind for member, kind in guarded(("EN", "RN")) if member == "expressive"] == ["EN", "RN"]
    assert [kind for member, kind in guarded(("EN", "GN")) if member == "expressive"] == ["EN", "RN", "GN"]


def test_a_difference_lost_in_noise_is_undecided_and_says_how_many_requests_would_decide():
    _, _, scores = judged_day(400)
    rng = np.random.default_rng(3)
    noisy = {member: values + rng.normal(0, 0.15, values.size) for member, values in scores.items()}
    verdict = decide(evidence(challenger=noisy, champion=scores, requests=400), RULES)
    assert verdict.verdict == "undecided" and verdict.exit_code == 5
    assert verdict.needs_requests is not None and verdict.needs_requests > 400
    assert "neither shows nor excludes a loss of more than .010" in verdict.reasons[0]


def test_the_stated_number_of_requests_decides():
    """A small true loss: judged again on twice the stated number, the verdict is no longer undecided."""

    def verdict_on(requests):
        kind, _, scores = judged_day(requests, seed=4)
        rng = np.random.default_rng(5)
        worse = {m: s + 0.06 * (kind == 2) * (m == "light") + rng.normal(0, 0.05, s.size) for m, s in scores.items()}
        return decide(evidence(challenger=worse, champion=scores, requests=requests), RULES)

    small = verdict_on(250)
    assert small.verdict == "undecided" and small.needs_requests is not None and small.needs_requests > 250
    assert verdict_on(2 * small.needs_requests).verdict == "refuse"


def test_a_value_that_lies_on_its_limit_give_or_take_rounding_needs_no_number_of_requests():
    """By the square of that gap it would be more than JSON has numbers for, and no verdict could be written."""

    def judged(margin):
        lost, none = (RequestAuc(values, np.ones(1200)) for values in (np.tile([-0.11, 0.09], 600), np.zeros(1200)))
        rules = RULES.model_copy(update={"recall": RULES.recall.model_copy(update={"margin": margin})})
        verdict = decide(evidence(figures={"recall": (lost, none)}), rules)
        return verdict, next(rule for rule in verdict.rules if rule.name == "cascade.recall.regression")

    value = judged(0.03)[1].value
    verdict, rule = judged(-float(np.nextafter(value, 0)))
    assert verdict.verdict == "undecided" and 0 < rule.bound - value < 1e-15
    assert verdict.needs_requests is None
    orjson.dumps(verdict.to_json())


def test_recall_undecided_on_all_the_requests_it_may_have_asks_for_a_larger_limit_and_not_for_a_larger_day():
    def verdict(most):
        rng = np.random.default_rng(5)
        ones, theirs = np.ones(1200), rng.random(1200)
        changed = RequestAuc(theirs + rng.normal(-0.03, 0.4, 1200), ones), RequestAuc(theirs, ones)
        whole = {"k": 20, "recall": 0.5, "relative": 0.98, "requests": 1200, "positives": 1200, "routed_share": 0.3, "most": most}
        return decide(evidence(figures={"recall": changed}, whole=whole), RULES)

    capped, free = verdict(1200), verdict(2000)
    assert capped.verdict == free.verdict == "undecided" and len(capped.reasons) == 1
    assert capped.needs_requests is None and free.needs_requests is not None and free.needs_requests > 1200
    assert capped.reasons[0] == f"{free.reasons[0]}; it rests on 1,200 requests, and gate.recall.requests lets in no more"


def test_what_was_not_measured_is_not_measured_by_more_requests():
    for unmeasured in ({"budgets": {"operations": 0.4}}, {"parity_max_abs_diff": None}):
        verdict = decide(evidence(**unmeasured), RULES)
        assert verdict.verdict == "undecided" and verdict.needs_requests is None and "would decide" not in verdict_text(verdict)


def test_a_version_without_a_champion_is_judged_by_floors_only_and_says_so():
    """The first one ever, and any other before one was promoted."""
    verdict = decide(first(), RULES)
    assert verdict.verdict == "pass" and verdict.champion_gauc is None
    assert {rule.name.split(".")[-1] for rule in verdict.rules} == {"floor", "parity", "operations", "age_days"}
    assert verdict.reasons[-1] == "there is no champion to compare with, so only floors were judged"


def test_a_first_version_below_a_floor_is_refused():
    verdict = decide(first(challenger=harmed(kinds=(4,), by=3.0)), RULES)
    assert verdict.verdict == "refuse"
    assert "below the floor .500" in verdict.reasons[0]


def test_a_floor_inside_the_bounds_is_undecided():
    _, _, scores = judged_day(300)
    rules = Gate(floors={"EN": decide(first(requests=300), RULES).gauc["light"]["EN"]})
    verdict = decide(first(requests=300, challenger={**scores, "cascade": scores["light"], "expressive": scores["light"]}), rules)
    assert verdict.verdict == "undecided" and "too uncertain against the floor" in verdict.reasons[0]


def test_the_same_evidence_gets_the_same_verdict_and_digest():
    a, b = decide(evidence(), RULES), decide(evidence(), RULES)
    assert a == b
    assert decide(evidence(challenger=harmed(by=0.01)), RULES).evidence != a.evidence
    assert decide(evidence(manifests={"2026-01-04": "abd"}), RULES).evidence != a.evidence


@pytest.mark.parametrize(
    "case",
    [
        evidence,
        first,
        lambda: evidence(challenger=harmed()),
        lambda: evidence(champion=None),
        lambda: evidence(parity_max_abs_diff=float("nan")),
    ],
)
def test_a_verdict_survives_json_without_nan(case):
    verdict = decide(case(), RULES)
    raw = orjson.dumps(verdict.to_json(), option=orjson.OPT_SERIALIZE_NUMPY)
    assert Verdict.from_json(orjson.loads(raw)) == verdict


def test_the_text_names_verdict_reasons_and_table_on_one_screen():
    text = verdict_text(decide(evidence(challenger=harmed(kinds=(1, 2, 3, 4), by=0.5)), RULES))
    assert text.startswith("v2: REFUSE (against v1)")
    assert "and 5 more in verdict.json" in text
    assert len(text.splitlines()) < 24 and all(len(line) <= 140 for line in text.splitlines())
    assert verdict_text(decide(first(), RULES)).startswith("v2: PASS (no champion, floors only)\n")


def test_equal_models_are_seldom_refused_although_many_rules_are_read():
    """Holm: two models of equal quality, 24 rules of which none is harmed; a refusal in more than a few of 100 days would be a defect."""
    refused = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shape = (250, len(guarded(NEGATIVES)))
        ones = np.ones(250)
        sides = [rng.beta(4, 2, shape) for _ in range(2)]
        champion, challenger = ({q: RequestAuc(side[:, i], ones) for i, q in enumerate(guarded(NEGATIVES))} for side in sides)
        plain = Evidence(
            version=2, against=1, days=("2026-01-04",), manifests={"2026-01-04": "m"}, expressive_kinds=NEGATIVES, requests=250,
            clicked_requests=250, positives=250, challenger=challenger, champion=champion, parity_max_abs_diff=0.0,
        )  # fmt: skip
        refused += decide(dataclasses.replace(plain), Gate(margin=1e-9, bootstrap_draws=100), seed).verdict == "refuse"
    assert refused <= 10
