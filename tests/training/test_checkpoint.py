"""Checkpoints are whole, few, and taken up by their own training only."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hap.training.checkpoint import checkpoint_keys, drop_checkpoints, load_checkpoint, save_checkpoint


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 10, 200):
        save_checkpoint(tmp_path, "key", step, {"value": step}, keep=2)
    assert steps(tmp_path) == ["step-000000010.pt", "step-000000200.pt"]
    state = load_checkpoint(tmp_path, "key")
    assert state is not None
    assert (state["step"], state["value"]) == (200, 200)


def cut(data: bytes) -> bytes:
    return data[:200]


def other(data: bytes) -> bytes:
    return b"<html>disk quota exceeded</html>" * 20


def damaged_head(data: bytes) -> bytes:
    return data[:60] + bytes(60) + data[120:]


def lost_page(data: bytes) -> bytes:
    """A page of zeros amid the numbers, which torch itself would read without a word."""
    return data[:4096] + bytes(1024) + data[5120:]


@pytest.mark.parametrize("damage", [cut, other, damaged_head, lost_page])
def test_a_damaged_file_is_passed_over_for_the_one_before(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "key", 1, {"value": torch.arange(1000)}, keep=2)
    last = save_checkpoint(tmp_path, "key", 2, {"value": torch.arange(1000)}, keep=2)
    last.write_bytes(damage(last.read_bytes()))
    state = load_checkpoint(tmp_path, "key")
    assert state is not None
    assert state["step"] == 1
    assert checkpoint_keys(tmp_path)[last] in (None, "key")  # asked for the key alone, not every byte is looked at


def test_another_trainings_checkpoints_are_left_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "key", 1, {}, keep=2)
    assert load_checkpoint(tmp_path, "other") is None
    drop_checkpoints(tmp_path)
    assert load_checkpoint(tmp_path, "key") is None


def test_the_random_state_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "key", 1, {}, keep=1)
    expected = torch.rand(3)
    load_checkpoint(tmp_path, "key")
    assert torch.equal(torch.rand(3), expected)
