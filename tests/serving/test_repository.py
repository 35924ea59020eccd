from pathlib import Path

import orjson
import pytest

from hap.errors import DataError, NotFound
from hap.params import Feature
from hap.serving import repository, runtime
from hap.serving.bundle import Bundle
from hap.workspace import Workspace
from tests.serving.conftest import free_serving, params_with
from tests.serving.handmade import FEATURES


def test_a_rendered_and_pinned_version_passes_its_check(repo: Path) -> None:
    assert repository.rendered(repo) == [1, 2]
    assert (repository.pinned(repo), repository.loaded(repo)) == (1, [1, 2])
    repository.check(repo, 1)
    repository.check(repo, 2)


def test_an_empty_repository_has_nothing(tmp_path: Path) -> None:
    assert (repository.rendered(tmp_path), repository.pinned(tmp_path), repository.loaded(tmp_path)) == ([], None, [])


def test_both_ensembles_move_together_and_carry_the_versions_number(repo: Path) -> None:
    repository.pin(repo, 2, [1, 2])
    for name in repository.ENSEMBLES:
        config = repository.parse_config(repo / name / "config.pbtxt")
        assert list(config.version_policy.specific.versions) == [2]
        assert {step.model_version for step in config.ensemble_scheduling.step} == {2}


def test_a_switch_leaves_the_members_configs_untouched(repo: Path) -> None:
    before = (repo / "light/config.pbtxt").stat().st_mtime_ns
    repository.pin(repo, 2, [1, 2])
    assert (repo / "light/config.pbtxt").stat().st_mtime_ns == before


def test_without_a_champion_there_is_no_ensemble(repo: Path) -> None:
    repository.pin(repo, None, [1])
    assert repository.pinned(repo) is None
    assert repository.loaded(repo) == [1]


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_with_nothing_to_load_no_version_is_held(bundles: dict[int, Bundle], tmp_path: Path, backend: repository.Backend) -> None:
    repo = tmp_path / backend
    repository.pin(repo, None, [])
    assert not repo.exists()
    repository.render(bundles[1], 1, repo, backend)
    repository.pin(repo, None, [])
    repository.check(repo, 1)
    assert repository.loaded(repo) == [] and repository.rendered(repo) == [1]
    repository.remove(repo, 1)
    assert repository.rendered(repo) == []
    other: repository.Backend = "python" if backend == "onnxruntime" else "onnxruntime"
    with pytest.raises(DataError, match=f"is rendered for the {backend} backend"):
        repository.render(bundles[1], 1, repo, other)
    repository.render(bundles[1], 1, repo, backend)
    repository.pin(repo, 1, [1])
    repository.check(repo, 1)


def test_a_champion_must_be_rendered_and_loaded(repo: Path) -> None:
    with pytest.raises(NotFound, match="v7 is not rendered"):
        repository.pin(repo, 7, [7])
    with pytest.raises(DataError, match="must be among the loaded"):
        repository.pin(repo, 2, [1])
    assert repository.pinned(repo) == 1


def test_rendering_again_changes_nothing_and_another_bundle_is_refused(repo: Path, bundles: dict[int, Bundle]) -> None:
    before = (repo / "light/1/model.onnx").stat().st_mtime_ns
    repository.render(bundles[1], 1, repo)
    assert (repo / "light/1/model.onnx").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="another bundle"):
        repository.render(bundles[2], 1, repo)


def test_rendering_again_lays_anew_what_is_missing_or_damaged_and_nothing_else(repo: Path, bundles: dict[int, Bundle]) -> None:
    (repo / "light/1/model.onnx").write_bytes(b"torn")
    (repo / "hard_select/1/model.py").unlink()
    (repo / "expressive/1/model.py").write_text("# an older runner")
    (repo / "hap/1/schema.json").write_bytes(b"{")
    with pytest.raises(DataError, match=r"hap/1/schema\.json does not read"):
        repository.pin(repo, 1, [1, 2])
    before = (repo / "expressive/1").stat().st_mtime_ns
    repository.render(bundles[1], 1, repo)
    repository.check(repo, 1)
    assert (repo / "light/1/model.onnx").read_bytes() == bundles[1].graph("light").read_bytes()
    assert (repo / "expressive/1").stat().st_mtime_ns == before


def test_a_half_rendered_version_does_not_count_and_is_finished(repo: Path, bundles: dict[int, Bundle]) -> None:
    (repo / "hap/2/schema.json").unlink()
    for part in (repo / "hap/2").iterdir():
        part.unlink()
    (repo / "hap/2").rmdir()
    assert repository.rendered(repo) == [1]
    repository.render(bundles[2], 2, repo)
    assert repository.rendered(repo) == [1, 2]


def test_only_a_version_that_is_not_loaded_can_be_removed(repo: Path) -> None:
    with pytest.raises(DataError, match="v2 is loaded"):
        repository.remove(repo, 2)
    repository.pin(repo, 1, [1])
    repository.remove(repo, 2)
    assert repository.rendered(repo) == [1]
    assert not (repo / "light/2").exists()


def test_the_same_template_renders_for_the_official_container(tmp_path: Path, bundles: dict[int, Bundle]) -> None:
    repository.render(bundles[1], 1, tmp_path, backend="onnxruntime")
    repository.pin(tmp_path, 1, [1])
    repository.check(tmp_path, 1)
    assert repository.parse_config(tmp_path / "light/config.pbtxt").platform == "onnxruntime_onnx"
    assert not (tmp_path / "light/1/model.py").exists()


def samples(repo: Path, member: str) -> list[dict[str, list[int]]]:
    config = repository.parse_config(repo / member / "config.pbtxt")
    return [{name: list(given.dims) for name, given in sample.inputs.items()} for sample in config.model_warmup]


@pytest.fixture
def official(tmp_path: Path, bundles: dict[int, Bundle]) -> Path:
    """v1 pinned and v2 loaded, for the official container."""
    folder = tmp_path / "official"
    for version, bundle in bundles.items():
        repository.render(bundle, version, folder, backend="onnxruntime")
    repository.pin(folder, 1, [1, 2])
    return folder


def test_each_member_is_warmed_with_a_request_of_its_own_columns(official: Path, repo: Path) -> None:
    request = {"user_ids": [2], "user_dense": [1], "hist_ids": [3, 1], "hist_dense": [3, 1], "cand_ids": [8, 1], "cand_dense": [8, 2]}
    for member, wanted in {
        "light": request,
        "hard_select": {"light_score": [8]},
        "expressive": {**request, "light_score": [8], "hard_index": [4]},
        "expressive_all": request,
    }.items():
        assert samples(official, member) == [wanted]
        assert samples(repo, member) == [], "its runner does it, version by version"
    repository.check(official, 1)


def test_versions_with_other_columns_have_no_request_in_common(official: Path, tmp_path: Path) -> None:
    wider = FEATURES.model_copy(update={"user": (*FEATURES.user, Feature(name="mood", type="dense"))})
    schema = orjson.loads((official / "hap/2/schema.json").read_bytes())
    (official / "hap/2/schema.json").write_bytes(orjson.dumps({**schema, "features": wider.model_dump(mode="json")}))
    repository.pin(official, 1, [1, 2])
    assert samples(official, "light") == []
    repository.pin(official, 2, [2])
    assert samples(official, "light")[0]["user_dense"] == [2]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('key: "cand_ids" value { data_type: TYPE_INT64', 'key: "cand_ids" value { data_type: TYPE_FP32', "its warm-up sends"),
        ("dims: [8, 1] zero_data", "dims: [8] zero_data", "its warm-up sends"),
        ('dims: [8, 2] zero_data', 'dims: [-1, 2] zero_data', "leaves the size of cand_dense open"),
    ],
)  # fmt: skip
def test_a_warm_up_that_would_keep_a_member_from_loading_is_found_without_a_server(
    official: Path, before: str, after: str, told: str
) -> None:
    config = official / "light/config.pbtxt"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))
    with pytest.raises(DataError, match=told):
        repository.check(official, 1)


@pytest.mark.triton
def test_the_real_server_takes_the_warm_up_of_each_member(official: Path, repo: Path, tmp_path: Path) -> None:
    """The embedded server lacks the onnxruntime backend, so the samples are sent to the same graphs in the python backend.

    A sample that does not fit keeps its member from loading: with a column too many this test's server does not come up.
    """
    for member in repository.GRAPHS:
        text = (official / member / "config.pbtxt").read_text()
        with open(repo / member / "config.pbtxt", "a") as config:
            config.write(text[text.index("model_warmup") : text.index("instance_group")])
    ws = Workspace(tmp_path)
    state = runtime.start(ws, params_with(free_serving()), detach=True)
    try:
        assert state is not None and (state.champion, state.problem) == (1, None)
    finally:
        runtime.stop(ws)


def corrupt_graph(repo: Path) -> None:
    (repo / "expressive/2/model.onnx").write_bytes(b"not a graph")


def missing_graph(repo: Path) -> None:
    (repo / "light/2/model.onnx").unlink()


def missing_runner(repo: Path) -> None:
    (repo / "light/2/model.py").unlink()


def swapped_graph(repo: Path) -> None:
    (repo / "light/2/model.onnx").write_bytes((repo / "hard_select/2/model.onnx").read_bytes())


def wrong_dtype(repo: Path) -> None:
    config = repo / "light/config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_FP32", "TYPE_FP16"))


def wrong_shape(repo: Path) -> None:
    config = repo / "hap/config.pbtxt"
    config.write_text(config.read_text().replace("dims: [-1, -1]", "dims: [-1]", 1))


def cut_wire(repo: Path) -> None:
    config = repo / "hap/config.pbtxt"
    config.write_text(config.read_text().replace('input_map { key: "hard_index" value: "hard_index" }', ""))


def pin_not_loaded(repo: Path) -> None:
    config = repo / "hap/config.pbtxt"
    config.write_text(config.read_text().replace("model_version: 1", "model_version: 3"))


def syntax_error(repo: Path) -> None:
    (repo / "hap_all/config.pbtxt").write_text("name: {")


@pytest.mark.parametrize(
    "spoil",
    [corrupt_graph, missing_graph, missing_runner, swapped_graph, wrong_dtype, wrong_shape, cut_wire, pin_not_loaded, syntax_error],
    ids=lambda function: function.__name__,
)
def test_what_would_take_a_server_down_is_found_without_one(repo: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(repo)
    with pytest.raises(DataError) as refused:
        repository.check(repo, 2)
    assert "\n" not in str(refused.value)
    assert str(repo) in str(refused.value)
