"""Gradient conflict between the kinds: how large it is, and what softening it brings (docs/results.md, "Softening the conflict").

    OMP_NUM_THREADS=1 python -m benchmarks.conflict look --figures FOLDER
    OMP_NUM_THREADS=1 python -m benchmarks.conflict soften

For each seed, days are simulated and collected as in any workspace. `look` trains both models under each loss and reports norms of
the kinds' gradients and cosines between them, by thirds of the training. `soften` trains under ghcl+bce as it is and
with one remedy at a time, all from the same weights on the same batches, and compares GAUC by kind on a judging day that none
has seen: the difference on the same requests, pooled over the seeds, with one-sided bounds at alpha .05 (requests drawn again, so
the bounds say how far these trained models differ, and the columns by seed how far another training would). Each training keeps its best
epoch by held-out GAUC. CPU seconds a step are of a training without looks, evaluation counted out, and depend on the machine.
"""

import argparse
import datetime as dt
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hap.evaluation.auc import RequestAuc, gauc, request_aucs
from hap.evaluation.interval import paired_interval
from hap.logs.simulator import SETTINGS, settings_digest, simulate
from hap.models.build import save_model
from hap.params import MODELS, NEGATIVES, Params, load_params, resolve
from hap.project import project_file
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.tables import table
from hap.training.conflict import draw_conflict, save_figure
from hap.training.feed import Feed
from hap.training.loop import Progress, Trained, score_pools, train
from hap.workspace import Workspace

FIRST = dt.date(2026, 1, 1)
LOSSES = ("bce", "infonce+bce", "ghcl+bce")
PLAIN = "ghcl+bce"
REMEDIES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "pcgrad": {"train": {"surgery": "pcgrad"}},
    "gradvac": {"train": {"surgery": "gradvac"}},
    "uncertainty": {"loss": {"weighting": "uncertainty"}},
    "curriculum": {"loss": {"weighting": "curriculum"}},
    "sampling": {"train": {"sampling": "conflict", "conflict_steps": 5}},
    "distill": {"light": {"distill": 1.0}},
}
ALPHA, DRAWS = 0.05, 2000


@dataclass(frozen=True)
class Window:
    """The days of one seed: what trains, and what judges."""

    seed: int
    params: Params
    training: list[Path]
    judging: list[Path]


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("look", "soften"))
    parser.add_argument("--setting", choices=SETTINGS, default="default", help="of the simulator (default: default)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--requests", type=int, default=3000, help="requests a day (default 3000)")
    parser.add_argument("--days", type=int, default=3, help="days of training; one more judges (default 3)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each training (default 8)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--remedies", nargs="+", choices=list(REMEDIES)[1:], default=list(REMEDIES)[1:], help="soften: which (default all)")
    parser.add_argument("--conflict-steps", type=int, default=5, help="look: steps between two looks (default 5)")
    parser.add_argument("--figures", type=Path, help="look: folder for a picture of each training (default: none is drawn)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    answer = {"facts": facts(asked), **(look(asked) if asked.part == "look" else soften(asked))}
    print(json.dumps(answer, indent=1) if asked.json else _text(answer))


@contextmanager
def simulated(asked: argparse.Namespace, seed: int) -> Iterator[Window]:
    """The days of a seed, simulated and collected in a scratch workspace."""
    raw = load_params(project_file("params.yaml")).model_dump(mode="json")
    raw["seed"] = seed
    raw["train"] |= {"days": asked.days, "epochs": asked.epochs, "patience": asked.epochs, "conflict_steps": 0, "log_steps": 5}
    params = resolve(raw, "benchmark")
    calendar = [FIRST + dt.timedelta(days=n) for n in range(asked.days + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        ws = Workspace(Path(scratch))
        settings = SETTINGS[asked.setting]
        simulate(ws.logs(params), FIRST, asked.days + 1, asked.requests, seed, params.features, settings=settings)
        for day in calendar:
            collect_day(ws, params, day)
        yield Window(seed, params, partitions.parquet_files(ws, calendar[:-1]), partitions.parquet_files(ws, calendar[-1:]))


def override(params: Params, changes: dict[str, dict[str, Any]]) -> Params:
    """The parameters with some keys of their sections replaced."""
    raw = params.model_dump(mode="json")
    for section, keys in changes.items():
        raw[section] |= keys
    return resolve(raw, "benchmark")


def look(asked: argparse.Namespace) -> dict[str, Any]:
    """Norms and cosines by model, loss and third of the training, averaged over steps and seeds."""
    seen: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    for seed in asked.seeds:
        with simulated(asked, seed) as window:
            for name in asked.models:
                for loss in LOSSES:
                    params = override(window.params, {"loss": {"name": loss}, "train": {"conflict_steps": asked.conflict_steps}})
                    records = train(name, params, window.training, _quiet).conflicts
                    seen.setdefault((name, loss), []).append(records)
                    _say(f"seed {seed}: {name}, {loss}")
                    if asked.figures:
                        picture = draw_conflict(records, f"{name}, {loss}, seed {seed}")
                        save_figure(picture, asked.figures / f"{name}-{loss}-{seed}.png")
    return {"look": [{"model": name, "loss": loss, "thirds": _thirds(runs)} for (name, loss), runs in seen.items()]}


def _thirds(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, dict[str, float]]]:
    """Mean norm by kind, mean cosine by pair and the share of looks in which it is negative, in each third of the steps."""
    found = []
    for third in range(3):
        records = [record for run in runs for record in run[third * len(run) // 3 : (third + 1) * len(run) // 3]]
        cosines = {pair: [r["cosine"][pair] for r in records if pair in r["cosine"]] for pair in records[0]["cosine"]}
        norms = {kind: [r["norm"][kind] for r in records if kind in r["norm"]] for kind in NEGATIVES}
        found.append(
            {
                "norm": {kind: float(np.mean(values)) for kind, values in norms.items() if values},
                "cosine": {pair: float(np.mean(values)) for pair, values in cosines.items()},
                "negative": {pair: float(np.mean(np.array(values) < 0)) for pair, values in cosines.items()},
            }
        )
    return found


def soften(asked: argparse.Namespace) -> dict[str, Any]:
    """GAUC on the judging day with each remedy against none, and what a step costs."""
    aucs: dict[tuple[str, str], list[dict[str, RequestAuc]]] = {}
    costs: dict[tuple[str, str], list[float]] = {}
    epochs: dict[tuple[str, str], list[int]] = {}
    for seed in asked.seeds:
        with simulated(asked, seed) as window, tempfile.TemporaryDirectory() as kept:
            # The expressive model first: the light one learns from it as it was trained without remedies.
            for name in sorted(asked.models):
                for remedy in (PLAIN, *asked.remedies):
                    if remedy == "distill" and name != "light":
                        continue
                    teacher = _teacher(window, Path(kept)) if remedy == "distill" else None
                    params = override(window.params, REMEDIES[remedy])
                    trained, cost = _timed(name, params, window, teacher)
                    if (name, remedy) == ("expressive", PLAIN):
                        save_model(trained.model, Path(kept) / "expressive", trained.facts)
                    key = (name, remedy)
                    aucs.setdefault(key, []).append(_judged(trained, window))
                    costs.setdefault(key, []).append(cost)
                    epochs.setdefault(key, []).append(trained.best_epoch)
                    told = " ".join(f"{kind} {gauc(found):.4f}" for kind, found in aucs[key][-1].items())
                    _say(f"seed {seed}: {name}, {remedy}: {told}, epoch {trained.best_epoch}, {1000 * cost:.1f} ms a step")
    rows = []
    for (name, remedy), found in aucs.items():
        plain = aucs[name, PLAIN]
        cost, of_plain = np.array(costs[name, remedy]), np.array(costs[name, PLAIN])
        row: dict[str, Any] = {"model": name, "remedy": remedy, "best_epochs": epochs[name, remedy]}
        row |= {"step_cpu_ms": 1000 * float(np.median(cost)), "step_to_plain": float(np.median(cost / of_plain))}
        row["gauc"] = {kind: gauc(_pooled(found, kind)) for kind in NEGATIVES}
        if remedy != PLAIN:
            row["difference"] = {kind: _difference(plain, found, kind) for kind in NEGATIVES}
        rows.append(row)
    return {"soften": rows}


def _teacher(window: Window, kept: Path) -> Path:
    """The folder of the plain expressive model, trained here where it was not asked for."""
    if not (kept / "expressive" / "model.json").exists():
        trained = train("expressive", window.params, window.training, _quiet)
        save_model(trained.model, kept / "expressive", trained.facts)
    return kept / "expressive"


def _timed(name: str, params: Params, window: Window, teacher: Path | None) -> tuple[Trained, float]:
    """A training, and the CPU seconds of one of its steps: between the first and the last report of each epoch."""
    begun: dict[int, tuple[int, float]] = {}
    ended: dict[int, tuple[int, float]] = {}

    def report(progress: Progress) -> None:
        if progress.gauc is None:
            now = (progress.step, time.process_time())
            begun.setdefault(progress.epoch, now)
            ended[progress.epoch] = now

    trained = train(name, params, window.training, report, teacher=teacher)
    steps = sum(ended[epoch][0] - begun[epoch][0] for epoch in begun)
    return trained, sum(ended[epoch][1] - begun[epoch][1] for epoch in begun) / steps


def _judged(trained: Trained, window: Window) -> dict[str, RequestAuc]:
    """AUC of each request of the judging day, by kind."""
    pools = [pool for heldout in (True, False) for pool in Feed(window.judging, window.params, heldout=heldout).pools()]
    scores, kinds, counts = score_pools(trained.model, pools, window.params, torch.device("cpu"))
    return request_aucs(scores, kinds, np.concatenate([[0], np.cumsum(counts)]))


def _pooled(runs: Sequence[dict[str, RequestAuc]], kind: str) -> RequestAuc:
    return RequestAuc(np.concatenate([run[kind].auc for run in runs]), np.concatenate([run[kind].weight for run in runs]))


def _difference(plain: Sequence[dict[str, RequestAuc]], remedy: Sequence[dict[str, RequestAuc]], kind: str) -> dict[str, Any]:
    """GAUC with the remedy minus GAUC without, on the same requests, and that of each seed."""
    before, after = _pooled(plain, kind), _pooled(remedy, kind)
    pooled = paired_interval(before.auc, after.auc, after.weight, DRAWS, ALPHA, seed=1)
    seeds = [gauc(b[kind]) - gauc(a[kind]) for a, b in zip(plain, remedy, strict=True)]
    return {"point": pooled.point, "lower": pooled.lower, "upper": pooled.upper, "seeds": seeds}


def facts(asked: argparse.Namespace) -> dict[str, Any]:
    """What was run, on what."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent)
    protocol = {key: value for key, value in vars(asked).items() if key not in ("json", "figures")}
    versions = {name: version(name) for name in ("numpy", "torch")}
    machine = {"simulator": settings_digest()[:12], "python": platform.python_version(), "machine": platform.machine(), **versions}
    return {**protocol, **machine, "commit": commit.stdout.strip() or "unknown"}


def _text(answer: dict[str, Any]) -> str:
    lines = []
    for one in answer.get("look", []):
        pairs = list(one["thirds"][0]["cosine"])
        rows = [
            [
                str(place + 1),
                *[f"{third['norm'].get(kind, float('nan')):.4f}" for kind in NEGATIVES],
                *[f"{third['cosine'][p]:+.2f}" for p in pairs],
            ]
            for place, third in enumerate(one["thirds"])
        ]
        lines += [f"{one['model']}, {one['loss']}: mean norms, then mean cosines", table(["third", *NEGATIVES, *pairs], rows), ""]
    if rows := [_soften_row(row) for row in answer.get("soften", [])]:
        lines += [table(["model", "remedy", *NEGATIVES, "ms a step", "to plain"], rows), ""]
        for row in answer["soften"]:
            for kind, found in row.get("difference", {}).items():
                seeds = " ".join(f"{value:+.4f}" for value in found["seeds"])
                told = f"{found['point']:+.4f} [{found['lower']:+.4f}, {found['upper']:+.4f}]"
                lines.append(f"{row['model']:10} {row['remedy']:11} {kind:4} {told}  by seed {seeds}")
    return "\n".join([*lines, str(answer["facts"])])


def _soften_row(row: dict[str, Any]) -> list[str]:
    figures = [f"{row['gauc'][kind]:.4f}" for kind in NEGATIVES]
    return [row["model"], row["remedy"], *figures, f"{row['step_cpu_ms']:.1f}", f"{row['step_to_plain']:.2f}"]


def _quiet(_: Progress) -> None:
    """A training that tells nobody."""


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
