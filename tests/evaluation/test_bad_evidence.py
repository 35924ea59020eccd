"""Broken, missing or too little evidence never crashes the gate and never passes it; the verdict says what is wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hap.evaluation.auc import RequestAuc
from hap.evaluation.evidence import MEMBERS, Evidence, Finding, gather
from hap.evaluation.gate import decide
from hap.evaluation.wording import verdict_text
from hap.params import NEGATIVES, Gate
from tests.evaluation.judged import RULES, evidence, harmed, judged_day


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("member", MEMBERS)
def test_scores_that_are_not_finite_are_refused_by_member(member, bad):
    _, _, scores = judged_day()
    broken = {**scores, member: np.where(np.arange(scores[member].size) == 17, bad, scores[member])}
    verdict = decide(evidence(challenger=broken, champion=scores), RULES)
    assert verdict.verdict == "refuse"
    assert verdict.reasons[0] == f"{member}: 1 of 30,000 scores of v2 are NaN or infinite"


def test_a_champion_with_broken_scores_leaves_it_undecided():
    _, _, scores = judged_day()
    verdict = decide(evidence(champion={**scores, "light": scores["light"] * np.nan}), RULES)
    assert verdict.verdict == "undecided" and "scores of v1 are NaN" in verdict.reasons[0] and verdict.needs_requests is None


def test_scores_of_another_length_are_refused():
    _, _, scores = judged_day()
    verdict = decide(evidence(challenger={**scores, "cascade": scores["cascade"][:-1]}), RULES)
    assert verdict.verdict == "refuse" and verdict.reasons[0] == "cascade: v2 gave 29,999 scores for 30,000 rows"


def test_scores_in_another_order_leave_it_undecided():
    kind, offsets, scores = judged_day()
    rows = np.stack([np.repeat(np.arange(offsets.size - 1), np.diff(offsets)), np.arange(kind.size)], axis=1)
    swapped = np.arange(kind.size)
    swapped[[30, 31]] = swapped[[31, 30]]
    other = {member: values[swapped] for member, values in scores.items()}
    verdict = decide(evidence(champion=other, rows=rows, champion_rows=rows[swapped]), RULES)
    apart = "row 31 is item 31 of request 1 for the one, item 30 of request 1 for the other"
    assert verdict.verdict == "undecided"
    assert verdict.reasons == (f"v1 was scored on other rows, or in another order, than v2: {apart}",)
    assert decide(evidence(rows=rows, champion_rows=rows), RULES).verdict == "pass"


def test_a_champion_that_cannot_be_scored_leaves_it_undecided():
    cause = Finding("undecided", "v1 cannot be scored: its column price is gone from the samples")
    assert decide(evidence(champion=None, findings=[cause]), RULES).reasons == (cause.text,)
    assert "nothing to compare with" in decide(evidence(champion=None), RULES).reasons[0]


def test_a_missing_member_leaves_it_undecided():
    _, _, scores = judged_day()
    verdict = decide(evidence(challenger={m: s for m, s in scores.items() if m != "cascade"}), RULES)
    assert verdict.verdict == "undecided" and "cascade: v2 has no scores" in verdict.reasons


def test_labels_of_one_class_leave_it_undecided():
    kind, _, _ = judged_day()
    verdict = decide(evidence(kind=np.where(kind == 0, 1, kind)), RULES)
    assert verdict.verdict == "undecided" and "every label is of one class" in verdict.reasons[0]


def test_only_positives_leave_it_undecided():
    kind, _, _ = judged_day()
    verdict = decide(evidence(kind=np.zeros_like(kind)), RULES)
    assert verdict.verdict == "undecided" and "EN: no request holds both a positive and a negative of this kind" in verdict.reasons


def test_an_empty_kind_leaves_it_undecided():
    kind, _, _ = judged_day()
    verdict = decide(evidence(kind=np.where(kind == 3, 2, kind)), RULES)
    assert verdict.verdict == "undecided"
    assert verdict.reasons == ("PRN: no request holds both a positive and a negative of this kind",)


def test_a_kind_in_a_few_requests_leaves_it_undecided():
    kind, offsets, _ = judged_day()
    request = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    verdict = decide(evidence(kind=np.where((kind == 4) & (request >= 40), 3, kind)), RULES)
    assert verdict.verdict == "undecided"
    assert verdict.reasons == ("GN: only 40 requests with 40 positives hold this kind (200 and 100 are needed)",)


def test_no_requests_leave_it_undecided():
    nothing = {member: [] for member in MEMBERS}
    verdict = decide(evidence(kind=[], offsets=[0], challenger=nothing, champion=nothing), RULES)
    assert verdict.verdict == "undecided" and verdict.reasons[0] == "no request was judged"


def test_few_requests_are_undecided_even_where_harm_looks_plain():
    verdict = decide(evidence(challenger=harmed(by=3.0, requests=50), requests=50), RULES)
    assert verdict.verdict == "undecided"
    assert verdict.reasons[0].startswith("too little to decide: 50 requests with a positive (gate.min_requests is 200)")
    assert verdict.needs_requests is not None and verdict.needs_requests >= 200


@pytest.mark.parametrize(
    ("parity", "outcome"), [(2e-4, "refuse"), (float("nan"), "refuse"), (float("inf"), "refuse"), (None, "undecided"), (1e-4, "pass")]
)
def test_parity_must_be_measured_and_within_its_limit(parity, outcome):
    verdict = decide(evidence(parity_max_abs_diff=parity), RULES)
    assert verdict.verdict == outcome
    if outcome != "pass":
        assert verdict.reasons[0].startswith("parity:")


def test_what_was_not_measured_for_a_reason_that_is_told_adds_no_reasons_of_its_own():
    cause = Finding("undecided", "2026-01-04 has no samples; collect them with `hapctl collect --day 2026-01-04`")
    nothing = {"kind": [], "offsets": [0], "challenger": {}, "champion": None, "manifests": {}, "findings": [cause]}
    verdict = decide(evidence(**nothing, budgets={}, parity_max_abs_diff=None), RULES)
    assert verdict.verdict == "undecided" and verdict.reasons == (cause.text,)
    assert {rule.outcome for rule in verdict.rules} == {"undecided"}
    worse = decide(evidence(**nothing, parity_max_abs_diff=1.0), RULES)
    assert worse.verdict == "refuse" and worse.reasons[0].startswith("parity: exported scores differ")


def test_training_on_the_judging_day_is_refused():
    verdict = decide(evidence(trained_on=["2026-01-03", "2026-01-04"]), RULES)
    assert verdict.verdict == "refuse" and "v2 was trained or stopped on 2026-01-04" in verdict.reasons[0]


@pytest.mark.parametrize("day", ["2026-01-04", "2026-01-05"])
def test_a_champion_trained_on_the_judging_day_or_later_leaves_it_undecided_however_much_better_it_looks(day):
    _, _, scores = judged_day()
    lost = RequestAuc(np.zeros(1200), np.ones(1200)), RequestAuc(np.ones(1200), np.ones(1200))
    judged = evidence(challenger=harmed(by=0.5), champion=scores, figures={"recall": lost}, champion_trained_on=[day])
    verdict = decide(judged, RULES)
    assert verdict.verdict == "undecided" and len(verdict.reasons) == 1 and "would favour it" in verdict.reasons[0]


def test_a_version_trained_on_a_later_day_than_one_that_judges_does_not_pass():
    verdict = decide(evidence(trained_on=["2026-01-03", "2026-01-05"]), RULES)
    assert verdict.verdict == "undecided"
    assert verdict.reasons == ("v2 was trained or stopped on 2026-01-05, after a day that judges: it knows what came later",)
    verdict = decide(evidence(champion_trained_on=["2026-01-06"]), RULES)
    assert verdict.reasons == ("v1 was trained or stopped on 2026-01-06, after a day that judges: the comparison would favour it",)


def test_a_day_without_manifest_leaves_it_undecided():
    verdict = decide(evidence(days=["2026-01-03", "2026-01-04"]), RULES)
    assert verdict.verdict == "undecided" and "2 judging days have 1 manifests" in verdict.reasons[0]


def test_evidence_without_any_measurement_is_undecided_with_a_reason():
    bare = Evidence(version=3, against=2, days=(), manifests={}, expressive_kinds=NEGATIVES, requests=900, clicked_requests=900,
                    positives=900, challenger={}, parity_max_abs_diff=0.0)  # fmt: skip
    verdict = decide(bare, RULES)
    assert verdict.verdict == "undecided" and verdict.reasons[0].startswith("not measured: cascade on EN")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf]), st.integers(0, 4)), max_size=6), max_size=6),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_no_small_or_broken_evidence_crashes(requests, with_champion, least):
    rows = [row for request in requests for row in request]
    scores = {member: np.array([s for s, _ in rows]) for member in MEMBERS}
    offsets = np.concatenate(([0], np.cumsum([len(request) for request in requests]))).astype(int)
    given_evidence = gather(
        version=2, against=1 if with_champion else None, days=["2026-01-04"], manifests={"2026-01-04": "m"}, expressive_kinds=("EN", "RN"),
        kind=[k for _, k in rows], offsets=offsets, challenger=scores, champion=scores if with_champion else None, parity_max_abs_diff=0.0,
    )  # fmt: skip
    verdict = decide(given_evidence, Gate(min_requests=least, min_positives=least, bootstrap_draws=100))
    assert verdict.reasons and verdict_text(verdict)
    if verdict.verdict == "pass":
        assert all(np.isfinite(s) for s, _ in rows)
