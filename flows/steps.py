"""The steps of a retrain as plain functions: each is idempotent by itself and knows nothing of Prefect."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.drift import look_at_day
from flows.page import page_path
from flows.stages import dvc, repro
from flows.talk import current
from hap import durable
from hap.days import judging_days, training_window
from hap.errors import DataError, NotFound, Refused
from hap.evaluation.verdict import Verdict
from hap.logs import contract
from hap.params import MODELS, Params
from hap.project import project_file
from hap.registry import promotion, versions
from hap.registry.ledger import open_ledger
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.serving.remote import server_of
from hap.training.run import Run, keep_warm_weights, write_run
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


def require_device(params: Params) -> None:
    """Ask for the devices that params.yaml needs, before hours go into samples for them.

    Raises:
        DataError: it is not there, or not often enough for train.processes.
    """
    if params.train.device == "cuda" or (params.train.device == "auto" and params.train.processes > 1):
        from hap.training.device import pick_device

        pick_device(params.train.device, params.train.processes)


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
    known = {version.number: version for version in versions.list_versions(ws, params)}
    served = [row.to_version for row in open_ledger(ws, params).rows() if row.state == "served" and row.to_version in known]
    earlier = [number for number in served if number is not None and (known[number].day or "") < day.isoformat()]
    if not earlier:
        return None
    revision = versions.get_whole(ws, params, earlier[-1]).workspace_rev
    kept = {}
    with durable.scratch_directory(ws.state, "warm-start") as folder:
        for name in MODELS:
            out = folder / name
            dvc(ws, "get", "--quiet", "--rev", str(revision), "--out", str(out), str(ws.root), f"models/{name}", name="warm start")
            kept[name] = keep_warm_weights(ws, out / "model.pt")
    current().say(f"  begins from the weights of v{earlier[-1]}")
    return kept


def training_order(params: Params, names: Sequence[str]) -> list[tuple[str, ...]]:
    """What is trained side by side, one group after another: a light model that learns from the expressive one comes after it."""
    if "light" in names and params.light.distill:
        return [("expressive",), ("light",)]
    return [tuple(names)]


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


def existing_verdict(ws: Workspace, version: int, window: Window) -> Verdict | None:
    """The verdict that the version already has on these days, with its page, so that a rerun changes nothing."""
    raw = versions.read_verdict(ws, version)
    if raw is None or not page_path(ws, version).exists() or tuple(raw["days"]) != tuple(map(str, window.judging)):
        return None
    if raw["manifests"] != {str(day): partitions.load(ws, day).id for day in window.judging}:
        return None
    return Verdict.from_json(raw)


def watch_drift(ws: Workspace, day: dt.date, now: dt.datetime) -> list[str]:
    """Compare the day with what the champion was trained on, and settle that into incidents; what changed, in lines.

    Where nothing serves yet, or the champion was trained on this day, there is nothing to compare with.
    """
    try:
        return look_at_day(ws, day, now, locked=True).told.lines()
    except (NotFound, DataError) as error:
        return [str(error)]


def promote_unless_held(ws: Workspace, params: Params, version: int, day: dt.date) -> tuple[list[str], str | None]:
    """Promote what passed; what was said, in lines, and what held it where something did: the version stays the challenger.

    Where an incident can hold it, the judged day is looked at first: what drifted then must hold tonight's promotion.

    Raises:
        ServingError: no server runs.
    """
    said = watch_drift(ws, day, dt.datetime.now(dt.UTC)) if params.drift.blocks_promotion else []
    try:
        return [*said, promote(ws, params, version)], None
    except Refused as refused:
        return [*said, str(refused)], str(refused)


def promote(ws: Workspace, params: Params, version: int) -> str:
    """Promote a passed version into the running server; what it came to, in words.

    Raises:
        ServingError: no server runs.
    """
    with server_of(ws, params.serving) as server:
        moved = promotion.promote(
            ws, params, version, server=server, actor="schedule", now=dt.datetime.now(dt.UTC), reason="promotion.auto"
        )
    return str(moved)


def _named(ws: Workspace, days: Sequence[dt.date]) -> list[dict[str, Any]]:
    found = [partitions.load(ws, day) for day in days]
    return [{"day": m.day, "manifest": m.id, "samples_hash": m.samples_hash, "requests": m.requests} for m in found]
