"""The systems that benchmarks/evaluate.py times, one a process, on the same rows and the same draws of requests.

    python -m benchmarks.evaluate_systems SYSTEM SCRATCH FIRST_DRAW DRAWS REQUESTS

Results go to SCRATCH/SYSTEM/*.npy as soon as they are there, CPU seconds and memory to stdout. Rivals take DRAWS draws from
FIRST_DRAW on, and REQUESTS requests; hap takes all of them.
Letters: N rows, R requests, S slices with the whole as the first, K kinds, D draws.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KINDS = 4
SEED = 1  # of the draws
Rows = np.ndarray[Any, Any]
Auc = Callable[[Rows, Rows], float]
DrawnAuc = Callable[[Rows, Rows, Rows], float]
Save = Callable[[str, Rows], None]


class Data(NamedTuple):
    """The scored rows."""

    scores: Rows  # F64[N]
    kind: Rows  # I8[N], 0 for positives, 1 to K for negatives
    offsets: Rows  # I64[R+1]
    slices: Rows  # BOOL[S-1, N]

    def input_bytes(self) -> int:
        return sum(part.nbytes for part in self)


class Draws(NamedTuple):
    """How often each draw took each request, and what of it a rival is measured on."""

    counts: Rows  # U8[D, R]
    first: int
    measured: int
    requests: int


def load(scratch: Path) -> Data:
    return Data(*(np.load(scratch / f"{name}.npy") for name in Data._fields))


class Clock:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, part: str | None = None) -> None:
        """What passed since the last lap belongs to the part; to none, where it is not named."""
        now = time.process_time()
        if part is not None:
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


Run = Callable[[Clock, Save], None]


def hap(data: Data, draws: Draws) -> Run:
    """Everything from one sort: GAUC with the gate's studentised bootstrap, then pooled AUC."""
    from hap.evaluation.auc import by_request, by_score, gauc, rank
    from hap.evaluation.interval import resample
    from hap.evaluation.pooled import bootstrap, pool_rows, weighted

    def run(clock: Clock, save: Save) -> None:
        shape = (len(data.slices) + 1, KINDS)
        order = by_score(data.scores)
        clock.lap("sort")
        ranked = rank(data.scores, data.kind, data.offsets, order=order)
        inside = (None, *(mask[ranked.row] for mask in data.slices))
        grouped = [one for chosen in inside for one in by_request(ranked, chosen).values()]
        of_all = np.reshape([gauc(one) for one in grouped], shape)
        value, weight = np.stack([one.auc for one in grouped], axis=1), np.stack([one.weight for one in grouped], axis=1)
        del ranked, inside, grouped
        drawn = resample(value, weight, len(draws.counts), SEED)
        clock.lap("gauc")
        save("gauc", of_all)
        save("gauc_draws", np.stack([one.drawn for one in drawn]))
        save("request_auc", value)
        save("request_weight", weight)
        del value, weight, drawn
        clock.lap()
        pool = pool_rows(data.scores, data.kind, data.offsets, order=order)
        del order
        chosen = np.concatenate((np.ones((1, pool.row.size), dtype=bool), data.slices[:, pool.row]))
        pooled = weighted(pool, np.ones((len(data.offsets) - 1, 1), dtype=np.int64), chosen)
        pooled_draws = bootstrap(pool, len(draws.counts), SEED, chosen)
        clock.lap("pooled")
        save("pooled", np.stack(list(pooled.values()), axis=1)[:, :, 0])
        save("pooled_draws", np.stack(list(pooled_draws.values()), axis=1))

    return run


def sklearn(data: Data, draws: Draws) -> Run:
    """A loop over roc_auc_score, with its checks of parameters and of finite values off; a draw weighs the rows."""
    from sklearn import set_config
    from sklearn.metrics import roc_auc_score

    set_config(assume_finite=True, skip_parameter_validation=True)

    def drawn(positive: Rows, scores: Rows, times: Rows) -> float:
        return roc_auc_score(positive, scores, sample_weight=times)

    return lambda clock, save: loop(data, draws, clock, save, roc_auc_score, drawn)


def torchmetrics(data: Data, draws: Draws) -> Run:
    """A loop over binary_auroc, with its checks off, in double precision; it takes no weights, so a draw's rows are gathered."""
    import torch
    from torchmetrics.functional.classification import binary_auroc

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # its single precision is some 1e-7 off

    def auc(positive: Rows, scores: Rows) -> float:
        return float(binary_auroc(torch.from_numpy(scores), torch.from_numpy(positive).long(), validate_args=False))

    def drawn(positive: Rows, scores: Rows, times: Rows) -> float:
        rows = torch.repeat_interleave(torch.from_numpy(times).int())
        values, labels = torch.from_numpy(scores)[rows], torch.from_numpy(positive)[rows]
        return float(binary_auroc(values, labels.long(), validate_args=False))

    return lambda clock, save: loop(data, draws, clock, save, auc, drawn)


def loop(data: Data, draws: Draws, clock: Clock, save: Save, auc: Auc, drawn: DrawnAuc) -> None:
    """What a person writes round a function of labels and scores: each quantity's rows once, then draw by draw."""
    positive = data.kind == 0
    whole = np.ones(len(positive), dtype=bool)
    owner = np.repeat(np.arange(len(data.offsets) - 1, dtype=np.int32), np.diff(data.offsets))
    counts = draws.counts[draws.first : draws.first + draws.measured]
    shape = (len(data.slices) + 1, KINDS)
    pooled, pooled_draws = np.empty(shape), np.empty((*shape, len(counts)))
    for s, inside in enumerate((whole, *data.slices)):
        for k in range(KINDS):
            rows = np.flatnonzero((positive & inside) | (data.kind == k + 1))
            labels, scores, of = positive[rows], data.scores[rows], owner[rows]
            pooled[s, k] = auc(labels, scores)
            clock.lap("pooled")
            for d, times in enumerate(counts):
                often = times[of]
                clock.lap("pooled_draws")
                defined = often[labels].any() and often[~labels].any()  # each rival has its own idea of an AUC of one class
                clock.lap()
                pooled_draws[s, k, d] = drawn(labels, scores, often) if defined else np.nan
                clock.lap("pooled_draws")

    chosen = measured_requests(data, draws)
    request_auc = np.full((len(chosen), *shape), np.nan)
    for place, request in enumerate(chosen):
        rows = slice(data.offsets[request], data.offsets[request + 1])
        kind, labels, scores = data.kind[rows], positive[rows], data.scores[rows]
        for s, inside in enumerate((whole[rows], *data.slices[:, rows])):
            clicked = labels & inside
            for k in range(KINDS):
                other = kind == k + 1
                if clicked.any() and other.any():
                    used = clicked | other
                    request_auc[place, s, k] = auc(labels[used], scores[used])
    clock.lap("gauc_requests")
    weighted_means(len(data.offsets) - 1, shape[0] * shape[1], draws.counts)
    clock.lap("gauc_means")
    save("pooled", pooled)
    save("pooled_draws", pooled_draws)
    save("request_auc", request_auc.reshape(len(chosen), -1))


def measured_requests(data: Data, draws: Draws) -> Rows:
    """Places of the requests that a rival's loop is measured on, spread evenly."""
    requests = len(data.offsets) - 1
    return np.unique(np.linspace(0, requests - 1, min(draws.requests, requests)).astype(np.int64))


def weighted_means(requests: int, quantities: int, counts: Rows) -> Rows:
    """GAUC of every draw from AUCs per request, as matrix products; the values are made up, since only time is asked."""
    rng = np.random.default_rng(0)
    value, weight = rng.random((requests, quantities)), rng.integers(0, 4, (requests, quantities)).astype(np.float64)
    chunks = []
    for begin in range(0, len(counts), 100):
        times = counts[begin : begin + 100].astype(np.float64)
        chunks.append((times @ (value * weight)) / (times @ weight))
    return np.concatenate(chunks)


def by_hand(data: Data, draws: Draws) -> Run:
    """Pooled AUC by NumPy with care: each kind sorted once, one cumulative sum of weights a draw and kind, slices by a product."""

    def run(clock: Clock, save: Save) -> None:
        owner = np.repeat(np.arange(len(data.offsets) - 1), np.diff(data.offsets))
        row = np.flatnonzero(data.kind == 0)
        row = row[np.argsort(data.scores[row])]
        inside = np.concatenate((np.ones((1, len(row))), data.slices[:, row]))
        shape = (len(inside), KINDS)
        pooled, pooled_draws = np.empty(shape), np.empty((*shape, draws.measured))
        counts = draws.counts[draws.first : draws.first + draws.measured].astype(np.int64)
        clock.lap("pooled")
        for k in range(KINDS):
            negative = np.flatnonzero(data.kind == k + 1)
            negative = negative[np.argsort(data.scores[negative])]
            of = owner[negative]
            first, last = (np.searchsorted(data.scores[negative], data.scores[row], side=side) for side in ("left", "right"))
            pooled[:, k] = inside @ (first + last) / (2 * inside.sum(axis=1) * len(negative))
            clock.lap("pooled")
            for d, times in enumerate(counts):
                below = np.concatenate(([0], np.cumsum(times[of])))
                drawn = times[owner[row]]
                in_order = inside @ (drawn * (below[first] + below[last]))
                pooled_draws[:, k, d] = in_order / (2 * (inside @ drawn) * below[-1])
            clock.lap("pooled_draws")
        save("pooled", pooled)
        save("pooled_draws", pooled_draws)

    return run


SYSTEMS = {"hap": hap, "sklearn": sklearn, "torchmetrics": torchmetrics, "by-hand": by_hand}


def resident_bytes(field: str) -> int:
    """VmRSS, what this process holds now, or VmHWM, the most it ever held; Linux only.

    getrusage would count the parent's memory at the fork.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(words: list[str]) -> int:
    system, scratch = words[0], Path(words[1])
    data, draws = load(scratch), Draws(np.load(scratch / "counts.npy"), *map(int, words[2:]))
    run = SYSTEMS[system](data, draws)
    level = resident_bytes("VmRSS")  # with imports and rows
    clock, folder = Clock(), scratch / system
    folder.mkdir(exist_ok=True)
    run(clock, lambda name, values: np.save(folder / f"{name}.npy", values))
    peak = resident_bytes("VmHWM") - level
    print(json.dumps({"cpu_s": clock.seconds, "peak_over_input": peak / data.input_bytes()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
