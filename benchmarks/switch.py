"""Promotions and rollbacks under load that never stops: does any request fail, or get an answer of two versions?

    python -m benchmarks.switch --json                100 moves
    python -m benchmarks.switch --quick --json        10 moves
    python -m benchmarks.switch --rate 0 --json       as fast as answers come: the machine has no moment left
    python -m benchmarks.switch --soak 300 --json     and then five minutes of full load without a move: does memory stay flat?

Two versions with other weights, registered and served by the embedded server on loopback. They take turns by `promote` and `rollback` as
`hapctl` does them: ledger, fetching, rehearsal, switch, golden requests. Meanwhile a process of its own asks over gRPC
(benchmarks/switch_client.py) and compares every answer with what that version's graphs say here; where Debian's `hey` is installed, it asks
over HTTP beside it. `switch_ms` is the time in which the ensembles are loaded anew; until then, and if it fails, the old version answers.
"""

import argparse
import datetime as dt
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.serve import Server, full_params, made_up_request, make_bundle, say
from hap.params import Params
from hap.registry import promotion, versions
from hap.registry.ledger import open_ledger
from hap.serving import runtime
from hap.serving.bundle import Bundle
from hap.serving.client import HapClient
from hap.serving.request import RequestTensors
from hap.serving.session import BundleSession
from hap.serving.wire import TYPES
from hap.workspace import Workspace

CANDIDATES = 200
LIMIT_MS = 50.0  # of a switch
FLAT = 1.05  # memory after the soak over memory before it
WARM_S = 20.0  # of a soak, before memory counts: caches and arenas fill


def register(ws: Workspace, params: Params, bundles: dict[int, Bundle]) -> None:
    """Both bundles as versions in MLflow."""
    for number, bundle in bundles.items():
        made = versions.register(ws, params, bundle.path, day=dt.date(2026, 1, number), workspace_rev="a", code_rev="b")
        assert made == number


def write_expected(into: Path, bundles: dict[int, Bundle], request: RequestTensors) -> Path:
    """The request, and what each version answers to it in this process."""
    answers = {f"score-{number}": BundleSession(bundle).score(request)[0] for number, bundle in bundles.items()}
    arrays: dict[str, Any] = {**request.arrays(), **answers}
    np.savez(into, **arrays)
    return into


def http_body(request: RequestTensors) -> tuple[bytes, bytes]:
    """JSON header and tensors of a request as Triton's binary tensor data extension has them over HTTP."""
    arrays = request.arrays()
    inputs = [
        {"name": name, "shape": array.shape, "datatype": TYPES[array.dtype.name], "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    header = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return header, b"".join(array.tobytes() for array in arrays.values())


class Callers:
    """The processes that ask."""

    def __init__(self, state: runtime.ServerState, expected: Path, request: RequestTensors, callers: int, rate: float) -> None:
        words = [sys.executable, "-m", "benchmarks.switch_client", state.grpc_url, str(expected), str(callers), str(rate)]
        self.grpc = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.http = self._hey(state, expected.with_name("body.bin"), request, rate) if shutil.which("hey") else None

    def _hey(self, state: runtime.ServerState, body: Path, request: RequestTensors, rate: float) -> "subprocess.Popen[str]":
        header, content = http_body(request)
        body.write_bytes(header + content)
        words = ["hey", "-z", "24h", "-c", "1", "-m", "POST", "-T", "application/octet-stream", "-t", "10"]
        words += ["-q", f"{rate:g}"] if rate else []
        words += ["-H", f"Inference-Header-Content-Length: {len(header)}", "-D", str(body)]
        url = f"http://{state.host}:{state.http_port}/v2/models/hap/infer"
        return subprocess.Popen([*words, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait(self) -> None:
        """Until the callers over gRPC ask: a busy machine imports for seconds."""
        assert self.grpc.stdout is not None
        said = self.grpc.stdout.readline()
        assert said == "asking\n", f"the callers ended at once: {said}"

    def end(self) -> dict[str, Any]:
        """Stop asking; what they saw."""
        said, _ = self.grpc.communicate(timeout=60)  # closes its stdin, which ends it
        seen: dict[str, Any] = orjson.loads(said)
        if self.http is not None:
            self.http.send_signal(2)  # hey prints its summary on an interrupt
            text, _ = self.http.communicate(timeout=60)
            by_status = {status: int(count) for status, count in re.findall(r"\[(\d+)\]\s+(\d+) responses", text)}
            errors = sum(int(count) for count in re.findall(r"\[(\d+)\]\s+(?:Post|Get)", text))
            failed = errors + sum(count for status, count in by_status.items() if status != "200")
            seen["http"] = {"requests": sum(by_status.values()) + errors, "failed": failed, "by_status": by_status, "errors": errors}
        return seen


def moves(ws: Workspace, params: Params, client: HapClient, many: int) -> list[dict[str, float]]:
    """Promotions and rollbacks in turn: each one's switch and whole duration in milliseconds."""
    found = []
    for place in range(many):
        begun, now = time.perf_counter(), dt.datetime.now(dt.UTC)
        if place % 2 == 0:
            moved = promotion.promote(ws, params, 2, server=client, actor="benchmark", now=now, reason="takes turns", force=True)
        else:
            moved = promotion.rollback(ws, params, server=client, actor="benchmark", now=now, reason="takes turns")
        assert moved.switched is not None
        found.append({"switch_ms": moved.switched.switch_ms, "whole_ms": (time.perf_counter() - begun) * 1e3})
        if place % 10 == 9:
            say(f"{place + 1} of {many} moves")
    return found


@contextmanager
def asked_by(state: runtime.ServerState, expected: Path, request: RequestTensors, callers: int, rate: float) -> Iterator[dict[str, Any]]:
    """Callers ask while the block runs; what they saw stands in the yielded dictionary after it."""
    asking, seen = Callers(state, expected, request, callers, rate), dict[str, Any]()
    try:
        asking.wait()
        yield seen
    finally:
        seen.update(asking.end())


def total(seen: dict[str, Any], name: str) -> int:
    """A count over both kinds of callers; hey does not check answers."""
    return int(seen.get(name, 0)) + int(seen.get("http", {}).get(name, 0))


def soak(server: Server, seconds: float) -> dict[str, float]:
    """Memory of the server under load that goes on."""
    time.sleep(min(WARM_S, seconds / 4))
    before, begun = server.rss_mb(), time.perf_counter()
    time.sleep(seconds)
    return {"seconds": time.perf_counter() - begun, "rss_mb_before": before, "rss_mb_after": server.rss_mb()}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Register two versions, serve, move under load, and say what callers saw."""
    params = full_params(args.light_size, args.expressive_size)
    with tempfile.TemporaryDirectory(prefix="hap-switch-") as scratch:
        root, ws = Path(scratch), Workspace(Path(scratch) / "ws")
        for folder in (ws.state, ws.registry, ws.verdicts):
            folder.mkdir(parents=True)
        say("exporting two versions")
        bundles = {number: make_bundle(params, root / f"bundle-{number}", seed=number) for number in (1, 2)}
        register(ws, params, bundles)
        request = made_up_request(params, CANDIDATES, seed=7)
        expected = write_expected(root / "expected.npz", bundles, request)
        say("starting the server")
        state = runtime.start(ws, params, detach=True, tied=True)
        assert state is not None  # a detached start returns the state
        full: dict[str, Any] = {}
        try:
            with HapClient(state.grpc_url, deadline_s=30) as client:
                now = dt.datetime.now(dt.UTC)
                promotion.promote(ws, params, 1, server=client, actor="benchmark", now=now, reason="first", force=True)
                with asked_by(state, expected, request, args.callers, args.rate) as seen:
                    made = moves(ws, params, client, args.moves)
                memory = None
                if args.soak:
                    with asked_by(state, expected, request, args.callers, 0.0) as full:
                        memory = soak(Server(state), args.soak)
            rows = open_ledger(ws, params).verify()
        finally:
            runtime.stop(ws)
    switches = [one["switch_ms"] for one in made]
    requests, failed, mixed = (total(seen, name) + total(full, name) for name in ("requests", "failed", "mixed"))
    return {
        "switches": len(made),
        "rate": args.rate,
        **seen,
        "requests": requests,
        "failed": failed,
        "mixed": mixed,
        "wrong": [*seen["wrong"], *full.get("wrong", [])],
        "max_switch_ms": max(switches),
        "median_switch_ms": statistics.median(switches),
        "slowest_switches_ms": sorted(switches)[-5:],
        "median_whole_ms": statistics.median(one["whole_ms"] for one in made),
        "ledger_rows": rows,
        "soak": memory and {**memory, "requests": total(full, "requests")},
        "targets": {
            "no request failed": failed == 0,
            "no answer was mixed": mixed == 0,
            f"every switch under {LIMIT_MS:g} ms": max(switches) < LIMIT_MS,
            **({"memory flat": memory["rss_mb_after"] <= FLAT * memory["rss_mb_before"]} if memory else {}),
        },
        "machine": {
            "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(), "load": os.getloadavg()[0],
            "tritonclient": version("tritonclient"),
        },
    }  # fmt: skip


def text(found: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    slowest = ", ".join(f"{one:.1f}" for one in found["slowest_switches_ms"])
    lines = [
        f"{found['switches']} moves, {found['requests']:,} requests, {found['failed']} failed, {found['mixed']} mixed",
        f"answers over gRPC by version: {found['by_version']}, the longest took {found['longest_ms']:.0f} ms",
        f"switch: median {found['median_switch_ms']:.1f} ms, the slowest {slowest} ms",
        f"a whole move, with ledger, rehearsal and golden requests: {found['median_whole_ms']:.0f} ms",
    ]
    if "http" in found:
        lines.append(f"of these hey over HTTP: {found['http']}")
    if found["soak"]:
        lines.append(
            "memory: {rss_mb_before:.0f} MB, after {seconds:.0f} s of full load ({requests:,} requests) {rss_mb_after:.0f} MB".format(
                **found["soak"]
            )
        )
    lines += [f"{'met   ' if met else 'MISSED'} {name}" for name, met in found["targets"].items()]
    return "\n".join([*lines, *found["wrong"]])


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--callers", type=int, default=2, help="requests in flight over gRPC")
    parser.add_argument("--rate", type=float, default=15.0, help="requests a second of each of them, and of hey; 0: without a pause")
    parser.add_argument("--light-size", type=int, default=64)
    parser.add_argument("--expressive-size", type=int, default=96)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of load without a move, for memory")
    parser.add_argument("--quick", action="store_true", help="ten moves")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(words)
    if args.quick:
        args.moves = 10
    return args


if __name__ == "__main__":
    asked = parse()
    measured = run(asked)
    print(orjson.dumps(measured, option=orjson.OPT_INDENT_2).decode() if asked.json else text(measured))
