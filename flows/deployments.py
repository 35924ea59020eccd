"""The schedule: every ripe unfinished day, oldest first, at the cron's hour, one run at a time."""

import datetime as dt
from pathlib import Path

from prefect import flow
from prefect.schedules import Cron

from flows.backfill import backfill
from flows.steps import unfinished_days
from hap.workspace import Workspace


@flow(name="nightly", persist_result=False)
def nightly(root: str) -> list[str]:
    """Retrain every ripe unfinished day of the workspace at `root`; returns `DAY vN verdict` for each."""
    ws = Workspace(Path(root))
    days = unfinished_days(ws, ws.params(), dt.datetime.now(dt.UTC))
    return [f"{outcome.day} v{outcome.version} {outcome.verdict.verdict}" for outcome in backfill(ws, days)]


def serve_schedule(ws: Workspace) -> None:
    """Serve the schedule of params.yaml in this process until it is stopped."""
    schedule = ws.params().schedule
    nightly.serve(
        name=f"nightly-{ws.root.name}",
        schedule=Cron(schedule.cron, timezone=schedule.timezone),
        parameters={"root": str(ws.root)},
        limit=1,
        print_starting_message=False,
    )
