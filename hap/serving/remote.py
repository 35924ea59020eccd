"""A Triton that somebody else runs over the workspace's triton/ folder: where it is, what it says, and a watch that only tells.

`serving.url` or `--url` names it. hap neither starts, stops nor restarts it; promotion, rollback and scoring are the same.
"""

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from hap.errors import DataError, ServingError, UsageError
from hap.params import Params, Serving
from hap.serving import repository, runtime, server
from hap.serving.canary import Canary
from hap.serving.client import HapClient, NoChampion
from hap.workspace import Workspace


@dataclass(frozen=True)
class Seen:
    """What a server answered when it was asked: whether it lives, the version it serves, and what is wrong with it."""

    live: bool
    version: int | None
    problem: str | None


def with_url(params: Params, url: str | None) -> Params:
    """The parameters with `--url` in place of `serving.url`; None leaves them as they are.

    Raises:
        UsageError: it is not HOST:PORT.
    """
    if url is None:
        return params
    try:
        serving = Serving.model_validate(params.serving.model_dump() | {"url": url})
    except ValidationError:
        raise UsageError(f"--url {url!r} is not HOST:PORT of Triton's gRPC, such as 10.0.0.5:8001") from None
    return params.model_copy(update={"serving": serving})


def address(ws: Workspace, settings: Serving) -> str | None:
    """HOST:PORT of the gRPC of the workspace's server: the one that `serving.url` names, else the one of `hapctl serve`, if it runs."""
    if settings.url is not None:
        return settings.url
    state = runtime.server_state(ws)
    return state.grpc_url if state else None


def require_address(ws: Workspace, settings: Serving) -> str:
    """As `address`.

    Raises:
        ServingError: no server runs here, or it is still starting.
    """
    return settings.url or runtime.require_server(ws).grpc_url


@contextlib.contextmanager
def server_of(ws: Workspace, settings: Serving) -> Iterator[HapClient | None]:
    """A client that may change what the workspace's server serves, or None where there is no server.

    Raises:
        ServingError: the server of `serving.url` has another model repository than the workspace's.
    """
    url = address(ws, settings)
    if url is None:
        yield None
        return
    with HapClient(url, settings.deadline_s, settings.load_deadline_s) as client:
        if settings.url is not None and client.live():
            _check_folder(ws, client)
        yield client


def _check_folder(ws: Workspace, client: HapClient) -> None:
    """A folder that was made just now must show in the server's index: undoing a promotion in another's Triton would unload its models."""
    probe = ws.triton / f"hap_probe_{secrets.token_hex(8)}"
    probe.mkdir(parents=True)
    try:
        if probe.name not in client.models():
            raise ServingError(
                f"the Triton at {client.url} does not read {ws.triton}: give it that folder as its model repository; nothing was changed"
            )
    finally:
        probe.rmdir()


def look(url: str, deadline_s: float) -> Seen:
    """Ask a server what it serves."""
    with HapClient(url, deadline_s, retries=0) as client:
        if not client.live():
            return Seen(False, None, "does not answer")
        try:
            return Seen(True, client.schema().version, None)
        except NoChampion:
            return Seen(True, None, None)
        except ServingError as error:
            return Seen(True, None, str(error))


def watch(ws: Workspace, settings: Serving, log: Callable[[str], None]) -> None:
    """Send the pinned version's canary to `serving.url` each `canary_s` and tell what changes, until SIGTERM or SIGINT.

    Must be called in the main thread.
    """
    with server.until_signalled() as ended:
        follow(ws, settings, log, ended)


def follow(ws: Workspace, settings: Serving, log: Callable[[str], None], ended: threading.Event) -> None:
    """`watch` until the event is set."""
    assert settings.url is not None
    canary, said, was_passing = Canary(ws.triton, settings.url, settings.deadline_s), "", False
    try:
        while True:
            found, may_pass = _health(ws, canary)
            if found != said and (was_passing or not may_pass):
                log(f"{settings.url}: {found}")
                said = found
            was_passing = may_pass
            if ended.wait(settings.canary_s):
                return
    finally:
        canary.close()


def _health(ws: Workspace, canary: Canary) -> tuple[str, bool]:
    """What one look finds, and whether it is as in every promotion for a moment: then the next look decides."""
    try:
        pinned = repository.pinned(ws.triton)
    except DataError as error:
        return f"BAD, {error}", False
    canary.begin(pinned)
    if (fault := canary.fault()) is not None:
        return f"BAD, {fault.said}", False
    if pinned is None:
        return "lives; no version is pinned, promote one with `hapctl promote --model vN`", False
    try:
        served = canary.client.versions("hap")
    except ServingError as error:
        return f"BAD, {error}", False
    if served != [pinned]:
        loaded = ", ".join(f"v{version}" for version in served) or "nothing"
        return f"BAD, it serves {loaded} and v{pinned} is pinned; is its model repository {ws.triton}?", True
    return f"v{pinned} answers its golden request", False
