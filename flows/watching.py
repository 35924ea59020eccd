"""The drift flow: every day that a look is due for, oldest first, each with a link to its page among Prefect's artifacts."""

import datetime as dt
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_link_artifact
from prefect.states import Completed, State

from flows.drift import Looked, look_at_day
from flows.due import due_days
from flows.page import artifact_key
from flows.talk import current
from flows.task import step
from hap.errors import HapError, NotFound
from hap.monitoring.report import WORDS
from hap.workspace import Workspace

WAIT_S = 3600  # for a retrain that somebody began by hand


@flow(name="drift", persist_result=False, validate_parameters=False)
def drift(root: str) -> State:
    """Look at every day of the workspace at `root` that is due. Ends as a completed run named by the newest day's state.

    A day that cannot be looked at does not keep the later ones from it; the flow fails in the end, with the first such day's words.
    """
    ws, now = Workspace(Path(root)), dt.datetime.now(dt.UTC)
    try:
        days = due_days(ws, ws.params(), now)
    except NotFound as error:  # no champion yet: nothing is wrong, and there is nothing to watch
        return Completed(name="Idle", message=str(error))
    looked: list[Looked] = []
    failed: list[HapError] = []
    for day in days:
        try:
            looked.append(step(look_at_day, f"look at {day}")(ws, day, now, wait_s=WAIT_S))
        except HapError as error:
            current().say(f"  {day}: {error}")
            failed.append(error)
            continue
        _link(ws, looked[-1])
    if failed:
        raise failed[0]
    if not looked:
        return Completed(name="Idle", message="no day is due")
    said = [f"{one.report.day} {WORDS[one.report.state]}{_causes(one)}" for one in looked]
    return Completed(name=WORDS[looked[-1].report.state].title(), message="; ".join(said))


def _causes(looked: Looked) -> str:
    return f" ({', '.join(finding.cause for finding in looked.report.wrong)})" if looked.report.wrong else ""


def _link(ws: Workspace, looked: Looked) -> None:
    report = looked.report
    text = f"{report.day}: {WORDS[report.state]}{_causes(looked)}"
    create_link_artifact(looked.html.as_uri(), text, key=artifact_key(ws, f"drift-{report.day}"), description=str(looked.html))
