"""Serves the model.onnx beside it through ONNX Runtime: the `python` backend's stand-in for the onnxruntime backend.

It runs in the Triton runtime's own venv, so it imports nothing of hap.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
WARM_ROWS = 8  # candidates of the one request that initialize() runs, so that the first caller pays nothing


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        # One sleeping thread: more were slower, and spinning ones steal the cores of the other stubs.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        model = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.inputs = {entry.name: entry for entry in self.session.get_inputs()}
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        self.session.run(None, {name: self.warm(entry) for name, entry in self.inputs.items() if name != "k"})

    def warm(self, entry):
        if entry.name == "hard_index":
            return np.arange(WARM_ROWS // 2, dtype=np.int64)
        shape = [size if isinstance(size, int) else WARM_ROWS for size in entry.shape]
        return np.ones(shape, DTYPES[entry.type])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        # An absent optional tensor keeps the default that the graph carries as its initializer.
        feed = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        rows = {name: len(array) for name, array in feed.items() if name in ("cand_ids", "cand_dense", "light_score")}
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(rows.items()))
            return self.error(f"the tensors disagree on the number of candidates: {counts}")
        try:
            found = self.session.run(None, feed)
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            return self.error(str(error))
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(self.outputs, found, strict=True)])

    def error(self, message):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
