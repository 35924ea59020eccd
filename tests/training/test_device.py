"""A device that is not there is refused by the parameter's name."""

import pytest
import torch

from hap.errors import DataError
from hap.training.device import pick_device


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        assert pick_device("cuda").type == "cuda"
    else:
        with pytest.raises(DataError, match=r"train\.device"):
            pick_device("cuda")
    assert pick_device("cpu").type == "cpu"
