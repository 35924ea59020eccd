"""A Prefect server of our own, on loopback, that lives as long as the command that needs it.

Prefect's temporary server outlives a killed command and schedules nothing; this one dies with its
parent, whatever ends that.
"""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from hap.errors import HapError
from hap.ports import free_ports
from hap.serving.server import die_with_parent
from hap.workspace import Workspace

START_S = 180  # the first start migrates a new database
VARIABLE = "PREFECT_API_URL"


@contextlib.contextmanager
def prefect_api(ws: Workspace, services: bool = False, meanwhile: Callable[[], object] = lambda: None) -> Iterator[str]:
    """Make flows of the block known to a server: the caller's where PREFECT_API_URL is set, else one of our own. Yields the URL.

    Args:
        services: whether it schedules, too.
        meanwhile: what to do while it comes up, which takes seconds.

    Raises:
        HapError: the server did not come up; its log is named.
    """
    if url := os.environ.get(VARIABLE):
        meanwhile()
        yield url
        return
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = ws.state / "prefect.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as words:
        server = subprocess.Popen(
            [*command, *([] if services else ["--no-services", "--no-ui"])],
            stdout=words,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
    try:
        meanwhile()
        _wait(server, url, log)
        os.environ[VARIABLE] = url  # for the processes that run scheduled flows
        with temporary_settings({PREFECT_API_URL: url}):
            try:
                yield url
            finally:
                for worker in (EventsWorker, APILogWorker):  # what waits to be told, before its listener goes
                    worker.drain_all(timeout=5)
    finally:
        os.environ.pop(VARIABLE, None)
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{url}/health", timeout=2) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise HapError(f"the Prefect server did not come up; its log is {log}")
