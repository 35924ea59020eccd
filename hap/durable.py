"""Writes that are whole or absent: temporary name in the same folder, fsync, rename."""

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


def fsync_path(path: Path) -> None:
    """Flush one file, or one folder's entries, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader sees the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def _drop_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = left.name.removesuffix(".tmp").rpartition(".")[2]
        if owner.isdigit() and not is_running(int(owner)):
            left.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process has this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for JSON: indented, keys sorted, one newline at the end."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    write_bytes(path, orjson.dumps(value, option=options))


def restore_directory(path: Path) -> None:
    """Put back the folder that a kill between the two renames of `new_directory` left aside."""
    outgoing = path.with_name(f".{path.name}.old")
    if outgoing.exists() and not path.exists():
        os.replace(outgoing, path)


@contextlib.contextmanager
def scratch_directory(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder below `parent` that is gone after the block; what killed processes left of theirs is removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{glob.escape(name)}-*-*"):
        owner = left.name.removeprefix(f"{name}-").partition("-")[0]
        if owner.isdigit() and not is_running(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{name}-{os.getpid()}-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place in whole when the block ends well.

    A folder that stood at `path` is moved aside first and removed last; after a kill in
    between, the next call removes what was left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    building, outgoing = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    restore_directory(path)
    for leftover in (building, outgoing):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    try:
        yield building
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    for entry in sorted(building.rglob("*")):
        fsync_path(entry)
    fsync_path(building)
    if path.exists():
        os.replace(path, outgoing)
    os.replace(building, path)
    fsync_path(path.parent)
    shutil.rmtree(outgoing, ignore_errors=True)
