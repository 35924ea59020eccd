"""Two trained models -> a sealed bundle: ONNX graphs, schema, golden requests, parity and cost measured."""

import itertools
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import orjson
import torch
from torch import Tensor, nn

from hap import durable
from hap.errors import DataError, HapError
from hap.models.build import dense_parameters, load_model
from hap.models.describe import describe_all
from hap.params import MODELS, Params
from hap.serving import graphs, trial
from hap.serving.agreement import ONNXRUNTIME, PYTORCH, Answers, beside, golden_answers
from hap.serving.bundle import Bundle, read_bundle, seal_bundle, write_golden, write_schema
from hap.serving.golden import golden_requests
from hap.serving.half import rounded, rounding_cost, store_half
from hap.serving.request import TENSORS, RequestTensors
from hap.serving.session import BundleSession
from hap.training.feed import Feed, Pool, window_files
from hap.training.run import Run, read_run
from hap.workspace import Workspace, find_workspace

REAL_REQUESTS = 32  # held-out requests among the golden ones
COST_CANDIDATES = 1000
COST_REPEATS = 60  # the slowest of them is about p99
_TRACED_CANDIDATES = 7  # any number that no other dimension has, so that N stays a dimension of its own


def export(
    models: Mapping[str, nn.Module],
    params: Params,
    requests: Sequence[RequestTensors],
    into: Path,
    info: Mapping[str, Any],
    progress: Callable[[str], None] = lambda line: None,
    measured: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle into the folder `into`, whole or not at all.

    Args:
        models: `light` and `expressive`, each with `score_request`; for export.weights fp16 rounded already (hap.serving.half).
        requests: real ones, at least one of them with candidates; they become golden requests.
        info: goes into bundle.json beside the digests (window, day, ...).
        measured: goes into cost.json beside what is measured here.

    Raises:
        HapError: a graph does not run, dies at some N, takes too long, or differs from PyTorch by more than gate.max_parity.
    """
    real = [request for request in requests if request.candidates][:REAL_REQUESTS]
    if not real:
        raise DataError("export needs at least one held-out request with candidates; the window's samples hold none")
    progress("exporting light and expressive")
    cores = scoring_cores({name: models[name] for name in ("light", "expressive")}, real[0])
    with durable.new_directory(into) as folder:
        made = {
            "light": _renamed(cores["light"], graphs.LOGIT, "light_score"),
            "hard_select": graphs.hard_select_graph(params.route),
            "expressive": graphs.expressive_graph(cores["expressive"]),
            "expressive_all": graphs.expressive_all_graph(cores["expressive"]),
        }
        for name, model in made.items():
            model = store_half(model) if params.export.weights == "fp16" else model
            durable.write_bytes(folder / f"{name}.onnx", model.SerializeToString(deterministic=True))
        write_schema(folder, params.features, params.route)
        golden = golden_requests(models, params, real)
        write_golden(folder, golden)
        progress("trying the graphs")
        answers: Answers = {PYTORCH: golden_answers(golden), ONNXRUNTIME: trial.tried(folder, golden)}
        found = beside(golden, answers, params.gate.max_parity)
        pair = f"{ONNXRUNTIME} / {PYTORCH}"
        by_request = [asdict(one.by_pair[pair]) for one in found.requests]
        durable.write_json(folder / "parity.json", {**found.pairs[pair], "by_request": by_request})
        if found.fault:
            raise HapError(f"the exported graphs are not the models: {found.fault}")
        session = BundleSession(Bundle(folder, params.features, params.route, "", {}))
        progress("measuring cost")
        sizes = {f"{name}.onnx": (folder / f"{name}.onnx").stat().st_size for name in made}
        counts = {name: sum(p.numel() for p in models[name].parameters()) for name in cores}
        dense = {name: dense_parameters(models[name]) for name in cores}
        operations = {one.model: one.cost._asdict() for one in describe_all(params)}
        found_here = {"in_process": cost(session, real), "bytes": sizes, "parameters": counts, "dense_parameters": dense}
        durable.write_json(folder / "cost.json", {**found_here, "operations": operations, **(measured or {})})
        seal_bundle(folder, info)
    return read_bundle(into)


def scoring_cores(models: Mapping[str, nn.Module], request: RequestTensors) -> dict[str, onnx.ModelProto]:
    """Each model's `score_request` as ONNX: the six tensors -> logit F32[N], with N free and every other size fixed.

    All models are traced in one go and taken apart afterwards: the exporter's own preparation costs as much as a trace.
    """
    example = request.repeated(_TRACED_CANDIDATES)
    candidates = torch.export.Dim("N")
    free = {name: {0: candidates} if name.startswith("cand_") else None for name in TENSORS}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it would list operators of torchvision, which nothing here uses
    outputs = {name: f"{name}_{graphs.LOGIT}" for name in models}
    with warnings.catch_warnings():  # torch's exporter warns of its own deprecations
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Serving(list(models.values())).eval(),
            tuple(torch.from_numpy(array) for array in example.arrays().values()),
            input_names=list(TENSORS),
            output_names=list(outputs.values()),
            dynamic_shapes=free,
            opset_version=graphs.OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns None
    whole = program.model_proto
    if [entry.name for entry in whole.graph.input] != list(TENSORS) or whole.functions:
        raise HapError(f"the exported graph has the inputs {[entry.name for entry in whole.graph.input]}")
    apart = onnx.utils.Extractor(whole)
    cores = {name: apart.extract_model(list(TENSORS), [output]) for name, output in outputs.items()}
    return {name: graphs.stripped(_renamed(core, outputs[name], graphs.LOGIT)) for name, core in cores.items()}


def cost(session: BundleSession, real: Sequence[RequestTensors]) -> dict[str, Any]:
    """p50 and p99 wall and p50 CPU milliseconds of the three graphs and of expressive on all, in this process, one thread, interleaved."""
    request = real[0].repeated(COST_CANDIDATES)
    ways: dict[str, Callable[[], object]] = {"hap": lambda: session.score(request), "expressive_all": lambda: session.score_all(request)}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(COST_REPEATS + 2):
        for name, way in ways.items():
            begun, used = time.perf_counter(), time.process_time()
            way()
            if repeat >= 2:  # the first two warm up
                wall[name].append((time.perf_counter() - begun) * 1e3)
                cpu[name].append((time.process_time() - used) * 1e3)
    p50 = {name: statistics.median(times) for name, times in wall.items()}
    return {
        "candidates": COST_CANDIDATES,
        "repeats": COST_REPEATS,
        "p50_ms": p50,
        "p99_ms": {name: float(np.quantile(times, 0.99)) for name, times in wall.items()},
        "cpu_ms": {name: statistics.median(times) for name, times in cpu.items()},
        "p50_ratio": p50["hap"] / p50["expressive_all"],
    }


class _Serving(nn.Module):
    """Models whose forward is score_request, side by side."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(
        self, user_ids: Tensor, user_dense: Tensor, hist_ids: Tensor, hist_dense: Tensor, cand_ids: Tensor, cand_dense: Tensor
    ) -> tuple[Tensor, ...]:
        request = (user_ids, user_dense, hist_ids, hist_dense, cand_ids, cand_dense)
        return tuple(model.score_request(*request) for model in self.models)  # type: ignore[operator]


def _renamed(model: onnx.ModelProto, output: str, name: str) -> onnx.ModelProto:
    """A copy of the model whose output `output` is called `name`."""
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for node in renamed.graph.node:
        for names in (node.output, node.input):
            for place, found in enumerate(names):
                if found == output:
                    names[place] = name
    renamed.graph.output[0].name = name
    onnx.checker.check_model(renamed)
    return renamed


def sampled_requests(ws: Workspace, run: Run, limit: int) -> Iterator[RequestTensors]:
    """Up to `limit` requests with candidates from the window's samples: held-out ones, then trained-on ones where those are too few."""
    files = window_files(ws, run.window)
    pools = itertools.chain.from_iterable(Feed(files, run.params, heldout=heldout).pools() for heldout in (True, False))
    found = (request for pool in pools for request in _requests_of(pool) if request.candidates)
    return itertools.islice(found, limit)


def _requests_of(pool: Pool) -> Iterator[RequestTensors]:
    for row, (start, stop) in enumerate(itertools.pairwise(pool.offsets.tolist())):
        yield RequestTensors(
            pool.user_ids[row],
            pool.user_dense[row],
            pool.hist_ids[row],
            pool.hist_dense[row],
            pool.cand_ids[start:stop],
            pool.cand_dense[start:stop],
        )


def main() -> int:
    """The DVC stage `export`: reads run.yaml, the window's samples and models/, writes bundle/."""
    try:
        ws = find_workspace(None)
        run = read_run(ws)
        torch.set_num_threads(run.params.train.threads)
        models = {name: load_model(ws.models / name, run.params) for name in MODELS}
        # Only what this stage depends on: the judging day is the version's, not the bundle's.
        info: dict[str, Any] = {"window": list(run.window), "seed": run.params.seed, "hap_digest": run.hap_digest}
        info["expressive_kinds"] = list(run.params.expressive.kinds())
        info["members"] = {name: orjson.loads((ws.models / name / "model.json").read_bytes())["window"] for name in MODELS}
        requests = list(sampled_requests(ws, run, REAL_REQUESTS))
        measured: dict[str, Any] = {}
        if run.params.export.weights == "fp16":
            halves = rounded(models)
            heldout = Feed(window_files(ws, run.window), run.params, heldout=True)
            measured["fp16"] = rounding_cost(models, halves, heldout.pools(), run.params)
            models = halves
        export(models, run.params, requests, ws.bundle, info, lambda line: print(line, file=sys.stderr, flush=True), measured)
    except HapError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
