"""Promotion and rollback in a real Triton server, under requests that never stop."""

import datetime as dt
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from hap.errors import DataError, HapError
from hap.params import Params
from hap.registry import moves, promotion, versions
from hap.registry.ledger import Entry, open_ledger
from hap.registry.local import fetched
from hap.serving import repository, runtime, server
from hap.serving.bundle import read_bundle, seal_bundle
from hap.serving.client import HapClient
from hap.workspace import Workspace
from tests.registry.conftest import judged_against_champion
from tests.serving.conftest import free_serving, params_with
from tests.serving.handmade import expected, make_bundle, request_of

pytestmark = pytest.mark.triton
NOW = dt.datetime(2026, 1, 5, 3, 0, tzinfo=dt.UTC)
SHIFTS = {1: 0.0, 2: 0.25, 3: 0.5}
REPOSITORY = Path(__file__).parents[2]
LYING = 3  # its golden scores are not what its graphs answer


@dataclass
class Load:
    """What callers saw: answers by version, and everything that was not right."""

    answered: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@pytest.fixture
def ws(tmp_path: Path, mlflow_database: Path, params: Params) -> Workspace:
    """Three passed versions, the last with golden scores of another model."""
    workspace = Workspace(tmp_path / "ws")
    workspace.registry.mkdir(parents=True)
    shutil.copy(mlflow_database, workspace.registry / "mlflow.db")
    for number, shift in SHIFTS.items():
        bundle = make_bundle(tmp_path / "bundles" / str(number), shift)
        if number == LYING:
            shutil.copy(make_bundle(tmp_path / "other", shift=0.9).path / "golden.npz", bundle.path)
            seal_bundle(bundle.path, read_bundle(tmp_path / "other").info)
        versions.register(workspace, params, bundle.path, day=dt.date(2026, 1, number), workspace_rev="a", code_rev="b")
        versions.set_verdict(workspace, params, number, {"version": number, "verdict": "pass", "reasons": []})
    return workspace


@pytest.fixture
def running(ws: Workspace) -> Iterator[tuple[Params, HapClient]]:
    params = params_with(free_serving())
    state = runtime.start(ws, params, detach=True)
    assert state is not None
    try:
        with HapClient(state.grpc_url, deadline_s=10) as client:
            yield params, client
    finally:
        assert runtime.stop(ws)


def keep_asking(url: str, load: Load, ended: threading.Event) -> None:
    tensors = request_of(50, seed=3)
    answers = {number: expected(tensors, None, shift)[0] for number, shift in SHIFTS.items()}
    with HapClient(url, deadline_s=10) as client:
        while not ended.is_set():
            try:
                scored = client.score(tensors)
            except HapError as error:
                load.wrong.append(str(error))
                continue
            load.answered[scored.served_by] = load.answered.get(scored.served_by, 0) + 1
            if not abs(scored.score - answers[scored.served_by]).max() < 1e-4:
                load.wrong.append(f"an answer of v{scored.served_by} holds another version's scores")


def test_versions_switch_under_load_without_a_failed_or_mixed_answer_and_a_bad_one_meets_no_caller(
    ws: Workspace, running, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, client = running
    ledger = open_ledger(ws, params)

    def move(call: Callable[..., promotion.Promotion], *version: int) -> promotion.Promotion:
        for number in version:
            judged_against_champion(ws, params, number)
        return call(ws, params, *version, server=client, actor="ann", now=NOW)

    assert move(promotion.promote, 1).outcome == "served"
    load, ended = Load(), threading.Event()
    caller = threading.Thread(target=keep_asking, args=(client.url, load, ended))
    caller.start()
    try:
        assert move(promotion.promote, 2).previous == 1
        assert (client.versions("hap"), client.versions("light"), repository.pinned(ws.triton)) == ([2], [1, 2], 2)
        refused = r"promote of v3 failed: v3 fails parity: {} differs by .* from PyTorch .*hapctl parity .*; v2 serves as before"
        with pytest.raises(DataError, match=refused.format("ONNX Runtime")):
            move(promotion.promote, LYING)
        with monkeypatch.context() as patch, pytest.raises(DataError, match=refused.format("Triton")):
            patch.setattr(moves, "try_apart", lambda *_: None)  # the rehearsal sees it, too
            move(promotion.promote, LYING)
        assert (client.versions("hap"), client.versions("light"), ledger.served()) == ([2], [1, 2], 2)
        assert move(promotion.rollback).version == 1
        assert (client.versions("hap"), client.versions("hap_all"), ledger.served()) == ([1], [1], 1)
    finally:
        ended.set()
        caller.join()
    assert load.wrong == []
    assert set(load.answered) == {1, 2}
    assert promotion.repair(ws, params, now=NOW, server=client, alias=False) == []
    states = [row.state for row in ledger.rows()]
    assert states == ["intended", "served"] * 2 + ["intended", "undone"] * 2 + ["intended", "served"]


@pytest.fixture
def typed(ws: Workspace) -> Params:
    """Parameters with free ports, which `hapctl` finds in the workspace, too."""
    params = params_with(free_serving())
    (ws.root / "hap.toml").write_text("")
    ws.params_file.write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
    return params


def serve(ws: Workspace, *words: str) -> list[str]:
    return [sys.executable, "-m", "hap.cli", "serve", "--root", str(ws.root), *words]


def test_a_pin_made_offline_serves_after_the_next_start_and_the_start_writes_it_down(ws: Workspace, typed: Params) -> None:
    done = promotion.promote(ws, typed, 1, server=None, actor="ann", now=NOW, offline=True)
    assert done.outcome == "pinned" and open_ledger(ws, typed).served() is None
    try:
        said = subprocess.run(serve(ws, "--detach"), cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
        assert said.returncode == 0 and said.stdout.startswith("serving v1 on gRPC "), said.stderr
        assert "v1, pinned by ann, was started and answers its golden requests: v1 serves" in said.stderr
        assert open_ledger(ws, typed).served() == 1
    finally:
        runtime.stop(ws)


def test_a_start_settles_a_promotion_that_was_killed_after_the_switch(ws: Workspace, typed: Params) -> None:
    ledger = open_ledger(ws, typed)
    repository.render(fetched(ws, typed, 1), 1, ws.triton)
    repository.pin(ws.triton, 1, [1])
    ledger.append(Entry(at=NOW, actor="ann", action="promote", state="intended", to_version=1))
    with subprocess.Popen(serve(ws), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert server.wait_for(lambda: ledger.served() == 1 or serving.poll() is not None, 90)
        finally:
            serving.terminate()
            _, said = serving.communicate(timeout=60)
    assert "promote of v1 by ann was interrupted and answers its golden requests: v1 serves" in said
    assert ledger.served() == 1 and said.rstrip().endswith("server stopped")
