"""What a retrain leaves in MLflow: resolved parameters, metrics, curves, pictures, the environment, and the bundle as a version."""

import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import orjson

from hap import __version__, durable
from hap.params import MODELS, Params
from hap.registry import runs, versions
from hap.training.run import read_run
from hap.workspace import Workspace

TRAINING = "training.json"  # among the run's artifacts
Curves = dict[str, list[tuple[int, float]]]


def register(ws: Workspace, params: Params, day: dt.date, revision: str) -> int:
    """Log the run to MLflow and make the bundle a version; a bundle that is one already keeps its number."""
    run, scratch = read_run(ws), ws.state / "figures"
    resolved: dict[str, Any] = {"window": list(run.window), **run.params.model_dump(mode="json")}
    written = {name: orjson.loads((ws.models / name / "curves.json").read_bytes()) for name in MODELS}
    durable.write_json(scratch / TRAINING, training_record(ws))
    files = {"bundle": ws.bundle, "run.yaml": ws.run_file, "metrics.json": ws.root / "metrics.json", TRAINING: scratch / TRAINING}
    files |= _pictures(written, scratch, run.params.loss.name)
    facts = {name: orjson.loads((ws.models / name / "model.json").read_bytes()) for name in MODELS}
    run_id = runs.log_training(ws, params, f"retrain {day}", resolved, _metrics(ws, facts), files, curves_of(written, facts))
    return versions.register(ws, params, ws.bundle, day=day, workspace_rev=revision, code_rev=code_revision(), run_id=run_id)


def training_record(ws: Workspace) -> dict[str, Any]:
    """Everything about the training that the version page shows and that is not in the bundle."""
    run = read_run(ws)

    def read(path: Path) -> Any:
        return orjson.loads(path.read_bytes())

    return {
        "window": read(ws.window_file)["days"],
        "params": run.params.model_dump(mode="json"),
        "warm_start": run.warm_start,
        "models": {name: {part: read(ws.models / name / f"{part}.json") for part in ("model", "curves")} for name in MODELS},
        "spent": {name: read(ws.spent / f"{name}.json") for name in MODELS},
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """What a retrain ran on: machine, Python, and every installed package with its version."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items())),
    }


def code_revision() -> str:
    """The git revision of hap's checkout, with +dirty where it differs; else the installed version."""
    top = Path(__file__).resolve().parent.parent
    if not (top / ".git").exists():
        try:
            return f"hap {importlib.metadata.version('hap')}"
        except importlib.metadata.PackageNotFoundError:
            return f"hap {__version__}"
    found = subprocess.run(["git", "-C", str(top), "describe", "--always", "--abbrev=40", "--dirty=+dirty"], capture_output=True, text=True)
    return found.stdout.strip() or f"hap {__version__}"


def _metrics(ws: Workspace, facts: dict[str, Any]) -> dict[str, float]:
    """Held-out GAUC by model and kind, the figures of each model, and what its training took."""
    measured = orjson.loads((ws.root / "metrics.json").read_bytes())
    metrics: dict[str, float] = {}
    for name in MODELS:
        spent = orjson.loads((ws.spent / f"{name}.json").read_bytes())
        metrics |= {f"{name}.gauc.{kind}": value for kind, value in measured[name]["gauc"].items() if value is not None}
        metrics |= {f"{name}.{key}": float(facts[name][key]) for key in ("best_epoch", "dense_parameters", "parameters", "warm_parameters")}
        metrics |= {f"{name}.train_{key}": spent[key] for key in ("wall_s", "cpu_s", "peak_mb")}
    return metrics


def curves_of(written: dict[str, Any], facts: dict[str, Any]) -> Curves:
    """Losses, gradient norms and pulls by kind and cosines between kinds by training step; held-out GAUC by epoch.

    Args:
        written: curves.json by model; facts: model.json by model.
    """
    curves: Curves = {}
    for name, curve in written.items():
        for epoch, gaucs in enumerate(facts[name]["heldout_gauc_by_epoch"], 1):
            for kind, gauc in gaucs.items():
                if gauc is not None:  # no held-out request has such a pair
                    curves.setdefault(f"{name}.heldout_gauc.{kind}", []).append((epoch, gauc))
        for point in curve["steps"]:
            for term in point.keys() - {"step"}:
                curves.setdefault(f"{name}.loss.{term}", []).append((point["step"], point[term]))
        for seen in curve["conflict"]:
            for kind, norm in seen["norm"].items():
                curves.setdefault(f"{name}.gradient_norm.{kind}", []).append((seen["step"], norm))
            for kind, pull in seen["pull"].items():
                curves.setdefault(f"{name}.logit_pull.{kind}", []).append((seen["step"], pull))
            for pair, cosine in seen["cosine"].items():
                curves.setdefault(f"{name}.gradient_cosine.{pair.replace('|', '-')}", []).append((seen["step"], cosine))
    return curves


def _pictures(written: dict[str, Any], into: Path, loss: str) -> dict[str, Path]:
    """A picture of each training's conflict by the name it gets, where it was looked at."""
    from hap.training.conflict import draw_conflict, save_figure

    drawn = {}
    for name, curve in written.items():
        if records := curve["conflict"]:
            drawn[f"conflict-{name}.png"] = into / f"conflict-{name}.png"
            save_figure(draw_conflict(records, f"{name}, {loss}"), drawn[f"conflict-{name}.png"])
    return drawn
