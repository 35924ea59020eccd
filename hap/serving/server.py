"""The tritonserver process of the embedded runtime: its command, its ports, its end, and what it leaves behind."""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil

from hap.errors import Busy
from hap.params import Serving
from hap.serving.install import backend_folder, libpython_folder, server_folder, site_packages

# What forks here does so to start another program. With its support of forks gRPC's core, which clients in this process use, touches
# its sockets in the child before that, and now and then aborts it: "epoll_wait error: Bad file descriptor".
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

EXIT_TIMEOUT_S = 10  # how long a server that was asked to end lets requests finish
_SHM = Path("/dev/shm")
# A page in a browser on this host can send a POST to loopback, and a load may bring the model along, its Python included. Nobody gets
# the key: hap loads by gRPC, which no browser speaks unasked.
_CLOSED_BY_HTTP = "model-repository,shared-memory,trace,logging"
_PLAIN = re.compile(r"[A-Za-z0-9/._+@~-]+")
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def until_signalled() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, instead of what they do otherwise; must be entered in the main thread."""
    ended = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_ports(settings: Serving) -> None:
    """Refuse ports that somebody holds.

    Raises:
        Busy: one is taken; the message names it, its holder where known, and the key to change.
    """
    for key, port in _ports(settings).items():
        if not _is_free(settings.host, port):
            raise Busy(
                f"port {port} on {settings.host} is taken{_holder(port)}; "
                f"set serving.{key} in params.yaml to a free one, or end what holds it"
            )


def wait_for_ports(settings: Serving, seconds: float) -> None:
    """Wait until the ports are free, or the time is over: a killed server holds them until its last thread is gone."""
    wait_for(lambda: all(_is_free(settings.host, port) for port in _ports(settings).values()), seconds)


def spawn(prefix: Path, repo: Path, settings: Serving, log: Path, shm_prefix: str, load: list[str]) -> subprocess.Popen[bytes]:
    """Start tritonserver in a process group of its own; its words go to `log`."""
    server = server_folder(prefix)
    command = [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={plain_path(repo, shm_prefix)}",
        f"--backend-directory={backend_folder(prefix)}",
        f"--cache-directory={server / 'caches'}",
        "--model-control-mode=explicit",
        *[f"--load-model={name}" for name in load],
        "--strict-readiness=false",
        "--exit-on-error=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--allow-gpu-metrics=false",
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *[f"--{name}-address={settings.host}" for name in ("http", "grpc", "metrics")],
        f"--http-port={settings.http_port}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-port={settings.metrics_port}",
        f"--http-restricted-api={_CLOSED_BY_HTTP}:hap={secrets.token_hex(16)}",
    ]
    with open(log, "ab") as words:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=_environment(prefix),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def end(process: subprocess.Popen[bytes], shm_prefix: str, *, drain: bool) -> None:
    """End the server and everything in its process group, with or without letting requests finish, and free its shared memory."""
    if drain and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_TIMEOUT_S + 2)
    kill_group(process.pid)
    process.wait()
    free_leftovers(shm_prefix)


def kill_group(group: int) -> None:
    """Kill a process group that we started, and wait until nothing of it runs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    wait_for(lambda: not _group_runs(group), 5.0)


def free_leftovers(shm_prefix: str) -> None:
    """Remove the regions that a killed python backend left behind, and the link of `plain_path`; the prefix is one server's own."""
    if _SHM.is_dir():
        for region in _SHM.glob(f"{shm_prefix}*"):
            region.unlink(missing_ok=True)
    for folder in Path(tempfile.gettempdir()).glob(f"{shm_prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False once the time is over."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def plain_path(path: Path, shm_prefix: str) -> Path:
    """The path, or a link to it without blanks and foreign letters: Triton's stubs split their arguments at blanks and read ASCII.

    The link lies in a private folder that `free_leftovers` removes.
    """
    if _PLAIN.fullmatch(str(path)):
        return path
    link = Path(tempfile.mkdtemp(prefix=shm_prefix)) / "repository"
    link.symlink_to(path, target_is_directory=True)
    return link


def _ports(settings: Serving) -> dict[str, int]:
    return {key: getattr(settings, key) for key in ("http_port", "grpc_port", "metrics_port")}


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Connections of an ended server that linger in TIME_WAIT are no obstacle; a listener is, even with SO_REUSEPORT as Triton's.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _group_runs(group: int) -> bool:
    """Whether a process of the group is alive; a zombie is not."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _environment(prefix: Path) -> dict[str, str]:
    """PATH with the runtime's python first (the stubs look there), its libraries, and one thread each."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    libraries = [str(folder) for folder in (libpython_folder(), site_packages(prefix) / "nvidia_pytriton.libs") if folder]
    libraries += [kept["LD_LIBRARY_PATH"]] if kept.get("LD_LIBRARY_PATH") else []
    path = f"{prefix / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(libraries), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def die_with_parent() -> None:
    """Runs in the child before exec: a killed supervisor takes its server along instead of leaving it unwatched."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
