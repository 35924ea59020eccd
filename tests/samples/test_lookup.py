"""Requests looked up in the logs have the features that their samples have, and all of their candidates."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from hap.errors import DataError
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.samples.lookup import request_times, write_logged
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY


def candidates(table: pa.Table) -> dict[tuple[int, int], tuple]:
    """Features by request and item, as they are stored."""
    names = [name for name in table.column_names if name.startswith("cand_") and name not in ("cand_kind", "cand_bucket", "cand_position")]
    rows = {}
    for row in table.select(["request_id", *names]).to_pylist():
        for values in zip(*[row[name] for name in names], strict=True):
            one = dict(zip(names, values, strict=True))
            rows[row["request_id"], one["cand_item_id"]] = tuple(one[name] for name in sorted(names))
    return rows


def test_what_is_looked_up_is_what_samples_are_made_of(ws: Workspace, tmp_path: Path) -> None:
    params = ws.params()
    collect_day(ws, params, FIRST_DAY)
    samples = pq.read_table(partitions.parquet_files(ws, [FIRST_DAY])[0])
    ids = samples["request_id"].to_numpy()[::7]
    assert write_logged(ws, params, FIRST_DAY, ids, tmp_path / "logged.parquet") == {}
    logged = pq.read_table(tmp_path / "logged.parquet")
    assert logged["request_id"].to_numpy().tolist() == ids.tolist()
    assert pc.all(pc.equal(pc.list_value_length(logged["cand_item_id"]), 300)).as_py()
    of_them = samples.filter(pc.is_in(samples["request_id"], pa.array(ids)))
    whole = ["request_id", "event_time", "user_id", "age_band", "activity", "hour", "hist_item_id", "hist_age_hours"]
    assert logged.select(whole).equals(of_them.select(whole))
    everything, sampled = candidates(logged), candidates(of_them)
    shared = set(everything) & set(sampled)  # the drawn GN are in no log of candidates
    assert len(shared) > 20 * len(ids) and all(everything[pair] == sampled[pair] for pair in shared)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_times_are_found_on_whatever_day_they_are_logged(ws: Workspace) -> None:
    params, days = ws.params(), [FIRST_DAY + dt.timedelta(days=shift) for shift in (0, 1, 2)]
    first = 20260101 * 10**9 + 1
    found = request_times(ws, params, days, np.array([first, first + 1, 20260102 * 10**9 + 5, 9]))
    assert found["request_id"].to_pylist() == [first, first + 1, 20260102 * 10**9 + 5]
    assert found["day"].to_pylist() == [days[0], days[0], days[1]]
    assert [time.date() for time in found["event_time"].to_pylist()] == found["day"].to_pylist()


def test_a_damaged_file_and_a_table_without_its_ids_are_refused_by_name(ws: Workspace, logs: Path, tmp_path: Path) -> None:
    (file,) = (logs / "items" / f"day={FIRST_DAY}").glob("*.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["published"]), file)
    with pytest.raises(DataError, match="published"):
        write_logged(ws, ws.params(), FIRST_DAY, np.array([1]), tmp_path / "logged.parquet")
    file.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=f"{file.name}: unreadable"):
        write_logged(ws, ws.params(), FIRST_DAY, np.array([1]), tmp_path / "logged.parquet")
