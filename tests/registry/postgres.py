"""A PostgreSQL server of the test's own: in a temporary folder, on loopback and a free port, by a user that is not root."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hap.ports import free_ports

USER = "postgres"  # Debian's package makes it; the server refuses to run as root


def missing() -> str | None:
    """What stands in the way of a server here, with the command that mends it."""
    if folder() is None:
        return "no PostgreSQL server here: make test-tools"
    if importlib.util.find_spec("psycopg") is None:
        return "no psycopg here: pip install 'hap[postgres]'"
    return None


def folder() -> Path | None:
    """Where initdb and pg_ctl lie: on the path, or where Debian puts them, the newest version first."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run a server for the block and yield its SQLAlchemy URL."""
    binaries = folder()
    assert binaries, missing()
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="hap-postgres-") as home:
        data, user = Path(home) / "data", []
        if os.geteuid() == 0:
            shutil.chown(home, USER)
            user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]

        def run(*words: str) -> None:
            environment = {**os.environ, "LC_ALL": "C.UTF-8"}
            # No pipe: the server would keep it open, and the call would wait for the server's end.
            with open(Path(home) / "words.log", "ab") as log:
                done = subprocess.run([*user, *words], cwd=home, env=environment, stdout=log, stderr=log, timeout=120)
            assert done.returncode == 0, (Path(home) / "words.log").read_text()

        run(f"{binaries}/initdb", "--pgdata", str(data), "--username", "hap", "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={home} -c max_connections=20"
        run(f"{binaries}/pg_ctl", "--pgdata", str(data), "--wait", "--log", f"{home}/server.log", "--options", options, "start")
        try:
            yield f"postgresql://hap@127.0.0.1:{port}/postgres"
        finally:
            run(f"{binaries}/pg_ctl", "--pgdata", str(data), "--wait", "--mode", "immediate", "stop")
