"""hapctl watch as a person runs it: a line with its address, pages, and an end by Ctrl-C or SIGTERM."""

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import orjson
import pytest

from hap import durable
from hap.workspace import MARKER, Workspace
from tests.cli.conftest import Run


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """As much of a workspace as watching needs."""
    ws = Workspace(tmp_path / "ws")
    durable.write_text(ws.root / MARKER, "")
    durable.write_text(ws.pages / "v2.html", "<!doctype html><title>v2</title>")
    return ws


@pytest.mark.parametrize(("how", "words"), [(signal.SIGINT, []), (signal.SIGTERM, ["--json"])])
def test_it_says_where_it_serves_and_ends_quietly_when_it_is_told_to(ws: Workspace, how: signal.Signals, words: list[str]) -> None:
    command = [sys.executable, "-m", "hap.cli", "watch", "--port", "0", "--root", str(ws.root), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if not words else "".join(iter(process.stdout.readline, "}\n")) + "}"  # type: ignore[union-attr]
            url = orjson.loads(line)["url"] if words else line.split()[0]
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{url}v2.html", timeout=30) as answer:
                assert answer.read() == b"<!doctype html><title>v2</title>"
            process.send_signal(how)
            assert process.wait(30) == 0 and process.stderr.read() == ""  # type: ignore[union-attr]
        finally:
            process.kill()


def test_a_port_that_is_taken_is_one_line(ws: Workspace, hapctl: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = hapctl("watch", "--port", port, "--root", ws.root)
    assert (code, out) == (1, "") and err.startswith(f"error: port {port} of 127.0.0.1 cannot be taken") and err.count("\n") == 1


def test_a_dry_run_serves_nothing(ws: Workspace, hapctl: Run) -> None:
    assert hapctl("watch", "--dry-run", "--root", ws.root)[:2] == (0, f"would serve {ws.pages} on http://127.0.0.1:18080/\n")
    assert hapctl("watch", "--port", 70000, "--root", ws.root)[0] == 2
