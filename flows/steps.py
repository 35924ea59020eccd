"""The steps of a retrain as plain functions: each is idempotent by itself and knows nothing of Prefect."""

import contextlib
import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from flows.stages import dvc, repro
from flows.talk import current
from hap import __version__, durable
from hap.days import is_ripe, judging_days, training_window
from hap.errors import DataError
from hap.evaluation.gate import Verdict
from hap.logs import contract
from hap.params import KINDS, MODELS, Params
from hap.project import project_file
from hap.registry import promotion, versions
from hap.registry.ledger import open_ledger
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.serving import runtime
from hap.serving.client import HapClient
from hap.training.run import Run, keep_warm_weights, read_run, write_run
from hap.workspace import Workspace, commit


@dataclass(frozen=True)
class Window:
    """The days of one retrain."""

    day: dt.date
    training: tuple[dt.date, ...]
    judging: tuple[dt.date, ...]

    @property
    def days(self) -> tuple[dt.date, ...]:
        return (*self.training, *self.judging)


def window_of(ws: Workspace, params: Params, day: dt.date) -> Window:
    """The training window and judging days of `day`.

    Raises:
        DataError: the logs lack one of them.
    """
    window = Window(day, tuple(training_window(day, params.train.days, params.gate.days)), tuple(judging_days(day, params.gate.days)))
    for needed in reversed(window.days):  # the judging day first: it is the one that was typed
        if partitions.find(ws, needed) is None:
            contract.read_paths(ws.logs(params), "requests", needed)
    return window


def collect(ws: Workspace, params: Params, window: Window) -> None:
    """Collect what the window lacks, and track samples/ as one directory."""
    days = window.days
    for place, day in enumerate(days):
        current().bar("collect", place / len(days), str(day))
        collect_day(ws, params, day)
    dvc(ws, "add", "--quiet", "samples", name="collect")


def prepare(ws: Workspace, params: Params, window: Window) -> Run:
    """Write what the reproducible stages read: dvc.yaml, run.yaml, window.json and heldout.json."""
    durable.write_text(ws.root / "dvc.yaml", project_file("dvc.yaml").read_text())
    durable.write_json(ws.window_file, {"days": _named(ws, window.training)})
    durable.write_json(ws.heldout_file, {"day": window.day.isoformat(), "days": _named(ws, window.judging)})
    warm = warm_start(ws, params, window.day) if params.train.warm_start else None
    return write_run(ws, params, window.day, window.training, window.judging, warm)


def warm_start(ws: Workspace, params: Params, day: dt.date) -> dict[str, str] | None:
    """The weights to begin from: of the last version that served and was judged before the day; None where there is none.

    They come out of DVC at that version's revision, so a rerun of an old day begins where it began then.
    """
    days = {version.number: (version.day, version.workspace_rev) for version in versions.list_versions(ws, params)}
    served = [row.to_version for row in open_ledger(ws, params).rows() if row.state == "served" and row.to_version in days]
    earlier = [number for number in served if number is not None and (days[number][0] or "") < day.isoformat()]
    if not earlier:
        return None
    revision = days[earlier[-1]][1]
    kept = {}
    with tempfile.TemporaryDirectory(dir=ws.state) as folder:
        for name in MODELS:
            out = Path(folder) / name
            dvc(ws, "get", "--quiet", "--rev", str(revision), "--out", str(out), str(ws.root), f"models/{name}", name="warm start")
            kept[name] = keep_warm_weights(ws, out / "model.pt")
    current().say(f"  begins from the weights of v{earlier[-1]}")
    return kept


def train(ws: Workspace, name: str) -> None:
    """Train one member as a DVC stage."""
    repro(ws, f"train@{name}", name=f"train {name}")


def evaluate(ws: Workspace) -> None:
    """Measure both members on the held-out requests as a DVC stage."""
    with current().step("evaluate"):
        repro(ws, "evaluate", name="evaluate")


def export(ws: Workspace) -> None:
    """Build and check the bundle as a DVC stage."""
    with current().step("export"):
        repro(ws, "export", name="export")


def keep(ws: Workspace, params: Params, day: dt.date) -> str:
    """Commit the retrain and push its data to the DVC remote; returns the workspace's revision."""
    revision = commit(ws, f"Retrain judged on {day}")
    if params.storage.push:
        dvc(ws, "push", "--quiet", name="keep")
    return revision


def register(ws: Workspace, params: Params, day: dt.date, revision: str) -> int:
    """Log the run to MLflow and make the bundle a version; a bundle that is one already keeps its number."""
    metrics = orjson.loads((ws.root / "metrics.json").read_bytes())
    flat = {f"{name}.gauc.{kind}": value for name in MODELS for kind, value in metrics[name]["gauc"].items() if value is not None}
    facts = {name: orjson.loads((ws.models / name / "model.json").read_bytes()) for name in MODELS}
    flat |= {f"{name}.{key}": float(facts[name][key]) for name in MODELS for key in ("best_epoch", "dense_parameters", "parameters")}
    run = read_run(ws)
    resolved: dict[str, Any] = {"window": list(run.window), **run.params.model_dump(mode="json")}
    curves, figures = _curves(ws), ws.state / "figures"
    durable.write_json(figures / "environment.json", environment())
    files = {"bundle": ws.bundle, "run.yaml": ws.run_file, "metrics.json": ws.root / "metrics.json"}
    files["environment.json"] = figures / "environment.json"
    for name, path in _draw(curves, figures, run.params.loss.name).items():
        files[f"conflict-{name}.png"] = path
    by_step = {
        f"{name}.loss.{term}": [(point["step"], point[term]) for point in curves[name]["steps"]]
        for name in MODELS
        for term in (curves[name]["steps"] or [{}])[0]
        if term != "step"
    }
    for name in MODELS:
        for kind in KINDS:
            seen = [(one["step"], one["norm"][kind]) for one in curves[name]["conflict"] if kind in one["norm"]]
            if seen:
                by_step[f"{name}.gradient_norm.{kind}"] = seen
    run_id = versions.log_training(ws, params, f"retrain {day}", resolved, flat, files, by_step)
    return versions.register(ws, params, ws.bundle, day=day, workspace_rev=revision, code_rev=code_revision(), run_id=run_id)


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


def _curves(ws: Workspace) -> dict[str, Any]:
    """What each training wrote down by step."""
    return {name: orjson.loads((ws.models / name / "curves.json").read_bytes()) for name in MODELS}


def _draw(curves: dict[str, Any], into: Path, loss: str) -> dict[str, Path]:
    """A picture of each training's conflict, where it was looked at."""
    from hap.training.conflict import draw_conflict, save_figure

    drawn = {}
    for name in MODELS:
        if records := curves[name]["conflict"]:
            drawn[name] = into / f"conflict-{name}.png"
            save_figure(draw_conflict(records, f"{name}, {loss}"), drawn[name])
    return drawn


def existing_verdict(ws: Workspace, version: int, window: Window) -> Verdict | None:
    """The verdict that the version already has on these days, so that a rerun changes nothing."""
    raw = versions.read_verdict(ws, version)
    if raw is None or tuple(raw["days"]) != tuple(map(str, window.judging)):
        return None
    if list(raw["manifests"]) != [partitions.load(ws, day).id for day in window.judging]:
        return None
    return Verdict.from_json(raw)


def promote(ws: Workspace, params: Params, version: int) -> str:
    """Promote a passed version into the running server; what it came to, in words.

    Raises:
        ServingError: no server runs.
    """
    state = runtime.server_state(ws)
    with HapClient(state.grpc_url, params.serving.deadline_s) if state else contextlib.nullcontext() as server:
        moved = promotion.promote(
            ws, params, version, server=server, actor="schedule", now=dt.datetime.now(dt.UTC), reason="promotion.auto"
        )
    return str(moved)


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


def unfinished_days(ws: Workspace, params: Params, now: dt.datetime) -> list[dt.date]:
    """Every ripe logged day that has a whole training window and no verdict yet, oldest first."""
    logged = set(contract.logged_days(ws.logs(params)))
    judged = {orjson.loads(path.read_bytes())["day"] for path in ws.verdicts.glob("v*.json")}
    ripe = [day for day in sorted(logged) if is_ripe(day, params.collect.label_delay_hours, now) and day.isoformat() not in judged]
    known = logged | set(partitions.collected_days(ws))
    return [day for day in ripe if set(training_window(day, params.train.days, params.gate.days)) <= known]


def require_days(days: Sequence[dt.date], what: str) -> None:
    """Refuse an empty range."""
    if not days:
        raise DataError(f"there is no day to {what}")


def _named(ws: Workspace, days: Sequence[dt.date]) -> list[dict[str, Any]]:
    found = [partitions.load(ws, day) for day in days]
    return [{"day": m.day, "manifest": m.id, "samples_hash": m.samples_hash, "requests": m.requests} for m in found]
