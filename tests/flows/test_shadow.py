"""A challenger beside the champion in a real Triton, fed by the log of what callers were answered; nobody waits for it."""

import contextlib
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from flows.free import free
from flows.shadow import Shadowed, _mean_ms, _Shade, _spent, shadow
from hap.errors import Busy, DataError, UsageError
from hap.params import Feature, Params
from hap.registry import promotion, versions
from hap.registry.ledger import open_ledger
from hap.serving import repository, runtime, staging
from hap.serving.bundle import read_bundle, seal_bundle, write_schema
from hap.serving.client import HapClient
from hap.serving.server import wait_for
from hap.workspace import Workspace, is_held
from tests.registry.conftest import judged_against_champion
from tests.serving.conftest import free_serving, params_with
from tests.serving.handmade import FEATURES, ROUTE, expected, make_bundle, request_of
from tests.words import typing

pytestmark = [pytest.mark.triton, pytest.mark.long, pytest.mark.timeout(600)]
SHIFTS = {1: 0.0, 2: 0.25, 3: 0.5, 4: 0.75}
PATIENT_S = 120.0
ALIEN = 4  # reads a column that the champion does not have


@dataclass
class Place:
    ws: Workspace
    params: Params
    client: HapClient
    served: Path

    def with_log(self, folder: Path) -> "Place":
        return Place(self.ws, self.params, self.client, folder)

    def until_shadowed(self, version: int) -> None:
        """Wait for a shadow to be loaded and to have let go of the lock."""
        deadline = time.monotonic() + PATIENT_S
        while self.client.versions("hap_shadow") != [version] or is_held(self.ws, "promotion"):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def written(self, version: int) -> int:
        """Requests that a version answered, in finished files of the log."""
        return sum(pq.read_metadata(path).num_rows for path in self.served.rglob(f"served-*-v{version}-*.parquet"))

    def asked_of_shadow(self, version: int) -> int:
        """Requests that a shadow was asked where some candidates are routed, its golden ones included."""
        return self.client.spent("hap_shadow").get(version, (0, 0))[0]

    def promote(self, version: int) -> None:
        judged_against_champion(self.ws, self.params, version)
        now = dt.datetime.now(dt.UTC)
        promotion.promote(self.ws, self.params, version, server=self.client, actor="ann", now=now)

    def shadow(self, version: int, seconds: float | None, ended: threading.Event | None = None, share: float = 1.0) -> Shadowed:
        return shadow(
            self.ws, self.params, version, server=self.client, share=share, log=self.served, seconds=seconds,
            ended=ended or threading.Event(), actor="bo", now=dt.datetime.now(dt.UTC),
        )  # fmt: skip


@pytest.fixture
def shades(monkeypatch: pytest.MonkeyPatch) -> list[_Shade]:
    """What shadows of this process have added up so far, while they go on."""
    made = list[_Shade]()

    class Seen(_Shade):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            made.append(self)

    monkeypatch.setattr("flows.shadow._Shade", Seen)
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, default_params: Params) -> Iterator[Place]:
    """v1 served before, v2 serves, v3 is the challenger."""
    root = tmp_path_factory.mktemp("shadow")
    serving = free_serving().model_copy(update={"log_to": "served", "log_share": 1.0, "log_file_s": 0.5, "deadline_s": 10.0})
    ws, params = Workspace(root / "ws"), params_with(serving)
    for folder in (ws.registry, ws.state, ws.verdicts):
        folder.mkdir(parents=True)
    (ws.root / "hap.toml").write_text("")
    ws.params_file.write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))
    for number, shift in SHIFTS.items():
        bundle = make_bundle(root / "bundles" / str(number), shift)
        if number == ALIEN:
            more = FEATURES.model_copy(update={"item": (*FEATURES.item, Feature(name="colour", type="category", rows=8))})
            write_schema(bundle.path, more, ROUTE)
            seal_bundle(bundle.path, {"day": "2026-01-04"})
        versions.register(ws, params, bundle.path, day=dt.date(2026, 1, number), workspace_rev="a", code_rev="b")
        versions.set_verdict(ws, params, number, {"version": number, "verdict": "pass", "reasons": []})
    state = runtime.start(ws, params, detach=True)
    assert state is not None
    try:
        with HapClient(state.grpc_url, deadline_s=10) as client:
            found = Place(ws, params, client, ws.root / "served")
            found.promote(1)
            found.promote(2)
            yield found
    finally:
        assert runtime.stop(ws)


@contextlib.contextmanager
def callers(place: Place) -> Iterator[list[str]]:
    """Ask as a service does, with the log on; what went wrong."""
    ended, wrong = threading.Event(), list[str]()
    requests = [request_of(20 + n, seed=n) for n in range(20)] + [request_of(0)]

    def ask() -> None:
        with HapClient(place.client.url, deadline_s=5, retries=0, log_to=place.served, log_share=1.0, log_file_s=0.5) as client:
            number = 0
            while not ended.is_set():
                number += 1
                request = requests[number % len(requests)]
                try:
                    scored = client.score(request, request_id=number)
                    if len(scored.score) and np.abs(scored.score - expected(request, None, SHIFTS[scored.served_by])[0]).max() > 1e-4:
                        wrong.append(f"an answer of v{scored.served_by} holds another version's scores")
                except Exception as error:
                    wrong.append(str(error))
                time.sleep(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield wrong
    finally:
        ended.set()
        thread.join()


def as_before(place: Place) -> None:
    assert staging.staged(place.ws.triton) == {}
    assert place.client.versions("hap_shadow") == place.client.versions("hap_all_shadow") == []
    champion = open_ledger(place.ws, place.params).served()
    assert place.client.versions("hap") == [champion] == [repository.pinned(place.ws.triton)]
    assert 3 not in place.client.versions("light") or champion == 3


def test_served_requests_are_asked_of_the_challenger_and_the_ledger_keeps_what_it_came_to(place: Place) -> None:
    with callers(place) as wrong:
        found = place.shadow(3, seconds=6.0)
    assert wrong == []
    seen = found.compared
    assert seen is not None and seen.requests > 20 and seen.champions == {"v2": seen.requests} and (found.failed, found.skipped) == (0, 0)
    assert seen.routing_agreement < 1 and seen.psi > 0 and seen.ctr["champion"] != seen.ctr["challenger"] and seen.wall_ms["p50"] > 0
    assert found.server_ms["champion"] and found.server_ms["challenger"] and 5 < found.seconds < 60
    row = open_ledger(place.ws, place.params).rows()[-1]
    assert (row.action, row.state, row.from_version, row.to_version, row.actor) == ("shadow", "noted", 2, 3, "bo")
    assert row.evidence == orjson.loads(orjson.dumps(found.as_json()))
    text = str(found)
    assert text.startswith("v3 beside v2 for ") and "routed alike" in text and "none failed" in text
    as_before(place)


def test_requests_that_the_challenger_answered_itself_are_no_comparison(place: Place, shades: list[_Shade]) -> None:
    place.promote(1)
    with callers(place) as wrong:
        assert wait_for(lambda: place.written(1) > 10, PATIENT_S)
    place.promote(2)
    folder, ended, said = place.ws.root / "elsewhere", threading.Event(), list[Shadowed]()
    own = place.with_log(folder)
    thread = threading.Thread(target=lambda: said.append(own.shadow(1, seconds=None, ended=ended)))
    thread.start()
    try:
        place.until_shadowed(1)
        for path in place.served.rglob("served-*-v1-*.parquet"):
            into = folder / path.parent.name / path.name
            into.parent.mkdir(parents=True, exist_ok=True)
            os.replace(shutil.copy(path, into.with_suffix(".tmp")), into)  # a log's files, too, have their names when they are whole
        assert wait_for(lambda: bool(shades) and shades[0].skipped > 10, PATIENT_S)
    finally:
        ended.set()
        thread.join()
    assert wrong == [] and said[0].compared is None and said[0].skipped > 10
    assert "no request with candidates came" in str(said[0])
    as_before(place)


def test_a_promotion_and_a_gc_go_on_beside_it_and_leave_it_alone(place: Place, shades: list[_Shade]) -> None:
    ended, said = threading.Event(), list[Shadowed]()
    thread = threading.Thread(target=lambda: said.append(place.shadow(3, seconds=None, ended=ended)))
    with callers(place) as wrong:
        thread.start()
        try:
            place.until_shadowed(3)
            with pytest.raises(Busy, match=r"shadow of v3 .* runs a shadow here"):
                place.shadow(3, seconds=1.0)
            place.promote(1)
            assert place.client.versions("hap") == [1] and place.client.versions("hap_shadow") == [3]
            assert set(place.client.versions("light")) >= {1, 2, 3}
            plan = free(place.ws, place.params, server=place.client, actor="cy", now=dt.datetime.now(dt.UTC), dry_run=True)
            assert plan.kept[3] in ("loaded", "of the newest 3")
            assert wait_for(lambda: shades[0].tally.champions["v1"] > 0, PATIENT_S)
            promotion.rollback(place.ws, place.params, server=place.client, actor="cy", now=dt.datetime.now(dt.UTC))
        finally:
            ended.set()
            thread.join()
    assert wrong == []
    assert said[0].failed == 0 and said[0].compared is not None and {"v1"} <= set(said[0].compared.champions) <= {"v1", "v2"}
    assert open_ledger(place.ws, place.params).served() == 2
    as_before(place)


def kill_challenger(server_pid: int) -> None:
    """Its light model's process; one that an earlier challenger left may still be ending, and is killed with it."""
    killed = 0
    for process in psutil.Process(server_pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("/light/3/" in word for word in process.cmdline()):
                process.kill()
                killed += 1
    assert killed


@pytest.mark.parametrize("dies", ["a process of the challenger", "the server"])
def test_it_goes_on_when_something_dies_in_the_server(place: Place, dies: str, shades: list[_Shade]) -> None:
    ended, said = threading.Event(), list[Shadowed]()
    thread = threading.Thread(target=lambda: said.append(place.shadow(3, seconds=None, ended=ended)))
    with callers(place) as wrong:
        thread.start()
        try:
            place.until_shadowed(3)
            state = runtime.require_server(place.ws)
            if dies == "the server":
                os.kill(state.server_pid, signal.SIGKILL)
            else:
                kill_challenger(state.server_pid)
            assert wait_for(lambda: bool(shades) and shades[0].failed > 0, PATIENT_S)
            assert wait_for(lambda: shades[0].tally.requests > shades[0].failed, PATIENT_S), (shades[0].failed, shades[0].why)
            assert wait_for(lambda: place.client.ready("hap_shadow") and place.client.ready("hap"), PATIENT_S)
        finally:
            ended.set()
            thread.join()
    found = said[0]
    assert found.failed > 0 and found.why and found.compared is not None and found.compared.requests > found.failed, found
    assert wrong == [] or dies == "the server", wrong
    as_before(place)


def test_times_that_the_server_could_not_tell_are_none_and_end_nothing() -> None:
    with HapClient("127.0.0.1:9", deadline_s=1, retries=0) as nobody:
        assert _spent(nobody, "hap") == {}
    after = {"hap": {1: (3, 5_000_000)}, "hap_all": {1: (4, 8_000_000)}}
    assert _mean_ms({"hap": {1: (1, 1_000_000)}, "hap_all": {}}, after, ("hap", "hap_all"), 1) is None
    assert _mean_ms({"hap": {1: (1, 1_000_000)}}, after, ("hap",), 1) == 2.0


def test_what_a_killed_one_left_is_taken_out_by_the_next_promotion(place: Place) -> None:
    shadowing = subprocess.Popen(
        [sys.executable, "-m", "hap.cli", "shadow", "--model", "v3", "--root", str(place.ws.root)],
        cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert shadowing.stderr is not None and "v3 is loaded beside v2" in shadowing.stderr.readline()
    assert place.client.versions("hap_shadow") == [3]
    shadowing.kill()
    shadowing.communicate()
    place.promote(1)
    assert staging.staged(place.ws.triton) == {} and place.client.versions("hap_shadow") == []
    place.promote(2)
    as_before(place)


def test_it_ends_by_a_signal_and_answers(place: Place) -> None:
    with callers(place) as wrong:
        shadowing = subprocess.Popen(
            [sys.executable, "-m", "hap.cli", "shadow", "--model", "v3", "--share", "0.5", "--json", "--root", str(place.ws.root)],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert shadowing.stderr is not None and "v3 is loaded" in shadowing.stderr.readline()
        before = place.asked_of_shadow(3)
        assert wait_for(lambda: place.asked_of_shadow(3) > before, PATIENT_S)
        shadowing.terminate()
        out, err = shadowing.communicate(timeout=120)
    assert (shadowing.returncode, wrong) == (0, []), err
    found = orjson.loads(out)
    assert (found["version"], found["champion"], found["share"]) == ("v3", "v2", 0.5) and found["compared"]["requests"] > 0
    as_before(place)


def test_what_cannot_be_shadowed_is_refused_and_nothing_is_loaded(place: Place, monkeypatch, capsys) -> None:
    before = place.client.versions("light"), len(open_ledger(place.ws, place.params).rows())
    with pytest.raises(UsageError, match="v2 serves already; give --model a challenger"):
        place.shadow(2, seconds=1.0)
    with pytest.raises(DataError, match="v4 reads 'cand_colour', which requests served by v2 lack"):
        place.shadow(ALIEN, seconds=1.0)
    hapctl = typing(monkeypatch, capsys)
    at = ("--root", place.ws.root)
    assert hapctl("shadow", "--model", "v3", "--for", "soon", *at)[0] == 2
    code, out, _ = hapctl("shadow", "--model", "v3", "--for", "30m", "--share", "0.25", "--dry-run", *at)
    assert code == 0 and out == f"would ask v3 for 0.25 of the requests that are finished below {place.served}, 30m\n"
    assert (place.client.versions("light"), len(open_ledger(place.ws, place.params).rows())) == before
    as_before(place)


def test_a_challenger_that_fails_parity_is_taken_out_again(place: Place, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "liar", 0.6)
    shutil.copy(make_bundle(tmp_path / "other", 0.9).path / "golden.npz", bundle.path)
    seal_bundle(bundle.path, {"day": "2026-01-04"})
    liar = versions.register(
        place.ws, place.params, read_bundle(bundle.path).path, day=dt.date(2026, 1, 9), workspace_rev="a", code_rev="b"
    )
    with pytest.raises(DataError, match=f"v{liar} fails parity"):
        place.shadow(liar, seconds=1.0)
    assert liar not in place.client.versions("light")
    as_before(place)
