"""What goes to Triton and what comes back, as values: inputs, answers, the schema, and errors by cause. Nothing here waits."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from hap.errors import ServingError
from hap.params import Features, Route
from hap.serving.request import RequestTensors, check_k

TYPES = {"int64": "INT64", "float32": "FP32"}
ANSWER = {"score": np.dtype(np.float32), "routed": np.dtype(np.bool_)}
_REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED")
_MAX_MESSAGE_BYTES = 2**31 - 1
# gRPC waits a second and more before it tries to connect again, and refuses every call in between: longer than a retry waits.
CHANNEL = [
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Unavailable(ServingError):
    """No server answers there, or it could not take the request now."""


class NoChampion(ServingError):
    """The server is up and has no version to answer with."""


class DeadlineExceeded(ServingError):
    """No answer within the deadline."""


class BadRequest(ServingError):
    """The server refused the request; it would refuse it again."""


class StubDied(ServingError):
    """The Python process behind a model is gone. Triton starts none anew: a restart does, or a load of the model with changed files."""


class RegionLost(ServingError):
    """The server does not know a shared memory region: it was restarted since the region was registered, or never saw it."""


@dataclass(frozen=True, eq=False)
class Scored:
    """score F32[N], routed BOOL[N], and the version that gave them."""

    score: NDArray[np.float32]
    routed: NDArray[np.bool_]
    served_by: int


@dataclass(frozen=True)
class ServedSchema:
    """What callers of the served version need: its number, its bundle's digest, the columns in tensor order, the route."""

    version: int
    digest: str
    features: Features
    route: Route


@dataclass
class Deadline:
    """The time that one call of a client has, its retries included; `repeats` counts these."""

    seconds: float
    begun: float = field(default_factory=time.monotonic)
    repeats: int = 0

    def left(self) -> float:
        """Seconds left; not above 0 once it is over."""
        return self.begun + self.seconds - time.monotonic()


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a shared memory region."""

    region: str
    offset: int
    nbytes: int


def arrays_of(tensors: RequestTensors, k: int | None) -> dict[str, NDArray[Any]]:
    """The arrays of one request by input name.

    Raises:
        DataError: k is no whole number from 0 up, or a tensor has a dtype that would lose something.
    """
    arrays = dict(tensors.arrays())
    if (k := check_k(k)) is not None:
        arrays["k"] = np.array([k], np.int64)
    return arrays


def inputs_of(arrays: Mapping[str, NDArray[Any]], places: Mapping[str, Place]) -> list[Any]:
    """InferInputs of the arrays: by place where one is given, else with their bytes."""
    from tritonclient.grpc import InferInput

    inputs = []
    for name, array in arrays.items():
        entry = InferInput(name, list(array.shape), TYPES[array.dtype.name])
        if place := places.get(name):
            entry.set_shared_memory(place.region, place.nbytes, place.offset)
        else:
            entry.set_data_from_numpy(array)
        inputs.append(entry)
    return inputs


def outputs_of(places: Mapping[str, Place]) -> list[Any]:
    """InferRequestedOutputs of score and routed, to their places where given."""
    from tritonclient.grpc import InferRequestedOutput

    outputs = []
    for name in ANSWER:
        entry = InferRequestedOutput(name)
        if place := places.get(name):
            entry.set_shared_memory(place.region, place.nbytes, place.offset)
        outputs.append(entry)
    return outputs


def read_answer(answer: Any, where: str, candidates: int, shared: Mapping[str, NDArray[Any]]) -> Scored:
    """Score and routed of an InferResult; `shared` holds what came by shared memory.

    Raises:
        ServingError: an output is absent, or its shape is not [N].
    """
    found = {name: shared[name] if name in shared else answer.as_numpy(name) for name in ANSWER}
    told = {entry.name: tuple(entry.shape) for entry in answer.get_response().outputs}
    for name in ANSWER:
        if found[name] is None or told.get(name) != (candidates,):
            raise ServingError(f"{where} answered {name} of shape {list(told.get(name, ()))} for {candidates} candidates")
    return Scored(found["score"], found["routed"], int(answer.get_response().model_version))


def read_schema(answer: Any, url: str) -> ServedSchema:
    """The schema that the config of the ensemble `hap` carries.

    Raises:
        ServingError: it carries none.
    """
    if "schema" not in answer.config.parameters:
        raise ServingError(f"the model hap at {url} carries no schema; it was not rendered by hapctl")
    stored = orjson.loads(answer.config.parameters["schema"].string_value)
    return ServedSchema(
        stored["version"], stored["digest"], Features.model_validate(stored["features"]), Route.model_validate(stored["route"])
    )


def ready_versions(index: Any, model: str) -> list[int]:
    """The versions of a model that a repository index calls ready, ascending."""
    return sorted(int(entry.version) for entry in index.models if entry.name == model and entry.state == "READY" and entry.version)


def translated(error: InferenceServerException, model: str, url: str, deadline: Deadline) -> ServingError:
    """Triton's error by its cause, with Triton's own message."""
    message = " ".join(str(error.message()).split())
    status = str(error.status() or "").removeprefix("StatusCode.")
    if "Unable to find shared memory region" in message:
        return RegionLost(f"{model} at {url}: {message}")
    if "Cannot unregister shared memory region" in message:  # an answer arrives a moment before the server lets go of its region
        return Unavailable(f"{model} at {url}: {message}")
    if "Unable to open shared memory region" in message:
        return BadRequest(
            f"{url} cannot open shared memory of this host ({message}): it runs on another host, in a container without --ipc=host, "
            "or as another user; leave shared_memory off"
        )
    if "Stub process" in message and "not healthy" in message:
        return StubDied(f"{model} at {url}: {message}")
    if model in ("hap", "hap_all") and "unknown model" in message and "' version " not in message:
        return NoChampion(f"no champion at {url} ({message}); promote one with `hapctl promote --model vN`")
    if status == "DEADLINE_EXCEEDED":
        return too_late(model, url, deadline, message)
    if status in _REFUSALS:
        return BadRequest(f"{model} at {url} refused: {message}")
    if status == "UNAVAILABLE":
        return Unavailable(f"{url} is unavailable: {message}; is `hapctl serve` running?")
    return ServingError(f"{model} at {url}: {message}")


def too_late(model: str, url: str, deadline: Deadline, message: str = "") -> DeadlineExceeded:
    """The error of a call whose time is over, with what the server or gRPC said of it."""
    return DeadlineExceeded(f"{model} at {url} gave no answer within {deadline.seconds:.1f} s{f' ({message})' if message else ''}")
