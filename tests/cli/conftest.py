"""Typing a word and reading what it answers."""

import sys
from collections.abc import Callable

import pytest

from hap.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hapctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type the words; returns exit code, stdout, stderr."""

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
