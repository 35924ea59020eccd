"""The model repository that Triton serves: rendered versions of the members, and the pins that say which version `hap` is.

Layout: MEMBER/config.pbtxt (all its loaded versions) and MEMBER/N/; hap/config.pbtxt and hap_all/config.pbtxt are the
pins; hap/N/ holds version N's schema.json and a canary request, is written last, and marks the version as rendered.
The ensembles carry the number of the version they serve, so an answer's own model_version says which version gave it.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from hap import durable
from hap.errors import DataError, NotFound
from hap.params import TensorRT
from hap.project import project_file
from hap.serving import tensorrt, warmup
from hap.serving.bundle import GOLDEN, GRAPHS, SCHEMA, Bundle, sha256_file, write_golden
from hap.serving.request import TENSORS

if TYPE_CHECKING:
    import jinja2

Backend = Literal["python", "onnxruntime"]
ENSEMBLES = {"hap": ("light", "hard_select", "expressive"), "hap_all": ("expressive_all",)}
CONFIG = "config.pbtxt"
_MARKED = "hap"  # its version folders are written last


@dataclass(frozen=True)
class _Entry:
    """A tensor of a config; dims of feature widths are -1, so that versions with different schemas stand side by side."""

    name: str
    type: str
    dims: tuple[int, ...]
    optional: bool = False


_RANKS = {"user_ids": 1, "user_dense": 1, "hist_ids": 2, "hist_dense": 2, "cand_ids": 2, "cand_dense": 2}
_REQUEST = tuple(_Entry(name, "TYPE_INT64" if name.endswith("_ids") else "TYPE_FP32", (-1,) * _RANKS[name]) for name in TENSORS)
_K = _Entry("k", "TYPE_INT64", (1,), optional=True)
_LIGHT_SCORE, _HARD_INDEX = _Entry("light_score", "TYPE_FP32", (-1,)), _Entry("hard_index", "TYPE_INT64", (-1,))
_ANSWER = (_Entry("score", "TYPE_FP32", (-1,)), _Entry("routed", "TYPE_BOOL", (-1,)))
WIRING: dict[str, tuple[tuple[_Entry, ...], tuple[_Entry, ...]]] = {
    "light": (_REQUEST, (_LIGHT_SCORE,)),
    "hard_select": ((_LIGHT_SCORE, _K), (_HARD_INDEX,)),
    "expressive": ((*_REQUEST, _LIGHT_SCORE, _HARD_INDEX), _ANSWER),
    "expressive_all": ((*_REQUEST, _K), _ANSWER),
    "hap": ((*_REQUEST, _K), _ANSWER),
    "hap_all": ((*_REQUEST, _K), _ANSWER),
}
_ONNX_TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)", "TYPE_BOOL": "tensor(bool)"}


def render(bundle: Bundle, version: int, repo: Path, backend: Backend = "python", gpu: TensorRT | None = None) -> None:
    """Lay a bundle into the repository as version N of every member; nothing is loaded or pinned by it.

    Of a version that is rendered already only what is missing or damaged is laid anew, as it was rendered.

    Args:
        gpu: have the onnxruntime backend run it through TensorRT; None leaves it on the CPU.

    Raises:
        DataError: version N of another bundle stands there, or versions rendered for another backend.
    """
    if (repo / "light" / CONFIG).exists() and (found := _backend(repo)) != backend:
        raise DataError(
            f"{repo} is rendered for the {found} backend and serving.backend is {backend}: stop what serves, move the folder away, "
            "and promote again"
        )
    marker = repo / _MARKED / str(version)
    if (held := _digest_of(marker)) is not None:
        if held != bundle.digest:
            raise DataError(f"{repo} holds another bundle as v{version}; a version never changes, remove the folder if it is not served")
        _lay(bundle, version, repo, backend, distinct=tensorrt.read(marker) is not None)
        return
    prepared = tensorrt.prepared(bundle, gpu, GRAPHS) if gpu else None
    warm_up = warmup.common_shapes([bundle.features.model_dump()]) if backend == "onnxruntime" else None
    _lay(bundle, version, repo, backend, distinct=gpu is not None)
    for name in GRAPHS:
        if not (repo / name / CONFIG).exists():
            durable.write_text(repo / name / CONFIG, _member(name, backend, [version], [prepared], warm_up))
    with durable.new_directory(marker) as folder:
        schema = orjson.loads((bundle.path / SCHEMA).read_bytes())
        durable.write_json(folder / SCHEMA, {"digest": bundle.digest, "features": schema["features"], "route": schema["route"]})
        answered = [entry for entry in bundle.golden() if entry.tensors.candidates]
        write_golden(folder, answered[:1])  # the canary of the running server
        if gpu is not None:
            durable.write_json(folder / tensorrt.FILE, prepared)


def _digest_of(marker: Path) -> str | None:
    """The bundle that a marker speaks of; None where there is none, or it does not read."""
    try:
        return str(orjson.loads((marker / SCHEMA).read_bytes())["digest"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def _lay(bundle: Bundle, version: int, repo: Path, backend: Backend, distinct: bool) -> None:
    """The version folders of the members and of `hap_all`; those that hold what they must are left alone, times and all."""
    runner = project_file("triton_repo") / "runner.py"
    for name in GRAPHS:
        folder = repo / name / str(version)
        graph = tensorrt.distinct(bundle.graph(name)) if distinct else None
        wanted = sha256_file(bundle.graph(name)) if graph is None else hashlib.sha256(graph).hexdigest()
        whole = (folder / "model.onnx").is_file() and sha256_file(folder / "model.onnx") == wanted
        if whole and (backend != "python" or (folder / "model.py").is_file()):  # the runner of an older hap goes on serving its versions
            continue
        with durable.new_directory(folder) as building:
            if graph is None:
                shutil.copyfile(bundle.graph(name), building / "model.onnx")
            else:
                durable.write_bytes(building / "model.onnx", graph)
            if backend == "python":
                shutil.copyfile(runner, building / "model.py")
                # A plain file here keeps the stub from writing bytecode: a changed folder makes Triton reload the member at every switch.
                durable.write_bytes(building / "__pycache__", b"")
    if not (repo / "hap_all" / str(version)).is_dir():
        with durable.new_directory(repo / "hap_all" / str(version)) as building:
            durable.write_text(building / "README", "An ensemble has no files of its own; the folder makes it a version.\n")


def rendered(repo: Path) -> list[int]:
    """The versions that stand complete in the repository, ascending."""
    folder = repo / _MARKED
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []


def pin(repo: Path, champion: int | None, loaded: Sequence[int]) -> None:
    """Rewrite which versions the members load, and which one `hap` and `hap_all` are; None leaves the server without a champion.

    Without a version to load, the members' configs stay and name none. Each config is replaced whole; what runs changes when Triton is
    told to load.

    Raises:
        NotFound: a version is not rendered.
        DataError: the champion is not among the loaded ones.
    """
    there, versions = rendered(repo), sorted(set(loaded))
    if missing := sorted(({champion} if champion is not None else set()).union(versions) - set(there)):
        raise NotFound(f"v{missing[0]} is not rendered in {repo}; rendered: {', '.join(f'v{n}' for n in there) or 'none'}")
    if champion is not None and champion not in versions:
        raise DataError(f"the champion v{champion} must be among the loaded versions {versions}: without its members `hap` goes down")
    backend, prepared = _backend(repo), [tensorrt.read(repo / _MARKED / str(version)) for version in versions]
    schemas = [schema_of(repo, version)["features"] for version in versions]
    warm_up = warmup.common_shapes(schemas) if schemas and backend == "onnxruntime" else None
    for name in GRAPHS:
        if versions or (repo / name / CONFIG).exists():
            _rewrite(repo / name / CONFIG, _member(name, backend, versions, prepared, warm_up))
    for name in ENSEMBLES:
        if champion is None:
            (repo / name / CONFIG).unlink(missing_ok=True)
        else:
            _rewrite(repo / name / CONFIG, ensemble_config(repo, name, champion))


def pinned(repo: Path) -> int | None:
    """The version that `hap` is pinned to, or None without a champion.

    Raises:
        DataError: its config does not parse.
    """
    if not (repo / "hap" / CONFIG).exists():
        return None
    return int(parse_config(repo / "hap" / CONFIG).version_policy.specific.versions[0])


def stands(repo: Path, version: int) -> bool:
    """Whether all configs say that the version serves: both ensembles are pinned to it, and every member loads it.

    They are written one by one, so after a kill some may say so and others not.
    """
    try:
        found = {name: list(parse_config(repo / name / CONFIG).version_policy.specific.versions) for name in (*ENSEMBLES, *GRAPHS)}
    except DataError:
        return False
    return all(found[name] == [version] for name in ENSEMBLES) and all(version in found[name] for name in GRAPHS)


def loaded(repo: Path) -> list[int]:
    """The versions that the members' configs name, ascending."""
    config = repo / "light" / CONFIG
    return sorted(parse_config(config).version_policy.specific.versions) if config.exists() else []


def check(repo: Path, version: int) -> None:
    """Look through everything that loading or pinning version N relies on, without a server.

    A dtype or shape that does not fit takes a running ensemble down, so this comes before every load.

    Raises:
        NotFound: the version is not rendered.
        DataError: a config does not parse or is wired wrongly, a file is missing, or a graph does not load; it is named.
    """
    if version not in rendered(repo):
        raise NotFound(f"v{version} is not rendered in {repo}; rendered: {', '.join(f'v{n}' for n in rendered(repo)) or 'none'}")
    check_members(repo)
    for name in GRAPHS:
        config = parse_config(repo / name / CONFIG)
        if config.backend == "python" and not (repo / name / str(version) / "model.py").is_file():
            raise DataError(f"{repo / name / str(version) / 'model.py'} is missing; remove v{version} and promote it again")
        _check_graph(repo / name / str(version) / "model.onnx", name)
    for name in ENSEMBLES:
        if not (repo / name / str(version)).is_dir():
            raise DataError(f"{repo / name / str(version)} is missing; remove v{version} and promote it again")
        if (repo / name / CONFIG).exists():
            check_ensemble(repo, name)


def check_members(repo: Path) -> None:
    """Look through the configs of the members, and the profiles in them where a GPU is asked for.

    Raises:
        DataError: a config does not parse, or is wired wrongly; it is named.
    """
    for name in GRAPHS:
        path = repo / name / CONFIG
        config = parse_config(path)
        _check_entries(path, config, name)
        warmup.check(path, config, {entry.name: (entry.type, len(entry.dims)) for entry in WIRING[name][0] if not entry.optional})
        graphs = [repo / name / str(version) / "model.onnx" for version in config.version_policy.specific.versions]
        tensorrt.check(path, config, name, graphs)


def check_ensemble(repo: Path, ensemble: str, name: str | None = None) -> None:
    """Look through an ensemble's config, under another name where one is given.

    Raises:
        DataError: it does not parse, or is wired to other tensors or to a version that is not loaded.
    """
    path = repo / (name or ensemble) / CONFIG
    config = parse_config(path)
    _check_entries(path, config, ensemble)
    version = list(config.version_policy.specific.versions)
    steps = config.ensemble_scheduling.step
    if tuple(step.model_name for step in steps) != ENSEMBLES[ensemble]:
        raise DataError(f"{path}: its steps are {[step.model_name for step in steps]}, not {list(ENSEMBLES[ensemble])}")
    for step in steps:
        if [step.model_version] != version or step.model_version not in loaded(repo):
            raise DataError(
                f"{path}: step {step.model_name} is pinned to v{step.model_version}; {ensemble} is {version}, loaded are {loaded(repo)}"
            )
        inputs, outputs = WIRING[step.model_name]
        for found, wanted in ((step.input_map, inputs), (step.output_map, outputs)):
            if dict(found) != {entry.name: entry.name for entry in wanted}:
                raise DataError(f"{path}: step {step.model_name} is wired {dict(found)}")


def touch(repo: Path, version: int) -> None:
    """Have the next load of the members make version N anew: Triton takes a folder with a new time for a changed one."""
    for name in GRAPHS:
        os.utime(repo / name / str(version))


def remove(repo: Path, version: int) -> None:
    """Take a version's folders away.

    Raises:
        DataError: the version is pinned or among the loaded ones.
    """
    if version == pinned(repo) or version in loaded(repo):
        raise DataError(f"v{version} is loaded in {repo}; pin other versions first")
    for name in (_MARKED, "hap_all", *GRAPHS):  # the marker first: half removed is not rendered
        shutil.rmtree(repo / name / str(version), ignore_errors=True)


def schema_of(repo: Path, version: int) -> dict[str, Any]:
    """digest, features and route of a rendered version.

    Raises:
        DataError: they do not read.
    """
    path = repo / _MARKED / str(version) / SCHEMA
    try:
        return dict(orjson.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise DataError(f"{path} does not read: {error}") from None


def canary_file(repo: Path, version: int) -> Path:
    """The golden request that the watch of the running server sends."""
    return repo / _MARKED / str(version) / GOLDEN


def ensemble_config(repo: Path, ensemble: str, version: int, name: str | None = None) -> str:
    """The config.pbtxt of an ensemble pinned to a rendered version; under another name it is beside the served one."""
    inputs, outputs = WIRING[ensemble]
    steps = [
        {"name": step, "inputs": [entry.name for entry in WIRING[step][0]], "outputs": [entry.name for entry in WIRING[step][1]]}
        for step in ENSEMBLES[ensemble]
    ]
    schema = orjson.dumps({"version": version, **schema_of(repo, version)}, option=orjson.OPT_SORT_KEYS).decode()
    return _template(
        "ensemble.pbtxt.j2", name=name or ensemble, version=version, inputs=inputs, outputs=outputs, steps=steps, schema=schema
    )


def parse_config(path: Path) -> Any:
    """A config.pbtxt as tritonclient's ModelConfig message.

    Raises:
        DataError: it is missing or does not parse.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except FileNotFoundError:
        raise DataError(f"{path} is missing; promote the version again") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"{path} does not parse: {' '.join(str(error).split())}") from None


def _backend(repo: Path) -> Backend:
    config = repo / "light" / CONFIG
    return "onnxruntime" if config.exists() and parse_config(config).platform == "onnxruntime_onnx" else "python"


def _rewrite(path: Path, text: str) -> None:
    """Write only what differs: loading an ensemble reloads every member whose config has a new time."""
    if not path.exists() or path.read_text() != text:
        durable.write_text(path, text)


def _member(
    name: str, backend: Backend, versions: Sequence[int], prepared: Sequence[Mapping[str, Any] | None], warm_up: warmup.Shapes | None
) -> str:
    """A member's config.pbtxt; `prepared` says of each version what it has for a GPU, None of one for the CPU."""
    inputs, outputs = WIRING[name]
    for_gpu = [one for one in prepared if one is not None]
    on_gpu = bool(for_gpu) and len(for_gpu) == len(versions) and name not in tensorrt.ON_CPU
    return _template(
        "member.pbtxt.j2",
        name=name,
        backend=backend,
        versions=versions,
        inputs=inputs,
        outputs=outputs,
        warm_up=warm_up,
        kind="KIND_GPU" if on_gpu else "KIND_CPU",
        accelerator=tensorrt.accelerator(for_gpu, name) if on_gpu else None,
    )


def _template(file: str, **values: Any) -> str:
    return str(_templates().get_template(file).render(**values))


@functools.cache
def _templates() -> "jinja2.Environment":
    """One for the process: a promotion renders dozens of configs from two templates, and compiling one costs more than rendering it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.fspath(project_file("triton_repo"))),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is protobuf text, quoted by the filter `text`
    )
    environment.filters["text"] = json.dumps
    return environment


def _check_entries(path: Path, config: Any, name: str) -> None:
    if config.max_batch_size:
        raise DataError(f"{path}: max_batch_size is {config.max_batch_size}; a request carries its own N, so it must be 0")
    for side, wanted in zip((config.input, config.output), WIRING[name], strict=True):
        found = [_Entry(entry.name, _type_name(entry), tuple(entry.dims), getattr(entry, "optional", False)) for entry in side]
        if found != list(wanted):
            differing = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), None)
            detail = f"{differing[0]} instead of {differing[1]}" if differing else f"{len(found)} tensors instead of {len(wanted)}"
            raise DataError(f"{path}: wired wrongly: {detail}")


def _type_name(entry: Any) -> str:
    return str(entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[entry.data_type].name)


def _check_graph(path: Path, name: str) -> None:
    import onnxruntime

    from hap.serving.session import session_options

    if not path.is_file():
        raise DataError(f"{path} is missing")
    try:
        session = onnxruntime.InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise DataError(f"{path} does not load: {str(error).splitlines()[0]}") from None
    optional = {entry.name for entry in session.get_overridable_initializers()}
    for found, wanted in ((session.get_inputs(), WIRING[name][0]), (session.get_outputs(), WIRING[name][1])):
        have = {entry.name: (entry.type, len(entry.shape)) for entry in found}
        if wanted is WIRING[name][0]:
            have |= {entry.name: (entry.type, len(entry.shape)) for entry in session.get_overridable_initializers()}
        for entry in wanted:
            must = (_ONNX_TYPES[entry.type], len(entry.dims))
            if have.get(entry.name) != must:
                raise DataError(f"{path}: tensor {entry.name} has (type, rank) {have.get(entry.name)}, must have {must}")
            if entry.optional and entry.name not in optional:
                raise DataError(f"{path}: tensor {entry.name} has no default, so a caller could not leave it out")
