"""What status says of the promotions that are on their way."""

import datetime as dt
import shutil
from pathlib import Path

import pytest

from flows.status import status_of, status_text
from hap.registry.ledger import Entry, State, open_ledger
from hap.workspace import Workspace, init_workspace

AT = dt.datetime(2026, 1, 4, 3, 5, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return init_workspace(tmp_path_factory.mktemp("status") / "ws")


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (("intended",), "the promote of v1 by ana at 2026-01-04 03:05 UTC runs, or was killed"),
        (("intended", "pinned"), "v1, pinned by ana, serves from the next `hapctl serve` on"),
        (("intended", "served"), None),
        (("intended", "failed"), None),
    ],
)
def test_a_move_without_an_outcome_is_told(made: Workspace, tmp_path: Path, states: tuple[State, ...], said: str | None) -> None:
    ws = Workspace(shutil.copytree(made.root, tmp_path / "ws"))
    ledger = open_ledger(ws, ws.params())
    for state in states:
        ledger.append(Entry(at=AT, actor="ana", action="promote", state=state, to_version=1))
    value = status_of(ws)
    assert (value["move"] is None) == (said is None)
    assert said is None or said in status_text(value)
