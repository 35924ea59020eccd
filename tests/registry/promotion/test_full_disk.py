"""A full disk: a clear refusal before anything is touched, and where it fills up half-way, what served before serves on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.free import free
from flows.scratch import gate_copy
from hap.errors import HapError
from hap.registry import local, promotion, versions
from hap.registry.ledger import Ledger, open_ledger, open_move
from hap.serving import repository
from hap.workspace import Workspace
from tests.registry.conftest import NOW
from tests.registry.file_triton import FileTriton
from tests.registry.promotion.conftest import story
from tests.serving.handmade import make_bundle

NEEDS = r"needs [\d.,]+ MiB on the disk of .*, and [\d.,]+ MiB is free; nothing was changed: .*hapctl gc"


def test_a_promotion_that_does_not_fit_is_refused_before_its_first_row(ws, ledger, promote, monkeypatch) -> None:
    promote(1)
    rows = len(ledger.rows())
    monkeypatch.setattr(local, "SPARE_BYTES", shutil.disk_usage(ws.root).free + 2**30)
    for words in ({}, {"dry_run": True}, {"offline": True}, {"force": True, "reason": "now"}):
        with pytest.raises(HapError, match=f"promote of v2 {NEEDS}") as caught:
            promote(2, **words)
        assert "\n" not in str(caught.value)
    assert len(ledger.rows()) == rows and repository.rendered(ws.triton) == [1]
    assert local.local_versions(ws) == [1]


def test_a_rollback_that_does_not_fit_is_refused_too(ws, server, ledger, promote, rollback, monkeypatch) -> None:
    promote(1)
    promote(2)
    monkeypatch.setattr(local, "SPARE_BYTES", shutil.disk_usage(ws.root).free + 2**30)
    with pytest.raises(HapError, match=f"rollback to v1 {NEEDS}"):
        rollback()
    assert server.serves() == ledger.served() == 2


def test_what_is_needed_counts_the_copy_and_the_rendered_files(ws, params, promote, monkeypatch) -> None:
    stored = sum(versions.stored_bundle(ws, params, versions.get(ws, params, 1)).values())
    asked: list[int] = []
    real = local.shutil.disk_usage

    def usage(place: Path):
        asked.append(real(place).free)
        return real(place)._replace(free=local.SPARE_BYTES + 2 * stored - 1)

    monkeypatch.setattr(local.shutil, "disk_usage", usage)
    with pytest.raises(HapError, match="promote of v1 needs"):
        promote(1)
    monkeypatch.setattr(local.shutil, "disk_usage", lambda place: real(place)._replace(free=local.SPARE_BYTES + 2 * stored))
    assert promote(1).outcome == "served"


@pytest.fixture
def small(ws: Workspace) -> Iterator[Path]:
    """The workspace on a disk of its own with 40 MiB."""
    kept = ws.root.with_name("kept")
    ws.root.rename(kept)
    ws.root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(ws.root)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here (needs root): {mounted.stderr.decode().strip()}")
    shutil.copytree(kept, ws.root, dirs_exist_ok=True)
    yield ws.root
    subprocess.run(["umount", "--lazy", str(ws.root)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all but `leave` bytes of the disk."""
    path = disk / "filler"
    with open(path, "ab") as handle:
        while (free := shutil.disk_usage(disk).free - leave) > 0:
            try:
                os.write(handle.fileno(), b"\0" * min(free, 2**20))
            except OSError:
                break
    return path


def test_on_a_disk_that_fills_up_half_way_the_old_version_serves_on(small, ws, params, server, ledger, promote, monkeypatch) -> None:
    promote(1)
    render = repository.render

    def filling(*words):
        fill(small)
        render(*words)

    with monkeypatch.context() as patch:
        patch.setattr(repository, "render", filling)
        with pytest.raises(HapError, match=r"promote of v2 failed: .*No space left on device") as caught:
            promote(2)
    assert "\n" not in str(caught.value)
    assert server.serves() == repository.pinned(ws.triton) == ledger.served() == 1 and repository.rendered(ws.triton) == [1]
    with pytest.raises(HapError):  # the disk is full still
        promote(2)
    assert server.serves() == repository.pinned(ws.triton) == 1
    (small / "filler").unlink()
    assert promote(2).outcome == "served" and server.serves() == 2
    assert open_move(ledger.rows()) is None and ledger.verify() == len(ledger.rows())


def test_gc_makes_room_on_a_disk_that_is_full_to_the_last_byte(small, ws, params, server: FileTriton, promote) -> None:
    promote(1)
    make_bundle(gate_copy(ws, 3), shift=0.5)
    (gate_copy(ws, 3) / "more").write_bytes(b"x" * 2**21)
    fill(small)
    assert shutil.disk_usage(small).free == 0
    done = free(ws, params, server=server, actor="ann", now=NOW)
    assert [piece.what for piece in done.pieces] == ["the gate's copy of v3"]
    assert shutil.disk_usage(small).free >= 2**21 - 2**16


def test_a_ledger_that_cannot_be_told_is_said_and_settled_by_the_next_command(ws, params, server, promote, monkeypatch) -> None:
    promote(1)
    append = Ledger.append

    def full(self: Ledger, entry, after_move=None):
        if entry.state == "undone":
            raise HapError("database or disk is full")
        return append(self, entry, after_move)

    def unwritable(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        patch.setattr(shutil, "copyfile", unwritable)
        with pytest.raises(HapError, match=r"v1 serves as before, but the ledger could not be told \(database or disk is full\): the next"):
            promote(2)
    book = open_ledger(ws, params)
    assert story(book)[-1] == ("promote", "intended", 1, 2) and server.serves() == 1
    (note, *_) = promotion.repair(ws, params, now=NOW, server=server)
    assert "was interrupted: undone, v1 serves as before" in note and story(book)[-1][1] == "undone"
