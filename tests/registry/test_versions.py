"""Versions in MLflow: one bundle is one version, however often and however interrupted it is registered."""

import datetime as dt
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hap.errors import ConfigError, DataError, HapError, NotFound, UsageError
from hap.params import Mlflow, Params
from hap.registry import mlflow_store, runs, versions
from hap.serving.bundle import Bundle
from hap.workspace import Workspace

Sealed = Callable[[str], Bundle]
DAY = dt.date(2026, 1, 4)


def register(ws: Workspace, params: Params, bundle: Bundle) -> int:
    return versions.register(ws, params, bundle.path, day=DAY, workspace_rev="a" * 40, code_rev="b" * 40)


@pytest.mark.parametrize(("text", "number"), [("v42", 42), ("42", 42), ("V1", 1), (" v7 ", 7)])
def test_a_version_is_written_with_or_without_its_v(text: str, number: int) -> None:
    assert versions.parse_version(text) == number


@pytest.mark.parametrize("text", ["", "v", "v0", "0", "-1", "v1.0", "latest", "v1 v2", "٣", "None", "v9999999999"])
def test_what_is_no_version_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a version; write it as v42"):
        versions.parse_version(text)


def test_a_workspace_without_versions_lists_none_and_makes_no_database(tmp_path: Path, params: Params) -> None:
    empty = Workspace(tmp_path)
    assert versions.list_versions(empty, params) == [] and versions.get_alias(empty, params, "champion") is None
    with pytest.raises(NotFound, match="v7 is not registered; registered: none"):
        versions.get(empty, params, 7)
    assert list(tmp_path.iterdir()) == []


def test_the_database_is_made_whole_on_first_use(tmp_path: Path, params: Params, mlflow_database: Path) -> None:
    assert [entry.name for entry in mlflow_database.parent.glob("*.new*")] == []
    leftover = tmp_path / "registry" / ".mlflow.db.new"
    leftover.parent.mkdir()
    leftover.write_text("killed half-way")
    with mlflow_store.connect(Workspace(tmp_path), params) as client:
        assert client.search_registered_models() == []
    assert not leftover.exists()


def test_registering_keeps_day_revisions_and_digest_and_lists_them(ws: Workspace, params: Params, sealed: Sealed) -> None:
    first, second = register(ws, params, sealed("one")), register(ws, params, sealed("two"))
    assert (first, second) == (1, 2)
    listed = versions.list_versions(ws, params)
    assert [(v.label, v.day, v.verdict, v.workspace_rev, v.code_rev) for v in listed] == [
        ("v1", "2026-01-04", None, "a" * 40, "b" * 40),
        ("v2", "2026-01-04", None, "a" * 40, "b" * 40),
    ]
    assert listed[0].bundle_digest == sealed("one").digest
    assert listed[1].as_json()["created"].endswith("+00:00")
    with pytest.raises(NotFound, match="v7 is not registered; registered: v1, v2; see `hapctl models`"):
        versions.get(ws, params, 7)


def test_a_bundle_registered_twice_is_one_version_and_one_run(ws: Workspace, params: Params, sealed: Sealed) -> None:
    assert register(ws, params, sealed("one")) == register(ws, params, sealed("one")) == 1
    assert len(versions.list_versions(ws, params)) == 1 and logged_runs(ws, params) == 1


def logged_runs(ws: Workspace, params: Params) -> int:
    with mlflow_store.connect(ws, params) as client:
        return len(client.search_runs([runs.experiment_id(ws, params, client)]))


def test_a_run_holds_parameters_metrics_and_bundle_and_registering_uses_it(
    ws: Workspace, params: Params, sealed: Sealed, tmp_path: Path
) -> None:
    (tmp_path / "window.json").write_text("{}")
    logged = {"seed": 1, "train": {"days": 7, "kinds": ["EN", "RN"]}, "note": None}
    files = {"bundle": sealed("one").path, "window.json": tmp_path / "window.json"}
    run_id = runs.log_training(ws, params, "retrain 2026-01-04", logged, {"light/gauc": 0.6}, files)
    assert runs.log_training(ws, params, "retrain 2026-01-04", logged, {"light/gauc": 0.6}, files) == run_id
    assert register(ws, params, sealed("one")) == 1
    assert versions.get(ws, params, 1).run_id == run_id and logged_runs(ws, params) == 1
    with mlflow_store.connect(ws, params) as client:
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED" and run.info.run_name == "retrain 2026-01-04"
        assert run.data.params == {"seed": "1", "train.days": "7", "train.kinds": '["EN","RN"]', "note": "null"}
        assert run.data.metrics == {"light/gauc": 0.6}
        assert {entry.path for entry in client.list_artifacts(run_id)} == {"bundle", "window.json"}


def test_a_run_without_a_bundle_is_refused(ws: Workspace, params: Params) -> None:
    with pytest.raises(UsageError, match="with its bundle"):
        runs.log_training(ws, params, "retrain", {}, {}, {})


KILLED = """
import os, sys
from pathlib import Path
from mlflow import MlflowClient
from hap.params import load_params
from hap.project import project_file
from hap.registry import versions
from hap.workspace import Workspace
import datetime as dt
setattr(MlflowClient, sys.argv[3], lambda *_, **__: os._exit(9))
versions.register(Workspace(Path(sys.argv[1])), load_params(project_file("params.yaml")), Path(sys.argv[2]), day=dt.date(2026, 1, 4),
                  workspace_rev="a", code_rev="b")
"""


@pytest.mark.parametrize("at", ["log_artifacts", "set_terminated", "create_model_version"])
def test_killed_while_registering_the_next_try_finishes_and_doubles_nothing(
    ws: Workspace, params: Params, sealed: Sealed, tmp_path: Path, at: str
) -> None:
    bundle = sealed("one")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(ws.root), str(bundle.path), at], capture_output=True, timeout=240)
    assert killed.returncode == 9, killed.stderr
    assert register(ws, params, bundle) == 1
    assert len(versions.list_versions(ws, params)) == 1 and logged_runs(ws, params) == 1
    assert versions.fetch_bundle(ws, params, 1, tmp_path / "fetched").is_dir()


def test_a_fetched_bundle_is_byte_equal_and_replaces_what_stood_there(
    ws: Workspace, params: Params, sealed: Sealed, tmp_path: Path
) -> None:
    register(ws, params, sealed("one"))
    into = tmp_path / "fetched"
    into.mkdir()
    (into / "stale").touch()
    versions.fetch_bundle(ws, params, 1, into)
    original = {entry.name: entry.read_bytes() for entry in sealed("one").path.iterdir()}
    assert {entry.name: entry.read_bytes() for entry in into.iterdir()} == original


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_damaged_artifact_is_refused_by_name_and_nothing_is_left(
    ws: Workspace, params: Params, sealed: Sealed, tmp_path: Path, harm: str
) -> None:
    register(ws, params, sealed("one"))
    (stored,) = ws.registry.glob("artifacts/*/artifacts/bundle/light.onnx")
    stored.write_text("other") if harm == "changed" else stored.unlink()
    with pytest.raises(DataError, match=r"light\.onnx (differs|is missing)"):
        versions.fetch_bundle(ws, params, 1, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_bundle_swapped_for_another_sealed_one_is_refused(ws: Workspace, params: Params, sealed: Sealed, tmp_path: Path) -> None:
    register(ws, params, sealed("one"))
    (stored,) = ws.registry.glob("artifacts/*/artifacts/bundle")
    for entry in sealed("two").path.iterdir():
        (stored / entry.name).write_bytes(entry.read_bytes())
    with pytest.raises(DataError, match="stored bundle of v1 has digest"):
        versions.fetch_bundle(ws, params, 1, tmp_path / "fetched")


def test_aliases_move_and_a_champion_is_no_longer_the_challenger(ws: Workspace, params: Params, sealed: Sealed) -> None:
    register(ws, params, sealed("one"))
    assert versions.get_alias(ws, params, "champion") is None
    register(ws, params, sealed("two"))
    versions.set_alias(ws, params, "champion", 1)
    versions.set_alias(ws, params, "challenger", 2)
    assert [(v.champion, v.challenger) for v in versions.list_versions(ws, params)] == [(True, False), (False, True)]
    versions.set_alias(ws, params, "champion", 2)
    assert [(v.champion, v.challenger) for v in versions.list_versions(ws, params)] == [(False, False), (True, False)]


def test_a_verdict_lies_in_the_workspace_and_is_attached_to_the_version(ws: Workspace, params: Params, sealed: Sealed) -> None:
    register(ws, params, sealed("one"))
    assert versions.read_verdict(ws, 1) is None
    verdict = {"version": "v1", "verdict": "undecided", "reasons": ["too few requests"]}
    path = versions.set_verdict(ws, params, 1, verdict)
    assert path == ws.verdicts / "v1.json" and versions.read_verdict(ws, 1) == verdict
    assert versions.get(ws, params, 1).verdict == "undecided"
    assert [entry.name for entry in ws.registry.glob("artifacts/*/artifacts/verdict/*")] == ["v1.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2, "verdict": "pass"}', '{"version": "v1"}'])
def test_a_verdict_that_is_none_or_of_another_version_is_refused(ws: Workspace, text: str) -> None:
    versions.verdict_path(ws, 1).write_text(text)
    with pytest.raises(ConfigError, match=r"v1\.json is not "):
        versions.read_verdict(ws, 1)


def test_a_registry_that_is_down_is_one_line_that_names_it(ws: Workspace, params: Params) -> None:
    away = params.model_copy(update={"mlflow": Mlflow(tracking_uri="http://127.0.0.1:9")})
    with pytest.raises(HapError, match=r"MLflow at http://127\.0\.0\.1:9 refused: .*mlflow\.tracking_uri") as caught:
        versions.list_versions(ws, away)
    assert "\n" not in str(caught.value)


def test_a_moved_workspace_is_told_where_its_artifacts_are(ws: Workspace, params: Params, sealed: Sealed, tmp_path: Path) -> None:
    register(ws, params, sealed("one"))
    ws.root.rename(tmp_path / "moved")
    with pytest.raises(HapError, match=f"made at {ws.root}"):
        register(Workspace(tmp_path / "moved"), params, sealed("two"))


def test_a_copy_of_a_workspace_does_not_write_among_the_artifacts_of_the_first(
    ws: Workspace, params: Params, sealed: Sealed, tmp_path: Path
) -> None:
    number = register(ws, params, sealed("one"))
    copy = Workspace(shutil.copytree(ws.root, tmp_path / "copy"))
    before = {path: path.stat().st_mtime_ns for path in ws.registry.rglob("*")}
    page = tmp_path / "v1.html"
    page.write_text("a page")
    version = versions.get(copy, params, number)
    for change in (
        lambda: versions.set_verdict(copy, params, number, {"verdict": "pass"}),
        lambda: versions.attach_page(copy, params, version, page),
        lambda: versions.require_own_bundle(copy, params, version),
        lambda: versions.free_bundle(copy, params, version),
    ):
        with pytest.raises(HapError, match=f"made at {ws.root}, where"):
            change()
    assert {path: path.stat().st_mtime_ns for path in ws.registry.rglob("*")} == before


def test_talking_to_the_registry_prints_nothing(
    ws: Workspace, params: Params, sealed: Sealed, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    register(ws, params, sealed("one"))
    versions.fetch_bundle(ws, params, 1, tmp_path / "fetched")
    assert capfd.readouterr() == ("", "")
