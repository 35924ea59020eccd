"""A bundle scored in this process through ONNX Runtime: the same graphs that Triton serves, without a server."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hap.errors import DataError
from hap.serving.bundle import GRAPHS, Bundle
from hap.serving.merge import NAN_SCORE, logit_and_ctr, merge
from hap.serving.request import RequestTensors

if TYPE_CHECKING:
    import onnxruntime


class BundleSession:
    """The four graphs of a bundle, loaded; one thread each, as they are served."""

    def __init__(self, bundle: Bundle) -> None:
        self._sessions = {name: _load(bundle, name) for name in GRAPHS}

    def score(self, tensors: RequestTensors, k: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Merged score F32[N] and routed BOOL[N], as the ensemble `hap` answers."""
        arrays = tensors.arrays()
        (light_score,) = self._run("light", arrays)
        asked = {} if k is None else {"k": np.array([k], np.int64)}
        (hard_index,) = self._run("hard_select", {"light_score": light_score, **asked})
        score, routed = self._run("expressive", {**arrays, "light_score": light_score, "hard_index": hard_index})
        return score, routed

    def score_all(self, tensors: RequestTensors) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Score F32[N] and routed BOOL[N] with every candidate routed, as `hap_all` answers."""
        score, routed = self._run("expressive_all", tensors.arrays())
        return score, routed

    def light(self, tensors: RequestTensors) -> NDArray[np.float32]:
        """The light model's logit F32[N]."""
        (light_score,) = self._run("light", tensors.arrays())
        return light_score

    def expressive(self, tensors: RequestTensors) -> NDArray[np.float32]:
        """The expressive model's logit F32[N] for every candidate, within +-60; NaN where the model gave none.

        The graph answers callers with a number in its place, which a judge of scores must not take for one.
        """
        score, _ = self.score_all(tensors)
        return np.where(score <= NAN_SCORE, np.nan, logit_and_ctr(score)[0]).astype(np.float32)

    def members(self, tensors: RequestTensors) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Light logit, expressive logit of every candidate, and the merged score, F32[N] each, with every model run once.

        The score is merged here by the formula that the graphs are held to by parity.json, so it equals `score`.
        """
        (light,) = self._run("light", tensors.arrays())
        (index,) = self._run("hard_select", {"light_score": light})
        expressive = self.expressive(tensors)
        return light, expressive, merge(light, index, expressive[index])[0]

    def _run(self, name: str, arrays: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        session = self._sessions[name]
        wanted = {entry.name for entry in (*session.get_inputs(), *session.get_overridable_initializers())}
        return list(session.run(None, {key: array for key, array in arrays.items() if key in wanted}))


def session_options() -> "onnxruntime.SessionOptions":
    """One thread that sleeps while it waits: more were slower, and spinning ones steal the neighbours' cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _load(bundle: Bundle, name: str) -> "onnxruntime.InferenceSession":
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(bundle.graph(name)), session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise DataError(f"{bundle.graph(name)} does not load: {str(error).splitlines()[0]}") from None
