"""run.yaml: what one retrain does, resolved. The flow writes it, the reproducible stages read it."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hap import durable
from hap.errors import ConfigError
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


def write_run(ws: Workspace, params: Params, day: dt.date, window: Sequence[dt.date], judging: Sequence[dt.date]) -> Run:
    """Resolve the parameters into run.yaml; the same run gives the same bytes."""
    run = Run(day.isoformat(), tuple(map(str, window)), tuple(map(str, judging)), package_digest(), params)
    content: dict[str, Any] = {
        "day": run.day,
        "window": list(run.window),
        "judging": list(run.judging),
        "hap_digest": run.hap_digest,
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
    return Run(raw["day"], tuple(raw["window"]), tuple(raw["judging"]), raw["hap_digest"], params)
