"""Daily retrains from the weights of the day before, against retrains from nothing (`train.warm_start`).

    OMP_NUM_THREADS=1 python benchmarks/warm_start.py
    OMP_NUM_THREADS=1 python benchmarks/warm_start.py --settings fast-drift --json

A chain of days is simulated. Every day, each way of retraining makes a model of the window before it, and GAUC by kind is
measured on the day itself, which no training has seen. `cold` begins with fresh weights; `warm` with those that the same way
made the day before, on the same window, for as many epochs; `warm, 1 epoch` goes once through the window; `warm, newest day` sees the
window's last day alone. All begin alike: the first day's model is a cold one, and its day is not counted. Differences are paired by request
and seed, with 95% intervals over seeds and users (benchmarks/proof/estimates.py). CPU seconds are of training, held-out looks included.
"""

import argparse
import datetime as dt
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it alone

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from benchmarks.proof.estimates import Measured, mean_gauc
from benchmarks.proof.numbers import at_least_one
from benchmarks.proof.variants import OURS, variant_params
from hap.days import day_range
from hap.evaluation.auc import RequestAuc, request_aucs
from hap.logs.simulator import SETTINGS, settings_digest, simulate
from hap.models.build import save_model
from hap.params import MODELS, NEGATIVES, Params, load_params
from hap.project import project_file
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.tables import table
from hap.training.feed import Feed, Pool
from hap.training.loop import Trained, score_pools, train
from hap.workspace import Workspace

FIRST = dt.date(2026, 1, 1)
WORLD_SEED = 1
COLD = "cold"
WAYS = (COLD, "warm", "warm, 1 epoch", "warm, newest day")


class Chain:
    """One way of retraining, day after day, of one model and seed."""

    def __init__(self, way: str, model: str, params: Params, folder: Path) -> None:
        self.way, self.model, self.params, self.folder = way, model, params, folder
        self.cpu_s: list[float] = []
        self.epochs: list[int] = []

    def retrain(self, window: list[list[Path]], first: bool) -> Trained:
        """Make the day's model from the window's files by day, and keep it for tomorrow."""
        cold = first or self.way == COLD
        params = self.params
        if not cold and self.way == "warm, 1 epoch":
            params = params.model_copy(update={"train": params.train.model_copy(update={"epochs": 1})})
        days = window[-1:] if not cold and self.way == "warm, newest day" else window
        begun = time.process_time()
        trained = train(
            self.model, params, [path for day in days for path in day], lambda progress: None,
            warm=None if cold else self.folder / "model.pt",
        )  # fmt: skip
        self.cpu_s.append(time.process_time() - begun)
        self.epochs.append(trained.best_epoch)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_model(trained.model, self.folder, trained.facts)
        return trained


def run(asked: argparse.Namespace, setting: str, folder: Path) -> dict[str, Any]:
    """Every way of every model in one world."""
    base = load_params(project_file("params.yaml"))
    ws = Workspace(folder.resolve())
    calendar = day_range(FIRST, FIRST + dt.timedelta(days=asked.window + asked.days))
    simulate(ws.logs(base), FIRST, len(calendar), asked.requests, WORLD_SEED, base.features, settings=SETTINGS[setting])
    for day in calendar:
        collect_day(ws, base, day)
    files = [partitions.parquet_files(ws, [day]) for day in calendar]
    judged = {
        place: [pool for heldout in (True, False) for pool in Feed(files[place], base, heldout=heldout).pools()]
        for place in range(asked.window + 1, len(calendar))
    }
    cluster = np.unique(np.concatenate([_users(pool) for pools in judged.values() for pool in pools]), return_inverse=True)[1]
    found: dict[str, Any] = {}
    for model in asked.models:
        by_way: dict[str, list[dict[str, RequestAuc]]] = {way: [] for way in WAYS}
        costs: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        epochs: dict[str, list[list[int]]] = {way: [] for way in WAYS}
        for seed in asked.seeds:
            params = variant_params(base, OURS, seed, asked.epochs)
            chains = {way: Chain(way, model, params, folder / f"{model}-{seed}-{place}") for place, way in enumerate(WAYS)}
            for way, chain in chains.items():
                aucs = []
                for place in range(asked.window, len(calendar)):
                    trained = chain.retrain(files[place - asked.window : place], first=place == asked.window)
                    if place in judged:
                        scores, kinds, counts = score_pools(trained.model, judged[place], params, torch.device("cpu"))
                        aucs.append(request_aucs(scores, kinds, np.concatenate([[0], np.cumsum(counts)])))
                by_way[way].append({kind: _joined([one[kind] for one in aucs]) for kind in NEGATIVES})
                costs[way].append(chain.cpu_s[1:])
                epochs[way].append(chain.epochs[1:])
                print(f"{setting} {model} seed {seed} {way}: {sum(chain.cpu_s[1:]):.0f} CPU s", file=sys.stderr, flush=True)
        found[model] = {
            way: _figures(by_way, way, cluster) | {"cpu_s_a_day": float(np.mean(costs[way])), "epochs": epochs[way]} for way in WAYS
        }
    return found


def _users(pool: Pool) -> NDArray[np.int64]:
    return pool.user_ids[:, 0]


def _joined(days: list[RequestAuc]) -> RequestAuc:
    return RequestAuc(np.concatenate([one.auc for one in days]), np.concatenate([one.weight for one in days]))


def _figures(by_way: dict[str, list[dict[str, RequestAuc]]], way: str, cluster: NDArray[np.int64]) -> dict[str, Any]:
    gauc: dict[str, float] = {}
    difference: dict[str, list[float]] = {}
    for kind in NEGATIVES:
        ours, cold = (_measured(by_way[one], kind, cluster) for one in (way, COLD))
        gauc[kind] = float(ours.value_S.mean())
        estimate = ours.minus(cold).estimate()
        difference[kind] = [estimate.value, estimate.lo, estimate.hi]
    return {"gauc": gauc, "minus_cold": difference}


def _measured(seeds: list[dict[str, RequestAuc]], kind: str, cluster: NDArray[np.int64]) -> Measured:
    return mean_gauc([one[kind] for one in seeds], cluster)


def lines(setting: str, found: dict[str, Any]) -> str:
    """One row for each way."""
    rows = []
    for model, ways in found.items():
        for way, one in ways.items():
            shown = [f"{one['gauc'][kind]:.4f}" for kind in NEGATIVES]
            if way != COLD:
                shown = [f"{value:+.4f} [{lo:+.4f}, {hi:+.4f}]" for value, lo, hi in one["minus_cold"].values()]
            rows.append([setting, model, way, *shown, f"{one['cpu_s_a_day']:.1f}"])
    return table(["world", "model", "way", *NEGATIVES, "CPU s a day"], rows)


def main() -> None:
    """Make the worlds, retrain through their days and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["default"], help="of the simulator (default: default)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(default: both)")
    parser.add_argument("--requests", type=at_least_one, default=3000, help="of a day (default 3000)")
    parser.add_argument("--window", type=at_least_one, default=4, help="days that train (default 4)")
    parser.add_argument("--days", type=at_least_one, default=4, help="days that judge, after the first (default 4)")
    parser.add_argument("--epochs", type=at_least_one, default=6, help="of every training but the way of one epoch (default 6)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of the trainings (default 1 2 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    answer: dict[str, Any] = {}
    for setting in asked.settings:
        with tempfile.TemporaryDirectory() as folder:
            answer[setting] = run(asked, setting, Path(folder))
        if not asked.json:
            print(lines(setting, answer[setting]), flush=True)
    facts = {"settings": settings_digest(), "python": platform.python_version(), "machine": platform.machine(), "torch": version("torch")}
    if asked.json:
        print(orjson.dumps({"facts": facts, "worlds": answer}).decode())


if __name__ == "__main__":
    main()
