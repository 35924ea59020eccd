"""Graphs in a process of their own: its answers come back, and its end is told instead of shared."""

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hap.errors import DataError
from hap.serving.bundle import Bundle
from hap.serving.parity import asked
from hap.serving.trial import tried
from tests.serving.handmade import make_bundle


def test_the_answers_are_those_of_the_graphs_question_by_question(bundles: dict[int, Bundle]) -> None:
    golden = bundles[1].golden()
    found = tried(bundles[1].path, golden)
    assert len(found) == len(asked(golden)) == len(golden) + 2  # N = 0 and N = 1 route everything
    for answer, (_, entry) in zip(found, asked(golden), strict=True):
        np.testing.assert_allclose(answer.score, entry.score, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answer.light, entry.light, rtol=1e-5, atol=1e-5)
        assert answer.routed.tolist() == entry.routed.tolist()


def test_a_graph_that_does_not_load_is_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle.path / "expressive.onnx").write_bytes(b"no graph")
    with pytest.raises(DataError, match=r"fails at loading: .*expressive\.onnx does not load") as refused:
        tried(bundle.path, bundle.golden())
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there does such a division end a process")
def test_a_graph_that_ends_its_process_is_told_with_the_signal(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    overflow(bundle.path / "light.onnx")
    with pytest.raises(DataError, match=r"a graph fails at light, n=0 k=None \(0 candidates\): signal 8"):
        tried(bundle.path, bundle.golden())


def test_a_graph_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    go_on_for_ever(bundle.path / "light.onnx")
    with pytest.raises(DataError, match=r"a graph fails at light, n=0 k=None \(0 candidates\): no answer within 0\.5 s"):
        tried(bundle.path, bundle.golden(), step_s=0.5)


def go_on_for_ever(path: Path) -> None:
    """light_score after a loop that nobody lives to see the end of."""
    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["clean" if name == "light_score" else name for name in node.output]
    value = helper.make_tensor_value_info
    step = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes_on"]), helper.make_node("Add", ["sum", "more"], ["larger"])],
        "step",
        [value("turn", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, [])],
        [value("goes_on", TensorProto.BOOL, []), value("larger", TensorProto.FLOAT, [])],
    )
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.int64(2**62), "turns"),
            numpy_helper.from_array(np.bool_(True), "true"),
            numpy_helper.from_array(np.float32(0), "nought"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("ReduceSum", ["user_dense"], ["some"], keepdims=0),  # of the request, so that nothing folds it away
            helper.make_node("Mul", ["some", "nought"], ["more"]),
            helper.make_node("Loop", ["turns", "true", "more"], ["zero"], body=step),
            helper.make_node("Add", ["clean", "zero"], ["light_score"]),
        ]
    )
    path.write_bytes(model.SerializeToString())


def overflow(path: Path) -> None:
    """light_score plus the least int64 over -1: ONNX Runtime dies of it (SIGFPE), as of some fusions at N = 0."""
    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["clean" if name == "light_score" else name for name in node.output]
    graph.initializer.extend(
        [numpy_helper.from_array(np.int64(value), name) for name, value in (("nought", 0), ("least", -(2**63)), ("minus", -1))]
    )
    graph.node.extend(
        [
            helper.make_node("ReduceSum", ["user_ids"], ["some"], keepdims=0),
            helper.make_node("Mul", ["some", "nought"], ["zero"]),  # of the request, so that nothing folds it away
            helper.make_node("Add", ["zero", "least"], ["dividend"]),
            helper.make_node("Div", ["dividend", "minus"], ["broken"]),
            helper.make_node("Cast", ["broken"], ["number"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Add", ["clean", "number"], ["light_score"]),
        ]
    )
    path.write_bytes(model.SerializeToString())
