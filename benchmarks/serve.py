"""What serving costs: the ensemble in Triton beside the expressive model on all candidates, in one server, on the same requests.

    python -m benchmarks.serve --json
    python -m benchmarks.serve --quick --json                      fewer rounds
    python -m benchmarks.serve --light-size 64 --expressive-size 96

Both models at the published sizes with random weights (speed does not ask what they learnt), exported, rendered and served by the
embedded server on loopback, its canary silent. Requests have N candidates of which K are routed. In every round each way answers a
block of requests, in an order of its own; medians over blocks are reported.

    ensemble            light -> hard_select -> expressive, three steps in the server
    expressive on all   the one-step ensemble `hap_all`
    in process          the same graphs by ONNX Runtime in this process, no server: what the server adds is the difference, which is
                        taken at models of the smallest size, too: of published ones it is a small part, and two processes differ by as much
    one step            `hard_select` alone, a graph that costs nothing: what any step and any call cost

Server CPU is user and system time of tritonserver and its stubs; wall time is a caller's. Throughput is what callers in flight at once
get answered by the asyncio client, who share the machine with the server. Steps are Triton's own statistics.
"""

import argparse
import asyncio
import itertools
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from hap.params import Params, Serving, load_params
from hap.ports import free_ports
from hap.project import project_file
from hap.serving import repository, runtime
from hap.serving.bundle import GRAPHS, Bundle
from hap.serving.client import HapClient
from hap.serving.request import RequestTensors
from hap.serving.session import BundleSession
from hap.tables import table
from hap.workspace import Workspace

CASES = ((1000, 200), (1830, 550))
TARGETS = {1000: {"cpu": 0.30, "p50": 0.30, "throughput": 3.3}, 1830: {"cpu": 0.37, "p50": 0.37, "throughput": 3.0}}
EXTRA_MS, SMALL_RATIO = 2.5, 1.05  # CPU that the server may add to the graphs; N <= K over expressive alone
SMALLEST = 8  # size of both models that compute next to nothing
SMALL = 400  # candidates of a request of which all are routed
CONCURRENCY = (1, 2, 4)
MODELS = {"ensemble": "hap", "expressive on all": "hap_all"}


def full_params(light_size: int, expressive_size: int) -> Params:
    """The project's parameters with these sizes, three free ports, and a canary that stays silent."""
    http, grpc, metrics = free_ports(3)
    base = load_params(project_file("params.yaml"))
    return base.model_copy(
        update={
            "light": base.light.model_copy(update={"size": light_size}),
            "expressive": base.expressive.model_copy(update={"size": expressive_size}),
            "serving": Serving(http_port=http, grpc_port=grpc, metrics_port=metrics, canary_s=3600, deadline_s=30),
        }
    )


def made_up_request(params: Params, candidates: int, seed: int) -> RequestTensors:
    """A request of the declared columns with random ids and values."""
    rng, features = np.random.default_rng(seed), params.features
    length = features.history_length

    def ids(*shape: int) -> np.ndarray:
        return rng.integers(1, 2**40, shape, dtype=np.int64)

    def dense(*shape: int) -> np.ndarray:
        return rng.normal(0, 1, shape).astype(np.float32)

    width = {group: (len(features.ids(group)), len(features.dense(group))) for group in ("user", "history", "item")}
    return RequestTensors(
        ids(width["user"][0]), dense(width["user"][1]), ids(length, width["history"][0]), dense(length, width["history"][1]),
        ids(candidates, width["item"][0]), dense(candidates, width["item"][1]),
    )  # fmt: skip


def make_bundle(params: Params, into: Path, seed: int = 1) -> Bundle:
    """Both models with random weights, exported and checked as a retrain does; another seed is another version."""
    import torch

    from hap.models.build import build_model
    from hap.serving.export import export

    torch.manual_seed(seed)
    models = {name: build_model(name, params).eval() for name in ("light", "expressive")}
    return export(models, params, [made_up_request(params, 300, seed) for seed in range(4)], into, {"window": []})


class Server:
    """The processes of the running server, whose CPU is what callers cost."""

    def __init__(self, state: runtime.ServerState) -> None:
        self.root = psutil.Process(state.server_pid)

    def cpu_s(self) -> float:
        """User and system seconds of tritonserver and its stubs so far."""
        processes = [self.root, *self.root.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def rss_mb(self) -> float:
        """Resident memory of all of them."""
        return sum(process.memory_info().rss for process in [self.root, *self.root.children(recursive=True)]) / 2**20


def block(call: Callable[[RequestTensors], object], requests: list[RequestTensors], cpu_s: Callable[[], float]) -> dict[str, Any]:
    """Answer the requests one after another: CPU milliseconds a request, and each one's wall milliseconds."""
    used, walls = cpu_s(), []
    for request in requests:
        begun = time.perf_counter()
        call(request)
        walls.append((time.perf_counter() - begun) * 1e3)
    return {"cpu_ms": (cpu_s() - used) * 1e3 / len(requests), "walls": walls}


Way = tuple[Callable[[RequestTensors], object], Callable[[], float]]  # how a request is answered, and whose CPU that takes


def interleaved(ways: dict[str, Way], requests: list[RequestTensors], rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Each way's CPU (median over blocks), p50 and p99 (over all requests), the ways taking turns."""
    order = random.Random(seed)
    blocks: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for call, cpu_s in ways.values():
        block(call, requests[:3], cpu_s)  # warm
    for _ in range(rounds):
        for name in order.sample(list(ways), len(ways)):
            blocks[name].append(block(ways[name][0], requests, ways[name][1]))
    found = {}
    for name, seen in blocks.items():
        walls = list(itertools.chain.from_iterable(one["walls"] for one in seen))
        found[name] = {
            "cpu_ms": statistics.median(one["cpu_ms"] for one in seen),
            "p50_ms": float(np.quantile(walls, 0.5)),
            "p99_ms": float(np.quantile(walls, 0.99)),
        }
    return found


def throughput(url: str, requests: list[RequestTensors], k: int, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Answers a second by way and number of callers in flight, the ways taking turns."""
    rates: dict[str, dict[str, list[float]]] = {name: {str(many): [] for many in CONCURRENCY} for name in MODELS}
    for _ in range(rounds):
        for many in CONCURRENCY:
            for name, model in MODELS.items():
                rates[name][str(many)].append(asyncio.run(_answered(url, model, requests, k, many, seconds)))
    return {name: {many: statistics.median(seen) for many, seen in by_many.items()} for name, by_many in rates.items()}


async def _answered(url: str, model: str, requests: list[RequestTensors], k: int, many: int, seconds: float) -> float:
    from tritonclient.grpc import aio

    async with aio.InferenceServerClient(url) as client:
        ready = [inputs_of(request, k) for request in requests]
        until, answered = time.perf_counter() + seconds, 0

        async def caller(first: int) -> None:
            nonlocal answered
            for place in itertools.count(first):
                if time.perf_counter() > until:
                    return
                await client.infer(model, ready[place % len(ready)])
                answered += 1

        begun = time.perf_counter()
        await asyncio.gather(*(caller(place) for place in range(many)))
        return answered / (time.perf_counter() - begun)


def inputs_of(request: RequestTensors, k: int | None) -> list[Any]:
    """The request as tritonclient's inputs; None leaves K to the route."""
    from tritonclient.grpc import InferInput

    inputs = []
    for name, array in {**request.arrays(), **({} if k is None else {"k": np.array([k], np.int64)})}.items():
        entry = InferInput(name, list(array.shape), "INT64" if array.dtype == np.int64 else "FP32")
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    return inputs


def bytes_per_request(request: RequestTensors, k: int) -> dict[str, int]:
    """Payload of a question and its answer, tensors alone."""
    asked = sum(array.nbytes for array in request.arrays().values()) + 8
    return {"asked": asked, "answered": request.candidates * (4 + 1)}


def statistics_of(url: str) -> dict[str, dict[str, int]]:
    """Triton's counters by model: successful requests and nanoseconds in each part."""
    from tritonclient.grpc import InferenceServerClient

    seen: dict[str, dict[str, int]] = {}
    with InferenceServerClient(url) as client:
        statistics = client.get_inference_statistics().model_stats
    for entry in statistics:
        inference = entry.inference_stats
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        seen[entry.name] = {"count": inference.success.count, "total": inference.success.ns}
        seen[entry.name] |= {part: getattr(inference, part).ns for part in parts}
    return seen


def steps_between(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    """Milliseconds a request of each part of each step."""
    found = {}
    for name, now in after.items():
        count = now["count"] - before.get(name, {}).get("count", 0)
        if count:
            found[name] = {
                part: (value - before.get(name, {}).get(part, 0)) / count / 1e6 for part, value in now.items() if part != "count"
            }
    return found


def measure_case(
    client: HapClient, server: Server, session: BundleSession, params: Params, candidates: int, k: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Everything about requests of one size."""
    requests = [made_up_request(params, candidates, seed) for seed in range(args.block)]
    ways: dict[str, Way] = {
        "ensemble": (lambda request: client.score(request, k=k, model="hap"), server.cpu_s),
        "expressive on all": (lambda request: client.score(request, k=k, model="hap_all"), server.cpu_s),
        "in process": (lambda request: session.score(request, k), time.process_time),
        "in process, expressive on all": (lambda request: session.score_all(request), time.process_time),
    }
    found = interleaved(ways, requests, args.rounds, seed=candidates)
    before = statistics_of(client.url)
    for request in requests:
        client.score(request, k=k, model="hap")
    steps = steps_between(before, statistics_of(client.url))
    rates = throughput(client.url, requests, k, args.seconds, args.throughput_rounds)
    ours, other = found["ensemble"], found["expressive on all"]
    return {
        "candidates": candidates,
        "k": k,
        "ways": found,
        "throughput": rates,
        "ratios": {
            "cpu": over(ours["cpu_ms"], other["cpu_ms"]),
            "p50": over(ours["p50_ms"], other["p50_ms"]),
            "throughput": {many: over(rates["ensemble"][many], rates["expressive on all"][many]) for many in rates["ensemble"]},
        },
        "server_adds_cpu_ms": ours["cpu_ms"] - found["in process"]["cpu_ms"],
        "steps_ms": {name: steps[name] for name in ("hap", *GRAPHS[:3]) if name in steps},
        "bytes": bytes_per_request(requests[0], k),
    }


def over(one: float, other: float) -> float:
    """A ratio; NaN over nothing, which a few requests between two ticks of the CPU clock take."""
    return one / other if other else float("nan")


def measure_small(client: HapClient, server: Server, params: Params, k: int, args: argparse.Namespace) -> dict[str, Any]:
    """Requests of which every candidate is routed: as the client asks, beside the expressive member asked by its own name."""
    requests = [made_up_request(params, SMALL, seed) for seed in range(args.block)]
    ways: dict[str, Way] = {
        "client": (lambda request: client.score(request, k=k), server.cpu_s),
        "expressive alone": (lambda request: client.score(request, k=k, model="expressive_all"), server.cpu_s),
    }
    found = interleaved(ways, requests, args.rounds, seed=SMALL)
    equal = all(np.array_equal(client.score(one, k=k).score, client.score(one, k=k, model="expressive_all").score) for one in requests)
    ratio = {name: over(found["client"][name], found["expressive alone"][name]) for name in ("cpu_ms", "p50_ms")}
    return {"candidates": SMALL, "k": k, "ways": found, "ratio": ratio, "equal_scores": equal}


def measure_floor(url: str, server: Server, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What one step costs that computes next to nothing."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    entry = InferInput("light_score", [100], "FP32")
    entry.set_data_from_numpy(np.linspace(0, 1, 100, dtype=np.float32))
    with InferenceServerClient(url) as client:
        ways: dict[str, Way] = {"one step": (lambda _: client.infer("hard_select", [entry]), server.cpu_s)}
        return interleaved(ways, [None] * args.block, args.rounds, seed=0)  # type: ignore[list-item]


@contextmanager
def serving(params: Params) -> Iterator[tuple[HapClient, Server, Bundle]]:
    """A server of freshly exported models while the block runs."""
    with tempfile.TemporaryDirectory(prefix="hap-serve-") as scratch:
        ws = Workspace(Path(scratch) / "ws")
        ws.state.mkdir(parents=True)
        say(f"exporting light {params.light.size} and expressive {params.expressive.size}, starting the server")
        bundle = make_bundle(params, Path(scratch) / "bundle")
        repository.render(bundle, 1, ws.triton)
        repository.pin(ws.triton, 1, [1])
        state = runtime.start(ws, params, detach=True, tied=True)
        assert state is not None  # a detached start returns the state
        try:
            with HapClient(state.grpc_url, deadline_s=30) as client:
                yield client, Server(state), bundle
        finally:
            runtime.stop(ws)


def measure_added(args: argparse.Namespace) -> dict[str, float]:
    """CPU milliseconds a request that the server adds to graphs of the smallest size, by candidates; tensors and steps are the same."""
    params = full_params(SMALLEST, SMALLEST)
    found = {}
    with serving(params) as (client, server, bundle):
        session = BundleSession(bundle)
        for candidates, k in CASES:
            requests = [made_up_request(params, candidates, seed) for seed in range(5 * args.block)]  # a clock tick is 10 ms
            ways: dict[str, Way] = {
                "ensemble": (lambda request, k=k: client.score(request, k=k, model="hap"), server.cpu_s),  # type: ignore[misc]
                "in process": (lambda request, k=k: session.score(request, k), time.process_time),  # type: ignore[misc]
            }
            seen = interleaved(ways, requests, args.rounds, seed=candidates)
            found[str(candidates)] = seen["ensemble"]["cpu_ms"] - seen["in process"]["cpu_ms"]
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export, serve, measure, stop."""
    params = full_params(args.light_size, args.expressive_size)
    with serving(params) as (client, server, bundle):
        session = BundleSession(bundle)
        floor = measure_floor(client.url, server, args)
        cases = []
        for candidates, k in CASES:
            say(f"{candidates} candidates, {k} routed")
            cases.append(measure_case(client, server, session, params, candidates, k, args))
        say(f"{SMALL} candidates, all routed")
        small = measure_small(client, server, params, CASES[1][1], args)
        memory = server.rss_mb()
        cost = bundle.cost()
    added = measure_added(args)
    return {
        "dense_parameters": cost["dense_parameters"],
        "cases": cases,
        "small": small,
        "floor": floor,
        "server_adds_cpu_ms": added,
        "server_rss_mb": memory,
        "targets": judge(cases, small, added),
        "machine": {
            "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(), "load": os.getloadavg()[0],
            "onnxruntime": version("onnxruntime"), "tritonclient": version("tritonclient"),
        },
    }  # fmt: skip


def judge(cases: list[dict[str, Any]], small: dict[str, Any], added: dict[str, float]) -> list[dict[str, Any]]:
    """Each target with what was measured."""
    rows = []
    for case in cases:
        wanted, size = TARGETS[case["candidates"]], f"{case['candidates']}/{case['k']}"
        rows += [_row(f"{size}: {name} over expressive on all", case["ratios"][name], "at most", wanted[name]) for name in ("cpu", "p50")]
        best = max(case["ratios"]["throughput"].values())
        rows.append(_row(f"{size}: throughput over expressive on all", best, "at least", wanted["throughput"]))
        rows.append(_row(f"{size}: CPU ms added to the smallest graphs", added[str(case["candidates"])], "at most", EXTRA_MS))
    rows.append(_row("N <= K: CPU over expressive alone", small["ratio"]["cpu_ms"], "at most", SMALL_RATIO))
    return rows


def _row(what: str, value: float, word: str, bound: float) -> dict[str, Any]:
    return {"target": what, "value": value, "bound": f"{word} {bound:g}", "met": value <= bound if word == "at most" else value >= bound}


def text(found: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    lines = []
    for case in found["cases"]:
        lines.append(f"{case['candidates']} candidates, {case['k']} routed, {case['bytes']['asked']:,} bytes asked")
        rows = [[name, *(f"{way[key]:.2f}" for key in ("cpu_ms", "p50_ms", "p99_ms"))] for name, way in case["ways"].items()]
        lines += [table(["", "CPU ms", "p50 ms", "p99 ms"], rows), ""]
        rows = [[name, *(f"{rate:.0f}" for rate in rates.values())] for name, rates in case["throughput"].items()]
        lines += [table(["answers a second, in flight:", *map(str, CONCURRENCY)], rows), ""]
        parts = ("queue", "compute_input", "compute_infer", "compute_output", "total")
        rows = [[name, *(f"{step[part]:.2f}" for part in parts)] for name, step in case["steps_ms"].items()]
        lines += [table(["step, ms", *parts], rows), ""]
    floor = found["floor"]["one step"]
    lines.append(f"one step that computes nothing: {floor['cpu_ms']:.2f} ms CPU, p50 {floor['p50_ms']:.2f} ms")
    lines += [f"{'met   ' if row['met'] else 'MISSED'} {row['target']}: {row['value']:.2f}, {row['bound']}" for row in found["targets"]]
    return "\n".join(lines)


def say(line: str) -> None:
    """Progress, which is no answer."""
    print(line, file=sys.stderr, flush=True)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--light-size", type=int, default=152)
    parser.add_argument("--expressive-size", type=int, default=488)
    parser.add_argument("--block", type=int, default=20, help="requests of a block")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each throughput measurement")
    parser.add_argument("--throughput-rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="three rounds of ten requests, one second each")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(words)
    if args.quick:
        args.block, args.rounds, args.seconds, args.throughput_rounds = 10, 3, 1.0, 1
    return args


if __name__ == "__main__":
    asked = parse()
    measured = run(asked)
    print(orjson.dumps(measured, option=orjson.OPT_INDENT_2).decode() if asked.json else text(measured))
