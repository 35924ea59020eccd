"""The day's requests beside those of the champion's training window, counted from samples."""

from flows.looks.subject import Subject
from flows.talk import current
from hap.errors import HapError
from hap.logs.sql import connect, file_errors
from hap.monitoring.findings import Look
from hap.monitoring.traffic import WATCHER, Columns, look_at_traffic
from hap.monitoring.volumes import null_shares, unseen_shares, volume_of
from hap.samples import partitions


def look(subject: Subject) -> Look:
    """Volume, lateness, candidates, missing values and unseen ids of the day."""
    ws, params, day, features = subject.ws, subject.params, subject.day, subject.params.features
    try:
        if partitions.find(ws, day) is None:
            return _missing(day, f"{day} has no samples; collect them with `hapctl collect --day {day}`")
        window = [past for past in subject.window if partitions.find(ws, past) and past != day]
        with connect(params) as con, file_errors(str(ws.samples)):
            current().bar("traffic", None, "counting requests")
            today = volume_of(con, ws, day, features)
            reference = [volume_of(con, ws, past, features) for past in window]
            files, past_files = partitions.parquet_files(ws, [day]), partitions.parquet_files(ws, window)
            # Each side's ids are looked up in as many days right before it.
            last = partitions.parquet_files(ws, window[-1:])
            newest = window[-1] if window else day
            before, earlier = (partitions.parquet_files(ws, partitions.days_before(ws, one, len(window) - 1)) for one in (day, newest))
            now = Columns(null_shares(con, files, features), unseen_shares(con, files, before, features))
            then = Columns(
                null_shares(con, past_files, features) if past_files else {}, unseen_shares(con, last, earlier, features) if earlier else {}
            )
    except HapError as error:
        return _missing(day, f"the traffic of {day} is not judged: {error}")
    return look_at_traffic(today, reference, now, then, params.traffic)


def _missing(day: object, why: str) -> Look:
    return Look(watcher=WATCHER, day=str(day), findings=(), missing=True, notes=(why,))
