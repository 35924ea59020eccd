"""`hapctl gc`: free what no rollback, promotion or restore of a kept version needs; hap/registry/retention.py says what is kept.

What goes is decided anew from what lies there, so a call after a kill finishes what the killed one began: a version is marked
as freed in MLflow before its first byte goes, and what is left of a marked version is always free.
"""

import contextlib
import datetime as dt
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from flows.scratch import dead_scratch
from flows.stages import end_orphans, run_module
from hap import durable
from hap.errors import HapError
from hap.monitoring.evidently_ui import kept_runs
from hap.monitoring.report import columns_files
from hap.params import Params
from hap.registry import ledger as journal
from hap.registry import versions
from hap.registry.ledger import Row
from hap.registry.local import bundle_folder, folder_bytes, local_versions
from hap.registry.retention import Reasons, kept_whole, needed_here
from hap.registry.switch import Server
from hap.registry.turns import promotion_lock
from hap.registry.versions import Version, label
from hap.serving import repository
from hap.serving.bundle import GRAPHS
from hap.workspace import Workspace, git, workspace_lock

RECORD = "freed.jsonl"  # below registry/: a line when a gc begins to delete, one when it has


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Something to free. `copy`: it can be made or fetched again; `stored`: a version's bundle in MLflow; `data`: DVC's objects."""

    kind: Literal["copy", "stored", "data"]
    what: str
    where: str
    bytes: int
    files: int = 1
    version: int | None = None

    def __str__(self) -> str:
        count = f", {self.files} files" if self.files > 1 else ""
        return f"{self.bytes / 2**20:10.1f} MiB  {self.what} ({self.where}{count})"


@dataclass(frozen=True, kw_only=True)
class Freed:
    """What gc freed, or would. `kept` says why each version stays whole; `marked` are the versions that lose bundle and data with it."""

    done: bool
    pieces: tuple[Piece, ...]
    marked: tuple[int, ...]
    kept: Reasons
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)

    def as_json(self) -> dict[str, Any]:
        """The fields, versions as labels, with the bytes in all."""
        return {
            "done": self.done,
            "bytes": self.bytes,
            "pieces": [asdict(piece) | {"version": label(piece.version) if piece.version else None} for piece in self.pieces],
            "freed_versions": [label(version) for version in self.marked],
            "kept": {label(version): why for version, why in sorted(self.kept.items())},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [str(piece) for piece in self.pieces]
        if self.marked:
            gone = ", ".join(map(label, self.marked))
            lines.append(f"{gone}: registered as before, {'without' if self.done else 'would be without'} bundle and data from now on")
        lines += [f"kept {label(version)}: {why}" for version, why in sorted(self.kept.items())]
        total = f"{self.bytes / 2**20:,.1f} MiB"
        lines.append((f"freed {total}" if self.done else f"would free {total}") if self.pieces else "nothing to free")
        return "\n".join([*self.notes, *lines])


def free(ws: Workspace, params: Params, *, server: Server | None, actor: str, now: dt.datetime, dry_run: bool = False) -> Freed:
    """Free the rest, or say what would be.

    Copies go first: they need no mark, and where the disk is full their room lets the marks be written.

    Args:
        server: the running Triton; None where none runs.

    Raises:
        Busy: a retrain, gate or promotion runs.
        HapError: MLflow cannot be reached or is not the one that the ledger speaks of; nothing was freed.
    """
    ledger = journal.open_ledger(ws, params)
    with workspace_lock(ws, "gc", now), promotion_lock(ws, ledger, "gc", now):
        if not dry_run:
            end_orphans(ws)
        rows, known = ledger.rows(), versions.list_versions(ws, params)
        _refuse_foreign_registry(ws, rows, known)
        loaded = [version for member in GRAPHS for version in server.versions(member)] if server and server.live() else []
        here = needed_here(rows, params.keep, ws.triton, loaded)
        kept = {number: why for number, why in kept_whole(known, here, params.keep, now).items() if _is_whole(known, here, number)}
        gone = [one for one in known if one.number not in kept]
        copies = list(_copies(ws, known, here, kept, params.keep.days, now))
        stored = list(_stored(ws, params, gone))
        revisions, notes = _revisions(ws, known, kept)
        data, said = _data(ws, params, revisions, remove=False) if revisions else ([], [])
        pieces = (*copies, *stored, *data)
        marked = tuple(one.number for one in gone if not one.freed)
        left = _unfinished(ws)
        plan = Freed(done=not dry_run, pieces=pieces, marked=marked, kept=kept, notes=(*left, *notes, *said))
        if dry_run or not (pieces or marked or left):
            return plan
        for piece in copies:
            _remove_copy(ws, piece)
        words = {"actor": actor, "versions": [label(version) for version in marked], "bytes": plan.bytes}
        _record(ws, {"at": now.isoformat(), "state": "begun", **words, "pieces": [asdict(piece) for piece in pieces]})
        for version in marked:
            versions.mark_freed(ws, params, version, now)
        for one in gone:
            if any(piece.version == one.number for piece in stored):
                versions.free_bundle(ws, params, one)
        if data:
            _data(ws, params, revisions, remove=True)
        _record(ws, {"at": now.isoformat(), "state": "done", **words})
        return plan


def _is_whole(known: Sequence[Version], here: Reasons, number: int) -> bool:
    """A version that was marked as freed is not whole again by itself; one that is in use is left alone all the same."""
    return number in here or any(one.number == number and not one.freed for one in known)


def _refuse_foreign_registry(ws: Workspace, rows: Sequence[Row], known: Sequence[Version]) -> None:
    """Go on only where MLflow knows every version that served or was judged here: what it does not name would look free."""
    named = {row.to_version for row in rows if row.state in ("served", "pinned")} | {
        versions.parse_version(path.stem) for path in ws.verdicts.glob("v[0-9]*.json")
    }
    if unknown := sorted(version for version in named - {one.number for one in known} if version is not None):
        raise HapError(
            f"{', '.join(map(label, unknown))} served or was judged here and MLflow does not know it, so gc cannot tell what is needed: "
            "is mlflow.tracking_uri in params.yaml the registry of this workspace? Nothing was freed"
        )


def _copies(ws: Workspace, known: Sequence[Version], here: Reasons, kept: Reasons, keep_days: int, now: dt.datetime) -> Iterator[Piece]:
    """Rendered files and bundles that no rollback needs here (MLflow has them all), what is dead in .hap, old pages of Evidently."""
    for version in sorted({one.number for one in known} - set(here)):
        folders = [ws.triton / name / str(version) for name in (*repository.ENSEMBLES, *GRAPHS)]
        if standing := [folder for folder in folders if folder.is_dir()]:
            size = sum(map(folder_bytes, standing))
            what = f"served files of {label(version)}"
            yield Piece(kind="copy", what=what, where=str(ws.triton), bytes=size, version=version)
        if version in local_versions(ws):
            folder = bundle_folder(ws, version)
            what = f"local bundle of {label(version)}"
            yield Piece(kind="copy", what=what, where=str(folder), bytes=folder_bytes(folder), version=version)
    judging = {version for version, why in kept.items() if version in here or why in ("champion", "challenger")}
    for what, path, size in dead_scratch(ws, judging, keep_days, now):
        yield Piece(kind="copy", what=what, where=str(path), bytes=size)
    for what, files in (("report", columns_files(ws.pages)), ("run", kept_runs(ws.pages))):
        for day, path in files.items():
            if day < now.date() - dt.timedelta(days=keep_days):  # the day's own page and report are small, and stay
                yield Piece(kind="copy", what=f"Evidently's {what} of {day}", where=str(path), bytes=path.stat().st_size)


def _remove_copy(ws: Workspace, piece: Piece) -> None:
    if piece.version is not None and piece.where == str(ws.triton):
        repository.remove(ws.triton, piece.version)
    elif Path(piece.where).is_dir():
        shutil.rmtree(piece.where)
    else:
        Path(piece.where).unlink(missing_ok=True)


def _stored(ws: Workspace, params: Params, gone: Sequence[Version]) -> Iterator[Piece]:
    for one in gone:
        if files := versions.stored_bundle(ws, params, one):
            versions.require_own_bundle(ws, params, one)
            what = f"bundle of {one.label} in MLflow"
            yield Piece(
                kind="stored", what=what, where=f"run {one.run_id}", bytes=sum(files.values()), files=len(files), version=one.number
            )


def _revisions(ws: Workspace, known: Sequence[Version], kept: Reasons) -> tuple[list[str], list[str]]:
    """The revisions whose data stays: of every kept version, and HEAD; empty, with a note, where they cannot all be told."""
    if not (ws.root / ".dvc").is_dir() or not known:
        return [], []
    wanted = {one.label: one.workspace_rev for one in known if one.number in kept and one.workspace_rev}
    for name, revision in wanted.items():
        try:
            git(ws, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        except HapError:
            return [], [f"DVC's data was left as it is: {name} stays, and its revision {revision[:12]} is not in {ws.root}"]
    return sorted({*wanted.values(), git(ws, "rev-parse", "HEAD")}), []


def _data(ws: Workspace, params: Params, revisions: Sequence[str], remove: bool) -> tuple[list[Piece], list[str]]:
    """DVC's objects that none of the revisions needs, listed or removed; a note where they cannot be told."""
    asked = {"root": str(ws.root), "revisions": revisions, "remote": params.keep.free_remote, "remove": remove}
    try:
        lines = run_module(ws, "flows.unused_data", orjson.dumps(asked).decode(), name="gc")
    except HapError as error:
        if remove:
            raise
        return [], [f"DVC's data was left as it is: {error}"]
    found = orjson.loads(next(line for line in reversed(lines) if line.startswith("{")))
    pieces = [
        Piece(kind="data", what=name, where="of no kept version", bytes=sum(size for _, size in objects), files=len(objects))
        for name, objects in found["stores"].items()
        if objects
    ]
    return pieces, found["notes"]


def _record(ws: Workspace, said: dict[str, Any]) -> None:
    """Append a line; on the disk when this returns."""
    path = ws.registry / RECORD
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with open(path, "ab") as handle:
        handle.write((b"\n" if torn else b"") + orjson.dumps(said) + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    durable.fsync_path(path.parent)


def _unfinished(ws: Workspace) -> list[str]:
    """A line on the gc that was killed before this one."""
    last: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, IndexError, orjson.JSONDecodeError):
        last = orjson.loads((ws.registry / RECORD).read_bytes().splitlines()[-1])
    if last.get("state") != "begun":
        return []
    return [f"the gc of {last['at'][:16]} by {last['actor']} was interrupted; this finishes it"]
