"""From judged columns to findings: one for each cause, as bad as its worst column."""

from hap.monitoring.causes import cause_of, look_at
from hap.monitoring.columns import Column, ColumnDrift, judged_columns
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


def test_every_column_of_the_default_workspace_has_one_of_a_few_causes(default_params: Params) -> None:
    causes = {column.name: cause_of(column) for column in judged_columns(default_params.features)}
    assert {cause for cause in causes.values() if not cause.startswith("input:")} == {
        *("labels:click_rate", "cascade:candidates", "catalogue:GN"),
    }
    assert causes["cand_item_id_seen"] == causes["cand_item_id_rank"] == "input:cand_item_id"
    assert causes["history_length"] == "input:history_length" and causes["share_PRN"] == causes["share_exposed"] == "cascade:candidates"


def test_columns_of_one_cause_are_one_finding_led_by_the_worst() -> None:
    look = look_at("2026-01-04", [PRICE, PRESENT], {"cand_price": judged(0.2, 0.1), "cand_price_present": judged(0.35, 0.1)}, 3.0)
    (finding,) = look.findings
    assert (finding.cause, finding.severity, finding.value, finding.limit) == ("input:cand_price", "page", 0.35, 0.1)
    assert finding.said == "cand_price_present: wasserstein 0.350 over 0.100; cand_price: wasserstein 0.200 over 0.100"
    assert finding.do == "hapctl show 2026-01-04"


def test_severity_follows_the_parameter_and_a_lost_column_wakes_someone() -> None:
    def severity(one: ColumnDrift, page_from: float = 3.0) -> str:
        return look_at("2026-01-04", [PRICE], {"cand_price": one}, page_from).findings[0].severity

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
