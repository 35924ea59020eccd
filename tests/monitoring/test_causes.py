"""From judged columns to findings: one for each cause, as bad as its worst column; and one for each cause of a day."""

from dataclasses import replace

import pytest

from hap.monitoring.causes import cause_of, gathered, look_at
from hap.monitoring.columns import Column, ColumnDrift, judged_columns
from hap.monitoring.findings import Finding, Look
from hap.params import Params


def judged(value=None, threshold=None, *, drifted=True, reference=500, current=500, note=None) -> ColumnDrift:
    return ColumnDrift("wasserstein" if value is not None else None, value, threshold, drifted, None, None, reference, current, note)


def column(name: str, source: str, role="value") -> Column:
    return Column(name, "numeric", "candidate", "", source, None, role)


PRICE, PRESENT, CLICKS = (
    column("cand_price", "cand_price"),
    column("cand_price_present", "cand_price", "present"),
    column("click_rate", "cand_kind"),
)
COUNT = Column("candidates", "numeric", "request", "", "cand_kind")  # which every request has


def test_every_column_of_the_default_workspace_has_one_of_a_few_causes(default_params: Params) -> None:
    causes = {column.name: cause_of(column) for column in judged_columns(default_params.features)}
    assert {cause for cause in causes.values() if not cause.startswith("input:")} == {
        *("labels:click_rate", "cascade:candidates", "catalogue:GN"),
    }
    assert causes["cand_item_id_seen"] == causes["cand_item_id_rank"] == "input:cand_item_id"
    assert causes["hist_age_hours"] == "input:hist_age_hours" and causes["hist_content_type"] == "input:hist_content_type"
    assert causes["history_length"] == "input:history_length" and causes["share_PRN"] == causes["share_exposed"] == "cascade:candidates"


def test_columns_of_one_cause_are_one_finding_led_by_the_worst() -> None:
    gone = ColumnDrift("missing", 0.35, 0.1, True, 0.05, 0.4, 500, 500)
    look = look_at("2026-01-04", [PRICE, PRESENT], {"cand_price": judged(0.2, 0.1), "cand_price_present": gone}, 3.0)
    (finding,) = look.findings
    assert (finding.cause, finding.severity, finding.value, finding.limit) == ("input:cand_price", "page", 0.35, 0.1)
    missing = "cand_price is missing on 40% of rows, 5% in the training window; 10% of rows more or less are allowed"
    assert finding.said == f"{missing}; cand_price: wasserstein 0.200 over 0.100"
    assert finding.do == "hapctl show 2026-01-04"


def test_what_moved_in_candidates_and_in_histories_is_one_incident_unless_histories_are_worse() -> None:
    past = column("hist_price", "hist_price")

    def causes(candidates: float, histories: float) -> tuple[list[str], frozenset[str]]:
        look = look_at("2026-01-04", [PRICE, past], {"cand_price": judged(candidates, 0.1), "hist_price": judged(histories, 0.1)}, 3.0)
        assert all(words in look.findings[0].said for words in (["cand_price: w", "; hist_price: w"] if len(look.findings) == 1 else []))
        return [finding.cause for finding in look.findings], look.unjudged

    assert causes(0.4, 0.4) == (["input:cand_price"], {"input:hist_price"}), "its own incident, of another day, stays as it is"
    assert causes(0.4, 0.2) == causes(0.2, 0.2) == (["input:cand_price"], {"input:hist_price"})
    assert causes(0.2, 0.4) == (["input:hist_price", "input:cand_price"], frozenset())


def test_severity_follows_the_parameter_and_a_lost_column_wakes_someone() -> None:
    def severity(one: ColumnDrift, page_from: float = 3.0) -> str:
        columns = {"cand_price": one, "candidates": judged(0.0, 0.1, drifted=False)}
        return look_at("2026-01-04", [PRICE, COUNT], columns, page_from).findings[0].severity

    assert severity(judged(0.29, 0.1)) == "ticket" and severity(judged(0.31, 0.1)) == "page"
    assert severity(judged(0.29, 0.1), 2.0) == "page"
    assert severity(judged(current=0, note="the column is gone")) == "page"
    assert severity(judged(drifted=False, reference=0, note="the column is new")) == "info"


def test_too_few_rows_leave_a_cause_unjudged_and_a_day_without_rows_is_missing() -> None:
    few = judged(drifted=False, reference=500, current=3, note="too few rows")
    look = look_at("2026-01-04", [PRICE, CLICKS], {"cand_price": few, "click_rate": judged(0.0, 0.1, drifted=False)}, 3.0)
    assert (look.findings, look.unjudged, look.missing) == ((), {"input:cand_price"}, False)
    lost = {"cand_price": judged(current=0), "click_rate": judged(current=0)}
    assert look_at("2026-01-04", [PRICE, CLICKS], lost, 3.0).missing


def test_ids_that_cannot_be_looked_up_do_not_keep_their_cause_unjudged() -> None:
    seen, rank = column("cand_item_id_seen", "cand_item_id", "seen"), column("cand_item_id_rank", "cand_item_id", "rank")
    columns = {"cand_item_id_seen": judged(drifted=False, reference=0, current=0), "cand_item_id_rank": judged(0.0, 0.1, drifted=False)}
    look = look_at("2026-01-04", [seen, rank], columns, 3.0)
    assert look.findings == () and look.unjudged == set()


def test_missing_values_are_told_as_shares_of_the_rows_with_the_limit_in_that_unit() -> None:
    gone = ColumnDrift("missing", 0.93, 0.03, True, 0.0, 0.93, 500, 500)
    look = look_at("2026-01-04", [PRESENT], {"cand_price_present": gone}, 3.0)
    (finding,), (figure,) = look.findings, look.figures
    assert finding.said == "cand_price is missing on 93% of rows, 0% in the training window; 3% of rows more or less are allowed"
    assert (finding.value, finding.limit, finding.figure, finding.severity) == (0.93, 0.03, "inputs.cand_price_present", "page")
    assert (figure.title, figure.value, figure.reference, figure.least, figure.most) == (
        "share of rows without cand_price",
        0.93,
        0.0,
        0.0,
        0.03,
    )


def seen(watcher: str, *causes: str, value=0.2, unjudged=(), missing=False) -> Look:
    found = tuple(Finding(cause=one, severity="ticket", said=f"{watcher} saw {one}", value=value, limit=0.1) for one in causes)
    return Look(watcher=watcher, day="2026-01-04", findings=found, unjudged=frozenset(unjudged), missing=missing)


def test_a_cause_that_several_watchers_see_is_one_finding_with_the_words_of_all() -> None:
    cause = "cascade:candidates"
    inputs, traffic, funnel = gathered([seen("inputs", cause), seen("traffic", cause, "traffic:late", value=0.5), seen("funnel", cause)])
    assert [one.cause for one in inputs.findings] == [cause] and inputs.findings[0].value == 0.5
    assert inputs.findings[0].said == f"traffic saw {cause}; inputs saw {cause}; funnel saw {cause}"
    assert [one.cause for one in traffic.findings] == ["traffic:late"] and traffic.unjudged == {cause} and funnel.findings == ()


def test_whoever_tells_a_cause_also_tells_what_others_alone_have_seen() -> None:
    inputs, funnel = gathered([seen("inputs", unjudged=["cascade:candidates"]), seen("funnel", "cascade:candidates")])
    assert [one.said for one in inputs.findings] == ["funnel saw cascade:candidates"] and not inputs.unjudged
    assert funnel.findings == () and funnel.unjudged == {"cascade:candidates"}


def test_where_it_saw_nothing_of_the_day_each_speaks_for_itself() -> None:
    looks = [seen("inputs", missing=True), seen("traffic", "cascade:candidates"), seen("funnel", "cascade:candidates")]
    assert gathered(looks) == looks


def test_nothing_found_leaves_every_look_as_it_is() -> None:
    looks = [seen("inputs"), seen("traffic", "traffic:volume")]
    assert gathered(looks) == looks


def test_what_follows_from_a_broken_input_is_told_with_it_and_not_alone() -> None:
    inputs, funnel = gathered([seen("inputs", "input:cand_price"), seen("funnel", "funnel:edge", "funnel:gauc_light", value=0.3)])
    assert inputs.findings[0].said.endswith("with it moved funnel:edge (3.0 times its limit), funnel:gauc_light (3.0 times its limit)")
    assert (inputs.findings[0].value, inputs.findings[0].cause) == (0.2, "input:cand_price")
    assert funnel.findings == () and {"funnel:edge", "funnel:gauc_light"} < funnel.unjudged, "an incident of before stays as it is"


def test_an_effect_does_not_hide_behind_a_milder_cause_and_broken_scores_never_do() -> None:
    paged = Finding(cause="funnel:gauc_light", severity="page", said="lost", value=0.5, limit=0.1)
    funnel = replace(seen("funnel", "funnel:scores"), findings=(paged, *seen("funnel", "funnel:scores").findings))
    assert gathered([seen("inputs", "input:cand_price"), funnel])[1].findings == funnel.findings


def test_one_effect_without_a_root_speaks_for_itself_and_closes_nothing_of_several() -> None:
    looks = [seen("inputs"), seen("labels", "labels:interest"), seen("funnel", "funnel:edge")]
    *others, funnel = gathered(looks)
    assert others == looks[:2] and funnel.findings == looks[2].findings and funnel.unjudged == {"model:behind"}


def test_several_effects_without_a_root_are_one_finding_of_the_funnel_led_by_the_worst() -> None:
    looks = [seen("inputs"), seen("funnel", "funnel:edge", "funnel:scores"), seen("estimate", "quality:estimate", value=0.5)]
    _, funnel, estimate = gathered(looks)
    assert [one.cause for one in funnel.findings] == ["model:behind", "funnel:scores"], "broken scores are told by themselves"
    behind = funnel.findings[0]
    assert (behind.value, behind.limit, behind.severity) == (0.5, 0.1, "ticket") and behind.said.startswith(
        "estimate saw quality:estimate;"
    )
    assert behind.said.endswith("what moved is quality:estimate (5.0 times its limit), funnel:edge (2.0 times its limit)")
    assert funnel.unjudged == {"funnel:edge"} and estimate.unjudged == {"quality:estimate"} and estimate.findings == ()


def test_several_effects_told_with_their_root_close_nothing_of_several() -> None:
    _, funnel = gathered([seen("inputs", "input:cand_price"), seen("funnel", "funnel:edge", "funnel:gauc_light")])
    assert "model:behind" in funnel.unjudged and funnel.findings == ()


def test_where_nothing_moved_several_are_over() -> None:
    (funnel,) = gathered([seen("funnel")])
    assert "model:behind" not in funnel.unjudged


@pytest.mark.parametrize("waits", [seen("funnel", "funnel:labels"), seen("funnel", unjudged=["funnel:labels"])])
def test_before_the_labels_are_in_nobody_says_that_several_are_over(waits: Look) -> None:
    (funnel,) = gathered([waits])
    assert "model:behind" in funnel.unjudged and funnel.findings == waits.findings


def test_where_the_funnel_saw_nothing_of_the_day_effects_speak_for_themselves() -> None:
    looks = [seen("funnel", missing=True), seen("estimate", "quality:estimate", "quality:realized")]
    assert gathered(looks) == looks
