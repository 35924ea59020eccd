"""hapctl against a Triton that somebody else runs over the workspace's triton/ folder: the real server, started past hapctl."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pytest

from flows.status import examine
from hap.errors import ConfigError, DataError, UsageError
from hap.params import Params, Serving, load_params
from hap.project import project_file
from hap.registry import versions
from hap.registry.ledger import open_ledger
from hap.serving import remote, repository, runtime, server
from hap.serving.client import HapClient
from hap.serving.install import require_runtime
from hap.serving.served_log import read_served
from hap.workspace import Workspace, init_workspace
from tests.serving.conftest import SHIFTS, free_serving
from tests.serving.fake_triton import fake_triton
from tests.serving.handmade import FEATURES, expected, make_bundle
from tests.serving.test_request import raw
from tests.words import Run, typing


@pytest.fixture
def hapctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type the words in a workspace; returns exit code, stdout, stderr."""

    run = typing(monkeypatch, capsys)
    return lambda ws, *words: run(*words, "--root", ws.root)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with two passed versions of handmade bundles and a log folder."""
    found = init_workspace(tmp_path_factory.mktemp("remote") / "ws")
    text = found.params_file.read_text()
    begin, end = text.index("features:"), text.index("logs:")
    features = orjson.dumps(FEATURES.model_dump(mode="json")).decode()
    slices = text.index("  slices:"), text.index("promotion:")
    found.params_file.write_text(
        f"{text[:begin]}features: {features}\n{text[end : slices[0]]}{text[slices[1] :]}serving: {{log_to: served, log_share: 1.0}}\n"
    )
    params = found.params()
    for number, shift in SHIFTS.items():
        bundle = make_bundle(found.root.parent / "bundles" / str(number), shift)
        versions.register(found, params, bundle.path, day=dt.date(2026, 1, number), workspace_rev="a", code_rev="b")
        against = {1: None, 2: 1}[number]
        versions.set_verdict(found, params, number, {"version": number, "day": "x", "verdict": "pass", "reasons": [], "against": against})
    return found


@pytest.fixture(scope="module")
def elsewhere(ws: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Somebody else's Triton over ws.triton, as in a container: explicit model control, nothing of hap's around it."""
    settings = free_serving()
    ws.triton.mkdir(exist_ok=True)
    prefix = f"elsewhere_{os.getpid()}_"
    process = server.spawn(require_runtime(), ws.triton, settings, tmp_path_factory.mktemp("log") / "triton.log", prefix, [])
    url = f"{settings.host}:{settings.grpc_port}"
    try:
        with HapClient(url) as client:
            assert server.wait_for(client.live, 60)
        yield url
    finally:
        server.end(process, prefix, drain=False)


@pytest.fixture
def champion(ws: Workspace, elsewhere: str, hapctl: Run) -> int:
    """The version that serves there, whichever tests ran before."""
    if repository.pinned(ws.triton) is None:
        assert hapctl(ws, "promote", "--model", "v1", "--url", elsewhere)[0] == 0
    found = repository.pinned(ws.triton)
    assert found is not None
    return found


@pytest.mark.triton
def test_the_words_of_hapctl_work_against_it(ws: Workspace, elsewhere: str, tmp_path: Path, hapctl: Run) -> None:
    at = ("--url", elsewhere)
    assert "no champion" in hapctl(ws, "status", *at)[1]
    code, out, err = hapctl(ws, "promote", "--model", "v1", *at)
    assert (code, out.splitlines()[0]) == (0, "v1 serves"), err
    code, out, err = hapctl(ws, "promote", "--model", "v2", *at)
    assert (code, out.splitlines()[0], out.splitlines()[-1]) == (
        0,
        "v2 serves in place of v1",
        "MLflow's alias champion points at v2 now",
    ), err
    assert "parity on 6 golden requests" in out and "Triton / ONNX Runtime" in out
    for version, rehearsed in (("v2", False), ("v1", True)):
        code, out, err = hapctl(ws, "parity", "--model", version, "--json", *at)
        found = orjson.loads(out)
        assert (code, found["agrees"], len(found["pairs"])) == (0, True, 3), err
        assert any("it was rehearsed" in note for note in found["notes"]) is rehearsed
    with HapClient(elsewhere) as client:
        assert client.versions("hap") == [2] and {"hap_rehearsal", "hap_all_rehearsal"}.isdisjoint(client.models())

    lines = tmp_path / "requests.jsonl"
    lines.write_text("".join(orjson.dumps(raw(request_id=n)).decode() + "\n" for n in (7, 8)))
    code, out, err = hapctl(ws, "score", str(lines), *at)
    assert code == 0, err
    answers = [orjson.loads(line) for line in out.splitlines()]
    assert [(answer["request_id"], answer["version"]) for answer in answers] == [(7, "v2"), (8, "v2")]
    from hap.serving.request import RequestTensors

    wanted = expected(RequestTensors.from_json(FEATURES, raw()), None, SHIFTS[2])[0]
    np.testing.assert_allclose(answers[0]["score"], wanted, rtol=1e-5)
    today = dt.datetime.now(dt.UTC).date()
    logged = [read_served(ws.root / "served", day)["request_id"].to_pylist() for day in (today - dt.timedelta(days=1), today)]
    assert [*logged[0], *logged[1]] == [7, 8]

    code, out, err = hapctl(ws, "rollback", *at)
    assert (code, out.splitlines()[0]) == (0, "v1 serves in place of v2"), err
    status = orjson.loads(hapctl(ws, "status", "--json", *at)[1])
    assert status["champion"] == "v1"
    assert status["server"] == {"pid": None, "grpc": elsewhere, "ready": True, "restarts": None, "problem": None}
    assert runtime.server_state(ws) is None
    assert not list(ws.triton.glob("hap_probe_*"))
    assert hapctl(ws, "stop")[:2] == (0, "no server runs here\n")


@contextmanager
def told(ws: Workspace, url: str, canary_s: float) -> Iterator[list[str]]:
    """What the watch tells while the block runs."""
    settings = free_serving().model_copy(update={"url": url, "canary_s": canary_s})
    lines: list[str] = []
    ended = threading.Event()
    teller = threading.Thread(target=remote.follow, args=(ws, settings, lines.append, ended))
    teller.start()
    try:
        yield lines
    finally:
        ended.set()
        teller.join()


@pytest.mark.triton
def test_the_watch_tells_what_changes_and_starts_nothing(ws: Workspace, elsewhere: str, champion: int) -> None:
    with told(ws, elsewhere, canary_s=0.05) as lines:
        assert server.wait_for(lambda: lines == [f"{elsewhere}: v{champion} answers its golden request"], 20)
        with HapClient(elsewhere) as client:
            client.unload("hap")
            assert server.wait_for(lambda: "BAD, no champion" in lines[-1], 20)
            client.load("hap")
        assert server.wait_for(lambda: lines[-1].endswith("answers its golden request"), 20)
    assert len(lines) == 3  # each once, though it asked many times
    assert runtime.server_state(ws) is None


@pytest.mark.triton
def test_the_watch_tells_of_another_version_than_the_pinned_one_when_it_stays(
    ws: Workspace, elsewhere: str, champion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the looks of one round a version may go, and between a pin and its load another serves."""
    real, looks, stays = HapClient.versions, list[str](), threading.Event()

    def versions(client: HapClient, model: str = "hap") -> list[int]:
        looks.append(model)
        return [] if len(looks) % 2 == 0 or stays.is_set() else real(client, model)

    monkeypatch.setattr(HapClient, "versions", versions)
    with told(ws, elsewhere, canary_s=0.02) as lines:
        assert server.wait_for(lambda: len(looks) > 10, 20)
        assert lines == [f"{elsewhere}: v{champion} answers its golden request"]
        stays.set()
        assert server.wait_for(lambda: len(lines) == 2, 20)
    assert f"BAD, it serves nothing and v{champion} is pinned; is its model repository {ws.triton}?" in lines[1]


@pytest.mark.triton
def test_serve_with_a_url_ends_quietly_when_it_is_told_to(ws: Workspace, elsewhere: str) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "hap.cli", "serve", "--url", elsewhere, "--root", str(ws.root)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stderr is not None and elsewhere in watching.stderr.readline()
    watching.send_signal(signal.SIGTERM)
    assert watching.communicate(timeout=30)[1] == "" and watching.returncode == 0


@pytest.mark.triton
def test_a_triton_that_reads_another_folder_is_left_alone(
    ws: Workspace, elsewhere: str, champion: int, tmp_path: Path, hapctl: Run
) -> None:
    copy = Workspace(tmp_path / "ws")
    shutil.copytree(ws.root, copy.root, ignore=shutil.ignore_patterns("triton", ".dvc", "ledger.db"))
    code, _, err = hapctl(copy, "promote", "--model", "v2", "--force", "--reason", "x", "--url", elsewhere)
    assert code == 1 and f"does not read {copy.triton}" in err and len(err.splitlines()) == 1
    assert list(copy.triton.iterdir()) == [] and open_ledger(copy, copy.params()).rows() == []
    assert remote.look(elsewhere, 5).version == champion
    copy.params_file.write_text(copy.params_file.read_text().replace("serving: {", f"serving: {{url: '{elsewhere}', "))
    found = {finding.check: finding for finding in examine(copy.root)}
    assert "triton" not in found  # none is needed here
    assert not found["serving"].well and f"serves v{champion}, the ledger says no champion" in found["serving"].said
    assert f"{elsewhere}, which serving.url names, is somebody else's" in hapctl(copy, "stop")[1]


def test_nobody_at_the_url_is_one_line_for_each_word(ws: Workspace, tmp_path: Path, hapctl: Run) -> None:
    lines = tmp_path / "one.jsonl"
    lines.write_bytes(orjson.dumps(raw()))
    for words in (("promote", "--model", "v2"), ("score", str(lines))):
        code, out, err = hapctl(ws, *words, "--url", "127.0.0.1:9")
        assert (code, out) == (1, "") and "127.0.0.1:9" in err and len(err.splitlines()) == 1, err
    assert "does not answer" in hapctl(ws, "status", "--url", "127.0.0.1:9")[1]
    code, _, err = hapctl(ws, "serve", "--detach", "--url", "127.0.0.1:9")
    assert code == 2 and "nothing to start" in err
    assert hapctl(ws, "serve", "--dry-run", "--url", "127.0.0.1:9")[:2] == (0, "would watch 127.0.0.1:9, and start nothing\n")


@pytest.mark.parametrize("url", ["http://localhost:8000", "localhost", "localhost:", ":8001", "a b:1", "host:80x"])
def test_a_url_that_is_not_host_and_port_is_refused(url: str, default_params: Params) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        remote.with_url(default_params, url)


@pytest.mark.parametrize("url", ["localhost:8001", "10.0.0.5:1", "[::1]:8001", "triton-0.triton.svc:8001"])
def test_a_url_stands_in_for_that_of_the_parameters(url: str, default_params: Params, tmp_path: Path) -> None:
    params = remote.with_url(default_params, url)
    assert remote.address(Workspace(tmp_path), params.serving) == url
    assert params.model_copy(update={"serving": default_params.serving}) == default_params
    assert remote.address(Workspace(tmp_path), default_params.serving) is None


def test_look_tells_a_strange_model_from_a_dead_server() -> None:
    with fake_triton() as (fake, url):
        fake.version = 3
        assert remote.look(url, 5) == remote.Seen(False, None, "does not answer")  # it does not say that it is live
    assert remote.look(url, 1) == remote.Seen(False, None, "does not answer")


def test_the_official_container_needs_a_url(tmp_path: Path) -> None:
    text = project_file("params.yaml").read_text()
    for serving, well in (("{backend: onnxruntime}", False), ("{backend: onnxruntime, url: 'triton:8001'}", True)):
        path = tmp_path / "params.yaml"
        path.write_text(f"{text}serving: {serving}\n")
        if well:
            assert load_params(path).serving == Serving(backend="onnxruntime", url="triton:8001")
        else:
            with pytest.raises(ConfigError, match=r"serving\.url"):
                load_params(path)


def test_one_folder_holds_versions_of_one_backend(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    repository.render(bundle, 1, tmp_path / "triton")
    with pytest.raises(DataError, match="rendered for the python backend"):
        repository.render(bundle, 2, tmp_path / "triton", "onnxruntime")
    repository.render(bundle, 1, tmp_path / "other", "onnxruntime")
    assert not list((tmp_path / "other").rglob("model.py"))
