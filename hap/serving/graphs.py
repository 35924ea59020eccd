"""The parts of the served graphs that no training makes: hard selection, gathering, and the merge of two models' logits.

Built node by node, so that they stay small and exact at N = 0. Legend: N candidates, K routed ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from hap.params import SHARE_SLACK, Route
from hap.serving.merge import MAX_LOGIT, NAN_SCORE
from hap.serving.request import TENSORS

OPSET = 20
IR_VERSION = 10  # what opset 20 needs; later ones are refused by older servers
NO_K = -1  # the default of the tensor `k`: K is the route's
LOGIT = "logit"  # the output of a scoring core


class _Nodes:
    """Nodes in order, with the constants they use."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """Append a node; returns its output's name, `to` or a new one."""
        output = to or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, value: Any, dtype: type[np.generic]) -> str:
        """A scalar or vector constant's name."""
        name = f"constant_{np.dtype(dtype).name}_{value}"
        self.constants.setdefault(name, numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], core: onnx.ModelProto | None = None
    ) -> onnx.ModelProto:
        """The checked model; a core's initializers come along."""
        weights = list(core.graph.initializer) if core else []
        graph = helper.make_graph(self.nodes, name, inputs, outputs, [*weights, *self.constants.values()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="hap")
        onnx.checker.check_model(model)
        return model


def hard_select_graph(route: Route) -> onnx.ModelProto:
    """light_score F32[N], k I64[1] (a default of -1 leaves K to the route) -> hard_index I64[K], K = min(K, N less NaN)."""
    nodes = _Nodes()
    absent = nodes.add("IsNaN", "light_score")
    clean = nodes.add("Where", absent, nodes.constant(-np.inf, np.float32), "light_score")
    present = nodes.add("ReduceSum", _cast(nodes, nodes.add("Not", absent), TensorProto.INT64))
    if route.share is None:
        default = nodes.constant([int(route.k or 0)], np.int64)
    else:
        count = _cast(nodes, nodes.add("Shape", "light_score"), TensorProto.DOUBLE)
        exact = nodes.add("Mul", count, nodes.constant(route.share, np.float64))
        default = _cast(nodes, nodes.add("Ceil", nodes.add("Sub", exact, nodes.constant(SHARE_SLACK, np.float64))), TensorProto.INT64)
    asked = nodes.add("Where", nodes.add("Less", "k", nodes.constant([0], np.int64)), default, "k")
    routed = nodes.add("Min", asked, present)
    nodes.nodes.append(helper.make_node("TopK", [clean, routed], ["hard_score", "hard_index"], name="select", axis=0, largest=1, sorted=0))
    return _with_default_k(nodes.model("hard_select", [_floats("light_score", "N"), _k()], [_ints("hard_index", "K")]))


def expressive_graph(core: onnx.ModelProto) -> onnx.ModelProto:
    """A scoring core (the six tensors -> `logit` F32[N]) run on the routed candidates alone, merged with the light scores."""
    core = _inner(core)
    nodes = _Nodes()
    for name in TENSORS:
        if name.startswith("cand_"):
            nodes.add("Gather", name, "hard_index", to=f"core/{name}", axis=0)
        else:
            nodes.add("Identity", name, to=f"core/{name}")
    nodes.nodes.extend(core.graph.node)
    unrouted = nodes.add("Neg", _softplus(nodes, nodes.add("Neg", "light_score")))
    base = nodes.add("Where", nodes.add("IsNaN", "light_score"), nodes.constant(NAN_SCORE, np.float32), unrouted)
    nodes.add("ScatterElements", base, "hard_index", _routed_score(nodes), to="score", axis=0)
    nodes.add("Greater", "score", nodes.constant(0.0, np.float32), to="routed")
    inputs = [*_outer(core), _floats("light_score", "N"), _ints("hard_index", "K")]
    return nodes.model("expressive", inputs, _answer(), core)


def expressive_all_graph(core: onnx.ModelProto) -> onnx.ModelProto:
    """The same core run on every candidate; it takes `k` so that both ensembles have one signature, and has no use for it."""
    core = _inner(core)
    nodes = _Nodes()
    for name in TENSORS:
        nodes.add("Identity", name, to=f"core/{name}")
    nodes.nodes.extend(core.graph.node)
    nodes.add("Identity", _routed_score(nodes), to="score")
    nodes.add("Greater", "score", nodes.constant(0.0, np.float32), to="routed")
    return _with_default_k(nodes.model("expressive_all", [*_outer(core), _k()], _answer(), core))


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes (source paths, stack traces, inferred shapes): equal weights give equal bytes on any machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "hap", ""
    return model


def _cast(nodes: _Nodes, value: str, to_type: int) -> str:
    output = f"cast_{len(nodes.nodes)}"
    nodes.nodes.append(helper.make_node("Cast", [value], [output], name=output, to=to_type))
    return output


def _softplus(nodes: _Nodes, logit: str) -> str:
    """softplus of the clipped logit, exact for very negative ones, where log(1 + exp(x)) would be 0 and tie."""
    clipped = nodes.add("Clip", logit, nodes.constant(-MAX_LOGIT, np.float32), nodes.constant(MAX_LOGIT, np.float32))
    tail = nodes.add("Exp", nodes.add("Neg", nodes.add("Abs", clipped)))
    one = nodes.constant(1.0, np.float32)
    rounded = nodes.add("Add", tail, one)
    # Kahan's log1p: the rounding of 1 + a is divided out again.
    ratio = nodes.add("Div", tail, nodes.add("Sub", rounded, one))
    log1p = nodes.add("Where", nodes.add("Equal", rounded, one), tail, nodes.add("Mul", nodes.add("Log", rounded), ratio))
    return nodes.add("Add", nodes.add("Relu", clipped), log1p)


def _routed_score(nodes: _Nodes) -> str:
    logit = f"core/{LOGIT}"
    return nodes.add("Where", nodes.add("IsNaN", logit), nodes.constant(NAN_SCORE, np.float32), _softplus(nodes, logit))


def _inner(core: onnx.ModelProto) -> onnx.ModelProto:
    return compose.add_prefix(core, "core/")


def _outer(core: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The core's inputs under their own names, with N candidates."""
    declared = {entry.name.removeprefix("core/"): entry.type.tensor_type for entry in core.graph.input}
    found = []
    for name in TENSORS:
        shape: list[int | str] = [dim.dim_value for dim in declared[name].shape.dim]
        if name.startswith("cand_"):
            shape[0] = "N"
        found.append(helper.make_tensor_value_info(name, declared[name].elem_type, shape))
    return found


def _with_default_k(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(np.array([NO_K], np.int64), "k"))
    return model


def _floats(name: str, size: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])


def _ints(name: str, size: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, [size])


def _k() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("k", TensorProto.INT64, [1])


def _answer() -> list[onnx.ValueInfoProto]:
    return [_floats("score", "N"), helper.make_tensor_value_info("routed", TensorProto.BOOL, ["N"])]
