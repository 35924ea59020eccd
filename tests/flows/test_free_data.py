"""gc on a real git and DVC workspace: a kept version comes back byte for byte, and only what no kept revision needs is gone."""

import contextlib
import datetime as dt
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from flows.free import Freed, free
from hap.errors import HapError, NotFound
from hap.params import Keep, Params
from hap.registry import mlflow_store, versions
from hap.registry.restore import restore
from hap.workspace import Workspace, commit, init_workspace
from tests.registry.test_restore import STAGES, contents, dvc
from tests.serving.handmade import make_bundle

pytestmark = pytest.mark.long

NOW = dt.datetime.now(dt.UTC) + dt.timedelta(days=60)  # MLflow stamps versions by its own clock


@pytest.fixture
def made(origin: tuple[Workspace, dict[int, dict[str, bytes]]], tmp_path: Path) -> tuple[Workspace, dict[int, dict[str, bytes]]]:
    """A copy of `origin` for one test, which MLflow is told of: it names artifacts by their whole path."""
    ws = Workspace(shutil.copytree(origin[0].root, tmp_path / "ws", symlinks=True))
    with contextlib.closing(sqlite3.connect(ws.registry / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "source")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(origin[0].root), str(ws.root)))
    return ws, origin[1]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[int, dict[str, bytes]]]:
    """A workspace with v1, v2 and v3, each pushed, and what each was made of; samples grow by a day with each."""
    ws = init_workspace(tmp_path_factory.mktemp("data") / "ws")
    params = ws.params()
    with mlflow_store.connect(ws, params):
        pass
    (ws.root / "dvc.yaml").write_text(STAGES)
    then = {}
    for number in (1, 2, 3):
        day = ws.samples / f"day=2026-01-0{number}"
        day.mkdir(parents=True)
        (day / "part-0.parquet").write_bytes(f"day {number}".encode() * 100)
        for model in ("light", "expressive"):
            (ws.models / model).mkdir(parents=True, exist_ok=True)
            (ws.models / model / "model.pt").write_bytes(f"{model} {number}".encode() * 256)
        shutil.rmtree(ws.bundle, ignore_errors=True)
        make_bundle(ws.bundle, shift=number / 8)
        dvc(ws, "add", "samples")
        dvc(ws, "commit", "--force")
        dvc(ws, "push")
        revision = commit(ws, f"Retrain {number}")
        then[number] = contents(ws.root)
        versions.register(ws, params, ws.bundle, day=dt.date(2026, 1, number), workspace_rev=revision, code_rev="c")
    return ws, then


def keep(params: Params, **words) -> Params:
    return params.model_copy(update={"keep": Keep(**{"versions": 1, "days": 30, **words})})


def run(ws: Workspace, params: Params, dry_run: bool = False) -> Freed:
    return free(ws, params, server=None, actor="ann", now=NOW, dry_run=dry_run)


def objects(ws: Workspace, store: str) -> set[str]:
    return {str(path.relative_to(ws.root)) for path in (ws.root / store / "files").rglob("*") if path.is_file()}


def test_kept_versions_come_back_byte_for_byte_from_an_empty_cache_and_the_freed_one_is_gone(made, tmp_path) -> None:
    ws, then = made
    params = keep(ws.params(), versions=2)
    before = {store: objects(ws, store) for store in (".dvc/cache", "remote")}
    planned = run(ws, params, dry_run=True)
    assert {store: objects(ws, store) for store in before} == before
    done = run(ws, params)
    assert done.pieces == planned.pieces and done.marked == (1,) and done.notes == ()
    data = {piece.what: piece.files for piece in done.pieces if piece.kind == "data"}
    gone = {store: len(before[store] - objects(ws, store)) for store in before}
    # Two models with their folders' lists, the bundle's list and what v1's alone holds, and the samples' list of then.
    assert data == {"DVC cache": gone[".dvc/cache"], "DVC remote": gone["remote"]} and gone["remote"] >= 6
    assert contents(ws.root) == then[3]
    shutil.rmtree(ws.root / ".dvc" / "cache")
    for number in (2, 3):
        restore(ws, params, number, tmp_path / f"v{number}")
        assert contents(tmp_path / f"v{number}") == then[number]
    with pytest.raises(NotFound, match="v1 were freed"):
        restore(ws, params, 1, tmp_path / "v1")
    assert not subprocess.run(["git", "status", "--porcelain"], cwd=ws.root, capture_output=True, check=True).stdout
    dvc(ws, "pull")
    assert run(ws, params).pieces == ()


def test_what_is_trained_but_not_committed_yet_stays(made) -> None:
    ws, _ = made
    (ws.models / "light" / "model.pt").write_bytes(b"light 4" * 256)
    dvc(ws, "commit", "--force")
    before = objects(ws, ".dvc/cache")
    run(ws, keep(ws.params(), versions=3))
    assert objects(ws, ".dvc/cache") == before


def test_a_kept_folder_whose_list_is_lost_costs_no_file(made, tmp_path) -> None:
    ws, _ = made
    rev = next(one.workspace_rev for one in versions.list_versions(ws, ws.params()) if one.number == 2)
    lock = subprocess.run(["git", "show", f"{rev}:dvc.lock"], cwd=ws.root, capture_output=True, text=True, check=True).stdout
    (listing,) = {line.split()[-1] for line in lock.splitlines() if ".dir" in line} & {
        line.split()[-1] for line in lock.split("bundle")[-1].splitlines() if ".dir" in line
    }
    for store in (".dvc/cache", "remote"):
        path = ws.root / store / "files" / "md5" / listing[:2] / listing[2:]
        path.chmod(0o644)
        path.unlink()
    before = {store: objects(ws, store) for store in (".dvc/cache", "remote")}
    done = run(ws, keep(ws.params(), versions=2))
    (note,) = done.notes
    assert note.startswith("DVC's data was left as it is: ") and "\n" not in note
    assert {store: objects(ws, store) for store in before} == before
    assert done.marked == (1,), "what is told apart without DVC is freed all the same"


def test_a_revision_that_git_lost_leaves_dvc_alone(made) -> None:
    ws, _ = made
    params = ws.params()
    with mlflow_store.connect(ws, params) as client:
        client.set_model_version_tag(versions.MODEL, "3", "workspace_rev", "d" * 40)
    before = objects(ws, "remote")
    assert run(ws, keep(params)).notes == (f"DVC's data was left as it is: v3 stays, and its revision dddddddddddd is not in {ws.root}",)
    assert objects(ws, "remote") == before


def test_a_remote_that_others_may_use_is_freed_only_where_params_say_so(made, tmp_path) -> None:
    ws, _ = made
    shutil.copytree(ws.root / "remote", tmp_path / "shared")
    dvc(ws, "remote", "modify", "store", "url", str(tmp_path / "shared"))
    commit(ws, "A shared remote")

    def pushed() -> set[Path]:
        return {path for path in (tmp_path / "shared").rglob("*") if path.is_file()}

    before = pushed()
    (note,) = run(ws, keep(ws.params())).notes
    assert note.startswith(f"the DVC remote at {tmp_path / 'shared'}") and "others may use it, unless keep.free_remote says" in note
    assert pushed() == before
    (piece,) = run(ws, keep(ws.params(), free_remote=True)).pieces
    assert (piece.what, piece.files) == ("DVC remote", len(before) - len(pushed()))


def test_the_word_lists_what_it_would_free(made) -> None:
    ws, _ = made
    words = [sys.executable, "-m", "hap.cli", "gc", "--dry-run", "--json", "--root", str(ws.root)]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    said = orjson.loads(found.stdout)
    assert (said["done"], said["pieces"], said["freed_versions"]) == (False, [], []), "all are younger than keep.days"
    assert set(said["kept"]) == {"v1", "v2", "v3"}


def test_in_a_copied_workspace_gc_touches_neither_it_nor_the_first(made, tmp_path: Path) -> None:
    ws, _ = made
    copy = Workspace(shutil.copytree(ws.root, tmp_path / "copy", symlinks=True))
    stored = {path: path.read_bytes() for path in (ws.registry / "artifacts").rglob("*") if path.is_file()}
    tracked = contents(copy.root)
    with pytest.raises(HapError, match=f"made at {ws.root}, where"):
        run(copy, keep(copy.params()))
    assert not [one for one in versions.list_versions(copy, copy.params()) if one.freed]
    assert contents(copy.root) == tracked
    assert {path: path.read_bytes() for path in (ws.registry / "artifacts").rglob("*") if path.is_file()} == stored
