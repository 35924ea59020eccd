"""A bundle made by hand: linear models as tiny ONNX graphs, so that serving is tested without training or torch."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hap import durable
from hap.params import Feature, Features, Route
from hap.serving import graphs
from hap.serving.bundle import Bundle, Golden, seal_bundle, write_golden, write_schema
from hap.serving.merge import hard_select, merge, routed_count
from hap.serving.request import TENSORS, RequestTensors

FEATURES = Features(
    user=(Feature(name="user_id", type="id", rows=100), Feature(name="activity", type="dense")),
    context=(Feature(name="hour", type="category", rows=24),),
    item=(
        Feature(name="item_id", type="id", rows=100),
        Feature(name="price", type="dense", missing=2.5),
        Feature(name="age_hours", type="dense"),
    ),
    history=(Feature(name="item_id", type="id", rows=100), Feature(name="age_hours", type="dense")),
    history_length=3,
)
ROUTE = Route(share=0.3)
NOON = dt.datetime(2026, 1, 4, 12, tzinfo=dt.UTC)
WIDTHS = {"user_ids": (2,), "user_dense": (1,), "hist_ids": (3, 1), "hist_dense": (3, 1), "cand_ids": ("N", 1), "cand_dense": ("N", 2)}


def request_of(candidates: int, seed: int = 0) -> RequestTensors:
    """A random request; candidate ids are distinct."""
    random = np.random.default_rng(seed)
    return RequestTensors(
        random.integers(1, 100, 2),
        random.normal(size=1).astype(np.float32),
        random.integers(1, 100, (3, 1)),
        random.normal(size=(3, 1)).astype(np.float32),
        random.permutation(np.arange(1, candidates + 1))[:, None],
        random.normal(size=(candidates, 2)).astype(np.float32),
    )


def logits(tensors: RequestTensors, weights: tuple[float, float, float]) -> NDArray[np.float32]:
    """price * w0 + age * w1 + (sum of user_dense, hist_dense and user_ids / 100) * w2: every tensor matters."""
    user = tensors.user_dense.sum() + tensors.hist_dense.sum() + np.float32((tensors.user_ids.sum() + tensors.hist_ids.sum()) / 100)
    ids = (tensors.cand_ids % 7).sum(axis=1).astype(np.float32) / 10
    return np.asarray(tensors.cand_dense @ np.array(weights[:2], np.float32) + np.float32(user * weights[2]) + ids, np.float32)


def core(weights: tuple[float, float, float]) -> onnx.ModelProto:
    """The graph of `logits`."""
    node = helper.make_node
    nodes = [
        node("ReduceSum", ["user_dense"], ["a"], keepdims=0),
        node("ReduceSum", ["hist_dense"], ["b"], keepdims=0),
        node("ReduceSum", ["user_ids"], ["c"], keepdims=0),
        node("ReduceSum", ["hist_ids"], ["d"], keepdims=0),
        node("Add", ["c", "d"], ["e"]),
        node("Cast", ["e"], ["f"], to=TensorProto.FLOAT),
        node("Div", ["f", "hundred"], ["g"]),
        node("Sum", ["a", "b", "g"], ["user"]),
        node("Mul", ["user", "w2"], ["weighted"]),
        node("MatMul", ["cand_dense", "w"], ["column"]),
        node("Squeeze", ["column", "axis"], ["item"]),
        node("Mod", ["cand_ids", "seven"], ["m"]),
        node("Cast", ["m"], ["n"], to=TensorProto.FLOAT),
        node("ReduceSum", ["n", "axis"], ["o"], keepdims=0),
        node("Div", ["o", "ten"], ["ids"]),
        node("Sum", ["item", "weighted", "ids"], ["logit"]),
    ]
    constants = {
        "w": np.array(weights[:2], np.float32)[:, None],  # a column: ONNX Runtime refuses a vector here at N = 0
        "w2": np.float32(weights[2]),
        "hundred": np.float32(100),
        "ten": np.float32(10),
        "seven": np.int64(7),
        "axis": np.array([1], np.int64),
    }
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name.endswith("_ids") else TensorProto.FLOAT, WIDTHS[name])
        for name in TENSORS
    ]
    graph = helper.make_graph(
        nodes,
        "core",
        inputs,
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", graphs.OPSET)], ir_version=graphs.IR_VERSION)


def light_graph(weights: tuple[float, float, float]) -> onnx.ModelProto:
    """`core` with its output named as the light member's."""
    model = core(weights)
    model.graph.output[0].name = "light_score"
    model.graph.node[-1].output[0] = "light_score"
    return model


def expected(tensors: RequestTensors, k: int | None, shift: float, route: Route = ROUTE) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What the version made with `shift` must answer."""
    light = logits(tensors, _light(shift))
    index = hard_select(light, routed_count(route, tensors.candidates, k))
    return merge(light, index, logits(tensors, _expressive(shift))[index])


def make_bundle(path: Path, shift: float = 0.0, route: Route = ROUTE, info: dict[str, Any] | None = None) -> Bundle:
    """A sealed bundle; another `shift` is another model, and `info` is what the seal says besides."""
    path.mkdir(parents=True)
    expressive = core(_expressive(shift))
    for name, model in {
        "light": light_graph(_light(shift)),
        "hard_select": graphs.hard_select_graph(route),
        "expressive": graphs.expressive_graph(expressive),
        "expressive_all": graphs.expressive_all_graph(expressive),
    }.items():
        durable.write_bytes(path / f"{name}.onnx", model.SerializeToString())
    write_schema(path, FEATURES, route)
    golden = []
    for n, k in ((12, None), (0, None), (1, None), (5, 2)):
        tensors = request_of(n, seed=n)
        score, routed = expected(tensors, k, shift, route)
        golden.append(Golden(f"n={n} k={k}", tensors, k, score, routed, logits(tensors, _light(shift))))
    write_golden(path, golden)
    durable.write_json(path / "parity.json", {"max_abs_diff": 0.0})
    durable.write_json(path / "cost.json", {})
    return seal_bundle(path, {"day": "2026-01-04", **(info or {})})


def _light(shift: float) -> tuple[float, float, float]:
    return 1.0 + shift, -0.5, 0.3


def _expressive(shift: float) -> tuple[float, float, float]:
    return 0.7, 0.4 - shift, -0.2
