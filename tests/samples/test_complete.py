"""Requests with all their candidates say what the logs say, and the same clicks as the day's samples."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hap.errors import DataError
from hap.params import KINDS, Params
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.samples.complete import write_complete
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


def test_a_day_without_logs_is_refused_and_leaves_nothing(logged_workspace: Workspace, default_params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_complete(logged_workspace, default_params, [FIRST_DAY.replace(year=2031)], 10, tmp_path / "c.parquet", 1)
    assert list(tmp_path.iterdir()) == []
