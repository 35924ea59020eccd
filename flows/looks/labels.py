"""The day's clicks and feedback beside those of the champion's training window."""

from flows.looks.subject import Subject
from flows.talk import current
from hap.errors import HapError
from hap.logs.sql import connect, file_errors
from hap.monitoring.findings import Look
from hap.monitoring.labels import WATCHER, find_outage, look_at_labels
from hap.monitoring.rates import measure
from hap.samples import partitions


def look(subject: Subject) -> Look:
    """Click rates, lost feedback and label delay of the day."""
    ws, params, day = subject.ws, subject.params, subject.day
    try:
        if partitions.find(ws, day) is None:
            return _missing(day, f"{day} has no samples; collect them with `hapctl collect --day {day}`")
        window = [past for past in subject.window if partitions.find(ws, past) and past != day]
        if not window:
            return _missing(day, f"no day that the champion was trained on has samples, so the feedback of {day} has nothing beside it")
        with connect(params) as con, file_errors(str(ws.samples)):
            current().bar("labels", None, "counting clicks")
            today, reference = measure(con, ws, params, [day]), measure(con, ws, params, window)
            outage = find_outage(today, reference, params.labels)
            rest = today, reference
            if outage.hours:
                rest = measure(con, ws, params, [day], outage.hours), measure(con, ws, params, window, outage.hours)
    except HapError as error:
        return _missing(day, f"the feedback of {day} is not judged: {error}")
    return look_at_labels(str(day), today, reference, outage, rest, params.labels)


def _missing(day: object, why: str) -> Look:
    return Look(watcher=WATCHER, day=str(day), findings=(), missing=True, notes=(why,))
