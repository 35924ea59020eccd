"""Scoring and version switching over gRPC, with the server's own words in typed errors: HapClient, and AsyncHapClient for asyncio.

What both do is written once, in `_Client`, as coroutines that wait in two places only: `_send` and `_sleep`. The synchronous
client's two never give way to a loop, so its coroutines run to their end at the first step (`_finished`).
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import tenacity
from tritonclient.utils import InferenceServerException

from hap.errors import DataError, ServingError
from hap.params import Serving
from hap.serving import wire
from hap.serving.merge import routed_count
from hap.serving.request import RequestTensors, check_k, check_request_id
from hap.serving.shared_calls import SharedCalls
from hap.serving.wire import BadRequest, Deadline, DeadlineExceeded, NoChampion, Scored, ServedSchema, Unavailable

if TYPE_CHECKING:
    from hap.serving.served_log import ServedLog

__all__ = [
    "AsyncHapClient", "BadRequest", "DeadlineExceeded", "HapClient", "NoChampion", "Scored", "ServedSchema", "Unavailable", "log_options",
]  # fmt: skip

T = TypeVar("T")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 1.0


class _Client:
    """A connection to one Triton server. Not shared between processes.

    Args:
        grpc_url: host:port.
        deadline_s: for one call of a method, its retries and look-ups included; loading a model has `load_deadline_s`.
        retries: how often a call is repeated that was answered UNAVAILABLE; no other error is retried.
        shared_memory: pass tensors by shared memory, to a server on the same host.
        log_to: a folder that `log_share` of the scored requests is written to (`hap.serving.served_log`).
        log_file_mb, log_queue_mb: MiB of one file, and of requests that may wait to be written.
        log_file_s: a file is closed after so long.
    """

    def __init__(
        self,
        grpc_url: str,
        deadline_s: float = 5.0,
        load_deadline_s: float = 60.0,
        *,
        retries: int = 2,
        shared_memory: bool = False,
        log_to: Path | str | None = None,
        log_share: float = 0.01,
        log_file_mb: float = 64.0,
        log_queue_mb: float = 64.0,
        log_file_s: float = 600.0,
    ) -> None:
        self.url, self.deadline_s, self.load_deadline_s, self.retries = grpc_url, deadline_s, load_deadline_s, retries
        self.log: ServedLog | None = None
        if log_to is not None:
            from hap.serving import served_log  # with pyarrow, which callers without a log need not wait for

            self.log = served_log.ServedLog(log_to, log_share, int(log_file_mb * 2**20), int(log_queue_mb * 2**20), log_file_s)
        self._schema: ServedSchema | None = None
        self._shared = SharedCalls(grpc_url) if shared_memory else None

    async def _send(self, method: str, **arguments: Any) -> Any:
        """Call a method of tritonclient's client."""
        raise NotImplementedError

    async def _sleep(self, seconds: float) -> None:
        raise NotImplementedError

    async def _call(self, deadline: Deadline, model: str, method: str, retries: int | None = None, **arguments: Any) -> Any:
        """One call, repeated where it was answered UNAVAILABLE and the deadline leaves time for it; errors by cause."""

        async def once() -> Any:
            if (left := deadline.left()) <= 0:
                raise wire.too_late(model, self.url, deadline)
            try:
                return await self._send(method, **arguments, client_timeout=left)
            except InferenceServerException as error:
                raise wire.translated(error, model, self.url, deadline) from None

        try:
            return await once()
        except Unavailable as error:
            unavailable: list[Unavailable] = [error]

        async def again() -> Any:
            if unavailable:  # the attempt above: setting retries up for every call would cost those that need none
                raise unavailable.pop()
            deadline.repeats += 1
            return await once()

        return await tenacity.AsyncRetrying(
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=tenacity.stop_after_attempt(1 + (self.retries if retries is None else retries))
            | tenacity.stop_before_delay(max(deadline.left(), 0.0)),
            # The jitter keeps the clients of a server that comes back from asking all at once.
            wait=tenacity.wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S) + tenacity.wait_random(0, _FIRST_WAIT_S),
            reraise=True,
        )(again)

    async def _is(self, method: str, **arguments: Any) -> bool:
        try:
            return bool(await self._send(method, **arguments, client_timeout=self.deadline_s))
        except InferenceServerException:
            return False

    async def _read_schema(self, deadline: Deadline) -> ServedSchema:
        self._schema = wire.read_schema(await self._call(deadline, "hap", "get_model_config", model_name="hap"), self.url)
        return self._schema

    async def _score(
        self, tensors: RequestTensors, k: int | None, model: str | None, version: int | None, request_id: int | None
    ) -> Scored:
        deadline, k, request_id = Deadline(self.deadline_s), check_k(k), check_request_id(request_id)
        if model is not None:
            return await self._infer(deadline, model, tensors, k, version, request_id)
        logged = self.log is not None and request_id is not None and self.log.wants(request_id)
        sent = tensors.copy() if logged else tensors  # what is logged is what the server got, whatever the caller does to it later
        schema = self._schema or await self._read_schema(deadline)
        for _ in range(4):
            try:
                sent.check(schema.features)
                every = routed_count(schema.route, sent.candidates, k) == sent.candidates
                scored = await self._infer(deadline, "hap_all" if every else "hap", sent, k, version, request_id)
            except (DataError, BadRequest):
                known = schema
                with contextlib.suppress(ServingError):
                    schema = await self._read_schema(deadline)
                if schema.version == known.version:
                    raise
                continue  # the request does not fit the version that was known, but may fit the one that serves
            if scored.served_by == schema.version or version is not None:
                if logged and scored.served_by == schema.version:
                    assert self.log is not None and request_id is not None
                    self.log.take(request_id, schema, sent, k, scored)
                return scored
            schema = await self._read_schema(deadline)  # promoted in between: the columns or the route may be others
        raise Unavailable(f"{self.url} changed its version again and again within one request; try again")

    async def _infer(
        self, deadline: Deadline, model: str, tensors: RequestTensors, k: int | None, version: int | None, request_id: int | None
    ) -> Scored:
        arrays = wire.arrays_of(tensors, k)
        named: dict[str, Any] = {
            "model_name": model,
            "model_version": "" if version is None else str(version),
            "request_id": "" if request_id is None else str(request_id),
        }
        where = f"{model} at {self.url}"
        if self._shared is not None:
            return await self._shared.infer(self._call, deadline, model, arrays, tensors.candidates, where, named)
        inputs, outputs = wire.inputs_of(arrays, {}), wire.outputs_of({})
        answer = await self._call(deadline, model, "infer", inputs=inputs, outputs=outputs, **named)
        return wire.read_answer(answer, where, tensors.candidates, {})


class HapClient(_Client):
    __doc__ = _Client.__doc__

    @functools.cached_property
    def _triton(self) -> Any:
        from tritonclient.grpc import InferenceServerClient

        return InferenceServerClient(self.url, channel_args=wire.CHANNEL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write out what is logged, release shared memory, close the connection."""
        if self.log is not None:
            self.log.close()
        if self._shared is not None:
            _finished(self._shared.close(self._call, Deadline(self.deadline_s)))
        self._triton.close()

    def live(self) -> bool:
        """Whether a server answers."""
        return _finished(self._is("is_server_live"))

    def ready(self, model: str = "hap", version: int | None = None) -> bool:
        """Whether the server says that the model is loaded; a dead stub behind it is not noticed, `score` would."""
        return _finished(self._is("is_model_ready", model_name=model, model_version="" if version is None else str(version)))

    def load(self, model: str) -> None:
        """Load a model, or load it anew from its files; what serves keeps serving until the new one is ready.

        Raises:
            ServingError: the server could not; its message is repeated.
        """
        _finished(self._call(Deadline(self.load_deadline_s), model, "load_model", retries=0, model_name=model))

    def unload(self, model: str) -> None:
        """Unload a model and, asynchronously, its versions.

        Raises:
            ServingError: the server could not; its message is repeated.
        """
        _finished(self._call(Deadline(self.load_deadline_s), model, "unload_model", retries=0, model_name=model))

    def versions(self, model: str = "hap") -> list[int]:
        """The versions of a model that are loaded and ready, ascending.

        Raises:
            ServingError: no server answers.
        """
        return wire.ready_versions(_finished(self._call(Deadline(self.deadline_s), model, "get_model_repository_index")), model)

    def models(self) -> set[str]:
        """The names in the server's model repository as it finds them now, loaded or not.

        Raises:
            ServingError: no server answers.
        """
        index = _finished(self._call(Deadline(self.deadline_s), "the repository", "get_model_repository_index"))
        return {entry.name for entry in index.models}

    def is_gone(self, model: str) -> bool:
        """Whether no version of a model is loaded, nor on its way in or out: what was asked of it is answered.

        Raises:
            ServingError: no server answers.
        """
        index = _finished(self._call(Deadline(self.deadline_s), model, "get_model_repository_index"))
        return all(entry.state in ("", "UNAVAILABLE") for entry in index.models if entry.name == model)

    def spent(self, model: str) -> dict[int, tuple[int, int]]:
        """By version of a model: how many requests the server has answered since it was loaded, and the nanoseconds that they took there.

        Raises:
            ServingError: no server answers, or it does not know the model.
        """
        answer = _finished(self._call(Deadline(self.deadline_s), model, "get_inference_statistics", model_name=model))
        return {int(one.version): (one.inference_stats.success.count, one.inference_stats.success.ns) for one in answer.model_stats}

    def schema(self) -> ServedSchema:
        """What the served version says about itself, asked anew.

        Raises:
            NoChampion: there is none.
            ServingError: no server answers, or `hap` there was not rendered by hapctl.
        """
        return _finished(self._read_schema(Deadline(self.deadline_s)))

    def score(
        self,
        tensors: RequestTensors,
        k: int | None = None,
        model: str | None = None,
        version: int | None = None,
        request_id: int | None = None,
    ) -> Scored:
        """Score one request.

        Where every candidate would be routed anyway (N <= K), the one-step `hap_all` answers. A named `model` is used as it is,
        without a look at the schema, and is not logged; nor is a request without a `request_id`.

        Raises:
            DataError: k or request_id is no whole number, the tensors do not fit the served schema, or a feature is NaN; it is named.
            NoChampion, Unavailable, DeadlineExceeded, BadRequest: the server's own message is repeated.
        """
        return _finished(self._score(tensors, k, model, version, request_id))

    async def _send(self, method: str, **arguments: Any) -> Any:
        return getattr(self._triton, method)(**arguments)

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncHapClient(_Client):
    """As HapClient, for asyncio: the same arguments, answers and errors. Scores only; promotion is the synchronous client's.

    Belongs to the loop that its first call runs in. A call that is cancelled is cancelled at the server, too.
    """

    @functools.cached_property
    def _triton(self) -> Any:  # made by the first call, because a channel belongs to the loop that runs then
        from tritonclient.grpc.aio import InferenceServerClient

        return InferenceServerClient(self.url, channel_args=wire.CHANNEL)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Write out what is logged, release shared memory, close the connection."""
        if self.log is not None:
            await asyncio.to_thread(self.log.close)
        if self._shared is not None:
            await self._shared.close(self._call, Deadline(self.deadline_s))
        await self._triton.close()

    async def live(self) -> bool:
        """As `HapClient.live`."""
        return await self._is("is_server_live")

    async def ready(self, model: str = "hap", version: int | None = None) -> bool:
        """As `HapClient.ready`."""
        return await self._is("is_model_ready", model_name=model, model_version="" if version is None else str(version))

    async def schema(self) -> ServedSchema:
        """As `HapClient.schema`."""
        return await self._read_schema(Deadline(self.deadline_s))

    async def score(
        self,
        tensors: RequestTensors,
        k: int | None = None,
        model: str | None = None,
        version: int | None = None,
        request_id: int | None = None,
    ) -> Scored:
        """As `HapClient.score`."""
        return await self._score(tensors, k, model, version, request_id)

    async def _send(self, method: str, **arguments: Any) -> Any:
        return await getattr(self._triton, method)(**arguments)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def log_options(settings: Serving, root: Path) -> dict[str, Any]:
    """What `serving.log_*` of params.yaml means to a client; nothing where `log_to` is not set."""
    if settings.log_to is None:
        return {}
    names = ("log_share", "log_file_mb", "log_queue_mb", "log_file_s")
    return {"log_to": root / settings.log_to, **{name: getattr(settings, name) for name in names}}


def _finished(steps: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        steps.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    steps.close()
    raise RuntimeError("a call of the synchronous client gave way to a loop that is not there")
