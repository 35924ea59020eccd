"""A device that is not there is refused by the parameter's name, and one that is there gives the same bits each time."""

import os

import pytest
import torch

from hap.errors import DataError
from hap.training.device import autocast, be_deterministic, pick_device


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        assert pick_device("cuda").type == "cuda"
    else:
        with pytest.raises(DataError, match=r"train\.device"):
            pick_device("cuda")
    assert pick_device("cpu").type == "cpu"


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert pick_device("auto") == torch.device("cuda", int(rank))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_more_processes_than_gpus_are_refused_by_each_of_them(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the one that has a GPU: it would wait for the others."""
    with_gpus(monkeypatch, 1)
    said = "2 processes train together and 1 CUDA device is visible, .*; set train.processes to 1, or train.device to cpu"
    with pytest.raises(DataError, match=said):
        pick_device("cuda", processes=2)  # as the flow asks, before anything is started
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", rank)
    for wanted in ("auto", "cuda"):
        with pytest.raises(DataError, match=said):
            pick_device(wanted)
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_takes_bf16_only_of_a_gpu_that_does_not_emulate_it(hardware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: hardware or including_emulation)
    entered: list[bool] = []
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: entered.append(enabled))
    autocast("auto", torch.device("cuda", 0))
    autocast("bf16", torch.device("cuda", 0))
    autocast("auto", torch.device("cpu"))
    assert entered == [hardware, True, False]


def test_determinism_asks_the_gpus_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses every product on a GPU in deterministic mode unless this is set."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    be_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    be_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "one's own choice stays"
