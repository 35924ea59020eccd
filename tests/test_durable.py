"""Writes are whole or absent, wherever they are cut."""

import os
import subprocess
from pathlib import Path

import pytest

from hap import durable


def test_a_write_that_fails_leaves_the_old_bytes_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    durable.write_json(path, {"a": 1})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write_json(path, {"a": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_takes_the_old_ones_place_in_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "day"
    with durable.new_directory(target) as building:
        (building / "one").write_text("1")
    with pytest.raises(RuntimeError), durable.new_directory(target) as building:
        (building / "two").write_text("2")
        raise RuntimeError
    assert [entry.name for entry in target.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("moved_aside", [False, True])
def test_what_a_kill_left_is_mended_by_the_next_write(tmp_path: Path, moved_aside: bool) -> None:
    target, old, new = tmp_path / "day", tmp_path / ".day.old", tmp_path / ".day.new"
    (old if moved_aside else target).mkdir()
    ((old if moved_aside else target) / "one").write_text("1")
    new.mkdir()
    (new / "half").write_text("?")
    with pytest.raises(RuntimeError), durable.new_directory(target):
        assert (target / "one").read_text() == "1", "the old content is back before anything new is built"
        raise RuntimeError
    assert (target / "one").read_text() == "1"
    with durable.new_directory(target) as building:
        (building / "two").write_text("2")
    assert [entry.name for entry in target.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [target]


def test_scratch_is_gone_after_the_block_and_so_is_that_of_the_killed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    killed, living, other = tmp_path / f"looks-{ended.pid}-x", tmp_path / f"looks-{os.getpid()}-x", tmp_path / "looks"
    for folder in (killed, living, other):
        folder.mkdir()
        (folder / "requests.parquet").write_bytes(b"1")
    with durable.scratch_directory(tmp_path, "looks") as scratch:
        assert scratch.parent == tmp_path and not list(scratch.iterdir())
        (scratch / "a").write_text("1")
    assert sorted(tmp_path.iterdir()) == sorted([living, other])
