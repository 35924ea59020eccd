"""Promote, rollback and repair: whatever happens on the way, what serves is what the ledger says."""

import datetime as dt
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from hap.errors import Busy, DataError, HapError, NotFound, Refused, ServingError, UsageError
from hap.params import Keep, Mlflow, Params
from hap.registry import promotion, switch, versions
from hap.registry.ledger import Entry, Ledger, open_ledger, open_move
from hap.serving import repository
from hap.workspace import Workspace
from tests.registry.conftest import judged_against_champion
from tests.registry.file_triton import FileTriton
from tests.serving.handmade import make_bundle

NOW = dt.datetime(2026, 1, 5, 3, 0, tzinfo=dt.UTC)


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, params: Params) -> Path:
    """The root of a workspace with v1, v2 and v3, all passed; tests work on copies of its bundles and verdicts."""
    ws = Workspace(tmp_path_factory.mktemp("promotion") / "ws")
    ws.registry.mkdir(parents=True)
    shutil.copy(mlflow_database, ws.registry / "mlflow.db")
    for number, shift in ((1, 0.0), (2, 0.25), (3, 0.5)):
        bundle = make_bundle(ws.root / "bundles" / str(number), shift)
        day = dt.date(2026, 1, number)
        assert versions.register(ws, params, bundle.path, day=day, workspace_rev="a", code_rev="b") == number
        versions.set_verdict(ws, params, number, {"version": number, "verdict": "pass", "reasons": ["no rule is violated"]})
    return ws.root


@pytest.fixture
def ws(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    workspace = Workspace(tmp_path / "ws")
    shutil.copytree(registry / "verdicts", workspace.verdicts)
    workspace.registry.mkdir()
    shutil.copy(registry / "registry" / "mlflow.db", workspace.registry / "mlflow.db")  # its artifacts stay where they were logged
    return workspace


@pytest.fixture
def server(ws: Workspace, tmp_path: Path) -> FileTriton:
    return FileTriton(ws.triton, tmp_path / "triton.json")


@pytest.fixture
def promote(ws: Workspace, params: Params, server: FileTriton) -> Callable[..., promotion.Promotion]:
    def call(version: int, **words) -> promotion.Promotion:
        judged_against_champion(ws, params, version)
        return promotion.promote(ws, params, version, **{"server": server, "actor": "ann", "now": NOW, **words})

    return call


@pytest.fixture
def rollback(ws: Workspace, params: Params, server: FileTriton) -> Callable[..., promotion.Promotion]:
    def call(**words) -> promotion.Promotion:
        return promotion.rollback(ws, params, **{"server": server, "actor": "bo", "now": NOW, **words})

    return call


@pytest.fixture
def ledger(ws: Workspace, params: Params) -> Ledger:
    return open_ledger(ws, params)


def story(ledger: Ledger) -> list[tuple]:
    return [(row.action, row.state, row.from_version, row.to_version) for row in ledger.rows()]


def test_a_promotion_serves_writes_two_rows_and_moves_the_alias(ws, params, server, ledger, promote) -> None:
    first = promote(1)
    second = promote(2, reason="better on RN")
    assert (first.outcome, second.outcome, second.previous) == ("served", "served", 1)
    assert server.serves() == repository.pinned(ws.triton) == ledger.served() == 2
    assert story(ledger) == [
        ("promote", "intended", None, 1),
        ("promote", "served", None, 1),
        ("promote", "intended", 1, 2),
        ("promote", "served", 1, 2),
    ]
    row = ledger.rows()[-1]
    assert (row.actor, row.reason, row.forced, row.evidence["verdict"]) == ("ann", "better on RN", False, "pass")
    assert row.evidence["replay"]["requests"] >= 4 and row.evidence["replay"]["max_abs_diff"] < 1e-5
    assert versions.get_alias(ws, params, "champion") == 2
    assert repository.loaded(ws.triton) == [1, 2], "the previous version stays loaded"
    assert ledger.verify() == 4
    assert str(second) == "v2 serves in place of v1" and orjson.loads(orjson.dumps(second.as_json()))["version"] == "v2"


def test_a_new_version_is_rehearsed_before_any_caller_meets_it(ws, server, promote) -> None:
    promote(1)
    server.calls.clear()
    promote(2)
    assert server.calls.index(f"score {switch.REHEARSAL}") < server.calls.index("load hap")
    assert server.versions(switch.REHEARSAL) == [] and not (ws.triton / switch.REHEARSAL).exists()


def test_promoting_what_serves_says_so_and_writes_no_row(ledger, promote) -> None:
    promote(1)
    again = promote(1)
    assert again.outcome == "unchanged" and str(again) == "v1 is the champion already; nothing was changed"
    assert len(ledger.rows()) == 2


def test_an_unknown_version_lists_those_there_are(ledger, promote) -> None:
    with pytest.raises(NotFound, match="v7 is not registered; registered: v1, v2, v3; see `hapctl models`"):
        promote(7)
    assert ledger.rows() == []


@pytest.mark.parametrize("word", ["refuse", "undecided"])
def test_a_verdict_that_is_no_pass_refuses_with_its_reasons(ws, ledger, promote, word: str) -> None:
    versions.verdict_path(ws, 1).write_text(f'{{"version": "v1", "verdict": "{word}", "reasons": ["RN fell by .03", "too few requests"]}}')
    with pytest.raises(Refused, match=f"verdict of v1 is {word}, not pass: RN fell by .03; too few requests. .*--force --reason TEXT"):
        promote(1)
    assert ledger.rows() == []


def test_a_version_without_a_verdict_is_refused(ws, promote) -> None:
    versions.verdict_path(ws, 1).unlink()
    with pytest.raises(Refused, match="v1 has no verdict; judge it with `hapctl gate run`"):
        promote(1)


def test_force_needs_a_reason_and_the_ledger_keeps_both(ws, ledger, promote) -> None:
    versions.verdict_path(ws, 1).write_text('{"version": 1, "verdict": "undecided", "reasons": []}')
    with pytest.raises(UsageError, match="--force needs --reason TEXT"):
        promote(1, force=True)
    assert promote(1, force=True, reason="small data").forced
    row = ledger.rows()[-1]
    assert (row.forced, row.reason, row.evidence["verdict"]) == (True, "small data", "undecided")


def test_force_on_a_passed_version_is_not_recorded_as_forced(ledger, promote) -> None:
    promote(1, force=True, reason="in a hurry")
    assert not ledger.rows()[-1].forced


def test_a_freeze_stops_promotions_even_forced_ones_but_not_a_rollback(ledger, promote, rollback) -> None:
    promote(1)
    promote(2)
    ledger.freeze(actor="bo", now=NOW, reason="holiday")
    for words in ({}, {"force": True, "reason": "now"}):
        with pytest.raises(Refused, match=r"frozen since .* by bo: holiday"):
            promote(3, **words)
    assert rollback().version == 1
    ledger.unfreeze(actor="bo", now=NOW)
    assert promote(3).outcome == "served"


@pytest.mark.parametrize("how", ["down", "none"])
def test_without_a_server_promote_names_serve_and_changes_nothing(ws, params, server, ledger, promote, how: str) -> None:
    server.down = how == "down"
    with pytest.raises(ServingError, match=r"no server is ready at 127\.0\.0\.1:18001; start it with `hapctl serve"):
        promote(1, server=None if how == "none" else server)
    assert ledger.rows() == [] and not ws.triton.exists()


def test_a_dry_run_says_what_would_happen_and_changes_nothing(ws, server, ledger, promote, rollback) -> None:
    promote(1)
    assert str(promote(2, dry_run=True)) == "v2 would serve in place of v1"
    with pytest.raises(NotFound):
        rollback(dry_run=True)
    promote(2)
    assert rollback(dry_run=True).version == 1
    assert len(ledger.rows()) == 4 and server.serves() == 2


def test_offline_pins_for_the_next_start_and_serves_once_it_answers_there(ws, params, server, ledger, promote) -> None:
    promote(1)
    assert promote(2, offline=True).outcome == "pinned"
    assert (repository.pinned(ws.triton), ledger.served(), server.serves()) == (2, 1, 1)
    assert promotion.repair(ws, params, now=NOW, server=server) == [], "a server that was not restarted is as it should be"
    assert promote(2, offline=True).outcome == "unchanged"
    for model in (*repository.GRAPHS, "hap", "hap_all"):  # a new start
        server.load(model)
    assert (
        "v2, pinned by ann, was started and answers its golden requests: v2 serves"
        in promotion.repair(ws, params, now=NOW, server=server)[0]
    )
    assert ledger.served() == 2 and versions.get_alias(ws, params, "champion") == 2
    assert [state for _, state, _, _ in story(ledger)[-3:]] == ["intended", "pinned", "served"]


def test_offline_with_no_server_at_all(ws, params, ledger, promote) -> None:
    assert promote(1, server=None, offline=True).outcome == "pinned"
    assert repository.pinned(ws.triton) == 1 and ledger.served() is None


def test_a_waiting_pin_can_be_taken_back_or_made_to_serve(ws, server, ledger, promote, rollback) -> None:
    promote(1)
    promote(2, offline=True)
    assert (rollback().version, repository.pinned(ws.triton), server.serves()) == (1, 1, 1)
    promote(3, offline=True)
    assert promote(3).outcome == "served" and server.serves() == 3


def test_rollback_goes_to_the_version_before_and_works_without_mlflow(ws, params, server, ledger, promote, rollback) -> None:
    for version in (1, 2, 3):
        promote(version)
    away = params.model_copy(update={"mlflow": Mlflow(tracking_uri="http://127.0.0.1:9")})
    back = promotion.rollback(ws, away, server=server, actor="bo", now=NOW, reason="complaints")
    assert (back.version, back.previous, server.serves(), ledger.served()) == (2, 3, 2, 2)
    assert ledger.rows()[-1].reason == "complaints"
    assert versions.get_alias(ws, params, "champion") == 3
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


def test_mlflow_that_fails_after_the_switch_leaves_a_note_and_is_repaired(ws, params, server, promote, monkeypatch) -> None:
    promote(1)

    def away(*_: object) -> None:
        raise HapError("MLflow refused")

    with monkeypatch.context() as patch:
        patch.setattr(versions, "set_alias", away)
        done = promote(2)
    assert done.outcome == "served" and "was not moved, the next repair does it: MLflow refused" in done.notes[-1]
    assert promotion.repair(ws, params, now=NOW, server=server) == ["MLflow's alias champion points at v2 now"]


# Bad versions: the old one never stops serving.


def spoil_graph(ws: Workspace) -> None:
    (promotion.bundle_folder(ws, 2) / "light.onnx").write_bytes(b"not a graph")


def refuse_load(server: FileTriton, version: int, model: str) -> None:
    load = server.load

    def refusing(name: str) -> None:
        if name == model and version in repository.parse_config(server.repo / name / repository.CONFIG).version_policy.specific.versions:
            raise ServingError(f"{name}: out of memory")
        load(name)

    server.load = refusing  # type: ignore[method-assign]


def answer_wrongly(server: FileTriton, change: Callable, models: tuple[str, ...]) -> None:
    score = server.score

    def wrong(tensors, k=None, model=None):
        answer = score(tensors, k, model)
        return change(answer) if model in models and answer.served_by == 2 else answer

    server.score = wrong  # type: ignore[method-assign]


def with_scores(factor: float) -> Callable:
    return lambda answer: type(answer)(answer.score * np.float32(factor), answer.routed, answer.served_by)


EVERYWHERE = (switch.REHEARSAL, "hap", "hap_all")
FAULTS = {
    "a member does not load": lambda server: refuse_load(server, 2, "expressive"),
    "an ensemble does not load": lambda server: refuse_load(server, 2, "hap"),
    "the second ensemble does not load": lambda server: refuse_load(server, 2, "hap_all"),
    "scores are wrong": lambda server: answer_wrongly(server, with_scores(1.01), EVERYWHERE),
    "scores are NaN": lambda server: answer_wrongly(server, with_scores(float("nan")), EVERYWHERE),
    "scores are wrong after the switch only": lambda server: answer_wrongly(server, with_scores(1.01), ("hap",)),
    "hap_all is wrong": lambda server: answer_wrongly(server, with_scores(1.01), ("hap_all",)),
    "the route is wrong": lambda server: answer_wrongly(server, lambda a: type(a)(a.score, ~a.routed, a.served_by), EVERYWHERE),
    "another version answers": lambda server: answer_wrongly(server, lambda a: type(a)(a.score, a.routed, 1), EVERYWHERE),
    "candidates are missing": lambda server: answer_wrongly(server, lambda a: type(a)(a.score[1:], a.routed[1:], a.served_by), EVERYWHERE),
}


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


# Kills: at any point, the next command tells the truth.


def count_steps(monkeypatch: pytest.MonkeyPatch, server: FileTriton, die_at: int | None) -> list[str]:
    """Have every change of files, server, ledger and MLflow counted, and the process end before the one of that number."""
    done: list[str] = []

    def counted(owner, name: str) -> None:
        real = getattr(owner, name)

        def call(*positional, **named):
            if len(done) == die_at:
                raise Killed
            done.append(name)
            return real(*positional, **named)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        (repository, "render"),
        (repository, "pin"),
        (repository, "remove"),
        (repository.durable, "write_text"),
        (server, "load"),
        (server, "unload"),
        (Ledger, "append"),
        (versions, "fetch_bundle"),
        (versions, "set_alias"),
    ):
        counted(owner, name)
    if die_at is not None:
        undo = promotion._undo

        def dead(desk, entry, why):
            if why == "Killed":
                raise Killed
            return undo(desk, entry, why)

        monkeypatch.setattr(promotion, "_undo", dead)
    return done


@pytest.fixture
def light_registry(ws: Workspace, params: Params, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry as a few values: hundreds of promotions in seconds."""
    known, aliases = {one.number: one for one in versions.list_versions(ws, params)}, ws.registry / "aliases.json"

    def fetch(ws: Workspace, params: Params, version: int, into: Path) -> Path:
        with versions.durable.new_directory(into) as building:
            shutil.copytree(registry / "bundles" / str(version), building, dirs_exist_ok=True)
        return into

    monkeypatch.setattr(versions, "get", lambda ws, params, version: known[version])
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
        assert server.versions(switch.REHEARSAL) == [] and not (ws.triton / switch.REHEARSAL).exists(), killed_before
    assert outcomes == ({target} if then == "promote again" else {start, target}), "some kills came before the switch, some after"


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
    killed = subprocess.run([sys.executable, "-c", PROMOTE, str(ws.root), str(server.state)], capture_output=True, check=False, timeout=60)
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
    assert "promote of v3 by ann was interrupted, but golden request" in note and note.endswith("undone, v1 serves as before")
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


def test_a_served_repository_that_was_deleted_is_rendered_again(ws, params, server, promote) -> None:
    promote(1)
    shutil.rmtree(ws.triton)
    server._save({})
    assert len(promotion.repair(ws, params, now=NOW, server=server, alias=False)) == 1
    assert server.serves() == 1


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


def test_rows_of_one_command_carry_the_times_at_which_they_were_written(ledger, promote) -> None:
    promote(1)
    intended, served = ledger.rows()
    assert NOW <= intended.at < served.at < NOW + dt.timedelta(minutes=5)


def test_rows_written_by_hand_do_not_confuse_the_next_promotion(ledger, promote, server) -> None:
    ledger.append(Entry(at=NOW, actor="x", action="unfreeze", state="noted"))
    promote(1)
    assert server.serves() == 1


def test_the_promotion_path_imports_neither_torch_nor_prefect_nor_mlflow() -> None:
    program = (
        "import sys, hap.registry.promotion, hap.registry.restore, hap.serving.client; "
        "print(*sorted({'torch', 'prefect', 'mlflow', 'evidently', 'dvc', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_pass_against_another_version_than_the_champion_is_refused_until_judged_again(ws, ledger, server, params, promote) -> None:
    promote(1)
    judged_against_champion(ws, params, 3)  # while v1 serves
    promote(2)
    words = {"server": server, "actor": "ann", "now": NOW}
    with pytest.raises(Refused, match=r"compares with v1, and v2 serves now: judge it again with `hapctl gate run --model v3`"):
        promotion.promote(ws, params, 3, **words)
    assert ledger.served() == 2
    assert promotion.promote(ws, params, 3, **words, force=True, reason="in a hurry").forced
    versions.verdict_path(ws, 1).write_bytes(orjson.dumps({"version": 1, "verdict": "pass", "against": None, "reasons": []}))
    with pytest.raises(Refused, match="judges floors alone"):
        promotion.promote(ws, params, 1, **words)
