"""A bad version of each kind in a real Triton server under requests that never stop: refused, and no caller notices."""

import datetime as dt
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hap.errors import HapError
from hap.params import Params
from hap.registry import moves, promotion, versions
from hap.registry.ledger import open_ledger
from hap.serving import runtime
from hap.serving.bundle import Bundle, read_bundle, seal_bundle
from hap.serving.client import HapClient
from hap.workspace import Workspace
from tests.registry.conftest import judged_against_champion
from tests.registry.test_live_promotion import NOW, Load, keep_asking
from tests.serving.conftest import free_serving, params_with
from tests.serving.handmade import make_bundle

pytestmark = [pytest.mark.triton, pytest.mark.timeout(300)]
DEADLINE_S = 3.0
LATE = "answers that come too late"
INFO = {"day": "2026-01-04"}


def spoiled(path: Path, graph: str, spoil: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """One graph of a bundle after `spoil`, sealed as if it were meant so."""
    file = path / f"{graph}.onnx"
    file.write_bytes(spoil(onnx.load(file)).SerializeToString())
    seal_bundle(path, INFO)


def garbage(path: Path) -> None:
    (path / "expressive.onnx").write_bytes(b"this is no graph" * 100)
    seal_bundle(path, INFO)


def doubles(model: onnx.ModelProto) -> onnx.ModelProto:
    """light_score as FP64, which the ensemble's wiring does not know."""
    model.graph.node.append(helper.make_node("Cast", ["light_score"], ["wide"], to=TensorProto.DOUBLE))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("wide", TensorProto.DOUBLE, ["N"]))
    for node in model.graph.node[:-1]:
        node.output[:] = ["narrow" if name == "light_score" else name for name in node.output]
    model.graph.node[-1].input[:] = ["narrow"]
    model.graph.node[-1].output[:] = ["light_score"]
    model.graph.output[0].name = "light_score"
    return model


def not_a_number(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights that a diverged training leaves behind."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and numpy_helper.to_array(tensor).size == 2:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), np.nan), tensor.name))
    return model


def slow(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same scores after 750 billion operations, seconds on any core, that depend on the request, so that nothing folds them away."""
    size, products = 2500, 24
    graph = model.graph
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([size, size], np.int64), "slow/shape"),
            numpy_helper.from_array(np.float32(0), "slow/nought"),
        ]
    )
    nodes = [
        helper.make_node("ReduceSum", ["user_dense"], ["slow/seed"], keepdims=0),
        helper.make_node("ConstantOfShape", ["slow/shape"], ["slow/ones"]),
        helper.make_node("Add", ["slow/ones", "slow/seed"], ["slow/m0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"slow/m{place}", "slow/m0"], [f"slow/m{place + 1}"]) for place in range(products)]
    nodes += [
        helper.make_node("ReduceMax", [f"slow/m{products}"], ["slow/peak"], keepdims=0),
        helper.make_node("IsNaN", ["slow/peak"], ["slow/odd"]),
        helper.make_node("Cast", ["slow/odd"], ["slow/number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["slow/number", "slow/nought"], ["slow/zero"]),
    ]
    for node in graph.node:
        node.output[:] = ["fast" if name == "light_score" else name for name in node.output]
    nodes.append(helper.make_node("Add", ["fast", "slow/zero"], ["light_score"]))
    graph.node.extend(nodes)
    return model


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a graph that is no ONNX": (garbage, "expressive.*does not load"),
    "a tensor of another type": (lambda path: spoiled(path, "light", doubles), "tensor light_score has .*double.*, must have .*float"),
    "scores that are not numbers": (lambda path: spoiled(path, "light", not_a_number), "differs by"),
    "scores of another model": (lambda path: shutil.copy(path.with_name("other") / "golden.npz", path), "differs by"),
    LATE: (lambda path: spoiled(path, "light", slow), "no answer within"),
}


def made(path: Path, bad: str) -> Bundle:
    bundle = make_bundle(path, 0.25)
    if bad == "scores of another model":
        make_bundle(path.with_name("other"), 0.9)
    BAD[bad][0](bundle.path)
    if bad == "scores of another model":
        seal_bundle(path, INFO)
    return read_bundle(path)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, params: Params):
    """v1 served; every bad version is registered and passed after it."""
    root = tmp_path_factory.mktemp("bad")
    ws = Workspace(root / "ws")
    ws.registry.mkdir(parents=True)
    shutil.copy(mlflow_database, ws.registry / "mlflow.db")
    numbers = {}
    for place, bad in enumerate(("", *BAD), 1):
        bundle = made(root / "bundles" / str(place) / "bundle", bad) if bad else make_bundle(root / "bundles" / "good", 0.0)
        numbers[bad] = versions.register(ws, params, bundle.path, day=dt.date(2026, 1, place), workspace_rev="a", code_rev="b")
        versions.set_verdict(ws, params, numbers[bad], {"version": numbers[bad], "verdict": "pass", "reasons": []})
    own = params_with(free_serving())
    state = runtime.start(ws, own, detach=True)
    assert state is not None
    try:
        with HapClient(state.grpc_url, deadline_s=DEADLINE_S) as client:
            judged_against_champion(ws, own, numbers[""])
            promotion.promote(ws, own, numbers[""], server=client, actor="ann", now=NOW)
            yield ws, own, client, numbers
    finally:
        assert runtime.stop(ws)


@pytest.mark.parametrize("bad", BAD)
def test_it_is_refused_and_the_old_version_never_stops_serving(serving, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ws, params, client, numbers = serving
    if bad == LATE:
        monkeypatch.setattr(moves, "try_apart", lambda *_: None)  # patient: it leaves a slow graph to the server's deadline
    load, ended = Load(), threading.Event()
    caller = threading.Thread(target=keep_asking, args=(client.url, load, ended))
    caller.start()
    try:
        judged_against_champion(ws, params, numbers[bad])
        with pytest.raises(HapError, match=rf"v{numbers[bad]} failed: .*({BAD[bad][1]}).*v{numbers['']} serves as before"):
            promotion.promote(ws, params, numbers[bad], server=client, actor="ann", now=NOW)
    finally:
        ended.set()
        caller.join()
    assert load.wrong == [] and set(load.answered) == {numbers[""]} and load.answered[numbers[""]] > 10
    ledger = open_ledger(ws, params)
    assert ledger.served() == numbers[""] and ledger.rows()[-1].state == "undone"
    assert promotion.repair(ws, params, now=NOW, server=client, alias=False) == []
    assert client.versions("hap") == [numbers[""]]


def test_a_bundle_that_lost_a_file_is_refused(serving) -> None:
    ws, params, client, numbers = serving
    lost = next(iter(BAD))
    (file,) = (ws.registry / "artifacts").glob(f"{versions.get(ws, params, numbers[lost]).run_id}/artifacts/bundle/hard_select.onnx")
    kept = file.read_bytes()
    shutil.rmtree(ws.registry / "bundles" / f"v{numbers[lost]}", ignore_errors=True)
    file.unlink()
    try:
        judged_against_champion(ws, params, numbers[lost])
        with pytest.raises(HapError, match=rf"hard_select.onnx is missing.*v{numbers['']} serves as before"):
            promotion.promote(ws, params, numbers[lost], server=client, actor="ann", now=NOW)
    finally:
        file.write_bytes(kept)
    assert client.versions("hap") == [numbers[""]]
