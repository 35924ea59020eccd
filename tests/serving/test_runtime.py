"""Against the real server: these tests start, break and switch it."""

import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest

from benchmarks.switch import http_body
from hap import durable
from hap.errors import Busy, DataError, ServingError
from hap.serving import repository, runtime, server
from hap.serving.bundle import GRAPHS, Bundle
from hap.serving.client import DeadlineExceeded, HapClient, NoChampion
from hap.workspace import Workspace
from tests.serving.conftest import SHIFTS, Served, free_serving, params_with
from tests.serving.handmade import expected, request_of

pytestmark = pytest.mark.triton
BACK_S = 90.0  # how long a broken server may take to answer again on a busy machine


def group_of(server_pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == server_pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def stub_of(served: Served, member: str) -> psutil.Process:
    state = runtime.require_server(served.ws)
    return next(process for process in group_of(state.server_pid) if f"/{member}/1/" in " ".join(process.cmdline()))


def answers(served: Served) -> bool:
    try:
        return served.client.score(request_of(20), model="hap").served_by == 1 and runtime.require_server(served.ws).ready
    except ServingError:
        return False


@pytest.mark.parametrize("damage", ["stub killed", "stub hung", "stub of the one-step ensemble killed", "server killed"])
def test_a_broken_server_is_back_and_leaves_nothing_behind(served: Served, damage: str) -> None:
    before = runtime.require_server(served.ws)
    if damage == "server killed":
        os.kill(before.server_pid, signal.SIGKILL)
    else:
        member = "expressive_all" if "one-step" in damage else "light"
        stub_of(served, member).send_signal(signal.SIGSTOP if damage == "stub hung" else signal.SIGKILL)
    assert server.wait_for(
        lambda: (now := runtime.server_state(served.ws)) is not None and now.ready and now.restarts > before.restarts, BACK_S
    )
    assert server.wait_for(lambda: answers(served), BACK_S)
    after = runtime.require_server(served.ws)
    assert after.pid == before.pid
    assert group_of(before.server_pid) == []
    assert "restarting the server" in (served.ws.state / "serve.log").read_text()
    stubs = sum("stub" in process.name() or "triton_python" in process.name() for process in group_of(after.server_pid))
    assert len(list(Path("/dev/shm").glob(f"{after.shm_prefix}*"))) == stubs == 8


def test_switching_under_load_drops_no_request_and_mixes_no_versions(served: Served) -> None:
    request = request_of(200)
    wanted = {version: expected(request, None, shift)[0] for version, shift in SHIFTS.items()}
    ended, faults, by_version = threading.Event(), list[str](), dict.fromkeys(SHIFTS, 0)

    def call() -> None:
        with HapClient(served.client.url, deadline_s=10) as client:
            while not ended.is_set():
                try:
                    scored = client.score(request, model="hap")
                except ServingError as error:
                    faults.append(str(error))
                    continue
                by_version[scored.served_by] += 1
                if not np.abs(scored.score - wanted[scored.served_by]).max() <= 1e-4:
                    faults.append(f"v{scored.served_by} gave another version's score")

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for version in (2, 1, 2, 1, 2, 1):
            served.champion(version)
            so_far = by_version[version]
            assert server.wait_for(lambda known=so_far, version=version: by_version[version] > known + 20 or faults, BACK_S)
    finally:
        ended.set()
        for caller in callers:
            caller.join()
    assert faults == []


def test_a_corrupt_new_version_leaves_the_old_one_serving(served: Served, bundles: dict[int, Bundle]) -> None:
    repo = served.ws.triton
    repository.render(bundles[2], 3, repo)
    graph = repo / "expressive" / "3" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    try:
        with pytest.raises(DataError, match="does not load"):
            repository.check(repo, 3)
        repository.pin(repo, 1, [1, 2, 3])
        with pytest.raises(ServingError, match="version 3"):
            served.client.load("expressive")
        assert served.client.score(request_of(20), model="hap").served_by == 1
    finally:
        repository.pin(repo, 1, [1, 2])
        for name in GRAPHS:
            served.client.load(name)
        repository.remove(repo, 3)
    assert served.client.versions("expressive") == [1, 2]


def test_a_second_server_for_the_workspace_is_refused(served: Served) -> None:
    state = runtime.require_server(served.ws)
    with pytest.raises(Busy, match=rf"pid {state.pid}.*hapctl stop"):
        runtime.start(served.ws, served.params, detach=True)


def test_of_two_that_start_at_once_the_second_leaves_the_first_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    before = runtime.require_server(served.ws)
    monkeypatch.setattr(runtime, "_check", lambda *_: None)  # as if it had looked a moment before the first was there
    with pytest.raises(ServingError, match=rf"already runs for .*pid {before.pid}"):
        runtime.start(served.ws, served.params, detach=True)
    assert runtime.require_server(served.ws) == before and answers(served)


def test_every_address_is_loopback(served: Served) -> None:
    state = runtime.require_server(served.ws)
    listening = [
        connection.laddr
        for process in group_of(state.server_pid)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.port for address in listening} == {state.http_port, state.grpc_port, state.metrics_port}
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_over_http_nobody_loads_or_unloads_a_model_and_everybody_scores(served: Served) -> None:
    state = runtime.require_server(served.ws)

    def ask(path: str, body: bytes, **headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{state.http_port}/v2/{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    model = orjson.dumps({"parameters": {"config": "{}", "file:1/model.py": base64.b64encode(b"import os").decode()}})
    changes = {
        "repository/models/hap/unload": b"{}",
        "repository/models/mine/load": model,
        "repository/index": b"{}",
        "systemsharedmemory/region/mine/register": orjson.dumps({"key": "/mine", "offset": 0, "byte_size": 64}),
        "logging": b'{"log_file": "/tmp/mine"}',
    }
    assert {path: ask(path, body) for path, body in changes.items()} == dict.fromkeys(changes, 403)
    header, content = http_body(request_of(20))
    words = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    assert ask("models/hap/infer", header + content, **words) == 200
    assert answers(served)


def test_an_empty_repository_serves_nobody_and_says_so(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    state = runtime.start(ws, params_with(free_serving()), detach=True)
    assert state is not None and state.ready and state.champion is None
    try:
        with HapClient(state.grpc_url) as client, pytest.raises(NoChampion, match="hapctl promote"):
            client.score(request_of(3))
    finally:
        assert runtime.stop(ws)
    assert runtime.server_state(ws) is None
    assert group_of(state.server_pid) == []
    assert list(Path("/dev/shm").glob(f"{state.shm_prefix}*")) == []
    assert not runtime.stop(ws)


def test_a_champion_that_does_not_load_is_told_and_the_server_stays_up(tmp_path: Path, bundles: dict[int, Bundle]) -> None:
    ws = Workspace(tmp_path)
    repository.render(bundles[1], 1, ws.triton)
    repository.pin(ws.triton, 1, [1])
    (ws.triton / "light" / "1" / "model.onnx").write_bytes(b"no graph")
    state = runtime.start(ws, params_with(free_serving()), detach=True)
    try:
        assert state is not None and state.champion is None
        assert state.problem is not None and state.problem.startswith("v1 did not load")
    finally:
        assert runtime.stop(ws)


def test_a_killed_supervisor_is_cleaned_up_after_by_the_next_start(tmp_path: Path, bundles: dict[int, Bundle]) -> None:
    ws, params = Workspace(tmp_path / "with a blank"), params_with(free_serving())
    repository.render(bundles[1], 1, ws.triton)
    repository.pin(ws.triton, 1, [1])
    first = runtime.start(ws, params, detach=True)
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    assert server.wait_for(lambda: runtime.server_state(ws) is None, 5)
    second = runtime.start(ws, params, detach=True)
    try:
        assert second is not None and second.champion == 1
        assert group_of(first.server_pid) == []
        assert list(Path("/dev/shm").glob(f"{first.shm_prefix}*")) == []
        os.kill(second.pid, signal.SIGKILL)
    finally:
        assert server.wait_for(lambda: runtime.server_state(ws) is None, 5)
        runtime.stop(ws)
    assert second is not None and group_of(second.server_pid) == []
    assert not [left for state in (first, second) for left in Path(tempfile.gettempdir()).glob(f"{state.shm_prefix}*")]


@pytest.mark.long
def test_a_server_that_hangs_is_stopped_in_seconds_by_who_watches_it(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    state = runtime.start(ws, params_with(free_serving()), detach=True)
    assert state is not None
    for process in group_of(state.server_pid):
        process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert runtime.stop(ws)
    assert time.monotonic() - begun < server.EXIT_TIMEOUT_S + 8
    said = (ws.state / "serve.log").read_text()
    assert "what is in flight may be refused: " in said and said.rstrip().endswith("server stopped")
    assert group_of(state.server_pid) == []


def test_a_state_file_from_elsewhere_removes_nothing_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    monkeypatch.setattr(server, "free_leftovers", freed.append)
    ws = Workspace(tmp_path)
    state = runtime.ServerState(
        pid=2**22 + 1, pid_started=0.0, server_pid=2**22 + 2, server_started=0.0, host="127.0.0.1", http_port=1, grpc_port=2,
        metrics_port=3, started="", restarts=0, champion=None, ready=True, problem=None, shm_prefix="",
    )  # fmt: skip
    for prefix in ("", "../", "hap_", "hap_1_/../", "*"):
        durable.write_json(ws.state / "server.json", asdict(replace(state, shm_prefix=prefix)))
        assert not runtime.stop(ws) and freed == []
    durable.write_json(ws.state / "server.json", asdict(replace(state, shm_prefix="hap_17_")))
    assert not runtime.stop(ws) and freed == ["hap_17_"]


@pytest.mark.parametrize("key", ["http_port", "grpc_port", "metrics_port"])
def test_a_taken_port_names_the_key_to_change(tmp_path: Path, key: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        taken = params_with(free_serving().model_copy(update={key: port}))
        with pytest.raises(Busy, match=rf"port {port} .*pid {os.getpid()}.*serving\.{key}"):
            runtime.start(Workspace(tmp_path), taken, detach=True)


def test_a_hung_server_is_a_missed_deadline() -> None:
    """A listener that accepts and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with HapClient(f"127.0.0.1:{silent.getsockname()[1]}", deadline_s=0.3) as client:
            for call in _calls(client):
                with pytest.raises(DeadlineExceeded, match="no answer within"):
                    call()


def _calls(client: HapClient) -> list[Callable[[], object]]:
    return [lambda: client.score(request_of(3), model="hap"), client.schema, lambda: client.versions("hap")]


def test_a_workspace_whose_path_has_blanks_and_foreign_letters_serves(tmp_path: Path, bundles: dict[int, Bundle]) -> None:
    ws = Workspace(tmp_path / "Über uns" / "[ws] ä")
    ws.state.mkdir(parents=True)
    repository.render(bundles[1], 1, ws.triton)
    repository.pin(ws.triton, 1, [1])
    state = runtime.start(ws, params_with(free_serving()), detach=True)
    assert state is not None and state.champion == 1
    try:
        with HapClient(state.grpc_url) as client:
            assert len(client.score(request_of(5)).score) == 5
    finally:
        assert runtime.stop(ws)
    assert not list(Path(tempfile.gettempdir()).glob(f"{state.shm_prefix}*"))


def test_a_tied_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    ws, params = Workspace(tmp_path), params_with(free_serving())
    code = "import sys, time; from pathlib import Path; from hap.params import Serving; from hap.serving import runtime\n"
    code += "from hap.workspace import Workspace; from tests.serving.conftest import params_with\n"
    code += "runtime.start(Workspace(Path(sys.argv[1])), params_with(Serving.model_validate_json(sys.argv[2])), detach=True, tied=True)\n"
    code += "print('up', flush=True); time.sleep(300)"
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(ws.root), params.serving.model_dump_json()], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    )
    assert starter.stdout is not None and starter.stdout.readline() == b"up\n"
    state = runtime.require_server(ws)
    starter.kill()
    starter.communicate()
    assert server.wait_for(lambda: not psutil.pid_exists(state.pid) and not group_of(state.server_pid), BACK_S)
