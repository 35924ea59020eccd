"""What is rendered for a GPU: profiles, precision, engines that are not mistaken; and what its check finds. No GPU is used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from hap.errors import DataError
from hap.params import Serving, TensorRT
from hap.serving import repository, tensorrt
from hap.serving.bundle import Bundle, read_bundle, seal_bundle
from hap.serving.session import BundleSession
from tests.serving.handmade import make_bundle, request_of

GPU = TensorRT(opt_candidates=250, max_candidates=3000, engine_cache="/cache/engines", workspace_mb=512)


def config_of(repo: Path, member: str) -> Any:
    return repository.parse_config(repo / member / "config.pbtxt")


def parameters(repo: Path, member: str) -> dict[str, str]:
    (entry,) = config_of(repo, member).optimization.execution_accelerators.gpu_execution_accelerator
    assert entry.name == "tensorrt"
    return dict(entry.parameters)


@pytest.fixture
def gpu_repo(tmp_path: Path, bundles: dict[int, Bundle]) -> Path:
    """v1 pinned and v2 loaded, both for a GPU."""
    repo = tmp_path / "triton"
    for version, bundle in bundles.items():
        repository.render(bundle, version, repo, "onnxruntime", GPU)
    repository.pin(repo, 1, [1, 2])
    return repo


def test_every_free_input_has_a_profile_and_the_rest_has_none(gpu_repo: Path) -> None:
    repository.check(gpu_repo, 1)
    repository.check(gpu_repo, 2)
    assert parameters(gpu_repo, "light") == {
        "precision_mode": "FP32",
        "max_workspace_size_bytes": str(512 * 2**20),
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": "/cache/engines",
        "trt_profile_min_shapes": "cand_dense:0x2,cand_ids:0x1",
        "trt_profile_opt_shapes": "cand_dense:250x2,cand_ids:250x1",
        "trt_profile_max_shapes": "cand_dense:3000x2,cand_ids:3000x1",
    }
    expressive = parameters(gpu_repo, "expressive")
    assert expressive["trt_profile_opt_shapes"] == "cand_dense:250x2,cand_ids:250x1,hard_index:75,light_score:250"  # a share of .3
    assert expressive["trt_profile_max_shapes"].endswith("hard_index:3000,light_score:3000")  # a request's own k may be all of them


def test_all_but_the_hard_selection_run_on_the_gpu(gpu_repo: Path) -> None:
    kinds = {member: config_of(gpu_repo, member).instance_group[0].kind for member in repository.GRAPHS}
    group = config_of(gpu_repo, "light").instance_group[0]
    assert kinds == {"light": group.KIND_GPU, "hard_select": group.KIND_CPU, "expressive": group.KIND_GPU, "expressive_all": group.KIND_GPU}
    assert not config_of(gpu_repo, "hard_select").HasField("optimization")


def test_without_the_parameter_nothing_asks_for_a_gpu(tmp_path: Path, bundles: dict[int, Bundle]) -> None:
    repository.render(bundles[1], 1, tmp_path, "onnxruntime")
    repository.pin(tmp_path, 1, [1])
    for member in repository.GRAPHS:
        config = config_of(tmp_path, member)
        assert not config.HasField("optimization") and config.instance_group[0].kind == config.instance_group[0].KIND_CPU


def test_versions_of_other_columns_or_precision_stand_side_by_side_without_tensorrt(gpu_repo: Path, tmp_path: Path) -> None:
    repository.render(halved(tmp_path / "half"), 3, gpu_repo, "onnxruntime", GPU)
    repository.pin(gpu_repo, 1, [1, 3])
    repository.check(gpu_repo, 3)
    config = config_of(gpu_repo, "light")
    assert not config.HasField("optimization") and config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    repository.pin(gpu_repo, 3, [3])
    repository.check(gpu_repo, 3)
    assert parameters(gpu_repo, "light")["precision_mode"] == "FP16"


def test_versions_get_engines_of_their_own_and_the_same_answers(gpu_repo: Path, bundles: dict[int, Bundle], tmp_path: Path) -> None:
    """ONNX Runtime names a cached engine after the graph's name and structure, which two retrains share."""
    for member in ("light", "expressive", "expressive_all"):
        rendered = [onnx.load(gpu_repo / member / str(version) / "model.onnx") for version in (1, 2)]
        exported = onnx.load(bundles[1].graph(member))
        assert rendered[0].graph.name != rendered[1].graph.name and rendered[0].graph.name.startswith(f"{exported.graph.name}_")
        rendered[0].graph.name = exported.graph.name
        assert rendered[0] == exported
    copy = make_bundle(tmp_path / "copy")
    for member in repository.GRAPHS:
        copy.graph(member).write_bytes((gpu_repo / member / "1" / "model.onnx").read_bytes())
    request = request_of(30)
    assert np.array_equal(BundleSession(copy).score(request)[0], BundleSession(bundles[1]).score(request)[0])


def test_a_free_dimension_that_no_parameter_speaks_of_is_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    model = onnx.load(bundle.graph("light"))
    next(entry for entry in model.graph.input if entry.name == "hist_ids").type.tensor_type.shape.dim[0].dim_param = "L"
    bundle.graph("light").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"light\.onnx: input hist_ids has the shape \[None, 1\]"):
        repository.render(bundle, 1, tmp_path / "triton", "onnxruntime", GPU)
    assert repository.rendered(tmp_path / "triton") == []


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced(",cand_ids:250x1", ""), r"trt_profile_opt_shapes names \['cand_dense'\], .* free shapes in \['cand_dense', 'cand_ids'\]"),
        (replaced("cand_dense:3000x2", "cand_dense:3000x3"), "says cand_dense:.3000, 3., .* has .None, 2."),
        (replaced("cand_dense:250x2", "cand_dense:250"), "says cand_dense:.250., "),
        (replaced("cand_ids:250x1", "cand_ids:4000x1"), "the profile of cand_ids is no range"),
        (replaced("cand_ids:250x1", "cand_ids:manyx1"), "is no list of shapes"),
        (replaced("precision_mode", "precision_modus"), "'precision_modus' is none that hap writes"),
        (replaced('name: "tensorrt"', 'name: "openvino"'), r"its accelerators are \['openvino'\]"),
    ],
    ids=["an input is missing", "columns differ", "a dimension is missing", "no range", "no number", "a key", "another accelerator"],
)
def test_what_a_server_would_refuse_is_found_without_one(gpu_repo: Path, change: Callable[[str], str], said: str) -> None:
    path = gpu_repo / "light/config.pbtxt"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=said) as refused:
        repository.check(gpu_repo, 2)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    with pytest.raises(DataError, match=said):
        repository.check_members(gpu_repo)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tensorrt": {}}, "needs serving.backend: onnxruntime"),
        ({"tensorrt": {"max_candidates": 1000}, "backend": "onnxruntime", "url": "gpu:8001"}, "greater than or equal to 2000"),
        ({"tensorrt": {"opt_candidates": 2500}, "backend": "onnxruntime", "url": "gpu:8001"}, "opt_candidates 2500 is above"),
        ({"tensorrt": {"engine_cache": "engines"}, "backend": "onnxruntime", "url": "gpu:8001"}, "engine_cache"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Serving.model_validate(settings)


def test_the_defaults_take_every_golden_request() -> None:
    serving = Serving.model_validate({"tensorrt": {}, "backend": "onnxruntime", "url": "gpu:8001"})
    assert serving.tensorrt is not None and serving.tensorrt.max_candidates >= 2000


def halved(path: Path) -> Bundle:
    """A bundle with a weight in half precision, as `export.weights: fp16` leaves them."""
    bundle = make_bundle(path, 0.25)
    model = onnx.load(bundle.graph("light"))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), "w/half"))
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["w/half"], ["w"], to=onnx.TensorProto.FLOAT))
    bundle.graph("light").write_bytes(model.SerializeToString())
    seal_bundle(path, {"day": "2026-01-04"})
    return read_bundle(path)


def test_precision_follows_the_weights(tmp_path: Path, bundles: dict[int, Bundle]) -> None:
    assert tensorrt.prepared(bundles[1], GPU, repository.GRAPHS)["precision"] == "FP32"
    assert tensorrt.prepared(halved(tmp_path / "half"), GPU, repository.GRAPHS)["precision"] == "FP16"
