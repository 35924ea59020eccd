"""What the simulated world gives a model to learn, kind by kind, and how fast it is simulated (docs/simulator.md, "What comes of it").

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/simulator.py --requests 8000 --days 3 --epochs 12 --seeds 1

For each named setting and seed: days are simulated and collected as in any workspace, light and expressive are trained on all but
the last, and GAUC by kind is measured on the last. `published light` is the light model without interests. `oracle` ranks by the
true click logit, `coarse` by the part of it that retrieval and pre-ranking know. AUCs depend on seeds and sizes, not on the
hardware; times do.
"""

import argparse
import contextlib
import datetime as dt
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from hap.evaluation.auc import gauc, request_aucs
from hap.logs.cascade import begin, click_logit, coarse_logit, day_chunks
from hap.logs.logged import IDS_PER_DAY
from hap.logs.simulator import SETTINGS, settings_digest, simulate
from hap.logs.world import SimulatorSettings
from hap.models.expressive import HEADS, ExpressiveModel
from hap.params import MODELS, NEGATIVES, Params, load_params
from hap.project import project_file
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.tables import table
from hap.training.feed import Feed
from hap.training.loop import Progress, score_pools, train
from hap.workspace import Workspace

FIRST = dt.date(2026, 1, 1)
Auc = dict[str, float]
BLIND = "no attention"
PUBLISHED = "published light"
TRUTH = {"coarse": coarse_logit, "oracle": click_logit}


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["default", "single-interest", "double-noise"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--requests", nargs="+", type=int, default=[8000], help="requests a day; several sizes are run in turn")
    parser.add_argument("--days", type=int, default=3, help="days of training; one more is the judging day")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--ablation", action="store_true", help="train the expressive model without its attention, too")
    parser.add_argument("--speed-only", action="store_true", help="measure the simulation and train nothing")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    params = load_params(project_file("params.yaml"))
    speeds = [speed(requests, params) for requests in asked.requests]
    runs = []
    if not asked.speed_only:
        for setting in asked.settings:
            for requests in asked.requests:
                for seed in asked.seeds:
                    runs.append(run(setting, requests, asked.days, asked.epochs, seed, params, ablation=asked.ablation))
                    if not asked.json:
                        print(_lines(runs[-1]), flush=True)
    facts = {"settings": settings_digest(), "python": platform.python_version(), "machine": platform.machine()}
    facts |= {name: version(name) for name in ("numpy", "pyarrow", "torch")}
    if asked.json:
        print(json.dumps({"facts": facts, "speed": speeds, "runs": runs}))
    else:
        print(table(["requests a day", "candidate rows", "CPU s", "rows a CPU minute"], [_speed_row(one) for one in speeds]))
        print(facts)


def speed(requests: int, params: Params) -> dict[str, float]:
    """CPU seconds of two simulated days with all their files, and of the warm-up before them."""
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.process_time()
        summary = simulate(scratch, FIRST, 2, requests, 1, params.features)
        cpu_s = time.process_time() - begun
        begun = time.process_time()
        begin(SETTINGS["default"], 1, FIRST, requests)
        warmup_cpu_s = time.process_time() - begun
    rows = summary.rows["candidates"]
    return {"requests": requests, "rows": rows, "cpu_s": cpu_s, "warmup_cpu_s": warmup_cpu_s, "rows_a_minute": 60 * rows / cpu_s}


def run(setting: str, requests: int, days: int, epochs: int, seed: int, params: Params, *, ablation: bool) -> dict[str, Any]:
    """GAUC by kind of both models and of the truth on the judging day."""
    settings = SETTINGS[setting]
    training = params.train.model_copy(update={"days": days, "epochs": epochs, "patience": epochs})
    params = params.model_copy(update={"seed": seed, "train": training})

    def report(progress: Progress) -> None:
        if progress.gauc:  # an epoch is over
            held = " ".join(f"{kind} {value:.3f}" for kind, value in progress.gauc.items())
            print(f"{setting} {requests} seed {seed}: epoch {progress.epoch}, held out {held}", file=sys.stderr, flush=True)

    calendar = [FIRST + dt.timedelta(days=n) for n in range(days + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        ws = Workspace(Path(scratch))
        simulate(ws.logs(params), FIRST, days + 1, requests, seed, params.features, settings=settings)
        for day in calendar:
            collect_day(ws, params, day)
        window, judging = partitions.parquet_files(ws, calendar[:-1]), partitions.parquet_files(ws, calendar[-1:])
        found: dict[str, Auc] = {}
        cpu_s: dict[str, float] = {}
        for name in (PUBLISHED, *MODELS, *([BLIND] if ablation else [])):
            begun = time.process_time()
            light = params.light.model_copy(update={"interests": 0}) if name == PUBLISHED else params.light
            own = params.model_copy(update={"light": light})
            with _without_attention() if name == BLIND else contextlib.nullcontext():
                trained = train({PUBLISHED: "light", BLIND: "expressive"}.get(name, name), own, window, report)
                cpu_s[name] = time.process_time() - begun
                pools = [pool for heldout in (True, False) for pool in Feed(judging, params, heldout=heldout).pools()]
                scores, kinds, counts = score_pools(trained.model, pools, own, torch.device("cpu"))
            found[name] = _gauc(scores, kinds, counts)
        found |= _truth(judging[0], settings, requests, days, seed)
    return {"setting": setting, "requests": requests, "days": days, "epochs": epochs, "seed": seed, "gauc": found, "train_cpu_s": cpu_s}


@contextlib.contextmanager
def _without_attention() -> Iterator[None]:
    """Within the block the expressive model attends to nothing; all else is as it was."""

    def nothing(self: ExpressiveModel, query: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(query), query.new_zeros((len(query), HEADS))

    whole = ExpressiveModel._attend_batch
    ExpressiveModel._attend_batch = nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExpressiveModel._attend_batch = whole  # type: ignore[method-assign]


def _truth(samples: Path, settings: SimulatorSettings, requests: int, days: int, seed: int) -> dict[str, Auc]:
    """GAUC of the world's own scores on the judging day's samples: the days are lived through again beside them."""
    rows = pq.read_table(samples, columns=["request_id", "cand_item_id", "cand_kind"])
    by_number = {request % IDS_PER_DAY: place for place, request in enumerate(rows["request_id"].to_pylist())}
    items, kinds = rows["cand_item_id"].to_pylist(), rows["cand_kind"].to_pylist()
    scores: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] * len(items) for name in TRUTH}
    world = begin(settings, seed, FIRST, requests)
    for day in range(days + 1):
        for chunk in day_chunks(world, day):
            for place, number in enumerate(chunk.number_R if day == days else []):
                if (row := by_number.get(int(number))) is not None:
                    one, candidates = slice(place, place + 1), np.array([items[row]]) - 1
                    for name, score in TRUTH.items():
                        scores[name][row] = score(world, chunk.user_R[one], chunk.at_us_R[one], candidates)[0]
    kind, counts = np.concatenate([np.array(one, np.int8) for one in kinds]), np.array([len(one) for one in items])
    return {name: _gauc(np.concatenate(found).astype(np.float64), kind, counts) for name, found in scores.items()}


def _gauc(scores: np.ndarray, kinds: np.ndarray, counts: np.ndarray) -> Auc:
    grouped = request_aucs(scores, kinds, np.concatenate([[0], np.cumsum(counts)]))
    return {kind: float(gauc(values)) for kind, values in grouped.items()}


def _lines(one: dict[str, Any]) -> str:
    found = {**one["gauc"], "expressive - light": {k: one["gauc"]["expressive"][k] - one["gauc"]["light"][k] for k in NEGATIVES}}
    head = f"{one['setting']}, {one['requests']} requests a day, {one['days']} + 1 days, {one['epochs']} epochs, seed {one['seed']}"
    rows = [[name, *[f"{auc[kind]:.4f}" for kind in NEGATIVES], f"{one['train_cpu_s'].get(name, 0):.0f}"] for name, auc in found.items()]
    return f"{head}\n{table(['score', *NEGATIVES, 'CPU s'], rows)}\n"


def _speed_row(one: dict[str, float]) -> list[str]:
    rows = f"{one['rows']:,}"
    return [f"{one['requests']:,}", rows, f"{one['cpu_s']:.1f} (warm-up {one['warmup_cpu_s']:.1f})", f"{one['rows_a_minute'] / 1e6:.1f} M"]


if __name__ == "__main__":
    sys.exit(main())
