"""A bundle's graphs on requests, in a process of their own that says which before each.

    python -m hap.serving.trial FOLDER REQUESTS ANSWERS

A graph that ONNX Runtime fuses badly ends its process instead of raising, and one that never comes to an end would keep a promotion
from ending. So graphs run here first, before a server or hapctl itself meets them, and what they answer is ONNX Runtime's side of parity.
"""

import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from hap.errors import DataError, HapError
from hap.params import Features, Route
from hap.serving.bundle import GOLDEN, SCHEMA, Bundle, Golden, read_golden, write_golden
from hap.serving.parity import asked
from hap.serving.server import die_with_parent
from hap.serving.session import BundleSession

LOADING_S = 120.0  # importing ONNX Runtime and loading four graphs
STEP_S = 20.0  # one graph on one request; milliseconds are usual


@dataclass(frozen=True, eq=False)
class Tried:
    """One answer: score F32[N], routed BOOL[N], and the light logit F32[N]."""

    score: NDArray[np.float32]
    routed: NDArray[np.bool_]
    light: NDArray[np.float32]


def tried(folder: Path, requests: Sequence[Golden], step_s: float = STEP_S) -> list[Tried]:
    """What the graphs in `folder` answer to `asked(requests)`, from a process of their own.

    Args:
        step_s: that one graph may take for one request.

    Raises:
        DataError: a graph does not load, raises, ends the process or takes too long; graph and request are named.
    """
    with tempfile.TemporaryDirectory(prefix="hap-trial-") as scratch:
        answers = Path(scratch) / "answers.npz"
        write_golden(Path(scratch), requests)
        words = [sys.executable, "-P", "-m", __name__, str(folder), str(Path(scratch) / GOLDEN), str(answers)]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            last = _follow(process, step_s)
            if process.wait():
                errors.seek(0)
                killed = f"signal {-process.returncode}" if process.returncode < 0 else ""
                why = last.too_late or killed or (errors.read().strip().splitlines() or ["no message"])[-1]
                raise DataError(f"a graph fails at {last.step}: {why}")
        with np.load(answers, allow_pickle=False) as stored:
            count = len(asked(requests))
            return [Tried(**{field.name: stored[f"{place}/{field.name}"] for field in fields(Tried)}) for place in range(count)]


@dataclass
class _Last:
    """What the process said it was at, and why it was ended, if it was."""

    step: str = "the first graph"
    too_late: str = ""


def _follow(process: "subprocess.Popen[str]", step_s: float) -> _Last:
    """Read its lines until it ends; kill it where the next line takes too long."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.strip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    last, limit = _Last(), LOADING_S
    while True:
        try:
            line = lines.get(timeout=limit)
        except queue.Empty:
            last.too_late = f"no answer within {limit:g} s"
            process.kill()
            return last
        if line is None:
            return last
        if line != "loading":
            limit = step_s
        last.step = line


def main(folder: Path, requests: Path, answers: Path) -> int:
    """Smallest requests first: N = 0 and 1 are where graphs die."""
    schema = orjson.loads((folder / SCHEMA).read_bytes())
    print("loading", flush=True)
    try:
        session = BundleSession(Bundle(folder, Features.model_validate(schema["features"]), Route.model_validate(schema["route"]), "", {}))
    except HapError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found: dict[str, NDArray[np.generic]] = {}
    for place, (ensemble, golden) in sorted(enumerate(asked(read_golden(requests))), key=lambda entry: entry[1][1].tensors.candidates):
        told = f"{golden.name} ({golden.tensors.candidates} candidates)"
        print(f"light, {told}", flush=True)
        light = session.light(golden.tensors)
        print(f"expressive_all, {told}", flush=True)
        score, routed = session.score_all(golden.tensors)
        if ensemble == "hap":
            print(f"hap, {told}", flush=True)
            score, routed = session.score(golden.tensors, golden.k)
        found |= {f"{place}/score": score, f"{place}/routed": routed, f"{place}/light": light}
    with open(answers, "wb") as handle:
        np.savez(handle, **found)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    die_with_parent()  # a killed promotion leaves nothing that goes on trying
    sys.exit(main(*map(Path, sys.argv[1:])))
