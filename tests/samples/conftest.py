"""A workspace that a test of collection may change."""

import shutil
from pathlib import Path

import pytest

from hap.workspace import Workspace


@pytest.fixture
def ws(logged_workspace: Workspace, tmp_path: Path) -> Workspace:
    """A workspace of its own over the shared logs."""
    copy = Workspace(tmp_path / "ws")
    shutil.copytree(logged_workspace.root, copy.root, ignore=shutil.ignore_patterns(".git", ".dvc", "samples", "late", "quarantine"))
    return copy


@pytest.fixture
def logs(ws: Workspace) -> Path:
    """Where its logs lie."""
    return Path(ws.logs(ws.params()))
