"""Bad versions and bad moments: the old version never stops serving."""

import shutil

import pytest

from hap.errors import DataError, HapError, ServingError
from hap.registry import promotion, versions
from hap.registry.ledger import Ledger
from hap.serving import repository
from tests.registry.conftest import NOW
from tests.registry.promotion.conftest import story
from tests.registry.promotion.faults import EVERYWHERE, FAULTS, answer_wrongly, spoil_graph, with_scores


@pytest.mark.parametrize("fault", FAULTS)
def test_a_version_that_fails_is_undone_and_the_old_one_serves_on(ws, params, server, ledger, promote, fault: str) -> None:
    promote(1)
    FAULTS[fault](server)
    with pytest.raises(HapError, match=r"promote of v2 failed: .*; v1 serves as before") as caught:
        promote(2)
    assert "\n" not in str(caught.value)
    assert server.serves() == repository.pinned(ws.triton) == ledger.served() == versions.get_alias(ws, params, "champion") == 1
    assert story(ledger)[2:] == [("promote", "intended", 1, 2), ("promote", "undone", 1, 2)]
    assert ledger.rows()[-1].reason in str(caught.value)
    assert repository.rendered(ws.triton) == [1] and server.versions("light") == [1]
    assert promotion.repair(ws, params, now=NOW, server=server) == []


def test_a_first_version_that_fails_leaves_no_champion_and_can_be_promoted_again(ws, params, server, ledger, promote) -> None:
    score = server.score
    answer_wrongly(server, with_scores(1.0), EVERYWHERE)
    server.score = lambda *a, **k: with_scores(2.0)(score(*a, **k))  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"v1 failed: .* differs by .* there is no champion, as before"):
        promote(1)
    assert server.serves() is None and repository.pinned(ws.triton) is None and ledger.served() is None
    server.score = score  # type: ignore[method-assign]
    assert promote(1).outcome == "served" and server.serves() == 1


def test_a_first_version_whose_served_files_are_damaged_is_rendered_anew_by_the_next_try(ws, server, promote, monkeypatch) -> None:
    render = repository.render

    def damaged(*words) -> None:
        render(*words)
        (ws.triton / "light" / "1" / "model.onnx").write_bytes(b"torn")

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"does not load.*there is no champion, as before"):
        patch.setattr(repository, "render", damaged)
        promote(1)
    assert repository.rendered(ws.triton) == []
    assert promote(1).outcome == "served" and server.serves() == 1


def test_a_disk_that_is_full_is_a_clear_refusal_and_leaves_no_half_version(ws, server, ledger, promote, monkeypatch) -> None:
    promote(1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(HapError, match=r"promote of v2 failed: .*No space left on device; .*v1 serves as before"):
            promote(2)
    assert repository.rendered(ws.triton) == [1] and story(ledger)[-1][1] == "undone"
    assert promote(2).outcome == "served"


def test_a_damaged_local_bundle_is_fetched_again(ws, server, promote, rollback) -> None:
    promote(1)
    promote(2)
    rollback()
    spoil_graph(ws)
    assert promote(2).outcome == "served" and server.serves() == 2


def test_an_interrupt_is_undone_before_it_ends_the_command(ws, server, ledger, promote) -> None:
    promote(1)
    load = server.load

    def interrupted(model: str) -> None:
        if model == "hap_all" and repository.pinned(ws.triton) == 2:
            raise KeyboardInterrupt
        load(model)

    server.load = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        promote(2)
    assert server.serves() == ledger.served() == 1 and ledger.rows()[-1].reason == "KeyboardInterrupt"


def test_a_server_that_dies_during_the_switch_leaves_the_old_pins_for_its_next_start(ws, params, server, ledger, promote) -> None:
    promote(1)
    load = server.load

    def dying(model: str) -> None:
        if model == "hap" and repository.pinned(ws.triton) == 2:
            server.down = True
        load(model)

    server.load = dying  # type: ignore[method-assign]
    with pytest.raises(ServingError, match="nothing answers; v1 serves as before"):
        promote(2)
    assert repository.pinned(ws.triton) == 1 and ledger.rows()[-1].state == "undone"


def test_where_the_ledger_goes_away_during_the_switch_the_old_version_comes_back_all_the_same(
    ws, params, server, ledger, promote, monkeypatch
) -> None:
    promote(1)
    load = server.load

    def away(*_: object, **__: object) -> None:
        raise HapError("the ledger cannot be used: connection refused")

    with monkeypatch.context() as patch:

        def cut(model: str) -> None:
            load(model)
            if model == "hap" and repository.pinned(ws.triton) == 2:
                patch.setattr(Ledger, "append", away)
                patch.setattr(Ledger, "rows", away)

        server.load = cut  # type: ignore[method-assign]
        said = r"promote of v2 failed: .*connection refused; v1 serves as before, but the ledger could not be told .* the next command"
        with pytest.raises(HapError, match=said):
            promote(2)
    server.load = load  # type: ignore[method-assign]
    assert server.serves() == repository.pinned(ws.triton) == 1 and story(ledger)[-1] == ("promote", "intended", 1, 2)
    assert promotion.repair(ws, params, now=NOW, server=server, alias=False) == [
        "promote of v2 by ann was interrupted: undone, v1 serves as before"
    ]
    assert server.serves() == ledger.served() == 1


def test_a_restore_that_fails_is_written_as_failed_and_mended_by_the_next_repair(ws, params, server, ledger, promote) -> None:
    promote(1)
    load = server.load

    def failing(model: str) -> None:
        if model in ("hap", "hap_all"):
            raise ServingError("busy")
        load(model)

    server.load = failing  # type: ignore[method-assign]
    with pytest.raises(ServingError, match="restoring failed, too: busy"):
        promote(2)
    assert ledger.rows()[-1].state == "failed" and ledger.served() == 1
    server.load = load  # type: ignore[method-assign]
    server._save({})
    assert promotion.repair(ws, params, now=NOW, server=server) == [
        "v1 is what the ledger says, and was not what the server or its pins said: repaired"
    ]
    assert server.serves() == 1
