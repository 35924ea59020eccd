"""The schedule: at one hour a look at every day that is due, at another a retrain of every ripe unfinished day, oldest first.

A look and a retrain may run side by side, so that nobody is told of an outage only after hours of training.
"""

import contextlib
import datetime as dt
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil
from prefect import flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron

from flows.backfill import backfill
from flows.due import unfinished_days
from flows.prefect_server import prefect_api
from flows.watching import drift
from hap.workspace import Workspace


@flow(name="nightly", persist_result=False)
def nightly(root: str) -> list[str]:
    """Retrain every ripe unfinished day of the workspace at `root`; returns `DAY vN verdict` for each."""
    ws = Workspace(Path(root))
    days = unfinished_days(ws, ws.params(), dt.datetime.now(dt.UTC))
    return [f"{outcome.day} v{outcome.version} {outcome.verdict.verdict}" for outcome in backfill(ws, days)]


def deployments(ws: Workspace) -> list[RunnerDeployment]:
    """Retrain and drift, each at its cron, under a name that no other workspace has: Prefect's database knows those of every
    workspace of this user."""
    params, unique = ws.params(), f"{ws.root.name}-{hashlib.sha256(str(ws.root).encode()).hexdigest()[:8]}"
    made: list[RunnerDeployment] = []
    for name, run, cron in (("nightly", nightly, params.schedule.cron), ("drift", drift, params.drift.cron)):
        schedule = Cron(cron, timezone=params.schedule.timezone)
        made.append(cast(RunnerDeployment, run.to_deployment(f"{name}-{unique}", schedule=schedule, parameters={"root": str(ws.root)})))
    return made


def serve_schedule(ws: Workspace, started: Callable[[str], None]) -> None:
    """Serve the schedule of params.yaml until it is stopped, and end the process; a run that is under way is stopped with it.

    Args:
        started: called with the API's URL once the schedule is about to be served.
    """
    serving = False
    try:
        with prefect_api(ws, services=True) as url:
            serving = True
            started(url)
            before = psutil.Process().children(recursive=True)
            try:
                serve(*deployments(ws), limit=2, print_starting_message=False)
            finally:
                _end([process for process in psutil.Process().children(recursive=True) if process not in before])
    finally:
        if serving:  # all is stopped by now, but Prefect's worker of events would knock for minutes at a server that is gone
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def _end(processes: list[psutil.Process]) -> None:
    """Ask, then force: a run that is asked ends its own stages first."""
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                stop(process)
        _, processes = psutil.wait_procs(processes, timeout=15)
