"""Typing hapctl's words: in this process, or as a user does, in one of its own."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from hap.cli.main import main

Run = Callable[..., tuple[int, str, str]]


def typing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that types words in this process and returns exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hapctl", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def hapctl(*words: object) -> subprocess.CompletedProcess[str]:
    """Type words in a process of their own."""
    return subprocess.run([sys.executable, "-m", "hap.cli", *map(str, words)], capture_output=True, text=True)
