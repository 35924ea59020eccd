"""The daily retrain: collect -> train light and expressive -> evaluate -> export -> register -> gate.

Prefect owns time, retries and the record of what ran; every step is a plain function of flows.steps,
idempotent by itself, so that a rerun after a kill finishes the day and doubles nothing. The flow never
promotes unless promotion.auto says so: a passed version gets the alias challenger.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from prefect import flow
from prefect.artifacts import create_link_artifact
from prefect.futures import PrefectFuture, wait
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows import record, steps
from flows.judge import judge, opponent_of
from flows.page import artifact_key, page_path
from flows.prefect_server import prefect_api
from flows.stages import end_orphans
from flows.talk import current
from flows.task import step
from hap import durable
from hap.days import parse_day
from hap.errors import HapError
from hap.evaluation.verdict import Verdict
from hap.params import MODELS
from hap.registry import versions
from hap.workspace import Workspace, commit, workspace_lock

STATE_NAMES = {"pass": "Passed", "refuse": "Refused", "undecided": "Undecided"}


@dataclass(frozen=True)
class Outcome:
    """What a retrain of one day came to."""

    day: dt.date
    version: int
    verdict: Verdict


@flow(
    name="retrain",
    flow_run_name="retrain-{day}",
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=False,
)
def retrain(root: str, day: str) -> State:
    """Retrain the workspace at `root` for the day that judges. Ends as a completed run named by its verdict."""
    ws, judged = Workspace(Path(root)), parse_day(day)
    params, talk = ws.params(), current()
    held = None
    with workspace_lock(ws, f"retrain --day {day}", dt.datetime.now(dt.UTC)):
        for words in end_orphans(ws):
            talk.say(f"  ended what a killed run had left: {words}")
        window = steps.window_of(ws, params, judged)
        with talk.step("collect"):
            step(steps.collect, "collect")(ws, params, window)
        steps.prepare(ws, params, window)
        with talk.step("train"):
            for names in steps.training_order(params, MODELS):
                _side_by_side(*[step(steps.train, f"train {name}").submit(ws, name) for name in names])
        # Both read the trained models and neither reads the other's output.
        _side_by_side(step(steps.evaluate, "evaluate").submit(ws), step(steps.export, "export").submit(ws))
        with talk.step("register"):
            revision = step(steps.keep, "keep")(ws, params, judged)
            version = step(record.register, "register")(ws, params, judged, revision)
        with talk.step("gate"):
            verdict = steps.existing_verdict(ws, version, window)
            if verdict is None:
                verdict = step(judge, "gate")(ws, params, version, opponent_of(ws, params, version), window.judging)
            commit(ws, f"Verdict on v{version}: {verdict.verdict}")
            page = page_path(ws, version)
            key = artifact_key(ws, versions.label(version))
            create_link_artifact(page.as_uri(), f"v{version}: {verdict.verdict}", key=key, description=str(page))
        durable.write_json(_outcome_file(ws, judged), {"version": version})
        if params.promotion.auto and verdict.verdict == "pass":
            with talk.step("promote"):
                said, held = step(steps.promote_unless_held, "promote")(ws, params, version, judged)
                for line in said:
                    talk.say(f"  {line}")
    reason = verdict.reasons[0] if verdict.reasons else verdict.verdict
    return Completed(name=STATE_NAMES[verdict.verdict], message=f"v{version}: {reason}{f'; not promoted: {held}' if held else ''}")


def _side_by_side(*running: PrefectFuture[Any]) -> None:
    """Wait for all, so that none is left behind when another fails; then raise what failed."""
    wait(list(running))
    for future in running:
        future.result()


def retrain_day(ws: Workspace, day: dt.date) -> Outcome:
    """Run the flow for one day and return what it came to.

    Raises:
        Busy: another retrain holds the workspace.
        HapError: a step refused or failed; what was finished stays, and running it again goes on from there.
    """
    window = steps.window_of(ws, ws.params(), day)  # a day without logs is told before Prefect starts its server
    steps.require_device(ws.params())
    with workspace_lock(ws, f"retrain --day {day}", dt.datetime.now(dt.UTC)):
        pass
    with prefect_api(ws):
        state = retrain(str(ws.root), window.day.isoformat(), return_state=True)
    if not state.is_completed():
        raise _cause(state)
    version = int(orjson.loads(_outcome_file(ws, day).read_bytes())["version"])
    return Outcome(day, version, Verdict.from_json(versions.read_verdict(ws, version) or {}))


def _outcome_file(ws: Workspace, day: dt.date) -> Path:
    return ws.state / "retrained" / f"{day}.json"


def _cause(state: State) -> Exception:
    """What ended the flow, as it was raised."""
    try:
        state.result()
    except HapError as error:
        return error
    except Exception as error:
        return HapError(f"the retrain ended {state.name}: {error}") if state.is_crashed() else error
    return HapError(f"the retrain ended {state.name}; `hapctl retrain --day` goes on from there")
