"""Input drift: the day's columns against those that the champion was trained on, measured and drawn by Evidently."""

from dataclasses import asdict, replace

from flows.looks.subject import Subject
from hap import durable
from hap.monitoring.causes import OF_CLICKS
from hap.monitoring.drift import report_drift
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
    page, problem = columns_file(ws.pages, subject.day), None
    try:
        durable.write_bytes(page, result.html)
    except OSError as error:  # what was measured counts for more than the page of it
        problem = f"{page} cannot be written: {error.strerror or error}"
    columns = {name: asdict(column) for name, column in result.columns.items()}
    return replace(result.look, detail={"columns": columns, "page": None if problem else page.name, "problem": problem})
