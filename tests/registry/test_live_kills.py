"""kill -9 at random moments under load: of a stub, of the server, of what watches it, of a promotion, and of two at once.

Each round waits until callers are answered again and the ledger is settled, and then looks: nothing runs that belongs to nobody, no
shared memory is left of the dead, and the version that the ledger names is the one that answers, with its own scores.
"""

import contextlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from hap.errors import HapError
from hap.params import Params
from hap.registry import promotion, versions
from hap.registry.ledger import MOVES, Ledger, open_ledger, open_move
from hap.serving import repository, runtime, staging
from hap.serving.client import HapClient
from hap.workspace import Workspace
from tests.registry.conftest import judged_against_champion
from tests.registry.test_live_promotion import NOW
from tests.serving.conftest import free_serving, params_with
from tests.serving.handmade import expected, make_bundle, request_of

pytestmark = [pytest.mark.triton, pytest.mark.long, pytest.mark.timeout(900)]
BACK_S = 15.0  # until callers are answered again, or thrice what a start takes on a machine that is busy with other things
SHIFTS = {1: 0.0, 2: 0.25}
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Asked:
    """What a caller that never stops saw."""

    failed_at: list[float] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    answered: int = 0


@dataclass
class Site:
    """A workspace whose server runs, and what its servers have called their shared memory so far."""

    ws: Workspace
    params: Params
    back_s: float
    prefixes: set[str] = field(default_factory=set)

    @property
    def ledger(self) -> Ledger:
        return open_ledger(self.ws, self.params)

    @property
    def url(self) -> str:
        return f"{self.params.serving.host}:{self.params.serving.grpc_port}"

    def start(self) -> None:
        state = runtime.start(self.ws, self.params, detach=True)
        assert state is not None
        self.prefixes.add(state.shm_prefix)

    def is_published(self) -> bool:
        """Whether the watch has said that the server is up; callers are answered a moment before."""
        state = runtime.server_state(self.ws)
        return state is not None and state.ready

    def answers(self, deadline_s: float = 1.0) -> int | None:
        """The version that both ensembles answer with, scores and all; None while one does not."""
        request, few = request_of(30, seed=3), request_of(3, seed=4)
        with HapClient(self.url, deadline_s=deadline_s, retries=0) as client:
            try:
                one, other = client.score(request, model="hap"), client.score(few, 5, model="hap_all")
            except HapError:
                return None
        assert np.abs(one.score - expected(request, None, SHIFTS[one.served_by])[0]).max() < 1e-4
        assert np.abs(other.score - expected(few, 5, SHIFTS[other.served_by])[0]).max() < 1e-4
        return one.served_by if one.served_by == other.served_by else None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, params: Params) -> Iterator[Site]:
    """v2 serves, v1 served before; both passed."""
    root = tmp_path_factory.mktemp("kills")
    ws, own = Workspace(root / "ws"), params_with(free_serving())
    for folder in (ws.registry, ws.state, ws.verdicts):
        folder.mkdir(parents=True)
    shutil.copy(mlflow_database, ws.registry / "mlflow.db")
    (ws.root / "hap.toml").write_text("")
    ws.params_file.write_text(yaml.safe_dump(own.model_dump(mode="json"), sort_keys=False))
    for number, shift in SHIFTS.items():
        bundle = make_bundle(root / "bundles" / str(number), shift)
        versions.register(ws, own, bundle.path, day=NOW.date(), workspace_rev="a", code_rev="b")
        versions.set_verdict(ws, own, number, {"version": number, "verdict": "pass", "reasons": []})
    begun = time.monotonic()
    found = Site(ws, own, BACK_S)
    found.start()
    found.back_s = max(BACK_S, 3 * (time.monotonic() - begun))
    try:
        with HapClient(found.url, deadline_s=10) as client:
            for number in SHIFTS:
                judged_against_champion(ws, own, number)
                promotion.promote(ws, own, number, server=client, actor="ann", now=NOW)
        yield found
    finally:
        assert runtime.stop(ws)
    assert belonging_to(found) == {} and shared_memory(found) == set()


@contextlib.contextmanager
def caller(site: Site) -> Iterator[Asked]:
    """Ask without a pause, and check every answer against the version that it names."""
    request, ended, asked = request_of(50, seed=7), threading.Event(), Asked()
    wanted = {number: expected(request, None, shift)[0] for number, shift in SHIFTS.items()}

    def ask() -> None:
        with HapClient(site.url, deadline_s=5.0, retries=0) as client:
            while not ended.is_set():
                try:
                    scored = client.score(request, model="hap")
                except HapError:
                    asked.failed_at.append(time.monotonic())
                    time.sleep(0.05)
                    continue
                asked.answered += 1
                if not np.abs(scored.score - wanted[scored.served_by]).max() <= 1e-4:
                    asked.mixed.append(f"an answer of v{scored.served_by} holds another version's scores")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition held."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - begun


def belonging_to(site: Site) -> dict[int, str]:
    """Living processes that work on this workspace."""
    found = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(site.ws.root) in words and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found[process.pid] = words
    return found


def shared_memory(site: Site) -> set[str]:
    return {path.name for prefix in site.prefixes for path in Path("/dev/shm").glob(f"{prefix}*")}


def stubs_of(state: runtime.ServerState) -> list[psutil.Process]:
    """The server's Python processes; a dead one stays a zombie, and its memory the server's, until its version is loaded anew."""
    found = []
    for process in psutil.Process(state.server_pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("triton_python_b"):
                found.append(process)
    return found


def living(state: runtime.ServerState) -> dict[int, str]:
    """The command line of each of them that lives, by pid."""
    found = {}
    for stub in stubs_of(state):
        with contextlib.suppress(psutil.Error):  # a zombie has no command line
            found[stub.pid] = " ".join(stub.cmdline())
    return found


class Rounds:
    """The ways to kill; each returns the moment of its kill, or of its last one."""

    def __init__(self, site: Site, dice: random.Random) -> None:
        self.site, self.dice = site, dice

    def stub(self) -> float:
        time.sleep(self.dice.random())
        return self._kill(self.dice.choice(list(living(runtime.require_server(self.site.ws)))))

    def server(self) -> float:
        time.sleep(self.dice.random())
        return self._kill(runtime.require_server(self.site.ws).server_pid)

    def watcher(self) -> float:
        """As an init system would, start it again."""
        time.sleep(self.dice.random())
        killed = self._kill(runtime.require_server(self.site.ws).pid)
        wait_for("the watcher's end is seen", lambda: runtime.server_state(self.site.ws) is None, 5)
        self.site.start()
        return killed

    def promotion(self, also: Callable[[], float] | None = None) -> float:
        """hapctl promote or rollback in a process of its own, killed between its `intended` row and a little after its last."""
        rows = len(self.site.ledger.rows())
        words = ["rollback"] if self.site.ledger.served() == 2 else ["promote", "--model", "v2", "--force", "--reason", "a round"]
        with open(self.site.ws.root / "moves.log", "ab") as log:
            moving = subprocess.Popen(
                [sys.executable, "-m", "hap.cli", *words, "--root", str(self.site.ws.root)], cwd=REPOSITORY, stdout=log, stderr=log
            )
        wait_for("the move begins", lambda: len(self.site.ledger.rows()) > rows or moving.poll() is not None, 120)
        time.sleep(self.dice.random() * 1.2 * self._usual_s(words[0]))
        killed = also() if also else time.monotonic()
        moving.kill()
        moving.wait()
        return max(killed, time.monotonic())

    def promotion_and_server(self) -> float:
        return self.promotion(lambda: self._kill(runtime.require_server(self.site.ws).server_pid))

    def _usual_s(self, action: str) -> float:
        """What a move takes between its two rows, as the ledger says of the shortest so far; a rollback about half of a promotion."""
        rows = [row for row in self.site.ledger.rows() if row.action in MOVES]
        spans = [
            ((after.at - before.at).total_seconds(), before.action) for before, after in itertools.pairwise(rows) if after.state == "served"
        ]
        known = [span for span, moved in spans if moved == action]
        return min(known) if known else min(span for span, _ in spans) / 2

    def _kill(self, pid: int) -> float:
        os.kill(pid, 9)
        return time.monotonic()


MOVES_KILLED = ("promotion", "promotion_and_server")
DECK = ("stub", "server", "watcher", *MOVES_KILLED, *MOVES_KILLED)  # a move has many moments to die in, an idle server one


def rounds(dice: random.Random, seconds: float) -> Iterator[str]:
    """Shuffled decks until the time is over, one at least."""
    until = time.monotonic() + seconds
    yield from dice.sample(DECK, len(DECK))
    while True:
        for name in dice.sample(DECK, len(DECK)):
            if time.monotonic() > until:
                return
            yield name


def test_whatever_dies_callers_are_answered_again_and_the_ledger_tells_the_truth(site: Site) -> None:
    """For HAP_KILLS_S seconds, with the dice of HAP_KILLS_SEED."""
    dice = random.Random(os.environ.get("HAP_KILLS_SEED", "1"))
    told = []
    for name in rounds(dice, float(os.environ.get("HAP_KILLS_S", "120"))):
        with caller(site) as asked:
            killed = getattr(Rounds(site, dice), name)()
            wait_for(f"an answer after {name}", lambda: site.answers() is not None and site.is_published(), site.back_s)
            back_s = time.monotonic() - killed
            with HapClient(site.url, deadline_s=10) as client:
                settled = promotion.repair(site.ws, site.params, now=NOW, server=client, alias=False)
            time.sleep(0.2)
        told.append(f"{name}: back after {back_s:.1f} s, {len(asked.failed_at)} of {asked.answered} failed, settled: {settled}")
        assert asked.mixed == [] and asked.answered > 0, told[-1]
        if name == "promotion":
            assert asked.failed_at == [], f"{told[-1]}: nobody may notice a promotion that dies"
        look(site, told[-1])
    print("\n".join(told))


def look(site: Site, told: str) -> None:
    """Nothing of the dead is left, and what the ledger says is what answers."""
    rows = site.ledger.rows()
    assert open_move(rows) is None, told
    assert site.ledger.verify() == len(rows)
    # A stub that died unasked is seen when the version is asked; until then the server stands as it is.
    assert site.answers(deadline_s=10.0) == site.ledger.served() == repository.pinned(site.ws.triton), told
    assert staging.staged(site.ws.triton) == {}, told
    state = runtime.require_server(site.ws)
    site.prefixes.add(state.shm_prefix)
    family = {state.pid, state.server_pid, *(child.pid for child in psutil.Process(state.server_pid).children(recursive=True))}
    wait_for(f"the end of {set(belonging_to(site).values())} after {told}", lambda: set(belonging_to(site)) <= family, site.back_s)
    # A version that was loaded anew is unloaded a moment later.
    wait_for(f"a region for each process after {told}", lambda: len(shared_memory(site)) == len(stubs_of(state)), site.back_s)


def test_a_version_whose_process_died_unnoticed_is_still_there_for_a_rollback(site: Site) -> None:
    with HapClient(site.url, deadline_s=10) as client:
        if site.ledger.served() != 2:
            judged_against_champion(site.ws, site.params, 2)
            promotion.promote(site.ws, site.params, 2, server=client, actor="ann", now=NOW)
        before = runtime.require_server(site.ws)
        for pid, words in living(before).items():
            if "/light/1/" in words:  # else it died in the rounds before
                os.kill(pid, 9)
        time.sleep(3 * site.params.serving.canary_s)
        with caller(site) as asked:
            assert promotion.rollback(site.ws, site.params, server=client, actor="bo", now=NOW).version == 1
        assert asked.failed_at == [] and asked.mixed == [] and asked.answered > 0
    assert runtime.require_server(site.ws).restarts == before.restarts and site.answers(deadline_s=10.0) == 1
    look(site, "a rollback to a version with a dead stub")
