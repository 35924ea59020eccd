"""What the ways of calling cost: gRPC, shared memory, the served log, asyncio; CPU of the client and of the server, and wall time.

    hapctl serve --detach --root WORKSPACE
    python benchmarks/client.py --root WORKSPACE [--candidates 100 1000] [--calls 30] [--rounds 15] [--json]

Requests are random, of the served version's columns. The ways take turns, `--calls` calls each, `--rounds` rounds: CPU is the mean
over rounds, wall time the median. Every way asks for k = 30% of the candidates. `logged` writes every request. The server's CPU is
that of all its processes. CPU ratios hold on a busy machine, wall times do not.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil

from hap.params import Features
from hap.serving.client import AsyncHapClient, HapClient
from hap.serving.request import RequestTensors
from hap.serving.runtime import ServerState, require_server
from hap.workspace import find_workspace

AT_ONCE = 8


def random_request(features: Features, candidates: int, seed: int) -> RequestTensors:
    """A request of the schema's columns with ids up to a million."""
    random, length = np.random.default_rng(seed), features.history_length

    def ids(*shape: int) -> Any:
        return random.integers(1, 10**6, shape)

    def dense(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    return RequestTensors(
        ids(len(features.ids("user"))),
        dense(len(features.dense("user"))),
        ids(length, len(features.ids("history"))),
        dense(length, len(features.dense("history"))),
        ids(candidates, len(features.ids("item"))),
        dense(candidates, len(features.dense("item"))),
    )


def server_cpu_s(state: ServerState) -> float:
    """User and system seconds of the server and its stubs so far."""
    server = psutil.Process(state.server_pid)
    return sum(sum(process.cpu_times()[:2]) for process in (server, *server.children(recursive=True)))


def ways(
    url: str, stack: ExitStack, loop: asyncio.AbstractEventLoop, folder: str
) -> dict[str, Callable[[list[RequestTensors], int], None]]:
    """By name: a function that scores all requests."""

    def in_turn(client: HapClient) -> Callable[[list[RequestTensors], int], None]:
        def call(requests: list[RequestTensors], k: int) -> None:
            for place, request in enumerate(requests, 1):
                client.score(request, k, request_id=place)

        return call

    def by_loop(client: AsyncHapClient, at_once: int) -> Callable[[list[RequestTensors], int], None]:
        async def call(requests: list[RequestTensors], k: int) -> None:
            for begin in range(0, len(requests), at_once):
                await asyncio.gather(*[client.score(request, k) for request in requests[begin : begin + at_once]])

        return lambda requests, k: loop.run_until_complete(call(requests, k))

    waiting = AsyncHapClient(url, 30.0)
    stack.callback(lambda: loop.run_until_complete(waiting.close()))
    options: dict[str, dict[str, Any]] = {
        "grpc": {},
        "shared memory": {"shared_memory": True},
        "logged": {"log_to": folder, "log_share": 1.0},
    }
    found = {name: in_turn(stack.enter_context(HapClient(url, 30.0, **extra))) for name, extra in options.items()}
    return found | {"asyncio": by_loop(waiting, 1), f"asyncio, {AT_ONCE} at once": by_loop(waiting, AT_ONCE)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="the workspace, whose server runs")
    parser.add_argument("--candidates", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--calls", type=int, default=30, help="of a way in a round (default 30)")
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args()
    state = require_server(find_workspace(args.root))
    rows = []
    with ExitStack() as stack:
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hap-served-"))
        called = ways(state.grpc_url, stack, loop, folder)
        with HapClient(state.grpc_url) as client:
            features = client.schema().features
        for candidates in args.candidates:
            requests = [random_request(features, candidates, seed) for seed in range(args.calls)]
            k = max(1, candidates * 3 // 10)
            spent: dict[str, list[tuple[float, float, float]]] = {name: [] for name in called}
            for turn in range(args.rounds + 1):
                for name, call in called.items():
                    before = time.perf_counter(), time.process_time(), server_cpu_s(state)
                    call(requests, k)
                    after = time.perf_counter(), time.process_time(), server_cpu_s(state)
                    if turn:  # the first round warms up
                        spent[name].append(tuple((end - begin) / args.calls * 1000 for begin, end in zip(before, after)))  # type: ignore[arg-type]
            for name, found in spent.items():
                walls, own_cpu, server_cpu = zip(*found)
                wall, own, served = statistics.median(walls), statistics.mean(own_cpu), statistics.mean(server_cpu)
                rows.append({"candidates": candidates, "way": name, "wall_ms": wall, "client_cpu_ms": own, "server_cpu_ms": served})
    about = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    about |= {
        "tritonclient": version("tritonclient"),
        "calls": args.calls,
        "rounds": args.rounds,
        "load_1_min": round(os.getloadavg()[0], 1),
    }
    if args.json:
        print(json.dumps({"about": about, "rows": rows}))
        return 0
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(
        "candidates  way                     client CPU ms   server CPU ms   wall ms   client CPU / grpc   server CPU / grpc   wall / grpc"
    )
    for row in rows:
        plain = next(one for one in rows if one["candidates"] == row["candidates"] and one["way"] == "grpc")
        figures = [row[key] for key in ("client_cpu_ms", "server_cpu_ms", "wall_ms")]
        shares = [row[key] / plain[key] for key in ("client_cpu_ms", "server_cpu_ms", "wall_ms")]
        columns = [f"{figures[0]:>13.2f}", f"{figures[1]:>13.2f}", f"{figures[2]:>7.2f}"]
        columns += [f"{shares[0]:>17.2f}", f"{shares[1]:>17.2f}", f"{shares[2]:>11.2f}"]
        print(f"{row['candidates']:>10}  {row['way']:<22}  " + "   ".join(columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
