"""TensorRT below the onnxruntime backend: a version's members on the GPU, with an engine for a declared range of request sizes.

What is written into a member's config.pbtxt follows the onnxruntime backend's own list of keys (README.md of
triton-inference-server/onnxruntime_backend, "ONNX Runtime with TensorRT optimization") and ONNX Runtime's page on its TensorRT
execution provider ("Explicit shape range"): a profile needs the least, usual and largest shape of every input with a free dimension.
Nothing of this needs a GPU to be rendered and checked; none was at hand to run it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from hap.errors import DataError
from hap.params import Route, TensorRT
from hap.serving.bundle import Bundle
from hap.serving.merge import routed_count

FILE = "tensorrt.json"  # beside a rendered version's schema
ON_CPU = ("hard_select",)  # one TopK over N floats, and K is data: the copy costs less than an engine that is built anew
BOUNDS = ("min", "opt", "max")
_CANDIDATES, _ROUTED = ("cand_ids", "cand_dense", "light_score"), ("hard_index",)  # whose first dimension is N, and K
_KEYS = ("precision_mode", "max_workspace_size_bytes", "trt_engine_cache_enable", "trt_engine_cache_path")

Shapes = dict[str, list[int | None]]  # by input; None is a free dimension


def prepared(bundle: Bundle, settings: TensorRT, members: Sequence[str]) -> dict[str, Any]:
    """What FILE holds of a version: its precision, and by member the profile of every input with a free dimension.

    Raises:
        DataError: an input has a free dimension that is neither the candidates' nor the routed ones'.
    """
    return {
        "precision": "FP16" if any(_is_half(bundle.graph(name)) for name in members) else "FP32",
        "workspace_bytes": int(settings.workspace_mb * 2**20),
        "engine_cache": settings.engine_cache,
        "profiles": {name: _profile(bundle.graph(name), bundle.route, settings) for name in members if name not in ON_CPU},
    }


def distinct(graph: Path) -> bytes:
    """The graph's bytes with a name of its own.

    ONNX Runtime names a cached engine after the graph's name and structure, not its weights: two versions with one name would get
    one engine, the older weights with it (microsoft/onnxruntime issue 6455).
    """
    import hashlib

    import onnx

    content = graph.read_bytes()
    model = onnx.load_from_string(content)
    model.graph.name = f"{model.graph.name}_{hashlib.sha256(content).hexdigest()[:16]}"
    return bytes(model.SerializeToString(deterministic=True))


def read(folder: Path) -> dict[str, Any] | None:
    """What was prepared for the version whose marker `folder` is; None where it was rendered for the CPU."""
    try:
        return dict(orjson.loads((folder / FILE).read_bytes()))
    except FileNotFoundError:
        return None


def accelerator(loaded: Sequence[Mapping[str, Any]], member: str) -> dict[str, str] | None:
    """The accelerator's parameters for a member, of which one config speaks for all loaded versions.

    None where the versions differ in precision, columns or settings: CUDA without TensorRT serves them side by side then.
    """
    first = loaded[0]
    if member in ON_CPU or any(one != first for one in loaded[1:]):
        return None
    profile = first["profiles"][member]
    shapes = {f"trt_profile_{bound}_shapes": _written(profile[bound]) for bound in BOUNDS}
    values = (first["precision"], str(first["workspace_bytes"]), "true", first["engine_cache"])
    return {**dict(zip(_KEYS, values, strict=True)), **shapes}


def check(path: Path, config: Any, member: str, graphs: Sequence[Path]) -> None:
    """Look through the accelerator of a member's parsed config against the graphs that it will run.

    Raises:
        DataError: a profile lacks an input with a free dimension, has a shape that a graph does not, or is no range.
    """
    entries = list(config.optimization.execution_accelerators.gpu_execution_accelerator)
    if not entries:
        return
    if [entry.name for entry in entries] != ["tensorrt"] or member in ON_CPU:
        raise DataError(f"{path}: its accelerators are {[entry.name for entry in entries]}; {member} takes tensorrt alone, or none")
    values = dict(entries[0].parameters)
    if unknown := sorted(set(values) - {*_KEYS, *(f"trt_profile_{bound}_shapes" for bound in BOUNDS)}):
        raise DataError(f"{path}: the accelerator's parameter {unknown[0]!r} is none that hap writes")
    least, usual, most = (_parsed(path, values.get(f"trt_profile_{bound}_shapes", "")) for bound in BOUNDS)
    for graph in graphs:
        wanted = {name: shape for name, shape in input_shapes(graph).items() if None in shape}
        for bound, found in zip(BOUNDS, (least, usual, most), strict=True):
            if set(found) != set(wanted):
                raise DataError(f"{path}: trt_profile_{bound}_shapes names {sorted(found)}, {graph} has free shapes in {sorted(wanted)}")
            for name, shape in wanted.items():
                if len(found[name]) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found[name], strict=True)):
                    raise DataError(f"{path}: trt_profile_{bound}_shapes says {name}:{found[name]}, {graph} has {shape}")
    for name in least:
        if not all(low <= usual[name][place] <= most[name][place] for place, low in enumerate(least[name])):
            raise DataError(f"{path}: the profile of {name} is no range: {least[name]}, {usual[name]}, {most[name]}")


def input_shapes(graph: Path) -> Shapes:
    """The shape of each input that callers must give.

    Raises:
        DataError: the file is no graph.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(graph, load_external_data=False)
    except DecodeError:
        raise DataError(f"{graph} is not an ONNX graph; remove the version and promote it again") from None
    given = {entry.name for entry in model.graph.initializer}
    return {
        entry.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in entry.type.tensor_type.shape.dim]
        for entry in model.graph.input
        if entry.name not in given
    }


def _profile(graph: Path, route: Route, settings: TensorRT) -> dict[str, dict[str, list[int]]]:
    """bound -> input -> shape, of the inputs with a free dimension."""
    sizes = {"min": 0, "opt": settings.opt_candidates, "max": settings.max_candidates}
    routed = {"min": 0, "opt": routed_count(route, settings.opt_candidates), "max": settings.max_candidates}  # a request's own k may be N
    found: dict[str, dict[str, list[int]]] = {bound: {} for bound in BOUNDS}
    for name, shape in input_shapes(graph).items():
        if None not in shape:
            continue
        if name not in (*_CANDIDATES, *_ROUTED) or shape.count(None) != 1 or shape[0] is not None:
            raise DataError(
                f"{graph}: input {name} has the shape {shape}; TensorRT needs a range for each free dimension, and this has none"
            )
        for bound in BOUNDS:
            first = (routed if name in _ROUTED else sizes)[bound]
            found[bound][name] = [first, *(size for size in shape[1:] if size is not None)]
    return found


def _written(shapes: Mapping[str, Sequence[int]]) -> str:
    """input1:2x3,input2:4, as ONNX Runtime reads it."""
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _parsed(path: Path, text: str) -> dict[str, list[int]]:
    try:
        pairs = [entry.split(":") for entry in text.split(",") if entry]
        return {name: [int(size) for size in shape.split("x")] for name, shape in pairs}
    except ValueError:
        raise DataError(f"{path}: {text!r} is no list of shapes such as cand_ids:300x3,cand_dense:300x4") from None


def _is_half(graph: Path) -> bool:
    """Whether the graph stores weights in half precision."""
    import onnx

    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in onnx.load(graph).graph.initializer)
