"""Restore on a real git and DVC workspace: what comes back is what was there, and never in place."""

import datetime as dt
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hap.errors import HapError, NotFound, UsageError
from hap.params import Params
from hap.registry import versions
from hap.registry.restore import restore
from hap.workspace import Workspace, commit, init_workspace
from tests.serving.handmade import make_bundle

TRACKED = ("samples", "models", "bundle")
STAGES = """
stages:
  train:
    matrix: {model: [light, expressive]}
    cmd: "true"
    outs: ["models/${item.model}"]
  export:
    cmd: "true"
    outs: [bundle]
"""


def dvc(ws: Workspace, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=ws.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def contents(root: Path) -> dict[str, bytes]:
    return {str(entry.relative_to(root)): entry.read_bytes() for name in TRACKED for entry in (root / name).rglob("*") if entry.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, params: Params) -> tuple[Workspace, dict[str, bytes], str]:
    """A workspace with v1, which has moved on since; what v1 was made of; and the revision."""
    ws = init_workspace(tmp_path_factory.mktemp("restore") / "ws")
    shutil.copy(mlflow_database, ws.registry / "mlflow.db")
    for day in ("2026-01-01", "2026-01-02"):
        (ws.samples / f"day={day}").mkdir(parents=True)
        (ws.samples / f"day={day}" / "part-0.parquet").write_bytes(day.encode() * 100)
    for model in ("light", "expressive"):
        (ws.models / model).mkdir(parents=True)
        (ws.models / model / "model.pt").write_bytes(model.encode() * 256)
    make_bundle(ws.bundle)
    (ws.root / "dvc.yaml").write_text(STAGES)
    dvc(ws, "add", "samples")
    dvc(ws, "commit", "--force")
    dvc(ws, "push")
    revision = commit(ws, "Retrain")
    then = contents(ws.root)
    versions.register(ws, params, ws.bundle, day=dt.date(2026, 1, 2), workspace_rev=revision, code_rev="c")
    (ws.models / "light" / "model.pt").write_bytes(b"newer")
    dvc(ws, "commit", "--force")
    commit(ws, "Retrain again")
    return ws, then, revision


def test_a_version_comes_back_byte_for_byte_elsewhere_and_the_workspace_stays(made, params: Params, tmp_path: Path) -> None:
    ws, then, revision = made
    now = contents(ws.root)
    restored = restore(ws, params, 1, tmp_path / "back")
    assert contents(tmp_path / "back") == then and contents(ws.root) == now != then
    assert restored.workspace_rev == revision and restored.into == tmp_path / "back"
    assert not list(tmp_path.glob(".back*"))


def test_samples_that_were_never_pushed_are_one_clear_line_and_leave_nothing(made, params: Params, tmp_path: Path) -> None:
    ws, _, _ = made
    remote = ws.root / "remote"
    remote.rename(tmp_path / "away")
    try:
        with pytest.raises(HapError, match=r"dvc cannot bring back the data of v1: .*storage\.push") as caught:
            restore(ws, params, 1, tmp_path / "back")
    finally:
        (tmp_path / "away").rename(remote)
    assert "\n" not in str(caught.value) and not (tmp_path / "back").exists()


def test_a_stored_object_that_rotted_is_not_brought_back(made, params: Params, tmp_path: Path) -> None:
    ws, then, _ = made
    model = next(
        entry for entry in (ws.root / "remote").rglob("*") if entry.is_file() and entry.read_bytes() == then["models/light/model.pt"]
    )
    model.chmod(0o644)
    model.write_bytes(b"rotten")
    try:
        with pytest.raises(HapError, match="dvc cannot bring back"):
            restore(ws, params, 1, tmp_path / "back")
    finally:
        model.parent.mkdir(exist_ok=True)
        model.unlink(missing_ok=True)
        model.write_bytes(then["models/light/model.pt"])
    assert not (tmp_path / "back").exists()


def test_an_unknown_version_lists_what_there_is(made, params: Params, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="v9 is not registered; registered: v1"):
        restore(made[0], params, 9, tmp_path / "back")


def test_a_folder_that_holds_something_is_refused(made, params: Params, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="is not an empty folder"):
        restore(made[0], params, 1, tmp_path)
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("where", [".", "back", ".."])
def test_restore_never_works_in_place(made, params: Params, where: str) -> None:
    with pytest.raises(UsageError, match="contain one another"):
        restore(made[0], params, 1, made[0].root / where)


def test_a_revision_that_git_lost_is_one_line(made, params: Params, tmp_path: Path) -> None:
    ws, _, _ = made
    other = make_bundle(tmp_path / "other", shift=0.5)
    number = versions.register(ws, params, other.path, day=dt.date(2026, 1, 3), workspace_rev="d" * 40, code_rev="c")
    with pytest.raises(HapError, match="git checkout failed"):
        restore(ws, params, number, tmp_path / "back")
    assert not (tmp_path / "back").exists()
