"""`hapctl parity`: what is measured of a version that serves, of one that does not, and without a server; nothing is left changed."""

import pytest

from flows.parity import Measured, measure
from hap.errors import Busy, DataError, ServingError
from hap.params import Params
from hap.registry import promotion
from hap.registry.turns import promotion_lock
from hap.serving import repository, staging, trial
from hap.workspace import Workspace
from tests.registry.conftest import NOW
from tests.registry.file_triton import FileTriton
from tests.registry.promotion.faults import answer_wrongly, with_scores

GOLDEN = 6  # questions that the four golden requests make


def measured(ws: Workspace, params: Params, version: int, server: FileTriton | None) -> Measured:
    return measure(ws, params, version, server=server, now=NOW)


def test_without_a_server_two_are_compared_and_the_last_promotion_is_told(ws, params, promote, server) -> None:
    found = measured(ws, params, 2, None)
    assert list(found.agreement.pairs) == ["ONNX Runtime / PyTorch"] and found.fault is None
    assert found.notes == ("Triton was not asked: no server runs; v2 was never promoted",)
    promote(1)
    server.down = True
    (note,) = measured(ws, params, 1, server).notes
    assert note.startswith("Triton was not asked: no server runs; when it was promoted (2026-01-05") and "on 6 requests" in note


def test_the_version_that_serves_is_asked_as_callers_ask_it(ws, params, promote, server) -> None:
    promote(1)
    server.calls.clear()
    found = measured(ws, params, 1, server)
    assert {pair: one["requests"] for pair, one in found.agreement.pairs.items()} == dict.fromkeys(
        ("ONNX Runtime / PyTorch", "Triton / PyTorch", "Triton / ONNX Runtime"), GOLDEN
    )
    assert found.notes == () and not any(call.startswith(("load", "unload")) for call in server.calls)
    assert found.as_json()["nan_refused_by_name"] == dict.fromkeys(
        ("user activity", "item price", "item age_hours", "history age_hours"), True
    )


@pytest.mark.parametrize("champion", [None, 1])
def test_another_version_is_rehearsed_and_everything_is_as_before(ws, params, promote, server, ledger, champion: int | None) -> None:
    if champion:
        promote(champion)
    before = repository.pinned(ws.triton), repository.loaded(ws.triton), server.serves(), len(ledger.rows())
    found = measured(ws, params, 3, server)
    assert found.fault is None and list(found.agreement.pairs)[1] == "Triton / PyTorch"
    assert found.notes == ("v3 does not serve: it was rehearsed in Triton beside what does",)
    assert (repository.pinned(ws.triton), server.serves()) == (before[0], before[2]) == (champion, champion)
    assert server.versions("light") == ([champion] if champion else [])
    assert staging.staged(ws.triton) == {} and len(ledger.rows()) == before[3]
    assert promotion.repair(ws, params, now=NOW, server=server, alias=False) == []


def test_a_version_that_answers_wrongly_in_triton_is_told_by_pair_and_request(ws, params, promote, server) -> None:
    promote(1)
    answer_wrongly(server, with_scores(1.5), tuple(staging.names(staging.REHEARSAL).values()))
    found = measured(ws, params, 2, server)
    assert found.fault is not None and found.fault.startswith("Triton differs by ") and "(worst: n=12 k=None)" in found.fault
    assert str(found).splitlines()[-1] == f"v2 FAILS: {found.fault}"
    assert server.serves() == 1


def test_a_rehearsal_that_fails_leaves_what_served(ws, params, promote, server) -> None:
    promote(1)
    score = server.score

    def refuses(tensors, k=None, model=None):
        if model == "hap_rehearsal":
            raise ServingError("out of memory")
        return score(tensors, k, model)

    server.score = refuses
    with pytest.raises(ServingError, match="out of memory"):
        measured(ws, params, 2, server)
    assert server.serves() == repository.pinned(ws.triton) == 1 and staging.staged(ws.triton) == {}


def test_what_a_killed_one_left_is_cleared_by_the_next_promotion(ws, params, promote, server) -> None:
    promote(1)
    promote(2)
    staging.stage(ws.triton, staging.REHEARSAL, 1)
    server.load("hap_rehearsal")
    promotion.repair(ws, params, now=NOW, server=server, alias=False)
    assert staging.staged(ws.triton) == {} and server.versions("hap_rehearsal") == []


def test_a_pin_that_waits_and_a_promotion_that_runs_are_not_disturbed(ws, params, promote, server, ledger) -> None:
    promote(1)
    promote(2, offline=True)
    with pytest.raises(Busy, match="a pin waits for the next start"):
        measured(ws, params, 3, server)
    with promotion_lock(ws, ledger, "promote v2", NOW), pytest.raises(Busy, match=r"promote v2 .* is changing what serves"):
        measured(ws, params, 3, server)
    assert (repository.pinned(ws.triton), server.serves()) == (2, 1)


def test_graphs_that_fail_are_told_before_triton_sees_them(ws, params, promote, server, monkeypatch) -> None:
    promote(1)
    server.calls.clear()

    def fails(*_: object) -> None:
        raise DataError("a graph fails at light, N=0 (0 candidates): signal 8")

    monkeypatch.setattr(trial, "tried", fails)
    with pytest.raises(DataError, match="signal 8"):
        measured(ws, params, 2, server)
    assert server.calls == []
