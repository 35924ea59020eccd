"""run.yaml: what one retrain does, resolved. The flow writes it, the reproducible stages read it."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from hap import durable
from hap.errors import ConfigError, NotFound
from hap.params import Params, resolve
from hap.project import package_digest
from hap.workspace import Workspace


@dataclass(frozen=True)
class Run:
    """The day that judges, the window that trains, and every parameter."""

    day: str
    window: tuple[str, ...]
    judging: tuple[str, ...]
    hap_digest: str
    params: Params
    warm_start: dict[str, str] | None = None  # model -> sha256 of the weights that its training begins from


def write_run(
    ws: Workspace, params: Params, day: dt.date, window: Sequence[dt.date], judging: Sequence[dt.date], warm: dict[str, str] | None = None
) -> Run:
    """Resolve the parameters into run.yaml; the same run gives the same bytes.

    Args:
        warm: what `keep_warm_weights` returned for each model; None begins cold.
    """
    run = Run(day.isoformat(), tuple(map(str, window)), tuple(map(str, judging)), package_digest(), params, warm)
    # Light has to be trained anew when its teacher would come out otherwise; what the two do not share of a recipe is this.
    recipe = params.expressive.model_dump(mode="json") if params.light.distill else None
    content: dict[str, Any] = {
        "day": run.day,
        "window": list(run.window),
        "judging": list(run.judging),
        "hap_digest": run.hap_digest,
        "warm_start": run.warm_start,
        "teacher": {"light": recipe, "expressive": None},
        "params": params.model_dump(mode="json"),
    }
    durable.write_text(ws.run_file, "# Written by each retrain; edit params.yaml instead.\n" + yaml.safe_dump(content, sort_keys=False))
    return run


def read_run(ws: Workspace) -> Run:
    """The run that the workspace stands at.

    Raises:
        ConfigError: no retrain has written one yet.
    """
    if not ws.run_file.exists():
        raise ConfigError(f"{ws.run_file} is missing; `hapctl retrain --day D` writes it")
    raw = yaml.safe_load(ws.run_file.read_text())
    params = resolve(raw["params"], str(ws.run_file))
    return Run(raw["day"], tuple(raw["window"]), tuple(raw["judging"]), raw["hap_digest"], params, raw["warm_start"])


def checkpoint_key(ws: Workspace, name: str) -> str:
    """What a checkpoint of the model `name` belongs to: the same window, samples, parameters and code."""
    return hashlib.sha256(ws.window_file.read_bytes() + ws.run_file.read_bytes() + name.encode()).hexdigest()


def checkpoint_folder(ws: Workspace, name: str) -> Path:
    """Where the checkpoints of the model `name` lie while it is trained."""
    return ws.state / "checkpoints" / name


def teacher_folder(ws: Workspace, run: Run) -> Path:
    """Where the trained expressive model lies, from which the light one of this run learns.

    Raises:
        NotFound: there is none, or it was trained for another run.
    """
    folder = ws.models / "expressive"
    facts = orjson.loads((folder / "model.json").read_bytes()) if (folder / "model.json").exists() else {}
    if (facts.get("window"), facts.get("seed")) != (list(run.window), run.params.seed):
        raise NotFound(
            f"light.distill needs the expressive model of the same window and seed, and {folder} holds none; "
            f"run `hapctl train expressive --day {run.day}` first"
        )
    return folder


def keep_warm_weights(ws: Workspace, weights: Path) -> str:
    """Copy weights to where the training stages find them, and return their sha256, which names them there."""
    data = weights.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    durable.write_bytes(warm_weights(ws, digest), data)
    return digest


def warm_weights(ws: Workspace, digest: str) -> Path:
    """Where weights of this sha256 lie."""
    return ws.state / "warm" / f"{digest}.pt"
