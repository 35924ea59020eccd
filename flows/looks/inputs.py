"""Input drift: the day's columns against those that the champion was trained on, measured and drawn by Evidently."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from flows.looks.subject import Subject
from hap import durable
from hap.monitoring.causes import OF_CLICKS
from hap.monitoring.drift import report_drift
from hap.monitoring.evidently_ui import keep_run, workspace_folder
from hap.monitoring.findings import Look
from hap.monitoring.report import columns_file


def look(subject: Subject) -> Look:
    """What drifted; writes Evidently's page. Its detail has the columns as they were judged, and the page's name.

    Raises:
        NotFound: a day was not collected.
        DataError: no reference day is there.
    """
    ws = subject.ws
    waiting = OF_CLICKS if subject.labels == "open" else frozenset[str]()
    result = report_drift(ws, subject.params, subject.window, subject.day, waiting)
    page = columns_file(ws.pages, subject.day)
    problem = _problem(page, lambda: durable.write_bytes(page, result.html))
    columns = {name: asdict(column) for name, column in result.columns.items()}
    detail = {"columns": columns, "page": None if problem else page.name, "problem": problem}
    if subject.params.drift.evidently_ui and result.run is not None:
        measured = [name for name, one in result.columns.items() if one.value is not None]
        other = _problem(workspace_folder(ws.pages), lambda: keep_run(ws.pages, subject.day, result.run, measured))
        detail["problem"] = "; ".join(filter(None, (problem, other))) or None
    return replace(result.look, detail=detail)


def _problem(path: Path, write: Callable[[], None]) -> str | None:
    """Write, and say why it could not be: what was measured counts for more than the pages of it."""
    try:
        write()
    except OSError as error:
        return f"{path} cannot be written: {error.strerror or error}"
    return None
