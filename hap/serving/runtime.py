"""`hapctl serve` and `hapctl stop`: one embedded Triton server per workspace, and the watch that keeps it answering.

The watch sends a canary (hap/serving/canary.py) each second and restarts the server when it fails.

Files in .hap/: server.json (who serves, where), serve.lock (one supervisor), serve.log (its lines), triton.log (the server's).
"""

import contextlib
import datetime as dt
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import psutil
from filelock import FileLock, Timeout

from hap import durable
from hap.errors import Busy, HapError, ServingError
from hap.params import Params, Serving
from hap.serving import repository, server
from hap.serving.canary import Canary, Fault
from hap.serving.install import check_platform, require_runtime
from hap.workspace import Workspace

READY_S = 60.0  # a start that takes longer has failed; 3-6 s is usual
MISSES = 2  # canaries in a row that may fail before the server is restarted; a dead server or stub is restarted at once
WORST_BACKOFF_S = 30.0
_CLOCK_SLACK_S = 1.0  # psutil's start times are rounded
_OWN_PREFIX = re.compile(r"hap_[0-9]+_")

Log = Callable[[str], None]


@dataclass(frozen=True)
class ServerState:
    """What .hap/server.json says; `pid` is the supervisor's, and it was alive when this was read."""

    pid: int
    pid_started: float
    server_pid: int
    server_started: float
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    started: str
    restarts: int
    champion: int | None
    ready: bool
    problem: str | None
    shm_prefix: str

    @property
    def grpc_url(self) -> str:
        """host:port for HapClient."""
        return f"{self.host}:{self.grpc_port}"


def server_state(ws: Workspace) -> ServerState | None:
    """The running server of the workspace, or None."""
    state = _read_state(ws)
    return state if state and _is_alive(state.pid, state.pid_started) else None


def require_server(ws: Workspace) -> ServerState:
    """The running server of the workspace.

    Raises:
        ServingError: none runs, or it is still starting.
    """
    state = server_state(ws)
    if state is None:
        raise ServingError(f"no server runs for {ws.root}; start one with `hapctl serve --detach`")
    if not state.ready:
        raise ServingError(f"the server of {ws.root} (pid {state.pid}) is starting; try again in a few seconds")
    return state


def start(
    ws: Workspace, params: Params, detach: bool, tied: bool = False, when_ready: Callable[[], None] = lambda: None
) -> ServerState | None:
    """Start the server: in this process until it is stopped, or detached; then the state of the ready server is returned.

    Args:
        tied: a detached server that ends when this process does, however it ends.
        when_ready: called once, in this process, when the server is ready.

    Raises:
        ServingError: Triton is not installed, or the server did not come up; its last words are repeated.
        Busy: a server runs for this workspace already, or a port is taken.
    """
    if not detach:
        serve(ws, params.serving, print_line, when_ready)
        return None
    _check(ws, params.serving)
    ws.state.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "hap.serving.runtime", str(ws.root), params.serving.model_dump_json()]
    with open(ws.state / "serve.log", "ab") as log:
        begun = log.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=server.die_with_parent if tied else None,
        )

    def ready() -> ServerState | None:
        state = server_state(ws)
        return state if state is not None and state.ready and state.pid == child.pid else None

    server.wait_for(lambda: child.poll() is not None or ready() is not None, READY_S)
    if (state := ready()) is None:
        _give_up(ws, child)
        words = (ws.state / "serve.log").read_bytes()[begun:].decode(errors="replace").strip().splitlines()
        raise ServingError(words[-1].split("error: ")[-1] if words else f"the server did not start; see {ws.state / 'triton.log'}")
    threading.Thread(target=child.wait, daemon=True).start()  # reaps it, should it end before this process does
    when_ready()
    return state


def stop(ws: Workspace) -> bool:
    """Stop the workspace's server and leave nothing of it running; returns whether one ran."""
    state = _read_state(ws)
    if state is None:
        return False
    ran = False
    if _is_alive(state.pid, state.pid_started):
        ran = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGTERM)
        if not server.wait_for(lambda: not _is_alive(state.pid, state.pid_started), server.EXIT_TIMEOUT_S + 10):
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGKILL)
    return _end_leftovers(ws) or ran


def _give_up(ws: Workspace, child: subprocess.Popen[bytes]) -> None:
    """End a supervisor that did not come up, and what it started. One that somebody else started meanwhile is left alone."""
    child.terminate()
    try:
        child.wait(server.EXIT_TIMEOUT_S + 10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    state = _read_state(ws)
    if state is not None and state.pid == child.pid:
        _end_leftovers(ws)


def serve(ws: Workspace, settings: Serving, log: Log, when_ready: Callable[[], None] = lambda: None) -> None:
    """Run and watch the server until SIGTERM or SIGINT; must be called in the main thread.

    Args:
        when_ready: called once, when the server is ready and before it is watched.

    Raises:
        ServingError: Triton is not installed, or the server does not come up.
        Busy: a server runs for this workspace already, or a port is taken.
    """
    ws.state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(ws.state / "serve.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _already(ws) from None
    try:
        with server.until_signalled() as ended:
            _check(ws, settings)
            _Watch(ws, settings, log, ended).run(when_ready)
    finally:
        lock.release()


class _Watch:
    """The supervisor's loop, with the server it owns."""

    def __init__(self, ws: Workspace, settings: Serving, log: Log, ended: threading.Event) -> None:
        self.ws, self.settings, self.log, self.ended = ws, settings, log, ended
        self.prefix = require_runtime()
        self.restarts = 0
        self.process: subprocess.Popen[bytes]
        self.unpublished: ServerState | None = None  # what server.json should say and could not be told
        self.shm_prefix = f"hap_{os.getpid()}_"
        self.canary = Canary(ws.triton, f"{settings.host}:{settings.grpc_port}", settings.deadline_s)

    def run(self, when_ready: Callable[[], None]) -> None:
        words = self.ws.state / "triton.log"
        if words.exists():
            os.replace(words, words.with_suffix(".log.1"))
        try:
            self._start()
            if not self.ended.is_set():
                when_ready()
            self._watch()
        finally:
            drained = hasattr(self, "process") and self.process.poll() is None and self._finish_ensembles()
            self.canary.close()
            if hasattr(self, "process"):
                server.end(self.process, self.shm_prefix, drain=drained)
            (self.ws.state / "server.json").unlink(missing_ok=True)
        self.log("server stopped")

    def _finish_ensembles(self) -> bool:
        """Take the ensembles out and let what they were asked be answered; whether that was done in time.

        A server that is told to end closes its members at once, and a request between two of its steps would be refused.
        """
        client, until = self.canary.client, time.monotonic() + server.EXIT_TIMEOUT_S
        try:
            for name in repository.ENSEMBLES:
                client.unload(name)
            return server.wait_for(lambda: all(client.is_gone(name) for name in repository.ENSEMBLES), until - time.monotonic())
        except ServingError as error:
            self.log(f"what is in flight may be refused: {error}")
            return False

    def _start(self) -> None:
        """Start the server with what is pinned, wait for it, and publish its state.

        Raises:
            ServingError: it ended, or did not come up in time.
        """
        champion, begun = repository.pinned(self.ws.triton), time.monotonic()
        self.ws.triton.mkdir(exist_ok=True)
        words = self.ws.state / "triton.log"
        load = [] if champion is None else list(repository.ENSEMBLES)
        self.process = server.spawn(self.prefix, self.ws.triton, self.settings, words, self.shm_prefix, load)
        self._publish(champion, ready=False)
        up = server.wait_for(lambda: self.ended.is_set() or self.process.poll() is not None or self.canary.client.live(), READY_S)
        if self.ended.is_set():
            return
        if not up or self.process.poll() is not None:
            raise ServingError(f"tritonserver did not come up: {_last_error(words)}; its log is {words}")
        problem = None
        if champion is not None and not self.canary.client.ready("hap"):
            problem = f"v{champion} did not load: {_last_error(words)}"
            self.log(f"{problem}; the server is up without a champion, `hapctl promote` or `hapctl rollback` mends it")
        self.canary.begin(champion if problem is None else None)
        self._publish(champion if problem is None else None, ready=True, problem=problem)
        what = "no champion yet" if champion is None else f"champion v{champion}"
        self.log(f"server ready on {self.settings.host}:{self.settings.grpc_port} (gRPC), {what}, {time.monotonic() - begun:.1f} s")

    def _watch(self) -> None:
        misses, failed_starts, told = 0, 0, ""
        while not self.ended.wait(self.settings.canary_s):
            if self.unpublished is not None:
                self._write(self.unpublished)
            code = self.process.poll()
            fault = Fault(f"the server ended with code {code}", "at once") if code is not None else self.canary.fault()
            if fault is None:
                misses, failed_starts, told = 0, 0, ""
                continue
            if code is None and fault.said != told:
                self.log(f"canary: {fault.said}")
                told = fault.said
            if fault.restart == "no":
                continue
            misses = MISSES if fault.restart == "at once" else misses + 1
            if misses < MISSES:
                continue
            self.log(f"restarting the server: {fault.said}")
            server.end(self.process, self.shm_prefix, drain=False)
            if failed_starts and self.ended.wait(min(2.0**failed_starts, WORST_BACKOFF_S)):
                return
            self.restarts, failed_starts, misses, told = self.restarts + 1, failed_starts + 1, 0, ""
            try:
                self._start()
            except (HapError, OSError) as error:
                self.log(str(error))

    def _publish(self, champion: int | None, ready: bool, problem: str | None = None) -> None:
        own, child = psutil.Process(), _process_started(self.process.pid)
        state = ServerState(
            pid=own.pid,
            pid_started=own.create_time(),
            server_pid=self.process.pid,
            server_started=child,
            host=self.settings.host,
            http_port=self.settings.http_port,
            grpc_port=self.settings.grpc_port,
            metrics_port=self.settings.metrics_port,
            started=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            restarts=self.restarts,
            champion=champion,
            ready=ready,
            problem=problem,
            shm_prefix=self.shm_prefix,
        )
        self._write(state)

    def _write(self, state: ServerState) -> None:
        """Write server.json. While the disk is full, a server that has served goes on, and each canary tries again."""
        path = self.ws.state / "server.json"
        try:
            durable.write_json(path, asdict(state))
        except OSError as error:
            if not self.restarts:
                raise ServingError(f"{path} cannot be written: {error.strerror or error}") from None
            if self.unpublished is None:
                self.log(f"{path} cannot be written, `hapctl status` does not know of the restart until it can: {error.strerror or error}")
            self.unpublished = state
        else:
            self.unpublished = None


def _check(ws: Workspace, settings: Serving) -> None:
    """Everything that can be known before a process is started."""
    check_platform()
    require_runtime()
    if server_state(ws) is not None:
        raise _already(ws)
    if _read_state(ws) is not None:  # of a killed supervisor, whose server may hold the ports
        _end_leftovers(ws)
        server.wait_for_ports(settings, 5.0)
    server.check_ports(settings)


def _already(ws: Workspace) -> Busy:
    state = _read_state(ws)
    who = f"pid {state.pid}, gRPC on {state.grpc_url}" if state else "still starting"
    return Busy(f"a server already runs for {ws.root} ({who}); end it with `hapctl stop`")


def _end_leftovers(ws: Workspace) -> bool:
    """End a server whose supervisor was killed; returns whether there was one."""
    state = _read_state(ws)
    if state is None:
        return False
    found = False
    # The pid may be somebody else's by now: its start time tells. Stubs of a dead server are in its group and have no other.
    if _is_alive(state.server_pid, state.server_started) or (not psutil.pid_exists(state.server_pid) and state.server_pid > 1):
        found = _is_alive(state.server_pid, state.server_started)
        server.kill_group(state.server_pid)
    server.free_leftovers(state.shm_prefix)
    (ws.state / "server.json").unlink(missing_ok=True)
    return found


def _read_state(ws: Workspace) -> ServerState | None:
    try:
        state = ServerState(**orjson.loads((ws.state / "server.json").read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None
    # Files are removed by this prefix: one that no server of ours has, as in a workspace that came from elsewhere, names other people's.
    return state if isinstance(state.shm_prefix, str) and _OWN_PREFIX.fullmatch(state.shm_prefix) else None


def _is_alive(pid: int, started: float) -> bool:
    """Whether the very process that started then still runs."""
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - started) < _CLOCK_SLACK_S and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _process_started(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _last_error(words: Path) -> str:
    """The last error line of Triton's log, without its prefix."""
    lines = words.read_text(errors="replace").splitlines() if words.exists() else []
    errors = [line for line in lines if line[:1] == "E" and "] " in line]
    return errors[-1].split("] ", 1)[1].strip('"') if errors else (lines[-1] if lines else "it said nothing")


def print_line(line: str) -> None:
    """A line of the talk, with its UTC time. Where it cannot be written, as on a full disk, the watch goes on without."""
    with contextlib.suppress(OSError):
        print(f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ} {line}", file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """The detached supervisor: ROOT and the serving parameters as JSON."""
    try:
        serve(Workspace(Path(words[0])), Serving.model_validate_json(words[1]), print_line)
    except HapError as error:
        print_line(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
