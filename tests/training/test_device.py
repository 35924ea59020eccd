"""A device that is not there is refused by the parameter's name, and one that is there gives the same bits each time."""

import os

import pytest
import torch

from hap.errors import DataError
from hap.training.device import be_deterministic, pick_device


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        assert pick_device("cuda").type == "cuda"
    else:
        with pytest.raises(DataError, match=r"train\.device"):
            pick_device("cuda")
    assert pick_device("cpu").type == "cpu"


def test_determinism_asks_the_gpus_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses every product on a GPU in deterministic mode unless this is set."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    be_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    be_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "one's own choice stays"
