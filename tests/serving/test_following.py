import datetime as dt
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hap.errors import DataError
from hap.serving.following import Follower

NOW = dt.datetime(2026, 1, 5, 0, 30, tzinfo=dt.UTC)


def finish(folder: Path, day: str, name: str, value: int, age_s: float = 0.0) -> None:
    path = folder / f"day={day}" / f"served-{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"request_id": [value]}), path)
    os.utime(path, (NOW.timestamp() - age_s, NOW.timestamp() - age_s))


def values(follower: Follower) -> list[int]:
    return [table["request_id"][0].as_py() for _, table in follower.read()]


def test_files_are_read_once_each_from_now_on_oldest_first(tmp_path: Path) -> None:
    finish(tmp_path, "2026-01-05", "000100-a", 1)
    follower = Follower(tmp_path, NOW)
    assert values(follower) == []
    finish(tmp_path, "2026-01-05", "000200-b", 2, age_s=5)
    finish(tmp_path, "2026-01-04", "235900-c", 3, age_s=9)  # begun yesterday, finished now
    finish(tmp_path, "2026-01-06", "000000-d", 4)
    assert values(follower) == [3, 2, 4]
    assert values(follower) == []


def test_open_files_and_days_long_past_are_left_alone(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "not there yet", NOW)
    assert values(follower) == []
    follower = Follower(tmp_path, NOW)
    finish(tmp_path, "2026-01-01", "000100-a", 1)
    (tmp_path / "day=2026-01-05").mkdir()
    (tmp_path / "day=2026-01-05" / ".served-x.parquet.tmp").write_bytes(b"being written")
    assert values(follower) == []


def test_a_damaged_file_is_told_once_and_the_others_are_read(tmp_path: Path) -> None:
    follower = Follower(tmp_path, NOW)
    finish(tmp_path, "2026-01-05", "000200-b", 2)
    (tmp_path / "day=2026-01-05" / "served-000100-a.parquet").write_bytes(b"no parquet")
    os.utime(tmp_path / "day=2026-01-05" / "served-000100-a.parquet", (0, 0))
    with pytest.raises(DataError, match=r"served-000100-a\.parquet does not read"):
        values(follower)
    assert values(follower) == [2]
