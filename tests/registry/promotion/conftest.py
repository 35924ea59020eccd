"""A workspace with three passed versions, a server that is a file, and the words that move what serves."""

import datetime as dt
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hap.params import Params
from hap.registry import promotion, versions
from hap.registry.ledger import Ledger, open_ledger
from hap.serving import trial
from hap.serving.bundle import Golden, read_bundle
from hap.serving.parity import asked
from hap.serving.session import BundleSession
from hap.workspace import Workspace
from tests.registry.conftest import NOW, judged_against_champion
from tests.registry.file_triton import FileTriton
from tests.serving.handmade import make_bundle


@pytest.fixture(scope="session")
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


@pytest.fixture(autouse=True)
def trial_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are tried in this process: hundreds of promotions in seconds. tests/serving/test_trial.py has the real thing."""

    def tried(folder: Path, requests: Sequence[Golden], step_s: float = 0.0) -> list[trial.Tried]:
        session = BundleSession(read_bundle(folder))
        every = [
            (session.score_all(one.tensors) if name == "hap_all" else session.score(one.tensors, one.k), one)
            for name, one in asked(requests)
        ]
        return [trial.Tried(*answer, session.light(one.tensors)) for answer, one in every]

    monkeypatch.setattr(trial, "tried", tried)


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
