"""Workspaces are found, made, locked and committed to as their users expect."""

import datetime as dt
import multiprocessing
import subprocess
import time
from pathlib import Path

import pytest

from hap.errors import Busy, ConfigError, NotFound, UsageError
from hap.workspace import Workspace, commit, find_workspace, git, init_workspace, workspace_lock

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return init_workspace(tmp_path_factory.mktemp("made") / "ws")


def test_a_new_workspace_is_a_clean_git_and_dvc_repo(made: Workspace) -> None:
    assert git(made, "status", "--porcelain") == ""
    assert (made.root / ".dvc" / "config").exists()
    assert git(made, "log", "-1", "--format=%an") == "hap"
    assert made.params().features.history_length == 20


def test_making_it_again_changes_nothing(made: Workspace) -> None:
    before = git(made, "rev-parse", "HEAD")
    made.params_file.write_text(made.params_file.read_text() + "# mine\n")
    assert init_workspace(made.root) == made
    assert made.params_file.read_text().endswith("# mine\n")
    git(made, "checkout", "--", "params.yaml")
    assert git(made, "rev-parse", "HEAD") == before


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        init_workspace(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.doc"]


def test_an_init_that_was_killed_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = subprocess.run, []

    def dies(command: list[str], **rest: object) -> object:
        calls.append(command)
        if "dvc" in command:
            raise KeyboardInterrupt
        return real(command, **rest)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        init_workspace(tmp_path / "ws")
    monkeypatch.undo()
    assert init_workspace(tmp_path / "ws").params()


def test_the_root_is_the_option_then_the_variable_then_a_parent(made: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = made.registry
    monkeypatch.chdir(inside)
    assert find_workspace(None, {}) == made
    monkeypatch.chdir(tmp_path)
    assert find_workspace(None, {"HAP_ROOT": str(made.root)}) == made
    assert find_workspace(made.root, {"HAP_ROOT": "/nowhere"}) == made
    with pytest.raises(NotFound, match="hapctl init"):
        find_workspace(None, {})
    with pytest.raises(NotFound, match="is not a workspace"):
        find_workspace(tmp_path, {})


def _hold(root: Path, ready: "multiprocessing.synchronize.Event", seconds: float) -> None:
    with workspace_lock(Workspace(root), "retrain --day 2026-01-03", NOW):
        ready.set()
        time.sleep(seconds)


def test_the_second_to_lock_is_told_who_holds_it_and_a_dead_holder_holds_nothing(made: Workspace) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(made.root, ready, 600))
    holder.start()
    try:
        assert ready.wait(300)
        with pytest.raises(Busy, match=rf"retrain --day 2026-01-03 \(pid {holder.pid} on "), workspace_lock(made, "other", NOW):
            pass
    finally:
        holder.kill()
        holder.join()
    with workspace_lock(made, "other", NOW):
        pass


def test_commit_returns_the_revision_and_makes_none_without_a_change(made: Workspace) -> None:
    before = git(made, "rev-parse", "HEAD")
    assert commit(made, "nothing") == before
    (made.verdicts / "v1.json").write_text("{}")
    after = commit(made, "a verdict")
    assert after != before
    assert git(made, "log", "-1", "--format=%s") == "a verdict"


def test_a_bad_params_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        init_workspace(tmp_path / "ws", "seeed: 1\nfeatures: {user: [], item: [], history: []}\n").params()


def test_making_one_tells_nobody_even_where_no_command_has_said_so_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC sends its reports by a process that it leaves behind, whose parent it no longer is."""
    monkeypatch.delenv("DVC_NO_ANALYTICS")
    real, told = subprocess.run, []

    def seen(command: list[str], **rest: object) -> object:
        told.append((command, rest))
        return real(command, **rest)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", seen)
    init_workspace(tmp_path / "ws")
    ((_, rest),) = [one for one in told if "dvc" in one[0]]
    assert rest["env"]["DVC_NO_ANALYTICS"]
