"""Parts of a retrain on their own, each bringing what it stands on up to date first."""

import datetime as dt
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from flows import steps
from flows.judge import judge, opponent_of
from flows.stages import end_orphans
from flows.talk import Talk, current, talking
from hap.days import judging_days, parse_day
from hap.errors import UsageError
from hap.evaluation.verdict import Verdict
from hap.params import MODELS
from hap.registry import versions
from hap.serving.bundle import Bundle, read_bundle
from hap.workspace import Workspace, commit, workspace_lock


@contextmanager
def _prepared(ws: Workspace, day: dt.date, purpose: str) -> Iterator[None]:
    """The lock held, the window collected and run.yaml standing at the day."""
    params = ws.params()
    window = steps.window_of(ws, params, day)
    steps.require_device(params)
    with talking(Talk()) as talk, workspace_lock(ws, purpose, dt.datetime.now(dt.UTC)):
        end_orphans(ws)
        with talk.step("collect"):
            steps.collect(ws, params, window)
        steps.prepare(ws, params, window)
        yield


def train_models(ws: Workspace, day: dt.date, names: Sequence[str]) -> list[str]:
    """Train the named models on the window before `day`; a line on each."""
    with _prepared(ws, day, f"train --day {day}"):
        return _train(ws, names)


def evaluate_models(ws: Workspace, day: dt.date) -> dict[str, Any]:
    """metrics.json of the window before `day`."""
    with _prepared(ws, day, f"evaluate --day {day}"):
        _train(ws, MODELS)
        steps.evaluate(ws)
        return dict(orjson.loads((ws.root / "metrics.json").read_bytes()))


def export_bundle(ws: Workspace, day: dt.date) -> Bundle:
    """The bundle of the window before `day`."""
    with _prepared(ws, day, f"export --day {day}"):
        _train(ws, MODELS)
        steps.export(ws)
        return read_bundle(ws.bundle)


def judge_version(ws: Workspace, version: int, against: int | None, day: dt.date | None) -> Verdict:
    """Judge a registered version anew, and write its page, against the champion where nothing else is named.

    Raises:
        NotFound: a version is not registered.
        UsageError: a version against itself.
    """
    params = ws.params()
    registered = versions.get(ws, params, version)
    if against is None:
        against = opponent_of(ws, params, version)
    elif versions.get(ws, params, against).number == version:
        raise UsageError(f"v{version} cannot be judged against itself; give another version to --against")
    wanted = day or parse_day(str(registered.day))
    with workspace_lock(ws, f"gate run --model v{version}", dt.datetime.now(dt.UTC)), current().step("gate"):
        verdict = judge(ws, params, version, against, judging_days(wanted, params.gate.days))
        commit(ws, f"Verdict on v{version}: {verdict.verdict}")
    return verdict


def _train(ws: Workspace, names: Sequence[str]) -> list[str]:
    lines = []
    for name in itertools.chain.from_iterable(steps.training_order(ws.params(), names)):
        with current().step(f"train {name}"):
            steps.train(ws, name)
        facts = orjson.loads((ws.models / name / "model.json").read_bytes())
        gauc = facts["heldout_gauc_by_epoch"][facts["best_epoch"] - 1]
        shown = ", ".join(f"{kind} {value:.3f}" for kind, value in gauc.items() if value is not None)
        lines.append(f"{name}: best epoch {facts['best_epoch']}, held-out GAUC {shown}; {ws.models / name}")
    return lines
