"""A caller of benchmarks/switch.py, in a process of its own: asks by the asyncio client and checks every answer.

    python -m benchmarks.switch_client HOST:PORT EXPECTED.npz CALLERS RATE

EXPECTED.npz holds the tensors of one request and what each version answers to it (score-1, score-2). Each caller begins RATE requests a
second, or one after another without a pause where RATE is 0. Prints `asking` after its first answer or failure. Ends when its stdin is
closed, and prints what it saw as JSON: requests, answers by version, failures, and answers that are not wholly of the version they name.
"""

import asyncio
import itertools
import sys
import time
from typing import Any

import numpy as np
import orjson
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

TOLERANCE = 1e-4  # versions differ by far more; the same graphs differ by rounding at most
DEADLINE_S = 10.0
SHOWN = 5  # of what went wrong


async def ask(url: str, inputs: list[Any], expected: dict[int, np.ndarray], callers: int, rate: float) -> dict[str, Any]:
    """Ask until stdin is closed."""
    seen: dict[str, Any] = {"requests": 0, "failed": 0, "mixed": 0, "by_version": {}, "wrong": [], "longest_ms": 0.0}
    over, answered = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, lambda: (sys.stdin.read(), loop.call_soon_threadsafe(over.set)))
    async with aio.InferenceServerClient(url) as client:

        async def caller(first: float) -> None:
            for place in itertools.count():
                if rate:
                    await asyncio.sleep(first + place / rate - time.perf_counter())
                if over.is_set():
                    return
                begun = time.perf_counter()
                seen["requests"] += 1
                try:
                    answer = await client.infer("hap", inputs, client_timeout=DEADLINE_S)
                except InferenceServerException as error:
                    seen["failed"] += 1
                    seen["wrong"] = [*seen["wrong"], str(error)][:SHOWN]
                    continue
                finally:
                    if not answered.is_set():
                        answered.set()
                        print("asking", flush=True)
                seen["longest_ms"] = max(seen["longest_ms"], (time.perf_counter() - begun) * 1e3)
                version, score = int(answer.get_response().model_version), answer.as_numpy("score")
                seen["by_version"][str(version)] = seen["by_version"].get(str(version), 0) + 1
                wanted = expected[version]
                if score is None or score.shape != wanted.shape or not np.abs(score - wanted).max() <= TOLERANCE:  # NaN is no answer
                    seen["mixed"] += 1
                    seen["wrong"] = [*seen["wrong"], f"an answer of v{version} does not hold its scores"][:SHOWN]

        await asyncio.gather(*(caller(time.perf_counter() + (place / callers / rate if rate else 0)) for place in range(callers)))
    return seen


def main(words: list[str]) -> int:
    """Ask, and say what was seen."""
    from benchmarks.serve import inputs_of
    from hap.serving.request import TENSORS, RequestTensors

    url, file, callers, rate = words
    with np.load(file) as stored:
        request = RequestTensors(**{name: stored[name] for name in TENSORS})
        expected = {int(name.removeprefix("score-")): stored[name] for name in stored if name.startswith("score-")}
    print(orjson.dumps(asyncio.run(ask(url, inputs_of(request, None), expected, int(callers), float(rate)))).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
