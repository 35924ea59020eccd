"""Moving a running Triton from one version to another, and back: files, loads and golden requests; no ledger.

Members (light, hard_select, expressive, expressive_all) are loaded in the new version beside the old; the ensembles `hap`
and `hap_all` are pinned to one version, and loading them anew is the switch. An ensemble of its own name rehearses the new
version before any caller meets it.
"""

import contextlib
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from hap import durable
from hap.errors import DataError, ServingError
from hap.registry.versions import label
from hap.serving import repository
from hap.serving.bundle import GRAPHS, Bundle, Golden
from hap.serving.request import RequestTensors

ENSEMBLES = tuple(repository.ENSEMBLES)
REHEARSAL = "hap_rehearsal"


class Answer(Protocol):
    """What a server says of one request: score F32[N], routed BOOL[N], and the version that answered."""

    @property
    def score(self) -> NDArray[np.float32]: ...
    @property
    def routed(self) -> NDArray[np.bool_]: ...
    @property
    def served_by(self) -> int: ...


class Server(Protocol):
    """The running Triton, as far as a move needs it; `hap.serving.client.HapClient` is one."""

    def live(self) -> bool:
        """Whether it answers at all."""

    def load(self, model: str) -> None:
        """Load a model anew from its files. Raises ServingError."""

    def unload(self, model: str) -> None:
        """Unload a model. Raises ServingError."""

    def versions(self, model: str) -> list[int]:
        """The versions of a model that are ready. Raises ServingError."""

    def score(self, tensors: RequestTensors, k: int | None = None, model: str | None = None) -> Answer:
        """Score one request on the named model. Raises ServingError."""


@dataclass(frozen=True, kw_only=True)
class Switched:
    """What was seen of the new version: golden requests answered, their largest score difference, and the ensembles' loading time."""

    requests: int
    max_abs_diff: float
    switch_ms: float


def switch(server: Server, repo: Path, bundle: Bundle, version: int, old: int | None, tolerance: float) -> Switched:
    """Move the server and the pins from `old` to the rendered `version`; members of both stay loaded.

    Raises:
        DataError: the version's files are damaged or its answers are wrong. `restore` is then the caller's next step.
        ServingError: the server refused a load or a request. As above.
    """
    repository.pin(repo, old, standing(repo, old, version))
    for member in GRAPHS:
        server.load(member)
    if old is not None:
        _rehearse(server, repo, bundle, version, tolerance)
    repository.pin(repo, version, standing(repo, old, version))
    repository.check(repo, version)
    started = time.perf_counter()
    for ensemble in ENSEMBLES:
        server.load(ensemble)
    switch_ms = (time.perf_counter() - started) * 1000
    requests, largest = replay(server, bundle, version, tolerance)
    return Switched(requests=requests, max_abs_diff=largest, switch_ms=round(switch_ms, 3))


def restore(server: Server | None, repo: Path, version: int | None, beside: Iterable[int | None]) -> None:
    """Bring pins and server back to `version` with the rendered ones of `beside` loaded, whatever stopped a switch half-way.

    Args:
        server: None changes the files only, for the next start.
        version: None leaves the server without a champion.

    Raises:
        ServingError: the server does not follow; the pins are right already.
    """
    if server is not None and server.versions(REHEARSAL):
        server.unload(REHEARSAL)
    shutil.rmtree(repo / REHEARSAL, ignore_errors=True)
    if version is None:
        repository.pin(repo, None, [])
        for model in (*reversed(ENSEMBLES), *GRAPHS):
            if server is not None and server.versions(model):
                server.unload(model)
        return
    if server is not None:
        repository.pin(repo, version, standing(repo, version, *repository.loaded(repo)))
        with contextlib.suppress(ServingError):  # ensembles first: a member that one of them still uses takes it down when it goes
            for ensemble in ENSEMBLES:
                server.load(ensemble)
    repository.pin(repo, version, standing(repo, version, *beside))
    if server is None:
        return
    for model in (*GRAPHS, *ENSEMBLES):
        server.load(model)
    if not answers_as(server, version):
        raise ServingError(
            f"the server does not answer as {label(version)} after its pins were restored; restart it with `hapctl stop` and `hapctl serve`"
        )


def standing(repo: Path, *versions: int | None) -> list[int]:
    """Those of the versions that are rendered, ascending."""
    return sorted({version for version in versions if version is not None} & set(repository.rendered(repo)))


def answers_as(server: Server | None, version: int | None) -> bool:
    """Whether a server runs whose ensembles are ready in exactly this version."""
    if server is None or version is None or not server.live():
        return False
    return all(server.versions(ensemble) == [version] for ensemble in ENSEMBLES)


def replay(server: Server, bundle: Bundle, version: int, tolerance: float) -> tuple[int, float]:
    """Send the golden requests to the ensembles; how many were sent, and the largest score difference.

    Raises:
        DataError: another version answered, a route differs, or a score differs by more than `tolerance` or is NaN.
        ServingError: the server refused a request.
    """
    requests, largest = 0, 0.0
    for golden in bundle.golden():
        for model in ENSEMBLES if golden.routed.all() else ENSEMBLES[:1]:  # callers ask hap_all where everything is routed
            largest = max(largest, _compare(server, golden, model, version, tolerance))
            requests += 1
    return requests, largest


def _rehearse(server: Server, repo: Path, bundle: Bundle, version: int, tolerance: float) -> None:
    """Serve the new version under another name, replay its golden requests there, and take it away again.

    Raises:
        DataError, ServingError: as `replay`; callers never met the version.
    """
    from google.protobuf import text_format

    config = repository.parse_config(repo / "hap" / repository.CONFIG)
    config.name = REHEARSAL
    config.version_policy.specific.versions[:] = [version]
    for step in config.ensemble_scheduling.step:
        step.model_version = version
    schema = {"version": version, **repository.schema_of(repo, version)}
    config.parameters["schema"].string_value = orjson.dumps(schema, option=orjson.OPT_SORT_KEYS).decode()
    (repo / REHEARSAL / str(version)).mkdir(parents=True, exist_ok=True)
    durable.write_text(repo / REHEARSAL / repository.CONFIG, text_format.MessageToString(config))
    server.load(REHEARSAL)
    for golden in bundle.golden():
        _compare(server, golden, REHEARSAL, version, tolerance)
    server.unload(REHEARSAL)
    shutil.rmtree(repo / REHEARSAL)


def _compare(server: Server, golden: Golden, model: str, version: int, tolerance: float) -> float:
    """The largest score difference of one golden request."""
    answer = server.score(golden.tensors, k=golden.k, model=model)
    where = f"golden request {golden.name!r} on {model}"
    if answer.served_by != version:
        raise DataError(f"{where} was answered by {label(answer.served_by)} instead of {label(version)}")
    if answer.score.shape != golden.score.shape or answer.routed.shape != golden.routed.shape:
        raise DataError(f"{where} has {len(golden.score)} candidates, the answer {len(answer.score)}")
    difference = float(np.abs(answer.score - golden.score).max(initial=0.0))
    if not difference <= tolerance:  # written so that NaN is no pass
        raise DataError(f"{where} differs by {difference:.3g} from its expected scores; at most {tolerance:g} is allowed")
    if not np.array_equal(answer.routed, golden.routed):
        raise DataError(f"{where} routes {int((answer.routed != golden.routed).sum())} candidates differently")
    return difference
