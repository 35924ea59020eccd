"""Sizes and operations are those of the models as they are built."""

import pytest
import torch

from hap.models.build import build_model
from hap.models.describe import describe, describe_all, user_side
from hap.params import Params


@pytest.mark.parametrize("name", ["light", "expressive"])
def test_operations_are_the_user_side_once_and_each_candidate_alike(name: str, default_params: Params) -> None:
    found = describe(name, default_params)
    assert found.flops_per_request > 0
    assert found.flops(10) - found.flops(7) == 3 * found.flops_per_candidate
    assert 0 < found.user_share(1000) < found.user_share(100) < 1


def test_the_user_side_is_what_a_request_without_candidates_needs(default_params: Params) -> None:
    torch.manual_seed(1)
    model = build_model("light", default_params)
    expected = {id(p) for n, p in model.named_parameters() if n.startswith("user.")}
    assert {id(p) for p in user_side(model)} == expected


def test_the_expressive_model_costs_several_times_the_light_one_per_candidate(default_params: Params) -> None:
    light, expressive = describe_all(default_params)
    assert expressive.flops_per_candidate > 4 * light.flops_per_candidate
    assert light.user_parameters > light.dense_parameters / 2, "its parameters sit on the user side"
