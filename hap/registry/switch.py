"""Moving a running Triton from one version to another, and back: files, loads and golden requests; no ledger.

Members (light, hard_select, expressive, expressive_all) are loaded in the new version beside the old; the ensembles `hap`
and `hap_all` are pinned to one version, and loading them anew is the switch. Ensembles of other names rehearse the new version
before any caller meets it: its answers to the golden requests are Triton's side of parity.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hap.errors import DataError, ServingError
from hap.registry.versions import label
from hap.serving import agreement, repository, staging, trial
from hap.serving.agreement import ONNXRUNTIME, PYTORCH, TRITON, Agreement, Answers
from hap.serving.bundle import GRAPHS, Bundle, Golden
from hap.serving.parity import asked
from hap.serving.request import RequestTensors
from hap.serving.staging import REHEARSAL
from hap.serving.wire import StubDied

ENSEMBLES = tuple(repository.ENSEMBLES)


class Answer(agreement.Answer, Protocol):
    """What a server says of one request: score F32[N], routed BOOL[N], and the version that answered."""

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
    """What was seen of the new version.

    `requests` golden requests answered after the switch, `max_abs_diff` their largest score difference, `switch_ms` the ensembles'
    loading time; `parity` by pair of systems, as `hap.serving.parity.summary` has it, of the rehearsal before.
    """

    requests: int
    max_abs_diff: float
    switch_ms: float
    parity: Mapping[str, Mapping[str, Any]]

    def evidence(self) -> dict[str, Any]:
        """What the ledger keeps of it."""
        replayed = {"requests": self.requests, "max_abs_diff": self.max_abs_diff, "switch_ms": self.switch_ms}
        return {"replay": replayed, "parity": {pair: dict(found) for pair, found in self.parity.items()}}

    def __str__(self) -> str:
        found = "; ".join(f"{pair} {one['max_abs_diff']:.1e}" for pair, one in self.parity.items())
        asked_for = max(one["requests"] for one in self.parity.values())
        return f"parity on {asked_for} golden requests, largest score difference: {found}"


def switch(
    server: Server,
    repo: Path,
    bundle: Bundle,
    version: int,
    old: int | None,
    tolerance: float,
    tried: Sequence[agreement.Answer] | None = None,
) -> Switched:
    """Move the server and the pins from `old` to the rendered `version`; members of both stay loaded.

    Args:
        tried: what ONNX Runtime answered to the golden requests (`hap.serving.trial`); None leaves it out of the parity.

    Raises:
        DataError: the version's files are damaged or its answers are wrong. `restore` is then the caller's next step.
        ServingError: the server refused a load or a request. As above.
    """
    golden = bundle.golden()
    repository.pin(repo, old, standing(repo, old, version))
    repository.check_members(repo)
    for member in GRAPHS:
        server.load(member)
    here: Answers = {ONNXRUNTIME: tried} if tried is not None else {}
    answers = {**here, PYTORCH: agreement.golden_answers(golden), TRITON: rehearse(server, repo, golden, version)}
    found = agreement.beside(golden, answers, tolerance)
    require_parity(found, version)
    repository.pin(repo, version, standing(repo, old, version))
    repository.check(repo, version)
    started = time.perf_counter()
    for ensemble in ENSEMBLES:
        server.load(ensemble)
    switch_ms = (time.perf_counter() - started) * 1000
    requests, largest = replay(server, bundle, version, tolerance)
    return Switched(requests=requests, max_abs_diff=largest, switch_ms=round(switch_ms, 3), parity=found.pairs)


def restore(server: Server | None, repo: Path, version: int | None, beside: Iterable[int | None]) -> None:
    """Bring pins and server back to `version` with the rendered ones of `beside` loaded, whatever stopped a switch half-way.

    Args:
        server: None changes the files only, for the next start.
        version: None leaves the server without a champion.

    Raises:
        ServingError: the server does not follow; the pins are right already.
    """
    end_stage(server, repo, REHEARSAL)
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
    """Those of the versions that are rendered, and those that are staged beside them, ascending: whoever asks these is not disturbed."""
    wanted = {version for version in versions if version is not None} | set(staging.staged(repo).values())
    return sorted(wanted & set(repository.rendered(repo)))


def answers_as(server: Server | None, version: int | None) -> bool:
    """Whether a server runs whose ensembles are ready in exactly this version."""
    if server is None or version is None or not server.live():
        return False
    return all(server.versions(ensemble) == [version] for ensemble in ENSEMBLES)


def try_apart(bundle: Bundle, version: int, tolerance: float) -> list[trial.Tried]:
    """What the version's graphs answer to its golden requests here, in a process of their own: before a server meets them.

    Raises:
        DataError: a graph fails, or differs from PyTorch; graph and request are named.
    """
    golden = bundle.golden()
    tried = trial.tried(bundle.path, golden)
    require_parity(agreement.beside(golden, {PYTORCH: agreement.golden_answers(golden), ONNXRUNTIME: tried}, tolerance), version)
    return tried


def require_parity(found: Agreement, version: int) -> None:
    """Let a version pass only where the systems agree on every request.

    Raises:
        DataError: they do not; the message names the pair, the difference and the request.
    """
    if found.fault:
        raise DataError(f"{label(version)} fails parity: {found.fault}; `hapctl parity --model {label(version)}` shows every request")


def replay(server: Server, bundle: Bundle, version: int, tolerance: float) -> tuple[int, float]:
    """Send the golden requests to the ensembles that callers ask; how many were sent, and the largest score difference.

    Raises:
        DataError: another version answered, a route differs beyond ties, or a score differs by more than `tolerance` or is NaN.
        ServingError: the server refused a request.
    """
    golden = bundle.golden()
    answers = ask(server, golden, {ensemble: ensemble for ensemble in ENSEMBLES}, version)
    found = agreement.beside(golden, {PYTORCH: agreement.golden_answers(golden), TRITON: answers}, tolerance)
    require_parity(found, version)
    return len(answers), max(one["max_abs_diff"] for one in found.pairs.values())


def rehearse(server: Server, repo: Path, golden: Sequence[Golden], version: int) -> list[Answer]:
    """What a version whose members are loaded answers, under names that no caller asks for; they are gone afterwards.

    A member's process may have died unnoticed while nobody asked that version; then it is loaded anew, once.

    Raises:
        DataError: another version answered, or an answer has another number of candidates; callers never met the version.
        ServingError: the server refused a load or a request. As above.
    """
    staged = staging.stage(repo, REHEARSAL, version)
    for name in staged.values():
        server.load(name)
    try:
        answers = ask(server, golden, staged, version)
    except StubDied:
        repository.touch(repo, version)
        for model in (*GRAPHS, *staged.values()):
            server.load(model)
        answers = ask(server, golden, staged, version)
    end_stage(server, repo, REHEARSAL)
    return answers


def ask(server: Server, golden: Sequence[Golden], names: Mapping[str, str], version: int) -> list[Answer]:
    """The server's answers to `asked(golden)`, each ensemble asked for by its name in `names`.

    Raises:
        DataError: another version answered.
        ServingError: the server refused a request.
    """
    answers = []
    for ensemble, entry in asked(golden):
        answer = server.score(entry.tensors, k=entry.k, model=names[ensemble])
        if answer.served_by != version:
            told = f"golden request {entry.name!r} on {names[ensemble]}"
            raise DataError(f"{told} was answered by {label(answer.served_by)} instead of {label(version)}")
        answers.append(answer)
    return answers


def end_stage(server: Server | None, repo: Path, purpose: str) -> None:
    """Unload the ensembles of a purpose (`hap.serving.staging`) and take them out of the repository, as far as they are there.

    Raises:
        ServingError: the server does not let go of one.
    """
    for name in staging.names(purpose).values():
        if server is not None and server.versions(name):
            server.unload(name)
    staging.unstage(repo, purpose)
