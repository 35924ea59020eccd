"""The day's served requests beside its logs, and their scores beside those of the bundles that gave them."""

import contextlib
import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.bundles import bundle_of
from flows.looks.subject import Subject
from flows.talk import current
from hap import durable
from hap.days import start_of
from hap.errors import HapError
from hap.logs import contract
from hap.monitoring.findings import Look
from hap.monitoring.report import HISTORY_DAYS, earlier_reports
from hap.monitoring.served import Comparison
from hap.monitoring.skew import REQUESTS, Served, look_at_nothing, look_at_served, unwatched
from hap.registry.local import local
from hap.samples.lookup import request_times, write_logged
from hap.serving.bundle import Bundle
from hap.serving.served_day import chosen_requests, last_written, served_keys, stream_served
from hap.serving.session import BundleSession
from hap.workspace import Workspace

GROUP_CANDIDATES = 100_000  # compared in one piece: some 20 MB a side with ten columns


def look(subject: Subject) -> Look:
    """Differences between what was served on the day and what was logged of it."""
    ws, params, day = subject.ws, subject.params, subject.day
    if params.serving.log_to is None:
        return unwatched(str(day), "what is served is not watched: serving.log_to in params.yaml names no folder for served requests")
    folder = ws.root / params.serving.log_to
    try:
        keys = served_keys(folder, day)
        if not keys.num_rows:
            return _nothing(subject, folder)
        if not contract.has_day(ws.logs(params), "requests", day):
            return unwatched(str(day), f"the served requests of {day} have no logs beside them: {ws.logs(params)} lacks the day")
        with durable.scratch_directory(ws.state, "looks") as scratch:  # of its own: another look may be under way
            return look_at_served(str(day), _compare(subject, folder, keys, scratch), params.features, params.skew)
    except HapError as error:
        return unwatched(str(day), f"what was served on {day} cannot be compared: {error}")


def _nothing(subject: Subject, folder: Path) -> Look:
    """No served request of the day: a finding where the day was logged and enough of a day before were written.

    Of a day without logs the logs tell, and days of a few rows have an empty one among them by chance. Where the folder's days
    are gone too, as after a mount that was lost, the reports say that there were some.
    """
    ws, params, day = subject.ws, subject.params, subject.day
    before = _before(ws, folder, day, params.skew.min_requests) if contract.has_day(ws.logs(params), "requests", day) else None
    if before is None:
        return unwatched(str(day), f"no served request of {day} lies below {folder}")
    served_with = [params.features]
    with contextlib.suppress(HapError):
        served_with.append(_bundle_here(subject, subject.champion).features)
    return look_at_nothing(str(day), folder, before, served_with)


def _before(ws: Workspace, folder: Path, day: dt.date, least: int) -> str | None:
    """What is known of the latest day before one of which at least so many served requests were written, in words; None of none."""
    if (lies := last_written(folder, day, least, HISTORY_DAYS)) is not None:
        return f"where {lies[1]:,} of {lies[0]} do"
    for report in reversed(earlier_reports(ws.pages, day, HISTORY_DAYS)):
        compared = next((figure.value or 0 for seen in report.seen for figure in seen.figures if figure.name == REQUESTS), 0)
        if compared >= least:
            return f"and those of {report.day}, of which {compared:,.0f} were compared then, are gone"
    return None


def _compare(subject: Subject, folder: Path, keys: pa.Table, scratch: Path) -> Served:
    """The chosen requests, a group at a time."""
    ws, params, day, settings = subject.ws, subject.params, subject.day, subject.params.skew
    ids = chosen_requests(keys["request_id"].to_numpy(), settings.max_requests, f"{params.seed}|skew")
    # Served late in a day may be logged on the next one, or the other way round.
    around = [day + dt.timedelta(days=shift) for shift in (-1, 0, 1)]
    times = request_times(ws, params, around, ids)
    today = times.filter(pc.equal(times["day"], pa.scalar(day, pa.date32())))["request_id"].to_numpy()
    chosen = keys.filter(pc.is_in(keys["request_id"], pa.array(ids)))
    tolerance = settings.score_tolerance if settings.score_tolerance is not None else params.gate.max_parity
    seen = Served(Comparison(settings.dense_tolerance, tolerance, params.logs.complete), _apart_s(chosen, times))
    _find_unlogged(seen, chosen, times, day, settings.clock_s)
    gone = write_logged(ws, params, day, today, scratch / "logged.parquet")
    bundles: dict[int, tuple[Bundle, BundleSession] | None] = {}
    done = 0
    for served in stream_served(folder, day, today, GROUP_CANDIDATES):
        version = served["version"][0].as_py()
        if version not in bundles:
            bundles[version] = _bundle(subject, version, seen)
        if (known := bundles[version]) is None:
            continue
        bundle, session = known
        group = pa.array(np.unique(served["request_id"].to_numpy()))
        logged = pq.read_table(scratch / "logged.parquet", filters=pc.field("request_id").isin(group)).sort_by("request_id")
        seen.comparison.add(served, logged, bundle.features)
        seen.comparison.add_scores(served, bundle.features, session)
        done += served.num_rows
        current().bar("skew", done / max(len(today), done), f"{done} served requests compared")
    seen.comparison.absent.update({name: why for name, why in gone.items() if name in seen.comparison.absent})
    return seen


def _apart_s(served: pa.Table, times: pa.Table) -> NDArray[np.float64]:
    """served_at - event_time in seconds of each served row that a log knows."""
    both = served.join(times, "request_id", join_type="inner")
    us = pc.subtract(both["served_at"].cast(pa.int64()), both["event_time"].cast(pa.int64()))
    return np.asarray(us.to_numpy(), np.float64) / 1e6


def _find_unlogged(seen: Served, served: pa.Table, times: pa.Table, day: dt.date, clock_s: float) -> None:
    """Requests that no log knows; near midnight one may be logged on a day whose logs are not there yet, and is not counted."""
    at_s = served["served_at"].cast(pa.int64()).to_numpy() / 1e6 - start_of(day).timestamp()
    inside = (at_s > clock_s) & (at_s < 86_400 - clock_s)
    known = np.isin(served["request_id"].to_numpy(), times["request_id"].to_numpy())
    ids = served["request_id"].to_numpy()
    seen.unlogged.compared = len(np.unique(ids[inside | known]))
    seen.missed(np.unique(ids[inside & ~known]).tolist())


def _bundle(subject: Subject, version: int, seen: Served) -> tuple[Bundle, BundleSession] | None:
    """The bundle of a version that served, or None and a note."""
    try:
        bundle = _bundle_here(subject, version)
        return bundle, BundleSession(bundle)
    except HapError as error:
        seen.notes.append(f"what v{version} served is not compared: {error}")
        return None


def _bundle_here(subject: Subject, version: int) -> Bundle:
    """The bundle of a version: a promotion left a copy here, the registry has the others."""
    try:
        return local(subject.ws, version)
    except HapError:
        return bundle_of(subject.ws, subject.params, version)
