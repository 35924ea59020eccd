"""Real models through the real exporter, small ones: its time goes with the number of features."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hap.errors import DataError, HapError
from hap.models.build import build_model
from hap.params import Feature, Features, Light, Model, Params, Route
from hap.serving.bundle import Bundle
from hap.serving.export import export, scoring_cores
from hap.serving.merge import NAN_SCORE
from hap.serving.request import RequestTensors
from hap.serving.session import BundleSession

PARAMS = Params(
    seed=1,
    features=Features(
        user=(Feature(name="user_id", type="id", rows=50),),
        item=(Feature(name="item_id", type="id", rows=50), Feature(name="price", type="dense", scale="log")),
        history=(Feature(name="item_id", type="id", rows=50),),
        history_length=4,
    ),
    light=Light(size=8, embedding_dim=4),
    expressive=Model(size=8, embedding_dim=4),
    route=Route(share=0.4),
)


def request_of(candidates: int, seed: int = 0) -> RequestTensors:
    random = np.random.default_rng(seed)
    return RequestTensors(
        random.integers(1, 50, 1),
        np.zeros(0, np.float32),
        random.integers(0, 50, (4, 1)),
        np.zeros((4, 0), np.float32),
        random.integers(1, 50, (candidates, 1)),
        random.uniform(0, 9, (candidates, 1)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return {name: build_model(name, PARAMS).eval() for name in ("light", "expressive")}


@pytest.fixture(scope="module")
def exported(models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    into = tmp_path_factory.mktemp("export") / "bundle"
    return export(models, PARAMS, [request_of(0), request_of(30), request_of(7, seed=1)], into, {"day": "2026-01-04"})


def test_graphs_agree_with_pytorch_on_real_and_edge_requests(exported: Bundle) -> None:
    found = exported.parity()
    names = {entry["name"] for entry in found["by_request"]}
    assert {"real 0", "real 1", "N=0", "N=1", "N=2000", "N=15 K=16", "N=16 K=16", "N=17 K=16", "k=0", "k above N"} <= names
    assert {"empty history", "unseen ids", "equal scores", "NaN in a candidate", "k above N, one step"} <= names
    assert found["max_abs_diff"] < 1e-5
    assert found["misrouted"] == 0
    assert exported.info == {"day": "2026-01-04"}


def test_a_nan_candidate_is_golden_as_the_last_one(exported: Bundle) -> None:
    (nan,) = (entry for entry in exported.golden() if entry.name == "NaN in a candidate")
    assert nan.score[0] == nan.score.min() == NAN_SCORE and not nan.routed[0] and np.isnan(nan.light[0])
    assert (nan.score[1:] > NAN_SCORE).all()


def test_n_stays_free_and_nothing_of_this_machine_is_in_the_graphs(exported: Bundle) -> None:
    for name in ("light", "expressive", "expressive_all"):
        model = onnx.load(exported.graph(name))
        shapes = {entry.name: entry.type.tensor_type.shape.dim for entry in model.graph.input}
        assert shapes["cand_ids"][0].dim_param == shapes["cand_dense"][0].dim_param != ""
        assert b"site-packages" not in exported.graph(name).read_bytes()
        assert Path(__file__).parent.as_posix().encode() not in exported.graph(name).read_bytes()


def test_the_session_splits_what_the_merge_joined(exported: Bundle, models: dict[str, nn.Module]) -> None:
    request = request_of(25, seed=4)
    session = BundleSession(exported)
    tensors = [torch.from_numpy(array) for array in request.arrays().values()]
    with torch.inference_mode():
        light = models["light"].score_request(*tensors).numpy()  # type: ignore[operator]
        expressive = models["expressive"].score_request(*tensors).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(session.light(request), light, atol=1e-5)
    np.testing.assert_allclose(session.expressive(request), expressive, atol=1e-5)


def test_costs_are_measured(exported: Bundle) -> None:
    cost = exported.cost()
    assert set(cost["in_process"]["p50_ms"]) == {"hap", "expressive_all"}
    assert cost["parameters"]["expressive"] > cost["dense_parameters"]["expressive"] > 0
    assert cost["bytes"]["light.onnx"] == exported.graph("light").stat().st_size


def test_without_a_request_nothing_is_written(models: dict[str, nn.Module], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one"):
        export(models, PARAMS, [request_of(0)], tmp_path / "bundle", {})
    assert list(tmp_path.iterdir()) == []


class Price(nn.Module):
    """The smallest model with the serving shape: its logit is the price."""

    def score_request(self, *tensors: torch.Tensor) -> torch.Tensor:
        return tensors[5][:, 0]


class Drifting(Price):
    """Exports as another function than it computes in PyTorch."""

    def score_request(self, *tensors: torch.Tensor) -> torch.Tensor:
        return super().score_request(*tensors) + (1.0 if torch.compiler.is_exporting() else 0.0)


class NeedsOne(Price):
    """Its graph cannot run without a candidate: ONNX Runtime refuses a vector as the right side then."""

    def score_request(self, *tensors: torch.Tensor) -> torch.Tensor:
        return tensors[5] @ torch.ones(1)


def test_an_equal_export_has_equal_bytes() -> None:
    first, second = (scoring_cores({"light": Price()}, request_of(9))["light"].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_graph_that_differs_from_pytorch_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HapError, match=r"ONNX Runtime differs by .* from PyTorch.*max_parity"):
        export({"light": Drifting(), "expressive": Price()}, PARAMS, [request_of(30)], tmp_path / "bundle", {})
    assert not (tmp_path / "bundle").exists()


def test_a_graph_that_fails_without_candidates_is_named(tmp_path: Path) -> None:
    with pytest.raises(HapError, match=r"fails at light, N=0"):
        export({"light": NeedsOne(), "expressive": Price()}, PARAMS, [request_of(30)], tmp_path / "bundle", {})
