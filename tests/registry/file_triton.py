"""A stand-in for Triton that keeps its state in a file, so that it outlives the process that promotes, as the real one does.

It follows the rules that matter to a switch: a load reads the configs anew; a member that cannot load keeps its old versions;
an ensemble pinned to a member version that is not loaded goes down; so does one whose member version is unloaded.
"""

import functools
from pathlib import Path

import onnxruntime
import orjson

from hap.errors import ServingError
from hap.serving import repository
from hap.serving.bundle import GRAPHS
from hap.serving.client import Scored
from hap.serving.request import RequestTensors
from hap.serving.session import session_options


@functools.cache
def session_of(graph: bytes) -> onnxruntime.InferenceSession:
    """Made once for each graph: a few graphs are loaded again and again, by hundreds of promotions."""
    return onnxruntime.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])


class FileTriton:
    """Serves the repository `repo`; `down` makes it answer nothing."""

    def __init__(self, repo: Path, state: Path) -> None:
        self.repo, self.state, self.down = repo, state, False
        self.calls: list[str] = []

    def live(self) -> bool:
        return not self.down

    def versions(self, model: str) -> list[int]:
        self._called(f"versions {model}")
        return self._loaded().get(model, [])

    def load(self, model: str) -> None:
        self._called(f"load {model}")
        loaded = self._loaded()
        config = repository.parse_config(self.repo / model / repository.CONFIG)
        wanted = list(config.version_policy.specific.versions)
        if model in GRAPHS:
            for version in wanted:
                self._session(model, version)
        else:
            for step in config.ensemble_scheduling.step:
                if step.model_version not in loaded.get(step.model_name, []):
                    self._save(loaded | {model: []})
                    raise ServingError(f"{model}: version {step.model_version} of {step.model_name} is not loaded")
        self._save(loaded | {model: wanted})

    def unload(self, model: str) -> None:
        self._called(f"unload {model}")
        self._save(self._loaded() | {model: []})

    def score(self, tensors: RequestTensors, k: int | None = None, model: str | None = None) -> Scored:
        self._called(f"score {model}")
        name = model or "hap"
        if not self._loaded().get(name):
            raise ServingError(f"{name} is not loaded")
        (version,) = self._loaded()[name]
        import numpy as np

        arrays = {**tensors.arrays()} | ({} if k is None else {"k": np.array([k], np.int64)})
        for step in repository.parse_config(self.repo / name / repository.CONFIG).ensemble_scheduling.step:
            session = self._session(step.model_name, version)
            wanted = {entry.name for entry in (*session.get_inputs(), *session.get_overridable_initializers())}
            outputs = session.run(None, {key: array for key, array in arrays.items() if key in wanted})
            arrays |= dict(zip((entry.name for entry in session.get_outputs()), outputs, strict=True))
        return Scored(arrays["score"], arrays["routed"], version)

    def serves(self) -> int | None:
        """The version that both ensembles answer with, by their members' loaded versions."""
        loaded = self._loaded()
        hap, every = loaded.get("hap", []), loaded.get("hap_all", [])
        assert hap == every, loaded
        assert all(set(hap) <= set(loaded.get(member, [])) for member in GRAPHS), loaded
        return hap[0] if hap else None

    def _called(self, what: str) -> None:
        if self.down:
            raise ServingError("nothing answers")
        self.calls.append(what)

    def _session(self, model: str, version: int) -> onnxruntime.InferenceSession:
        path = self.repo / model / str(version) / "model.onnx"
        try:
            return session_of(path.read_bytes())
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise ServingError(f"{model} version {version} does not load: {error}") from None

    def _loaded(self) -> dict[str, list[int]]:
        return orjson.loads(self.state.read_bytes()) if self.state.exists() else {}

    def _save(self, loaded: dict[str, list[int]]) -> None:
        used = {model for model in repository.ENSEMBLES if loaded.get(model)}
        for model in used:
            if any(loaded[model][0] not in loaded.get(member, []) for member in repository.ENSEMBLES[model]):
                loaded[model] = []
        self.state.write_bytes(orjson.dumps(loaded))
