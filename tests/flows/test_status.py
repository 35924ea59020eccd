"""What status says of the promotions that are on their way."""

import datetime as dt
from pathlib import Path

import pytest

from flows.status import status_of, status_text
from hap.registry.ledger import Entry, State, open_ledger
from hap.workspace import init_workspace

AT = dt.datetime(2026, 1, 4, 3, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (("intended",), "the promote of v1 by ana at 2026-01-04 03:05 UTC runs, or was killed"),
        (("intended", "pinned"), "v1, pinned by ana, serves from the next `hapctl serve` on"),
        (("intended", "served"), None),
        (("intended", "failed"), None),
    ],
)
def test_a_move_without_an_outcome_is_told(tmp_path: Path, states: tuple[State, ...], said: str | None) -> None:
    ws = init_workspace(tmp_path / "ws")
    ledger = open_ledger(ws, ws.params())
    for state in states:
        ledger.append(Entry(at=AT, actor="ana", action="promote", state=state, to_version=1))
    value = status_of(ws)
    assert (value["move"] is None) == (said is None)
    assert said is None or said in status_text(value)
