"""Workspaces with small sealed bundles, and one MLflow database that every test copies instead of making its own."""

import datetime as dt
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from hap import durable
from hap.params import Params, load_params
from hap.project import project_file
from hap.registry import mlflow_store, versions
from hap.registry.ledger import open_ledger
from hap.serving.bundle import PROMISED, SCHEMA, Bundle, seal_bundle, write_schema
from hap.workspace import Workspace

NOW = dt.datetime(2026, 1, 5, 3, 0, tzinfo=dt.UTC)


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(project_file("params.yaml"))


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """An MLflow database without an experiment: making one takes seconds, copying one does not."""
    ws = Workspace(tmp_path_factory.mktemp("mlflow"))
    with mlflow_store.connect(ws, params):
        pass
    return ws.registry / "mlflow.db"


@pytest.fixture
def ws(tmp_path: Path, mlflow_database: Path) -> Workspace:
    """The folders of a workspace, with a registry and neither git nor DVC."""
    workspace = Workspace(tmp_path / "ws")
    for folder in (workspace.registry, workspace.verdicts, workspace.state):
        folder.mkdir(parents=True)
    shutil.copy(mlflow_database, workspace.registry / "mlflow.db")
    return workspace


@pytest.fixture
def sealed(tmp_path: Path, params: Params) -> Callable[[str], Bundle]:
    """Sealed folders with the names of a bundle; the text makes the digest."""

    def build(text: str) -> Bundle:
        folder = tmp_path / "bundles" / text
        folder.mkdir(parents=True, exist_ok=True)
        for name in PROMISED:
            (folder / name).write_text(text)
        (folder / SCHEMA).unlink()
        write_schema(folder, params.features, params.route)
        for name in ("parity.json", "cost.json"):
            durable.write_json(folder / name, {"seconds": os.getpid()})
        return seal_bundle(folder, {"day": "2026-01-04"})

    return build


def judged_against_champion(ws: Workspace, params: Params, version: int) -> None:
    """Make a version's verdict, where it has one, compare with what serves now, as a fresh `gate run` would."""
    path = versions.verdict_path(ws, version)
    if path.exists():
        path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "against": open_ledger(ws, params).served()}))
