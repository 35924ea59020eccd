"""Rollback: to what served before, without MLflow, and never further than its files are kept."""

import pytest

from hap.errors import NotFound
from hap.params import Keep, Mlflow
from hap.registry import promotion, versions
from hap.serving import repository
from tests.registry.conftest import NOW, judged_against_champion


def test_rollback_goes_to_the_version_before_and_works_without_mlflow(ws, params, server, ledger, promote, rollback) -> None:
    for version in (1, 2, 3):
        promote(version)
    away = params.model_copy(update={"mlflow": Mlflow(tracking_uri="http://127.0.0.1:9")})
    back = promotion.rollback(ws, away, server=server, actor="bo", now=NOW, reason="complaints")
    assert (back.version, back.previous, server.serves(), ledger.served()) == (2, 3, 2, 2)
    assert ledger.rows()[-1].reason == "complaints"
    assert versions.get_alias(ws, params, "champion") == 3 and "`hapctl promote --model v2` moves it now" in back.notes[-1]
    assert promotion.repair(ws, params, now=NOW, server=server) == ["MLflow's alias champion points at v2 now"]
    assert rollback().version == 1, "not v3, which was rolled back"
    with pytest.raises(NotFound, match="nothing to roll back to: only v1 has served"):
        rollback()


def test_rollback_before_anything_served(rollback) -> None:
    with pytest.raises(NotFound, match="no version has served yet"):
        rollback()


def test_what_a_rollback_needs_is_kept_and_the_rest_is_cleared(ws, params, ledger, promote, server) -> None:
    few = params.model_copy(update={"keep": Keep(versions=1)})
    for version in (1, 2, 3):
        judged_against_champion(ws, params, version)
        promotion.promote(ws, few, version, server=server, actor="ann", now=NOW)
    assert repository.rendered(ws.triton) == [2, 3]
    assert sorted(entry.name for entry in (ws.registry / "bundles").iterdir()) == ["v2", "v3"]
    assert promotion.rollback(ws, few, server=server, actor="ann", now=NOW).version == 2
