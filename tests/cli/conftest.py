"""Typing a word and reading what it answers."""

import pytest

from tests.words import Run, typing


@pytest.fixture
def hapctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type the words; returns exit code, stdout, stderr."""
    return typing(monkeypatch, capsys)
