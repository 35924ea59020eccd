"""Words about what serves, as they are typed."""

import orjson
import pytest

from hap.params import load_params
from hap.project import project_file
from hap.registry.ledger import open_ledger
from hap.workspace import Workspace, init_workspace
from tests.cli.conftest import Run


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return init_workspace(tmp_path / "ws")


def test_freeze_and_unfreeze_are_rows_of_the_ledger_and_say_what_was_before(hapctl: Run, ws: Workspace) -> None:
    book = open_ledger(ws, ws.params())
    assert hapctl("unfreeze", "--root", ws.root)[:2] == (0, "promotions are not frozen; nothing was changed\n")
    assert hapctl("freeze", "--reason", "sale", "--dry-run", "--root", ws.root)[1] == "promotions would be frozen\n"
    assert book.rows() == []
    assert hapctl("freeze", "--reason", "sale", "--root", ws.root)[1] == "promotions are frozen until `hapctl unfreeze`\n"
    code, out, _ = hapctl("freeze", "--reason", "audit", "--json", "--root", ws.root)
    assert (code, orjson.loads(out)) == (0, {"frozen": True, "changed": True})
    out = hapctl("unfreeze", "--reason", "done", "--root", ws.root)[1]
    assert out.startswith("promotions are allowed again; they were frozen since 20") and out.endswith(": audit\n")
    assert [(row.action, row.reason) for row in book.rows()] == [("freeze", "sale"), ("freeze", "audit"), ("unfreeze", "done")]


def test_the_ledger_answers_for_one_time(hapctl: Run, ws: Workspace) -> None:
    hapctl("freeze", "--reason", "sale", "--root", ws.root)
    assert hapctl("ledger", "--at", "2026-01-31", "--root", ws.root)[1] == "at 2026-01-31 00:00 UTC no version served\n"
    found = orjson.loads(hapctl("ledger", "--at", "2099-01-31T02:00+02:00", "--json", "--root", ws.root)[1])
    assert (found["at"], found["served"], found["frozen"]["reason"]) == ("2099-01-31T00:00:00.000000+00:00", None, "sale")


def test_a_start_whose_ledger_is_away_says_so_and_serves_all_the_same(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    from hap.cli import serving

    params = load_params(project_file("params.yaml"))
    away = params.model_copy(update={"ledger": params.ledger.model_copy(update={"url": "postgresql://ann@127.0.0.1:9/hap"})})
    serving._settle(Workspace(tmp_path), away)
    said = capsys.readouterr().err
    assert "what serves was not compared with the ledger, the next `hapctl promote` does it: the ledger at postgresql" in said
    assert said.count("\n") == 1
