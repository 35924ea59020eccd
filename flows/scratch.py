"""What lies in .hap and nobody can take up again: dead checkpoints, kept calibrations and scores, warm weights, copies of bundles."""

import datetime as dt
from collections.abc import Collection, Iterator
from pathlib import Path

import orjson

from hap.errors import HapError
from hap.params import MODELS
from hap.project import package_digest
from hap.registry.local import folder_bytes
from hap.registry.versions import label
from hap.samples import partitions
from hap.training.run import checkpoint_folder, checkpoint_key, read_run, warm_weights
from hap.workspace import Workspace

MADE_OF = "made_of.json"  # what a folder of kept calibration scores was made of, as far as it can go out of date


def calibration_folder(ws: Workspace) -> Path:
    """Where `gate calibrate` keeps the scores of trained pairs, a folder for each."""
    return ws.state / "calibrate"


def gate_copy(ws: Workspace, version: int) -> Path:
    """Where the gate keeps the bundle of a version that it judged or judged against."""
    return ws.state / "bundles" / label(version)


def scored_folder(ws: Workspace, version: int) -> Path:
    """Where the watchers keep how a version scored a day's requests."""
    return ws.state / "scored" / label(version)


def dead_scratch(ws: Workspace, keep_copies: Collection[int], keep_days: int, now: dt.datetime) -> Iterator[tuple[str, Path, int]]:
    """(what it is, where, bytes) of everything dead; call with the workspace's lock held, so that nothing is being written.

    Args:
        keep_copies: the versions whose gate copies stay; every other one is fetched again when it is wanted.
    """
    for folder in sorted((ws.state / "bundles").glob("v[0-9]*")):
        if folder.name not in map(label, keep_copies):
            yield f"the gate's copy of {folder.name}", folder, folder_bytes(folder)
    for path in sorted((ws.state / "scored").glob("v[0-9]*/*.npz")):
        if path.parent.name not in map(label, keep_copies) or _age(path, now) > dt.timedelta(days=keep_days):
            yield "scores that were kept for watching", path, path.stat().st_size
    for name in MODELS:
        yield from (("a checkpoint of other data or parameters", path, path.stat().st_size) for path in _dead_checkpoints(ws, name))
    for path in _dead_weights(ws):
        yield "weights that a former retrain began from", path, path.stat().st_size
    manifests = {partitions.load(ws, day).id for day in partitions.collected_days(ws)}
    for folder in sorted(calibration_folder(ws).glob("*")):
        if _is_dead(folder, manifests) or _age(folder, now) > dt.timedelta(days=keep_days):
            yield "scores of an old calibration", folder, folder_bytes(folder)


def _age(path: Path, now: dt.datetime) -> dt.timedelta:
    return now - dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)


def _dead_checkpoints(ws: Workspace, name: str) -> list[Path]:
    folder = checkpoint_folder(ws, name)
    if not any(folder.glob("*.pt")):
        return []
    from hap.training.checkpoint import checkpoint_keys  # loads torch

    live = checkpoint_key(ws, name) if ws.run_file.exists() and ws.window_file.exists() else None
    return [path for path, key in checkpoint_keys(folder).items() if key is None or key != live]


def _dead_weights(ws: Workspace) -> list[Path]:
    try:
        live = {warm_weights(ws, digest) for digest in (read_run(ws).warm_start or {}).values()}
    except HapError:  # no retrain yet
        live = set()
    return sorted(set((ws.state / "warm").glob("*.pt")) - live)


def _is_dead(folder: Path, manifests: Collection[str]) -> bool:
    """Whether kept scores are of other code, or of samples that stand no more."""
    try:
        made_of = orjson.loads((folder / MADE_OF).read_bytes())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return True
    return bool(made_of["hap_digest"] != package_digest() or not set(made_of["manifests"]) <= set(manifests))
