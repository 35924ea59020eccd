"""Requests with every candidate that they had, in the form of samples: what the whole cascade is judged on.

Samples hold a few negatives of each kind, so they tell how pairs are ordered, not who reaches the first K of a list.
"""

import datetime as dt
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hap.durable import fsync_path
from hap.logs import contract
from hap.params import KINDS, Params, Window
from hap.samples import partitions
from hap.samples.collect import sound_tables
from hap.samples.order_key import order_key
from hap.workspace import Workspace

EVERY = Window(below=0, count=None, edges=(0,))
MOST_POSITIVES = 10_000  # of one request: none is left out
ROW_GROUP_REQUESTS = 128  # what is scored at a time: a request may have thousands of candidates


def write_complete(ws: Workspace, params: Params, days: Sequence[dt.date], most: int, path: Path, seed: int) -> int:
    """Write requests of closed days that have a click, with all candidates and no drawn ones; returns how many.

    The expression that makes samples makes these, on the chosen requests alone and with windows that keep everything. Clicks
    are those of the closed day: what came later is not read. Beside `path`, a scratch folder is made and removed.

    Args:
        most: so many requests at most, chosen by the portable hash of (seed, request_id).

    Raises:
        DataError: logs that are missing or break their contract.
        NotFound: a day is not closed.
    """
    logs = {day: _logs(ws, params, day) for day in days}
    chosen = first_by_key([_clicked(ws, day) for day in days], most, f"{seed}|complete")
    return _write(ws, params, logs, dict(zip(days, chosen, strict=True)), path)


def first_by_key(ids: Sequence[NDArray[np.int64]], most: int, salt: str) -> list[NDArray[np.int64]]:
    """Of several lists of ids, those with the least portable keys, `most` of all lists together; each list keeps its order."""
    keys = [order_key(part, salt) for part in ids]
    least = np.sort(np.concatenate(keys))[: most + 1] if keys else np.zeros(0, np.int64)
    return [part if len(least) <= most else part[key < least[most]] for part, key in zip(ids, keys, strict=True)]


def write_requests(ws: Workspace, params: Params, chosen: Mapping[dt.date, NDArray[np.int64]], path: Path) -> int:
    """`write_complete` of the requests given by day, clicked or not; returns how many there are.

    Raises:
        DataError: logs that are missing or break their contract.
        NotFound: a day is not closed.
    """
    return _write(ws, params, {day: _logs(ws, params, day) for day in chosen}, chosen, path)


def _logs(ws: Workspace, params: Params, day: dt.date) -> contract.DayLogs:
    return contract.day_logs(ws.logs(params), day, params.collect.label_delay_hours)


def _write(
    ws: Workspace, params: Params, logs: Mapping[dt.date, contract.DayLogs], chosen: Mapping[dt.date, NDArray[np.int64]], path: Path
) -> int:
    collect = params.collect.model_copy(
        update={
            "rank": EVERY, "prerank": EVERY, "global_per_positive": 0, "max_positives": MOST_POSITIVES, "requests_without_positive": "keep",
            "engine": "duckdb",
        }
    )  # fmt: skip
    whole = params.model_copy(update={"collect": collect})
    scratch = Workspace(path.with_name(f".{path.name}.scratch").resolve())
    shutil.rmtree(scratch.root, ignore_errors=True)
    try:
        tables = [_read(scratch, ws, whole, day, logs[day], ids) for day, ids in chosen.items()]
        building = path.with_name(f".{path.name}.new")
        pq.write_table(pa.concat_tables(tables), building, row_group_size=ROW_GROUP_REQUESTS)
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)
    fsync_path(building)
    os.replace(building, path)
    return sum(len(ids) for ids in chosen.values())


def _clicked(ws: Workspace, day: dt.date) -> NDArray[np.int64]:
    """The day's requests with a positive, in the order of its samples."""
    found = [np.zeros(0, np.int64)]
    for file in partitions.parquet_files(ws, [day]):
        table = pq.read_table(file, columns=["request_id", "cand_kind"]).combine_chunks()
        positive = pc.equal(pc.list_flatten(table["cand_kind"]), KINDS.index("EP"))
        rows = np.unique(pc.list_parent_indices(table["cand_kind"]).filter(positive).to_numpy())
        found.append(table["request_id"].to_numpy()[rows])
    return np.concatenate(found)


def _read(scratch: Workspace, ws: Workspace, params: Params, day: dt.date, logs: contract.DayLogs, chosen: NDArray[np.int64]) -> pa.Table:
    """The chosen requests of a day."""
    from hap.samples import engines
    from hap.samples.expression import LogTables, sample_table

    as_of = dt.datetime.fromisoformat(partitions.load(ws, day).as_of)
    scratch.state.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"request_id": chosen}), scratch.state / "chosen.parquet")
    with sound_tables(scratch, params, logs, as_of, params.logs.quarantine, scratch.state) as (con, tables, *_):
        wanted = engines.read_parquet(con, [str(scratch.state / "chosen.parquet")], "chosen")
        of_them = {name: getattr(tables, name).semi_join(wanted, "request_id") for name in ("requests", "candidates", "feedback")}
        samples = sample_table(LogTables(**of_them, items=tables.items), params, as_of, item_count=0)  # no GN is drawn from them
        return engines.batches(con, samples, ROW_GROUP_REQUESTS).read_all()
