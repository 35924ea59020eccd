"""The watch over the server: what it does about a fault, and what does not end it."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import InferenceServerClient

from hap.errors import ServingError
from hap.serving import repository, runtime, server, wire
from hap.serving.bundle import Bundle, read_bundle, read_golden, seal_bundle, write_golden
from hap.serving.client import HapClient
from hap.workspace import Workspace
from tests.registry.promotion.test_full_disk import fill
from tests.serving.conftest import free_serving, params_with
from tests.serving.handmade import expected, make_bundle, request_of

BACK_S = 90.0  # how long a broken server may take to answer again on a busy machine


def patient(bundle: Bundle) -> Bundle:
    """The same answers after work that grows with the square of N: about a tenth of a second for 6,000 candidates."""
    file = bundle.graph("light")
    model = onnx.load(file)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["fast" if name == "light_score" else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "nought"))
    graph.node.extend(
        [
            helper.make_node("Transpose", ["cand_dense"], ["across"]),
            helper.make_node("MatMul", ["cand_dense", "across"], ["square"]),
            helper.make_node("IsNaN", ["square"], ["odd"]),
            helper.make_node("Cast", ["odd"], ["odds"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["odds"], ["many"], keepdims=0),
            helper.make_node("Mul", ["many", "nought"], ["zero"]),
            helper.make_node("Add", ["fast", "zero"], ["light_score"]),
        ]
    )
    file.write_bytes(model.SerializeToString())
    return seal_bundle(bundle.path, {"day": "2026-01-04"})


def workspace(folder: Path, bundle: Bundle) -> Workspace:
    """A workspace whose server will start with the bundle as v1."""
    ws = Workspace(folder)
    ws.state.mkdir(parents=True, exist_ok=True)
    repository.render(bundle, 1, ws.triton)
    repository.pin(ws.triton, 1, [1])
    return ws


def log_of(ws: Workspace) -> str:
    return (ws.state / "serve.log").read_text()


class Flood:
    """Requests sent without waiting for answers."""

    def __init__(self, url: str, many: int, candidates: int) -> None:
        self.client, self.answers = InferenceServerClient(url), list[object]()
        tensors = request_of(candidates, seed=1)
        self.score = expected(tensors, None, 0.0)[0]  # before anything is asked: it takes longer than the answers
        inputs, outputs = wire.inputs_of(wire.arrays_of(tensors, None), {}), wire.outputs_of({})
        for _ in range(many):
            self.client.async_infer("hap", inputs, lambda result, error: self.answers.append(error or result), outputs=outputs)


@pytest.mark.triton
@pytest.mark.long
def test_a_stop_lets_what_was_asked_be_answered(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws", patient(make_bundle(tmp_path / "bundle")))
    state = runtime.start(ws, params_with(free_serving()), detach=True)
    assert state is not None
    flood = Flood(state.grpc_url, many=12, candidates=6000)
    assert server.wait_for(lambda: len(flood.answers) >= 1, BACK_S)
    waiting = 12 - len(flood.answers)
    assert runtime.stop(ws)
    assert server.wait_for(lambda: len(flood.answers) == 12, 5)
    assert waiting > 0, "nothing was left to drain"
    for answer in flood.answers:
        assert not isinstance(answer, Exception), answer.message()  # type: ignore[attr-defined]
        np.testing.assert_allclose(answer.as_numpy("score"), flood.score, rtol=1e-4, atol=1e-4)  # type: ignore[attr-defined]
    assert log_of(ws).splitlines()[-1].endswith("server stopped")


@pytest.mark.triton
@pytest.mark.long
def test_a_queue_that_the_canary_does_not_get_through_ends_in_a_restart_with_a_line(tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws", patient(make_bundle(tmp_path / "bundle")))
    settings = free_serving().model_copy(update={"deadline_s": 1.5})
    state = runtime.start(ws, params_with(settings), detach=True)
    assert state is not None
    try:
        flood = Flood(state.grpc_url, many=600, candidates=6000)
        assert server.wait_for(lambda: "restarting the server: hap at" in log_of(ws), BACK_S)
        assert "gave no answer within 1.5 s" in log_of(ws)
        assert server.wait_for(lambda: len(flood.answers) == 600, BACK_S), "a caller waits for a server that is gone"
        with HapClient(state.grpc_url, deadline_s=5) as client:
            assert server.wait_for(lambda: answers(client), BACK_S)
    finally:
        runtime.stop(ws)


@pytest.mark.triton
def test_a_wrong_score_ends_in_a_restart_with_a_line(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    ws = workspace(tmp_path / "ws", bundle)
    file = repository.canary_file(ws.triton, 1)
    golden = read_golden(file)
    write_golden(file.parent, [replace(one, score=one.score + np.float32(0.5)) for one in golden])
    state = runtime.start(ws, params_with(free_serving()), detach=True)
    assert state is not None
    try:
        said = "restarting the server: v1 answers a golden request on hap 0.5 away from its score"
        assert server.wait_for(lambda: said in log_of(ws), BACK_S)
        write_golden(file.parent, golden)
        assert server.wait_for(lambda: (now := runtime.server_state(ws)) is not None and now.ready and now.restarts > 0, BACK_S)
        settled = runtime.require_server(ws).restarts
        time.sleep(5 * free_serving().canary_s)
        assert runtime.require_server(ws).restarts == settled
    finally:
        assert runtime.stop(ws)


def answers(client: HapClient) -> bool:
    try:
        return client.score(request_of(20)).served_by == 1
    except ServingError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here (needs root): {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.triton
def test_a_full_disk_does_not_keep_a_dead_server_from_being_restarted(small_disk: Path, bundles: dict[int, Bundle]) -> None:
    ws = workspace(small_disk / "ws", read_bundle(bundles[1].path))
    state = runtime.start(ws, params_with(free_serving()), detach=True)
    assert state is not None
    try:
        filler = fill(small_disk)
        assert shutil.disk_usage(small_disk).free == 0
        runtime.server.kill_group(state.server_pid)
        with HapClient(state.grpc_url, deadline_s=5) as client:
            assert server.wait_for(lambda: answers(client), BACK_S)
        after = runtime.require_server(ws)
        assert (after.pid, after.restarts) == (state.pid, 0), "who watches is the same, and could not write that it restarted"
        filler.unlink()
        assert server.wait_for(lambda: runtime.require_server(ws).restarts == 1, BACK_S)
        assert runtime.require_server(ws).server_pid != state.server_pid
    finally:
        runtime.stop(ws)
