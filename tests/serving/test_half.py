"""Half-precision storage: half the bytes, the rounded model's own answers, and its cost told."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from hap.errors import DataError
from hap.models.build import build_model
from hap.params import Export, Model
from hap.serving.export import export
from hap.serving.half import rounded, rounding_cost, store_half
from hap.serving.session import BundleSession
from hap.training.feed import Pool
from tests.serving.test_export import PARAMS, request_of

WIDE = PARAMS.model_copy(update={"expressive": Model(size=64, embedding_dim=8), "export": Export(weights="fp16")})


@pytest.fixture(scope="module")
def models():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return {name: build_model(name, WIDE).eval() for name in ("light", "expressive")}


def pool(requests):
    tensors = [request_of(12, seed) for seed in range(requests)]
    join = {name: np.stack([getattr(one, name) for one in tensors]) for name in ("user_ids", "user_dense", "hist_ids", "hist_dense")}
    joined = {name: np.concatenate([getattr(one, name) for one in tensors]) for name in ("cand_ids", "cand_dense")}
    kind = np.tile(np.array([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4], np.int8), requests)
    return Pool(np.arange(requests), *join.values(), *joined.values(), kind, np.arange(0, 12 * requests + 1, 12))


@pytest.fixture(scope="module")
def bundles(models, tmp_path_factory):
    root, real = tmp_path_factory.mktemp("half"), [request_of(30), request_of(7, seed=1)]
    halves = rounded(models)
    measured = {"fp16": rounding_cost(models, halves, [pool(40)], WIDE)}
    whole = export(models, WIDE.model_copy(update={"export": Export()}), real, root / "whole", {})
    return whole, export(halves, WIDE, real, root / "half", {}, measured=measured)


def test_the_graphs_take_about_half_and_answer_as_the_rounded_model(bundles):
    whole, half = bundles
    assert half.parity()["max_abs_diff"] < 1e-5 and half.parity()["misrouted"] == 0
    sizes = [bundle.graph("expressive").stat().st_size for bundle in bundles]
    weights = sum(tensor.raw_data.__len__() for tensor in onnx.load(whole.graph("expressive")).graph.initializer)
    assert sizes[0] - sizes[1] > 0.4 * weights


def test_scores_are_near_those_of_the_model_as_trained_and_the_cost_is_told(bundles):
    whole, half = bundles
    request = request_of(25, seed=4)
    before, after = (BundleSession(bundle).score_all(request)[0] for bundle in bundles)
    assert 0 < np.abs(after - before).max() < 0.05
    cost = half.cost()["fp16"]
    assert cost.keys() == {"light", "expressive"} and "fp16" not in whole.cost()
    for found in cost.values():
        assert found["gauc_change"].keys() == {"EN", "RN", "PRN", "GN"} and abs(found["gauc_change"]["EN"]) < 0.1
        assert 0 < found["max_abs_diff"] < 0.05


def test_only_what_half_precision_holds_exactly_is_stored_in_it(bundles):
    _, half = bundles
    graph = onnx.load(half.graph("expressive")).graph
    halves = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    assert len(halves) > 5 and all(np.prod(tensor.dims) >= 256 for tensor in halves)
    untouched = onnx.load(bundles[0].graph("expressive"))  # weights that were not rounded
    before = [tensor.data_type for tensor in copy.deepcopy(untouched).graph.initializer if np.prod(tensor.dims) >= 256]
    stored = [tensor for tensor in store_half(untouched).graph.initializer if np.prod(tensor.dims) >= 256]
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in stored if not tensor.name.endswith("/half")}
    assert len(stored) == len(before)


def test_the_models_themselves_stay_as_they_were(models):
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    rounded(models)
    for name, model in models.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())


def test_a_weight_beyond_half_precision_is_refused_by_name(models):
    broken = {name: copy.deepcopy(model) for name, model in models.items()}
    with torch.no_grad():
        broken["light"].columns.tables.tables["item_id"].weight[3, 0] = 1e6
    with pytest.raises(DataError, match=r"light: columns.tables.tables.item_id.weight holds values beyond .* export.weights: fp32"):
        rounded(broken)
