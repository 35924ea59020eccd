"""Scoring and version switching over gRPC, with the server's own words in typed errors."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from hap.errors import ServingError
from hap.params import Features, Route
from hap.serving.merge import routed_count
from hap.serving.request import RequestTensors

_TRITON_TYPES = {"int64": "INT64", "float32": "FP32"}


class Unavailable(ServingError):
    """No server answers there, or it could not take the request now."""


class NoChampion(ServingError):
    """The server is up and has no version to answer with."""


class DeadlineExceeded(ServingError):
    """No answer within the deadline."""


class BadRequest(ServingError):
    """The server refused the request; it would refuse it again."""


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


class HapClient:
    """A connection to one Triton server. Not shared between processes.

    Args:
        grpc_url: host:port.
        deadline_s: for every call; loading a model has `load_deadline_s`.
    """

    def __init__(self, grpc_url: str, deadline_s: float = 5.0, load_deadline_s: float = 60.0) -> None:
        from tritonclient.grpc import InferenceServerClient

        self.url, self.deadline_s, self.load_deadline_s = grpc_url, deadline_s, load_deadline_s
        self._client = InferenceServerClient(grpc_url)
        self._schema: ServedSchema | None = None

    def __enter__(self) -> "HapClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def live(self) -> bool:
        """Whether a server answers."""
        try:
            return bool(self._client.is_server_live(client_timeout=self.deadline_s))
        except InferenceServerException:
            return False

    def ready(self, model: str = "hap", version: int | None = None) -> bool:
        """Whether the server says that the model is loaded; a dead stub behind it is not noticed, `score` would."""
        try:
            return bool(self._client.is_model_ready(model, "" if version is None else str(version), client_timeout=self.deadline_s))
        except InferenceServerException:
            return False

    def load(self, model: str) -> None:
        """Load a model, or load it anew from its files; what serves keeps serving until the new one is ready.

        Raises:
            ServingError: the server could not; its message is repeated.
        """
        self._call(model, lambda: self._client.load_model(model, client_timeout=self.load_deadline_s))

    def unload(self, model: str) -> None:
        """Unload a model and, asynchronously, its versions.

        Raises:
            ServingError: the server could not; its message is repeated.
        """
        self._call(model, lambda: self._client.unload_model(model, client_timeout=self.load_deadline_s))

    def versions(self, model: str = "hap") -> list[int]:
        """The versions of a model that are loaded and ready, ascending.

        Raises:
            ServingError: no server answers.
        """
        index = self._call(model, lambda: self._client.get_model_repository_index(client_timeout=self.deadline_s))
        return sorted(int(entry.version) for entry in index.models if entry.name == model and entry.state == "READY" and entry.version)

    def schema(self) -> ServedSchema:
        """What the served version says about itself, asked anew.

        Raises:
            NoChampion: there is none.
            ServingError: no server answers, or `hap` there was not rendered by hapctl.
        """
        config = self._call("hap", lambda: self._client.get_model_config("hap", client_timeout=self.deadline_s)).config
        if "schema" not in config.parameters:
            raise ServingError(f"the model hap at {self.url} carries no schema; it was not rendered by hapctl")
        stored = orjson.loads(config.parameters["schema"].string_value)
        found = ServedSchema(
            stored["version"], stored["digest"], Features.model_validate(stored["features"]), Route.model_validate(stored["route"])
        )
        self._schema = found
        return found

    def score(self, tensors: RequestTensors, k: int | None = None, model: str | None = None, version: int | None = None) -> Scored:
        """Score one request.

        Where every candidate would be routed anyway (N <= K), the one-step `hap_all` answers. A named `model` is used as it is.

        Raises:
            DataError: the tensors do not fit the served schema, or a feature is NaN; it is named.
            NoChampion, Unavailable, DeadlineExceeded, BadRequest: the server's own message is repeated.
        """
        if model is not None:
            return self._infer(model, tensors, k, version)
        schema = self._schema or self.schema()
        for _ in range(3):
            tensors.check(schema.features)
            every = routed_count(schema.route, tensors.candidates, k) == tensors.candidates
            scored = self._infer("hap_all" if every else "hap", tensors, k, version)
            if scored.served_by == schema.version or version is not None:
                return scored
            schema = self.schema()  # promoted in between: the columns or the route may be others
        raise Unavailable(f"{self.url} changed its version three times within one request; try again")

    def _infer(self, model: str, tensors: RequestTensors, k: int | None, version: int | None) -> Scored:
        from tritonclient.grpc import InferInput, InferRequestedOutput

        arrays: dict[str, NDArray[Any]] = dict(tensors.arrays())
        if k is not None:
            arrays["k"] = np.array([k], np.int64)
        inputs = []
        for name, array in arrays.items():
            entry = InferInput(name, list(array.shape), _TRITON_TYPES[array.dtype.name])
            entry.set_data_from_numpy(array)
            inputs.append(entry)
        outputs = [InferRequestedOutput("score"), InferRequestedOutput("routed")]
        answer = self._call(
            model,
            lambda: self._client.infer(
                model,
                inputs,
                model_version="" if version is None else str(version),
                outputs=outputs,
                client_timeout=self.deadline_s,
                timeout=None,
            ),
        )
        score, routed = answer.as_numpy("score"), answer.as_numpy("routed")
        if score is None or routed is None or len(score) != tensors.candidates:
            found = "none" if score is None else len(score)
            raise ServingError(f"{model} at {self.url} answered {found} scores for {tensors.candidates} candidates")
        return Scored(score, routed, int(answer.get_response().model_version))

    def _call(self, model: str, call: Any) -> Any:
        begun = time.monotonic()
        try:
            return call()
        except InferenceServerException as error:
            message = " ".join(str(error.message()).split())
            status = str(error.status() or "").removeprefix("StatusCode.")
            if model in ("hap", "hap_all") and "unknown model" in message and "' version " not in message:
                raise NoChampion("no champion; promote one with `hapctl promote --model vN`") from None
            if status == "DEADLINE_EXCEEDED":
                raise DeadlineExceeded(f"{model} at {self.url} gave no answer within {time.monotonic() - begun:.1f} s") from None
            if status in ("INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"):
                raise BadRequest(f"{model} at {self.url} refused: {message}") from None
            if status == "UNAVAILABLE":
                raise Unavailable(f"{self.url} is unavailable: {message}; is `hapctl serve` running?") from None
            raise ServingError(f"{model} at {self.url}: {message}") from None
