"""Requests with all their candidates say what the logs say, and the same clicks as the day's samples."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hap.errors import DataError
from hap.params import KINDS, Params
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.samples.complete import first_by_key, write_complete, write_requests
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY

CLICK = KINDS.index("EP")


def read(path: Path) -> dict[int, dict]:
    return {row["request_id"]: row for row in pq.read_table(path).to_pylist()}


def test_every_candidate_of_every_clicked_request_is_there_once(
    logged_workspace: Workspace, default_params: Params, tmp_path: Path
) -> None:
    collect_day(logged_workspace, default_params, FIRST_DAY)
    path = tmp_path / "complete.parquet"
    count = write_complete(logged_workspace, default_params, [FIRST_DAY], 10**6, path, 1)
    found = read(path)
    assert len(found) == count > 0 and list(tmp_path.iterdir()) == [path]
    logged = pq.read_table(Path(logged_workspace.logs(default_params)) / "candidates" / f"day={FIRST_DAY}").to_pydict()
    wanted: dict[int, list[int]] = {}
    for request, item in zip(logged["request_id"], logged["item_id"], strict=True):
        wanted.setdefault(request, []).append(item)
    for request, row in found.items():
        assert sorted(row["cand_item_id"]) == sorted(wanted[request]) and CLICK in row["cand_kind"]


def test_clicks_are_those_of_the_closed_day(logged_workspace: Workspace, default_params: Params, tmp_path: Path) -> None:
    collect_day(logged_workspace, default_params, FIRST_DAY)
    samples = {}
    for file in partitions.parquet_files(logged_workspace, [FIRST_DAY]):
        samples |= read(file)
    write_complete(logged_workspace, default_params, [FIRST_DAY], 10**6, tmp_path / "c.parquet", 1)

    def clicks(row: dict) -> set[int]:
        return {item for item, kind in zip(row["cand_item_id"], row["cand_kind"], strict=True) if kind == CLICK}

    whole = read(tmp_path / "c.parquet")
    assert {request: clicks(row) for request, row in whole.items()} == {r: clicks(row) for r, row in samples.items() if clicks(row)}


def test_a_limit_takes_the_same_requests_whenever_it_is_asked(logged_workspace: Workspace, default_params: Params, tmp_path: Path) -> None:
    collect_day(logged_workspace, default_params, FIRST_DAY)
    for name, most in (("one", 20), ("two", 20), ("three", 30)):
        assert write_complete(logged_workspace, default_params, [FIRST_DAY], most, tmp_path / name, 7) == most
    one, two, three = (set(read(tmp_path / name)) for name in ("one", "two", "three"))
    assert one == two and one < three


def test_chosen_requests_are_written_whether_they_were_clicked_or_not(
    logged_workspace: Workspace, default_params: Params, tmp_path: Path
) -> None:
    collect_day(logged_workspace, default_params, FIRST_DAY)
    samples = next(read(file) for file in partitions.parquet_files(logged_workspace, [FIRST_DAY]))
    chosen = np.array([request for request, row in samples.items() if (CLICK in row["cand_kind"]) == (request % 2 == 0)])
    assert write_requests(logged_workspace, default_params, {FIRST_DAY: chosen}, tmp_path / "c.parquet") == len(chosen)
    found = read(tmp_path / "c.parquet")
    assert set(found) == set(chosen.tolist())
    assert {CLICK in row["cand_kind"] for row in found.values()} == {True, False}
    assert all(len(row["cand_item_id"]) > len(samples[request]["cand_item_id"]) for request, row in found.items())


def test_the_first_by_key_are_the_same_whatever_list_they_stand_in() -> None:
    ids = np.arange(1, 301)
    (whole,), split = first_by_key([ids], 50, "salt"), first_by_key([ids[:100], ids[100:]], 50, "salt")
    assert len(whole) == 50 and whole.tolist() == np.concatenate(split).tolist()
    assert set(first_by_key([ids], 20, "salt")[0].tolist()) < set(whole.tolist())
    assert first_by_key([ids[:3]], 50, "salt")[0].tolist() == [1, 2, 3] and first_by_key([], 5, "salt") == []


def test_a_day_without_logs_is_refused_and_leaves_nothing(logged_workspace: Workspace, default_params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_complete(logged_workspace, default_params, [FIRST_DAY.replace(year=2031)], 10, tmp_path / "c.parquet", 1)
    assert list(tmp_path.iterdir()) == []
