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
    expected = {id(p) for n, p in model.named_parameters() if n.startswith(("user.", "interests.count.", "interests.place"))}
    assert {id(p) for p in user_side(model)} == expected


def at_size(params: Params, name: str, size: int) -> Params:
    return params.model_copy(update={name: getattr(params, name).model_copy(update={"size": size})})


def test_a_candidate_costs_the_light_model_less_than_a_tenth_of_the_expressive_one(default_params: Params) -> None:
    light, expressive = describe_all(default_params)
    assert light.flops_per_candidate < expressive.flops_per_candidate / 10


def test_the_documented_sizes_have_the_published_parameters(default_params: Params) -> None:
    light, expressive = (
        describe("light", at_size(default_params, "light", 152)),
        describe("expressive", at_size(default_params, "expressive", 488)),
    )
    assert light.dense_parameters == pytest.approx(1.8e6, rel=0.03)
    assert expressive.dense_parameters == pytest.approx(6.2e6, rel=0.03)


def test_the_light_model_works_on_the_user_side_where_it_is_large(default_params: Params) -> None:
    light = describe("light", at_size(default_params, "light", 152))
    assert light.user_parameters > 0.95 * light.dense_parameters
    assert light.user_share(300) > 0.8
    assert light.user_share(2000) > 0.5


def test_a_larger_light_model_costs_a_candidate_nothing(default_params: Params) -> None:
    sizes = [describe("light", at_size(default_params, "light", size)) for size in (64, 152)]
    assert sizes[0].flops_per_candidate == sizes[1].flops_per_candidate
