"""Kills: at any point, the next command finds out what is served, finishes or undoes, and says so."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hap.errors import Busy
from hap.params import Params
from hap.registry import promotion, versions
from hap.registry.ledger import open_move, pinned_for_next_start
from hap.serving import repository, staging
from hap.workspace import Workspace
from tests.registry.conftest import NOW, judged_against_champion
from tests.registry.promotion.conftest import story
from tests.registry.promotion.faults import Killed, answer_wrongly, count_steps, with_scores


@pytest.fixture
def light_registry(ws: Workspace, params: Params, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry as a few values: hundreds of promotions in seconds."""
    known, aliases = {one.number: one for one in versions.list_versions(ws, params)}, ws.registry / "aliases.json"

    def fetch(ws: Workspace, params: Params, version: int, into: Path) -> Path:
        with versions.durable.new_directory(into) as building:
            shutil.copytree(registry / "bundles" / str(version), building, dirs_exist_ok=True)
        return into

    monkeypatch.setattr(versions, "get", lambda ws, params, version: known[version])
    monkeypatch.setattr(versions, "stored_bundle", lambda ws, params, version: {"bundle": 2**20})
    monkeypatch.setattr(versions, "fetch_bundle", fetch)
    monkeypatch.setattr(versions, "set_alias", lambda ws, params, alias, version: aliases.write_text(str(version)))
    monkeypatch.setattr(versions, "get_alias", lambda ws, params, alias: int(aliases.read_text()) if aliases.exists() else None)


@pytest.mark.usefixtures("light_registry")
@pytest.mark.parametrize("first", [True, False], ids=["of the first version", "of the second version"])
@pytest.mark.parametrize(
    "then",
    ["repair", pytest.param("promote again", marks=pytest.mark.long), pytest.param("repair without a server", marks=pytest.mark.long)],
)
def test_killed_at_any_step_the_next_command_finds_the_truth(ws, params, server, ledger, promote, tmp_path, first, then) -> None:
    if not first:
        promote(1)
    start, target = ledger.served(), 1 if first else 2
    saved = tmp_path / "saved"
    shutil.copytree(ws.root, saved)
    state = server.state.read_bytes() if server.state.exists() else None

    def reset() -> None:
        shutil.rmtree(ws.root)
        shutil.copytree(saved, ws.root)
        server.state.unlink(missing_ok=True)
        if state is not None:
            server.state.write_bytes(state)

    with pytest.MonkeyPatch.context() as patch:
        steps = count_steps(patch, server, None)
        promote(target)
    outcomes = set()
    for step in range(len(steps)):
        reset()
        with pytest.MonkeyPatch.context() as patch:
            count_steps(patch, server, step)
            with pytest.raises(Killed):
                promote(target)
        killed_before = f"killed before step {step}, {steps[step]}"
        if then == "promote again":
            promote(target)
            assert server.serves() == ledger.served() == target, killed_before
        else:
            promotion.repair(ws, params, now=NOW, server=server if then == "repair" else None)
        assert open_move(ledger.rows()) is None, killed_before
        truth = ledger.served()
        outcomes.add(truth)
        assert repository.pinned(ws.triton) == truth, killed_before
        if then == "repair without a server":
            continue
        assert server.serves() == truth and versions.get_alias(ws, params, "champion") == truth, killed_before
        assert ledger.verify() == len(ledger.rows())
        assert promotion.repair(ws, params, now=NOW, server=server) == [], killed_before
        assert server.versions("hap_rehearsal") == [] and staging.staged(ws.triton) == {}, killed_before
    assert outcomes == ({target} if then == "promote again" else {start, target}), "some kills came before the switch, some after"


@pytest.mark.usefixtures("light_registry")
@pytest.mark.parametrize(
    "killed",
    [
        "a pin taken back",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("a pin", "a promotion beside a pin", "a rollback")),
    ],
)
def test_killed_at_any_step_of_another_move_the_next_command_finds_the_truth_too(
    ws, params, server, ledger, promote, rollback, tmp_path, killed
) -> None:
    promote(1)
    if killed == "a rollback":
        promote(2)
    elif killed != "a pin":
        promote(2, offline=True)
    words = {"a pin": lambda: promote(2, offline=True), "a promotion beside a pin": lambda: promote(3)}
    move = words.get(killed, rollback)
    saved, state = tmp_path / "saved", server.state.read_bytes()
    shutil.copytree(ws.root, saved)
    with pytest.MonkeyPatch.context() as patch:
        steps = count_steps(patch, server, None)
        move()
    for step in range(len(steps)):
        shutil.rmtree(ws.root)
        shutil.copytree(saved, ws.root)
        server.state.write_bytes(state)
        with pytest.MonkeyPatch.context() as patch:
            count_steps(patch, server, step)
            with pytest.raises(Killed):
                move()
        killed_before = f"killed before step {step}, {steps[step]}"
        promotion.repair(ws, params, now=NOW, server=server)
        rows = ledger.rows()
        assert open_move(rows) is None and ledger.verify() == len(rows), killed_before
        waiting = pinned_for_next_start(rows)
        assert server.serves() == ledger.served(), killed_before
        assert repository.pinned(ws.triton) == (waiting.to_version if waiting else ledger.served()), killed_before
        assert promotion.repair(ws, params, now=NOW, server=server) == [], killed_before
        for model in (*repository.GRAPHS, *repository.ENSEMBLES):  # a start with the pins as they are
            server.load(model)
        promotion.repair(ws, params, now=NOW, server=server)
        assert server.serves() == ledger.served() == repository.pinned(ws.triton), killed_before


PROMOTE = """
import datetime as dt, os, signal, sys
from pathlib import Path
from hap.params import load_params
from hap.project import project_file
from hap.registry import promotion
from hap.workspace import Workspace
from tests.registry.file_triton import FileTriton

ws = Workspace(Path(sys.argv[1]))
server = FileTriton(ws.triton, Path(sys.argv[2]))
load = server.load
def killed(model):
    load(model)
    if model == "hap_all":
        os.kill(os.getpid(), signal.SIGKILL)
server.load = killed
promotion.promote(ws, load_params(project_file("params.yaml")), 2, server=server, actor="ann", now=dt.datetime(2026, 1, 5, tzinfo=dt.UTC))
"""


def test_a_process_killed_after_the_switch_is_finished_by_the_next_command(ws, params, server, ledger, promote) -> None:
    promote(1)
    judged_against_champion(ws, params, 2)
    killed = subprocess.run([sys.executable, "-c", PROMOTE, str(ws.root), str(server.state)], capture_output=True, check=False, timeout=240)
    assert killed.returncode == -9, killed.stderr
    assert story(ledger)[-1] == ("promote", "intended", 1, 2) and server.serves() == 2
    notes = promotion.repair(ws, params, now=NOW, server=server, actor="cy")
    assert notes == [
        "promote of v2 by ann was interrupted and answers its golden requests: v2 serves",
        "MLflow's alias champion points at v2 now",
    ]
    row = ledger.rows()[-1]
    assert (row.state, row.actor, row.evidence["settled_by"]) == ("served", "ann", "cy")


def test_an_interrupted_version_that_answers_wrongly_is_undone_by_the_next_command(ws, params, server, ledger, promote) -> None:
    promote(1)
    with pytest.MonkeyPatch.context() as patch:
        steps = count_steps(patch, server, None)
        promote(2)
        last = len(steps) - 2  # the `served` row; the alias comes after
    promotion.rollback(ws, params, server=server, actor="ann", now=NOW)
    with pytest.MonkeyPatch.context() as patch:
        count_steps(patch, server, last)
        with pytest.raises(Killed):
            promote(3)
    answer_wrongly(server, with_scores(1.0), ())
    score = server.score
    server.score = lambda *a, **k: with_scores(2.0)(score(*a, **k)) if score(*a, **k).served_by == 3 else score(*a, **k)  # type: ignore[method-assign]
    (note, *_) = promotion.repair(ws, params, now=NOW, server=server)
    assert "promote of v3 by ann was interrupted, but v3 fails parity" in note and note.endswith("undone, v1 serves as before")
    assert server.serves() == ledger.served() == 1


def test_pins_that_somebody_changed_are_put_back(ws, params, server, ledger, promote) -> None:
    promote(1)
    promote(2)
    repository.pin(ws.triton, 1, [1, 2])
    server.load("hap")
    server.load("hap_all")
    assert promotion.repair(ws, params, now=NOW, server=server) == [
        "v2 is what the ledger says, and was not what the server or its pins said: repaired"
    ]
    assert server.serves() == 2


def test_pins_of_which_some_were_written_before_a_kill_are_written_whole(ws, params, server, promote) -> None:
    promote(1)
    whole = (ws.triton / "hap_all" / repository.CONFIG).read_text()
    promote(2)
    for torn in ("hap_all", "expressive"):
        (ws.triton / torn / repository.CONFIG).write_text(whole if torn == "hap_all" else "name: {")
        assert len(promotion.repair(ws, params, now=NOW, server=server, alias=False)) == 1, torn
        repository.check(ws.triton, 2)
        assert repository.stands(ws.triton, 2) and server.serves() == 2


def test_a_served_repository_that_was_deleted_is_rendered_again(ws, params, server, promote) -> None:
    promote(1)
    shutil.rmtree(ws.triton)
    server._save({})
    assert len(promotion.repair(ws, params, now=NOW, server=server, alias=False)) == 1
    assert server.serves() == 1


def test_what_is_damaged_in_the_served_repository_is_laid_anew_from_the_bundles_here(ws, params, server, ledger, promote, rollback) -> None:
    promote(1)
    promote(2)
    graph = ws.triton / "expressive" / "2" / "model.onnx"
    graph.write_bytes(b"torn")
    shutil.rmtree(ws.triton / "light" / "1")
    server._save({})  # a start that could not load v2
    assert rollback().version == 1 and server.serves() == ledger.served() == 1
    graph.write_bytes(b"torn")
    (ws.triton / "hap_all" / "2" / "README").unlink()
    (ws.triton / "hap_all" / "2").rmdir()
    assert promote(2).outcome == "served" and server.serves() == 2
    graph.unlink()
    server._save({})
    assert len(promotion.repair(ws, params, now=NOW, server=server, alias=False)) == 1
    assert server.serves() == 2


def test_a_lost_ledger_takes_down_nothing(ws, params, server, promote) -> None:
    promote(1)
    (ws.registry / "ledger.db").unlink()
    assert "the ledger knows of no version that served" in promotion.repair(ws, params, now=NOW, server=server)[0]
    assert server.serves() == 1


def test_of_two_promotions_at_once_the_second_is_told_who_runs(ws, params, server, ledger, promote) -> None:
    promote(1)
    load, told = server.load, []

    def meanwhile(model: str) -> None:
        if model == "hap":
            with pytest.raises(Busy, match=r"promote v2 \(pid .*\) is changing what serves; wait") as caught:
                promote(3)
            told.append(caught.value)
            assert len(promotion.repair(ws, params, now=NOW, server=server)) == 1, "and a repair leaves it alone"
        load(model)

    server.load = meanwhile  # type: ignore[method-assign]
    promote(2)
    assert told and server.serves() == ledger.served() == 2 and len(ledger.rows()) == 4
