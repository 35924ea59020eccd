"""What the champion says of a day's requests, and of those that it is compared with.

Compared with is what the champion was never trained on: the days that its verdict judged, or, where the watched day is one of them
or their samples are gone, the last day of its training window for the users who were held out. In its own training days a model
agrees with the clicks more than it ever will again. Requests are drawn by the portable key of their ids, `funnel.requests` a side,
so that reruns agree; they are scored with all candidates where the logs hold these, since only then is routed what serving routes.
Scores are kept in the workspace by what they were made of: two watchers look at them, and the reference is the same every day.
"""

import datetime as dt
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.judge import score_days
from flows.looks.subject import Subject
from flows.scratch import scored_folder
from hap import durable
from hap.days import default_as_of
from hap.errors import HapError, NotFound
from hap.logs import contract
from hap.monitoring.columns import user_column
from hap.monitoring.scored import Scored
from hap.params import Params
from hap.samples import partitions
from hap.samples.complete import first_by_key, write_requests
from hap.serving.bundle import Bundle
from hap.training.feed import is_heldout, sample_columns
from hap.workspace import Workspace

UNSCORABLE = (HapError, KeyError, pa.ArrowException)  # what samples that a bundle does not fit may raise
_ARRAYS = ("user", "offsets", "kind", "light", "expressive", "cascade")


@dataclass(frozen=True)
class Days:
    """Days whose requests are scored; `heldout` takes those that training held out of the last day."""

    days: tuple[dt.date, ...]
    heldout: bool = False


def reference_of(subject: Subject, bundle: Bundle, verdict: Mapping[str, Any] | None) -> Days | None:
    """What the champion is compared with; None where no samples of it are left."""
    judged = tuple(dt.date.fromisoformat(day) for day in (verdict or {}).get("days", ()))
    if judged and subject.day not in judged and all(partitions.find(subject.ws, day) for day in judged):
        return Days(judged)
    last = dt.date.fromisoformat(bundle.info["window"][-1])
    return Days((last,), heldout=True) if last != subject.day and partitions.find(subject.ws, last) else None


def sides(subject: Subject, bundle: Bundle, reference: Days | None) -> tuple[Scored, Scored | None]:
    """The day and its reference as the champion scores them, both with all candidates or both with the sampled ones.

    Raises:
        HapError, KeyError, pa.ArrowException: the champion cannot score the day's samples.
    """
    day = Days((subject.day,))
    if subject.params.logs.complete:
        try:
            now = scored(subject, bundle, day, whole=True)
            return now, scored(subject, bundle, reference, whole=True) if reference else None
        except UNSCORABLE:
            pass  # logs that are gone or changed: samples are what is left
    now = scored(subject, bundle, day, whole=False)
    try:
        return now, scored(subject, bundle, reference, whole=False) if reference else None
    except UNSCORABLE:
        return now, None


def scored(subject: Subject, bundle: Bundle, of: Days, *, whole: bool) -> Scored:
    """The drawn requests of the days with the champion's scores, from the workspace's kept ones where nothing changed.

    Raises:
        HapError, KeyError, pa.ArrowException: they cannot be read, or not be scored.
    """
    ws, params = subject.ws, subject.params
    manifests = [partitions.load(ws, day).id for day in of.days]
    made_of = [bundle.digest, manifests, of.heldout, whole, params.seed, params.funnel.requests, params.train.heldout_share]
    name = hashlib.sha256(orjson.dumps(made_of)).hexdigest()[:16]
    kept = scored_folder(ws, subject.champion) / f"{name}.npz"
    if (found := _kept(kept, whole)) is not None:
        return found
    with durable.scratch_directory(ws.state, "looks") as scratch:
        path = scratch / "requests.parquet"
        chosen = _drawn(ws, params, of, int(bundle.info.get("seed", params.seed)))
        if whole:
            write_requests(ws, params, chosen, path)
        else:
            _write_samples(ws, params, chosen, bundle, path)
        made = _score(subject, bundle, path, of, whole)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(made, name) for name in _ARRAYS})
    durable.write_bytes(kept, buffer.getvalue())
    return made


def users_of(table: pa.Table, params: Params) -> NDArray[np.int64]:
    """Who made each request [R]; where that is not known, the request stands for itself, as a negative id."""
    alone = -table["request_id"].to_numpy()
    column = user_column(params.features)
    if column is None or column not in table.column_names:
        return alone
    user = pc.fill_null(table[column].cast(pa.int64()), 0).to_numpy()
    return np.where(user > 0, user, alone)


class Incomplete(NamedTuple):
    """Why labels are not complete, and what makes them so once they can be; nothing but time where that is empty."""

    why: str
    do: str


def labels_missing(subject: Subject) -> Incomplete | None:
    """Why the labels of a collected day are not complete; None where they are.

    They are not while they can still arrive, whatever an early look was collected as of; nor where the day was closed as of a time
    before `collect.label_delay_hours` had passed, or before there was a feedback partition of a later day that can hold some of them.
    """
    day, end = subject.day, default_as_of(subject.day, subject.params.collect.label_delay_hours)
    if subject.labels == "open":
        return Incomplete(f"what needs the day's labels waits for them, until {end:%Y-%m-%d %H:%M} UTC", "")
    manifest = partitions.load(subject.ws, day)
    if dt.datetime.fromisoformat(manifest.as_of) < end:
        why = f"it was closed as of {manifest.as_of}, and its clicks come until {end.isoformat()}"
        return Incomplete(why, f"hapctl collect --day {day} --as-of {end.isoformat()} --reopen")
    absent = sorted(label for label, told in manifest.labels.items() if told["state"] == contract.ABSENT)
    if not absent:
        return None
    return Incomplete(f"there was no feedback of {absent[0]} yet when it was closed", f"hapctl collect --day {day} --reopen")


def _drawn(ws: Workspace, params: Params, of: Days, trained_seed: int) -> dict[dt.date, NDArray[np.int64]]:
    """Ids of the requests that are looked at, by day; who was held out follows from the seed of the training."""
    ids, trained = [], params.model_copy(update={"seed": trained_seed})
    for day in of.days:
        table = _request_columns(ws, params, day)
        own = is_heldout(table, trained) if of.heldout else np.ones(table.num_rows, bool)
        ids.append(table["request_id"].to_numpy()[own])
    return dict(zip(of.days, first_by_key(ids, params.funnel.requests, f"{params.seed}|looks"), strict=True))


def _request_columns(ws: Workspace, params: Params, day: dt.date) -> pa.Table:
    names = {"request_id", "user_id", user_column(params.features)}
    files = [pq.ParquetFile(path) for path in partitions.parquet_files(ws, [day])]
    return pa.concat_tables([file.read(columns=[name for name in file.schema_arrow.names if name in names]) for file in files])


def _write_samples(ws: Workspace, params: Params, chosen: Mapping[dt.date, NDArray[np.int64]], bundle: Bundle, path: Path) -> None:
    """The samples of the chosen requests, with the columns that the bundle reads and the user's."""
    parts = []
    for day, ids in chosen.items():
        wanted = pa.array(ids)
        for source in partitions.parquet_files(ws, [day]):
            file = pq.ParquetFile(source)
            held = _columns(bundle, params, file.schema_arrow.names, [day])
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=held)
                parts.append(rows.filter(pc.is_in(rows["request_id"], value_set=wanted)))
    pq.write_table(pa.concat_tables(parts), path, row_group_size=params.collect.row_group_requests)


def _columns(bundle: Bundle, params: Params, names: Sequence[str], days: Sequence[dt.date]) -> list[str]:
    """What is read of a file.

    Raises:
        NotFound: the file lacks a column of the bundle's schema.
    """
    wanted = sample_columns(bundle.features)
    if gone := [name for name in wanted if name not in names]:
        raise NotFound(f"its schema needs {gone[0]!r}, which the samples of {', '.join(map(str, days))} lack")
    user = user_column(params.features)
    return [*wanted, *([user] if user is not None and user in names and user not in wanted else [])]


def _score(subject: Subject, bundle: Bundle, path: Path, of: Days, whole: bool) -> Scored:
    file = pq.ParquetFile(path)
    _columns(bundle, subject.params, file.schema_arrow.names, of.days)
    names = {"request_id", user_column(subject.params.features)}
    user = users_of(file.read(columns=[name for name in file.schema_arrow.names if name in names]), subject.params)
    scores, pool = score_days(bundle, [path], f"scoring v{subject.champion} on {of.days[-1]}")
    return Scored(user=user, offsets=pool.offsets, kind=pool.kind, whole=whole, **scores)


def _kept(path: Path, whole: bool) -> Scored | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:  # of a torn file np.load leaves the handle open
            return Scored(whole=whole, **{name: arrays[name] for name in _ARRAYS})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or torn: it is made again
        return None
