"""Shared memory against the real server: the same bits, and nothing left behind however a client ends."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tenacity
from tritonclient.grpc import InferenceServerClient

from hap.errors import ServingError
from hap.serving import regions, runtime
from hap.serving.client import AsyncHapClient, BadRequest, DeadlineExceeded, HapClient, Scored
from tests.serving.conftest import Served
from tests.serving.handmade import request_of

SIZES = (0, 1, 2, 16, 17, 300, 20000, 5)
CHILDREN = list[int]()  # pids


def held(served: Served) -> set[str]:
    """The regions that the server holds for clients of hap."""
    with InferenceServerClient(served.client.url) as client:
        return {name for name in client.get_system_shared_memory_status().regions if name.startswith("hap_client_")}


def forget(served: Served) -> None:
    """Make the server let go of them. An answer arrives a moment before the server is done with the region it lies in."""

    @tenacity.retry(
        retry=tenacity.retry_if_exception_message(match=".*currently in use"),
        wait=tenacity.wait_fixed(0.01),
        stop=tenacity.stop_after_delay(10),
        reraise=True,
    )
    def once(client: InferenceServerClient, name: str) -> None:
        client.unregister_system_shared_memory(name)

    with InferenceServerClient(served.client.url) as client:
        for name in held(served):
            once(client, name)


def files() -> list[Path]:
    """Regions with a name still, of this process and of those that it started; another worker's clients have theirs there, too."""
    return [path for pid in (os.getpid(), *CHILDREN) for path in Path("/dev/shm").glob(f"hap_client_*_{pid}_*")]


@pytest.fixture
def clean(served: Served) -> Iterator[Served]:
    """The server, which holds nothing before and after."""
    forget(served)
    yield served
    assert held(served) == set()
    assert files() == []


@pytest.mark.triton
def test_all_clients_give_the_same_bits(clean: Served) -> None:
    requests = [(request_of(n, seed=n), k) for n in SIZES for k in (None, 0, 3, 10**6)]

    def by_sync(shared: bool) -> list[Scored]:
        with HapClient(clean.client.url, shared_memory=shared) as client:
            return [client.score(request, k) for request, k in requests]

    async def by_async(shared: bool) -> list[Scored]:
        async with AsyncHapClient(clean.client.url, shared_memory=shared) as client:
            return await asyncio.gather(*[client.score(request, k) for request, k in requests])

    plain = by_sync(False)
    for other in (by_sync(True), asyncio.run(by_async(False)), asyncio.run(by_async(True))):
        for one, two in zip(plain, other, strict=True):
            assert one.score.tobytes() == two.score.tobytes()
            assert one.routed.tobytes() == two.routed.tobytes()
            assert one.served_by == two.served_by


@pytest.mark.triton
def test_a_region_is_registered_once_and_grows(clean: Served) -> None:
    with HapClient(clean.client.url, shared_memory=True) as client:
        client.score(request_of(10))
        first = held(clean)
        for n in (20, 1, 0, 300):
            client.score(request_of(n))
        assert held(clean) == first and len(first) == 1
        client.score(request_of(50_000))
        grown = held(clean)
        assert len(grown) == 1 and grown != first
        assert files() == []  # the name is gone as soon as the server has the region


@pytest.mark.triton
def test_calls_at_once_have_regions_of_their_own(clean: Served) -> None:
    requests = [request_of(200 + n, seed=n) for n in range(8)]
    wanted = [clean.client.score(request, model="hap").score for request in requests]
    wrong: list[int] = []
    with HapClient(clean.client.url, shared_memory=True) as client:

        def call(place: int) -> None:
            for _ in range(20):
                if client.score(requests[place], model="hap").score.tobytes() != wanted[place].tobytes():
                    wrong.append(place)

        callers = [threading.Thread(target=call, args=(place,)) for place in range(len(requests))]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert 1 <= len(held(clean)) <= len(requests)
    assert wrong == []


@pytest.mark.triton
def test_a_refused_request_leaves_its_region_in_use(clean: Served) -> None:
    with HapClient(clean.client.url, shared_memory=True) as client:
        wanted = client.score(request_of(9)).score
        before = held(clean)
        with pytest.raises(BadRequest, match="version 9"):
            client.score(request_of(9), version=9)
        np.testing.assert_array_equal(client.score(request_of(9)).score, wanted)
        assert held(clean) == before


@pytest.mark.triton
def test_an_unanswered_request_keeps_its_region_from_the_next(clean: Served) -> None:
    """The server may write an answer that nobody waits for any more: not into another request's memory."""
    state = runtime.require_server(clean.ws)
    stub = next(
        process
        for process in psutil.Process(state.server_pid).children(recursive=True)
        if f"{clean.ws.triton}/hard_select/1/" in " ".join(process.cmdline())
    )
    with HapClient(clean.client.url, shared_memory=True) as client:
        wanted = client.score(request_of(40), model="hap").score
        (used,) = held(clean)
        client.deadline_s = 0.25
        stub.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded):
                client.score(request_of(40), model="hap")
        finally:
            stub.send_signal(signal.SIGCONT)
        client.deadline_s = 10
        assert client.score(request_of(40), model="hap").score.tobytes() == wanted.tobytes()
        assert used in held(clean) and len(held(clean)) == 2
    assert clean.client.score(request_of(40), model="hap").score.tobytes() == wanted.tobytes()


@pytest.mark.triton
def test_a_region_that_the_server_forgot_is_made_anew(clean: Served) -> None:
    """As after a restart of the server."""
    with HapClient(clean.client.url, shared_memory=True) as client:
        wanted = client.score(request_of(9)).score
        forget(clean)
        assert held(clean) == set()
        np.testing.assert_array_equal(client.score(request_of(9)).score, wanted)


_CHILD = """
import asyncio, sys, time
from hap.serving.client import AsyncHapClient, HapClient
from tests.serving.handmade import request_of

async def wait_for(client):
    await client.score(request_of(30))
    await client._triton.close()

if sys.argv[2] == "async":
    client = AsyncHapClient(sys.argv[1], shared_memory=True)
    asyncio.run(wait_for(client))
else:
    client = HapClient(sys.argv[1], shared_memory=True)
    client.score(request_of(30))
print("scored", flush=True)
if sys.argv[3] == "stay":
    time.sleep(300)
"""


def child(served: Served, kind: str, then: str) -> subprocess.Popen[bytes]:
    """A process that scores by shared memory and never closes its client."""
    words = [sys.executable, "-W", "error", "-c", _CHILD, served.client.url, kind, then]
    started = subprocess.Popen(words, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    CHILDREN.append(started.pid)
    return started


@pytest.mark.triton
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_client_that_is_not_closed_releases_its_regions_at_exit(clean: Served, kind: str) -> None:
    done = child(clean, kind, "end")
    out, words = done.communicate(timeout=60)
    assert (out, words, done.returncode) == (b"scored\n", b"", 0)


@pytest.mark.triton
def test_the_regions_of_a_killed_client_are_released_by_the_next(clean: Served) -> None:
    killed = child(clean, "sync", "stay")
    assert killed.stdout is not None and killed.stdout.readline() == b"scored\n"
    left = held(clean)
    assert len(left) == 1 and files() == []
    with HapClient(clean.client.url, shared_memory=True) as client:
        client.score(request_of(3))
        assert left < held(clean)  # its owner lives
    killed.kill()
    killed.communicate()
    with HapClient(clean.client.url, shared_memory=True) as client:
        client.score(request_of(3))
        assert not left & held(clean)


def test_regions_of_living_and_unknown_processes_are_no_orphans() -> None:
    own = regions.Regions()
    region = own.create(10)
    try:
        space, pid, started, token, number = region.name.removeprefix("hap_client_").split("_")
        gone = f"hap_client_{space}_{pid}_{int(started) - 999}_{token}_{number}"
        elsewhere = f"hap_client_{int(space) + 1}_{pid}_1_{token}_{number}"
        assert regions.orphans([region.name, gone, elsewhere, "somebody_elses", "hap_client_x"]) == [gone]
        assert Path(f"/dev/shm/{region.name}").stat().st_blocks * 512 >= regions.SMALLEST_BYTES  # taken, not only promised
    finally:
        region.close()
    assert files() == []


def test_no_room_for_shared_memory_is_one_line() -> None:
    name = f"hap_client_large_{os.getpid()}"
    with pytest.raises(ServingError, match="shm-size"):
        regions.Region(name, 2**50)
    assert not Path(f"/dev/shm/{name}").exists()
