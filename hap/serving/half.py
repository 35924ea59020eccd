"""Weights stored in half precision: half the bytes of a version. The graphs compute in single precision all the same.

Weights are rounded before anything is exported, so golden requests, parity and the gate are about the rounded model: what is
judged is what is served. ONNX Runtime folds the casts when it loads a graph, so an answer costs what it did.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hap.errors import DataError
from hap.evaluation.auc import gauc, request_aucs
from hap.params import Params
from hap.training.feed import Pool
from hap.training.loop import score_pools

LEAST_VALUES = 256  # a cast is a node with two names; below this it takes what it saves


def rounded(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies of the models whose parameters are half-precision numbers.

    Raises:
        DataError: a parameter is too large for half precision.
    """
    copies = {name: copy.deepcopy(model) for name, model in models.items()}
    for name, model in copies.items():
        for key, parameter in model.named_parameters():
            with torch.no_grad():
                half = parameter.half()
                if not bool(torch.isfinite(half).all()):
                    raise DataError(f"{name}: {key} holds values beyond half precision's 65,504; export with export.weights: fp32")
                parameter.copy_(half)
    return copies


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every larger weight that is a half-precision number stored as one, and cast where it is used."""
    graph = model.graph
    kept: list[onnx.TensorProto] = []
    casts: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        half = _as_half(tensor)
        if half is None:
            kept.append(tensor)
            continue
        name = f"{tensor.name}/half"
        kept.append(numpy_helper.from_array(half, name))
        casts.append(helper.make_node("Cast", [name], [tensor.name], name=f"{tensor.name}/cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def _as_half(tensor: onnx.TensorProto) -> NDArray[np.float16] | None:
    """The tensor in half precision where nothing is lost by it."""
    if tensor.data_type != TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if values.size >= LEAST_VALUES and np.array_equal(half.astype(np.float32), values) else None


def rounding_cost(
    models: Mapping[str, nn.Module], halves: Mapping[str, nn.Module], pools: Iterable[Pool], params: Params
) -> dict[str, Any]:
    """What rounding does to each model on these requests: the change of its GAUC by kind, and the largest change of a logit."""
    requests = list(pools)
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        before, kind, counts = score_pools(model, requests, params, torch.device("cpu"))
        after, _, _ = score_pools(halves[name], requests, params, torch.device("cpu"))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        was, now = (request_aucs(scores, kind, offsets) for scores in (before, after))
        change = {key: gauc(now[key]) - gauc(was[key]) for key in was}
        found[name] = {
            "gauc_change": {key: value if np.isfinite(value) else None for key, value in change.items()},
            "max_abs_diff": float(np.abs(after - before).max(initial=0.0)),
        }
    return found
