"""Requests with every candidate that they had, in the form of samples: what the whole cascade is judged on.

Samples hold a few negatives of each kind, so they tell how pairs are ordered, not who reaches the first K of a list.
"""

import datetime as dt
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hap.durable import fsync_path
from hap.params import Params, Window
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.samples.order_key import order_key
from hap.workspace import Workspace

EVERY = Window(below=0, count=None, edges=(0,))
MOST_POSITIVES = 10_000  # of one request: none is left out


def write_complete(ws: Workspace, params: Params, days: Sequence[dt.date], most: int, path: Path, seed: int) -> int:
    """Write requests of the days that have a click, with all candidates and no drawn ones; returns how many.

    The expression that makes samples makes these, with windows that keep everything. Beside `path`, a scratch folder is made
    and removed. Clicks are those of the closed day: what came later is not read.

    Args:
        most: so many requests at most, chosen by the portable hash of (seed, request_id).

    Raises:
        DataError: logs that are missing or break their contract.
    """
    collect = params.collect.model_copy(
        update={
            "rank": EVERY, "prerank": EVERY, "global_per_positive": 0, "max_positives": MOST_POSITIVES, "requests_without_positive": "drop",
        }
    )  # fmt: skip
    whole = params.model_copy(update={"collect": collect, "logs": params.logs.model_copy(update={"path": ws.logs(params)})})
    scratch = Workspace(path.with_name(f".{path.name}.scratch").resolve())
    shutil.rmtree(scratch.root, ignore_errors=True)
    try:
        for day in days:
            closed = partitions.find(ws, day)
            collect_day(scratch, whole, day, as_of=dt.datetime.fromisoformat(closed.as_of) if closed else None)
        table = pa.concat_tables([pq.read_table(file) for file in partitions.parquet_files(scratch, list(days))])
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)
    keys = order_key(table["request_id"].to_numpy(), f"{seed}|complete")
    chosen = np.sort(np.argsort(keys, kind="stable")[:most])
    building = path.with_name(f".{path.name}.new")
    pq.write_table(table.take(pa.array(chosen)), building, row_group_size=params.collect.row_group_requests)
    fsync_path(building)
    os.replace(building, path)
    return len(chosen)
