"""Bringing a version's samples, models and bundle back, byte for byte, in a folder of their own."""

import configparser
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hap import durable
from hap.errors import DataError, HapError, NotFound, UsageError
from hap.params import Params
from hap.registry import versions
from hap.registry.versions import label
from hap.serving.bundle import read_bundle
from hap.workspace import Workspace, git

RESTORED = ("samples", "models", "bundle")


@dataclass(frozen=True)
class Restored:
    """A clone of the workspace as it stood when the version was made."""

    version: int
    into: Path
    workspace_rev: str
    bundle_digest: str


def restore(ws: Workspace, params: Params, version: int, into: Path) -> Restored:
    """Clone the workspace at the version's revision into an empty or new folder and pull its data there; whole or not at all.

    Raises:
        UsageError: the folder holds something, or lies in the workspace.
        NotFound: no such version, it carries no revision, or it was freed.
        DataError: the bundle that came back is not the one that was registered.
        HapError: git or dvc failed; the message repeats its last line.
    """
    into = into.resolve()
    if into.is_relative_to(ws.root) or ws.root.is_relative_to(into):
        raise UsageError(f"{into} and the workspace {ws.root} contain one another; give a folder elsewhere: restore never works in place")
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UsageError(f"{into} is not an empty folder; give another one to --into")
    wanted = versions.get_whole(ws, params, version)
    if not wanted.workspace_rev:
        raise NotFound(f"{label(version)} carries no workspace revision, so there is nothing to restore it from")
    with durable.new_directory(into) as building:
        clone = Workspace(building)
        git(ws, "clone", "--quiet", "--no-checkout", "--no-hardlinks", str(ws.root), str(building))
        git(clone, "checkout", "--quiet", "--detach", wanted.workspace_rev)
        _remotes_as_here(ws, clone)
        _pull(clone, version)
        if missing := [name for name in RESTORED if not (building / name).is_dir()]:
            raise NotFound(f"revision {wanted.workspace_rev[:12]} of {ws.root} tracks no {' and no '.join(missing)}")
        if (found := read_bundle(clone.bundle).digest) != wanted.bundle_digest:
            raise DataError(
                f"the restored bundle has digest {found[:12]}, {label(version)} was registered with {wanted.bundle_digest[:12]}"
            )
    return Restored(version, into, wanted.workspace_rev, wanted.bundle_digest)


def _remotes_as_here(ws: Workspace, clone: Workspace) -> None:
    """Give the clone today's DVC remotes, their local folders as absolute paths, and have every pulled file verified."""
    settings = configparser.RawConfigParser()
    settings.optionxform = str  # type: ignore[assignment,method-assign]
    settings.read([ws.root / ".dvc" / "config", ws.root / ".dvc" / "config.local"])  # the latter holds credentials, never committed
    for name in [section for section in settings.sections() if section.strip("'").startswith("remote ")]:
        url = settings.get(name, "url", fallback="")
        if "://" not in url:
            settings.set(name, "url", os.path.normpath(ws.root / ".dvc" / url))
        settings.set(name, "verify", "true")
    config = clone.root / ".dvc" / "config.local"
    with open(config, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as handle:
        settings.write(handle)


def _pull(clone: Workspace, version: int) -> None:
    """dvc pull in a process of its own, so that dvc stays out of this one."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "true", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dvc", "pull"], cwd=clone.root, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no message")
        raise HapError(
            f"dvc cannot bring back the data of {label(version)}: {said.removeprefix('ERROR:').strip()}; "
            "was it pushed (storage.push), and is the remote still there?"
        )
