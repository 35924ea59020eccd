"""What both clients do when a server refuses, against one that refuses on demand."""

import asyncio
import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from hap.errors import DataError, ServingError
from hap.params import Feature
from hap.serving.client import AsyncHapClient, BadRequest, DeadlineExceeded, HapClient, NoChampion, Scored, Unavailable
from hap.serving.request import RequestTensors
from hap.serving.wire import StubDied
from tests.serving.fake_triton import FakeTriton, fake_triton
from tests.serving.handmade import FEATURES, request_of

Score = Callable[..., Scored]
BUSY = (grpc.StatusCode.UNAVAILABLE, "queue is full")


@pytest.fixture
def server() -> Iterator[tuple[FakeTriton, str]]:
    with fake_triton() as found:
        yield found


def by_sync(url: str, tensors: RequestTensors, client: dict[str, Any], **asked: Any) -> Scored:
    with HapClient(url, **client) as connected:
        return connected.score(tensors, **asked)


def by_async(url: str, tensors: RequestTensors, client: dict[str, Any], **asked: Any) -> Scored:
    async def call() -> Scored:
        async with AsyncHapClient(url, **client) as connected:
            return await connected.score(tensors, **asked)

    return asyncio.run(call())


both = pytest.mark.parametrize("score", [by_sync, by_async])


@both
def test_unavailable_is_tried_again_up_to_the_number_of_retries(server: tuple[FakeTriton, str], score: Score) -> None:
    fake, url = server
    fake.failures = [BUSY, BUSY]
    assert score(url, request_of(4), {"retries": 2}).score.tolist() == [0, 1, 2, 3]
    assert fake.inferences == 3
    fake.failures = [BUSY, BUSY]
    with pytest.raises(Unavailable, match="queue is full"):
        score(url, request_of(4), {"retries": 1})
    assert fake.inferences == 5


@both
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.INTERNAL, ServingError),
        (grpc.StatusCode.INVALID_ARGUMENT, BadRequest),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ServingError),
        (grpc.StatusCode.CANCELLED, ServingError),
    ],
)
def test_nothing_else_is_tried_again(
    server: tuple[FakeTriton, str], score: Score, status: grpc.StatusCode, error: type[ServingError]
) -> None:
    fake, url = server
    fake.failures = [(status, "its own words")]
    with pytest.raises(error, match="its own words") as refused:
        score(url, request_of(4), {"retries": 5})
    assert fake.inferences == 1
    assert not isinstance(refused.value, Unavailable)


@both
def test_retries_end_with_the_deadline_of_the_call(server: tuple[FakeTriton, str], score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fifth attempt comes after 0.1 + 0.2 + 0.4 + 0.8 s, and a sixth would come a second later."""
    monkeypatch.setattr(random, "random", lambda: 0.0)  # no jitter, so that none of them begins just before the deadline
    fake, url = server
    fake.failures = [BUSY] * 1000
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        score(url, request_of(4), {"retries": 1000, "deadline_s": 2.4})
    assert 1.4 < time.monotonic() - begun < 4
    assert fake.inferences == 5


@both
def test_a_silent_server_is_a_missed_deadline(server: tuple[FakeTriton, str], score: Score) -> None:
    fake, url = server
    fake.hold.clear()
    with pytest.raises(DeadlineExceeded, match=r"within 2\.0 s \(Deadline Exceeded\)"):
        score(url, request_of(4), {"deadline_s": 2.0})  # time enough to connect and to reach the server
    assert fake.inferences == 1


@both
def test_a_server_on_another_host_refuses_shared_memory_in_one_line(server: tuple[FakeTriton, str], score: Score) -> None:
    with pytest.raises(BadRequest, match=r"another host.*shared_memory off") as refused:
        score(server[1], request_of(4), {"shared_memory": True})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("failure", [BUSY, (grpc.StatusCode.INTERNAL, "broken")])
def test_a_region_serves_no_other_request_while_an_attempt_may_still_write_there(
    server: tuple[FakeTriton, str], failure: tuple[grpc.StatusCode, str]
) -> None:
    fake, url = server
    fake.opens_memory = True
    with HapClient(url, shared_memory=True) as client:
        for _ in range(2):
            client.score(request_of(4))
        assert len(set(fake.regions)) == 1
        fake.failures = [failure]
        with nullcontext() if failure is BUSY else pytest.raises(ServingError, match="broken"):
            client.score(request_of(4))  # in vain, or in a second attempt
        client.score(request_of(4))
        assert fake.regions[-1] != fake.regions[0]


@pytest.mark.parametrize("times", [2, 5], ids=["in time", "beyond the retries of closing"])
def test_a_region_that_the_server_uses_for_a_moment_more_is_let_go_of_after_all(server: tuple[FakeTriton, str], times: int) -> None:
    fake, url = server
    fake.opens_memory = True
    client = HapClient(url, shared_memory=True)
    client.score(request_of(4))
    fake.in_use = times
    client.close()
    del client
    gc.collect()  # as at the end of the process
    assert fake.let_go == fake.regions and fake.in_use == 0


@both
def test_the_request_id_reaches_the_server(server: tuple[FakeTriton, str], score: Score) -> None:
    fake, url = server
    score(url, request_of(4), {}, request_id=77)
    assert fake.request_ids == ["77"]
    for bad in (0, -1, 2**63, 1.5, "7", True):
        with pytest.raises(DataError, match="request_id"):
            score(url, request_of(4), {}, request_id=bad)


def test_a_client_that_knows_an_old_schema_learns_the_new_one(server: tuple[FakeTriton, str]) -> None:
    """A new version may have other columns: the old ones are refused by what serves, the new ones are no longer."""
    fake, url = server
    request = request_of(4)
    wider = replace(request, user_dense=np.zeros(2, np.float32))
    with HapClient(url) as client:
        client.score(request)
        with pytest.raises(DataError, match=r"user_dense has the shape \[2\]"):
            client.score(wider)
        fake.version, fake.features = 2, FEATURES.model_copy(update={"user": (*FEATURES.user, Feature(name="mood", type="dense"))})
        assert client.score(wider).served_by == 2
        with pytest.raises(DataError, match=r"wants \[2\]"):
            client.score(request)


def test_a_cancelled_call_ends_at_once(server: tuple[FakeTriton, str]) -> None:
    fake, url = server
    fake.hold.clear()

    async def call() -> None:
        async with AsyncHapClient(url) as client:
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.score(request_of(4)), 0.2)
            assert time.monotonic() - begun < 2
            fake.hold.set()
            assert len((await client.score(request_of(4))).score) == 4

    asyncio.run(call())


def test_a_cancelled_call_keeps_its_region_from_the_next(server: tuple[FakeTriton, str]) -> None:
    fake, url = server
    fake.opens_memory = True

    async def call() -> None:
        async with AsyncHapClient(url, shared_memory=True) as client:
            await client.score(request_of(4))
            fake.hold.clear()
            held = asyncio.create_task(client.score(request_of(4)))
            async with asyncio.timeout(10):
                while len(fake.regions) < 2:  # the server has it, and may answer it still
                    await asyncio.sleep(0.01)
            held.cancel()
            with pytest.raises(asyncio.CancelledError):
                await held
            fake.hold.set()
            await client.score(request_of(4))

    asyncio.run(call())
    assert fake.regions[0] == fake.regions[1] != fake.regions[2]


def test_many_calls_share_one_loop(server: tuple[FakeTriton, str]) -> None:
    async def call() -> list[Scored]:
        async with AsyncHapClient(server[1]) as client:
            return await asyncio.gather(*[client.score(request_of(n)) for n in range(1, 40)])

    assert [len(scored.score) for scored in asyncio.run(call())] == list(range(1, 40))


def test_a_server_without_a_champion_says_so_in_its_own_words_too(server: tuple[FakeTriton, str]) -> None:
    fake, url = server
    fake.failures = [(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'hap' is not found")]
    with pytest.raises(NoChampion, match=r"no champion at .*unknown model: 'hap' is not found.*hapctl promote --model vN"):
        by_sync(url, request_of(20), {"retries": 5})
    assert fake.inferences == 1


@pytest.mark.parametrize(("k", "model"), [(None, "hap"), (19, "hap"), (20, "hap_all"), (500, "hap_all")])
@both
def test_the_one_step_ensemble_is_asked_where_all_would_be_routed(
    server: tuple[FakeTriton, str], score: Score, k: int | None, model: str
) -> None:
    fake, url = server
    score(url, request_of(20), {}, k=k)
    assert fake.models == [model]


def test_a_dead_stub_has_an_error_of_its_own(server: tuple[FakeTriton, str]) -> None:
    fake, url = server
    fake.failures = [(grpc.StatusCode.INTERNAL, "in ensemble 'hap', Stub process 'light_0_0' is not healthy.")]
    with pytest.raises(StubDied, match="light_0_0"):
        by_sync(url, request_of(4), {})
    assert fake.inferences == 1
