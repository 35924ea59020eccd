"""drift.blocks_promotion: an open incident that pages holds promotions, by hand and by the flow, until force or its end."""

import datetime as dt

import pytest

from flows.steps import promote_unless_held
from hap.errors import Refused
from hap.monitoring.alerts import apply
from hap.monitoring.findings import Finding, Look
from hap.params import Alerts, Params
from hap.project import project_file
from hap.registry import promotion, versions
from hap.registry.ledger import open_ledger
from hap.workspace import Workspace
from tests.serving.handmade import make_bundle

NOW = dt.datetime(2026, 1, 5, 3, 0, tzinfo=dt.UTC)
DAY = dt.date(2026, 1, 4)


@pytest.fixture
def holding(params: Params) -> Params:
    return params.model_copy(update={"drift": params.drift.model_copy(update={"blocks_promotion": True})})


@pytest.fixture
def passed(ws: Workspace, params: Params) -> Workspace:
    """A workspace whose v1 has passed."""
    bundle = make_bundle(ws.root / "built", 0.0)
    assert versions.register(ws, params, bundle.path, day=DAY, workspace_rev="a", code_rev="b") == 1
    versions.set_verdict(ws, params, 1, {"version": 1, "verdict": "pass", "reasons": []})
    return ws


def see(ws: Workspace, params: Params, severity: str | None, day: int = 4) -> None:
    found = () if severity is None else (Finding(cause="input:cand_price", severity=severity, said="cand_price moved"),)
    apply(open_ledger(ws, params), Look(watcher="drift", day=f"2026-01-0{day}", findings=found), Alerts(), NOW)


def promote(ws: Workspace, params: Params, **words) -> promotion.Promotion:
    return promotion.promote(ws, params, 1, server=None, actor="ann", now=NOW, offline=True, **words)


def test_an_open_page_holds_a_promotion_by_name_and_force_overrides_it(passed: Workspace, holding: Params) -> None:
    see(passed, holding, "page")
    rows = open_ledger(passed, holding).rows()
    with pytest.raises(Refused, match=r"^promotions are held: input:cand_price is open since 2026-01-04 \(cand_price moved\)") as refusal:
        promote(passed, holding)
    assert "\n" not in str(refusal.value) and refusal.value.exit_code == 3
    assert open_ledger(passed, holding).rows() == rows
    done = promote(passed, holding, force=True, reason="prices are meant to rise")
    assert (done.outcome, done.forced) == ("pinned", True)
    assert open_ledger(passed, holding).rows()[-1].forced


@pytest.mark.parametrize(("severity", "healed", "blocks"), [("ticket", False, True), ("page", True, True), ("page", False, False)])
def test_a_ticket_a_healed_page_and_a_parameter_that_is_off_hold_nothing(
    passed: Workspace, params: Params, holding: Params, severity: str, healed: bool, blocks: bool
) -> None:
    see(passed, params, severity)
    if healed:
        see(passed, params, None, day=5)
    planned = promote(passed, holding if blocks else params, dry_run=True)
    assert (planned.outcome, planned.forced) == ("planned", False)


def test_the_flow_says_what_holds_its_promotion_and_leaves_the_challenger(passed: Workspace, holding: Params) -> None:
    see(passed, holding, "page")
    passed.params_file.write_text(project_file("params.yaml").read_text())
    said, held = promote_unless_held(passed, holding, 1, DAY)
    assert held is not None and held.startswith("promotions are held: input:cand_price") and said[-1] == held
    assert said[0].startswith("no champion yet")
    assert open_ledger(passed, holding).served() is None
