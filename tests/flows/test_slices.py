"""Slices are read from the samples, row by row, and what cannot be read is said."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import slices
from flows.slices import slices_of
from hap.params import Params, Slice
from hap.workspace import Workspace

JUDGED, TRAINED = dt.date(2026, 1, 4), dt.date(2026, 1, 3)
LISTS = pa.list_(pa.int64())


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A judged day of two requests, of three and two candidates, and a day of one request that was trained on."""
    write(
        tmp_path, JUDGED, age_band=[1, None], cand_kind=[[0, 1, 2], [0, 4]], cand_item_id=[[7, 8, 9], [7, 5]], hist_item_id=[[1] * 6, [2]]
    )
    write(tmp_path, TRAINED, age_band=[1], cand_kind=[[0, 1]], cand_item_id=[[8, 9]], hist_item_id=[[]])

    def files(ws: Workspace, days: list[dt.date]) -> list[Path]:
        return [path for day in days for path in (tmp_path / f"day={day}").glob("*.parquet")]

    monkeypatch.setattr(slices.partitions, "parquet_files", files)
    monkeypatch.setattr(slices.partitions, "find", lambda ws, day: files(ws, [day]) or None)
    return tmp_path


def write(folder: Path, day: dt.date, **columns: list) -> None:
    (folder / f"day={day}").mkdir(exist_ok=True)
    typed = {name: pa.array(values, LISTS if "_" in name and name != "age_band" else pa.int64()) for name, values in columns.items()}
    pq.write_table(pa.table(typed), folder / f"day={day}" / "part-0.parquet")


def made(folder: Path, params: Params, *wanted: Slice) -> tuple[dict, list[str]]:
    gate = params.gate.model_copy(update={"slices": wanted, "slice_min_positives": 1})
    masks, missing = slices_of(Workspace(folder), params.model_copy(update={"gate": gate}), [JUDGED], [TRAINED])
    return {name: mask.tolist() for name, mask in masks.items()}, missing


def test_request_columns_are_repeated_and_item_columns_are_each_candidates_own(samples: Path, default_params: Params) -> None:
    masks, missing = made(samples, default_params, Slice(column="age_band"), Slice(column="item_id", values=(7,)))
    assert masks == {
        "age_band=0": [False] * 3 + [True] * 2,  # nobody knows it
        "age_band=1": [True] * 3 + [False] * 2,
        "item_id=7": [True, False, False, True, False],
    }
    assert missing == []


def test_a_short_history_is_one_of_few_events(samples: Path, default_params: Params) -> None:
    assert made(samples, default_params, Slice(column="history_length", below=5))[0] == {"history_length below 5": [False] * 3 + [True] * 2}


def test_new_ids_are_those_that_the_training_window_did_not_have(samples: Path, default_params: Params) -> None:
    assert made(samples, default_params, Slice(column="item_id", new=True))[0] == {"item_id new": [True, False, False, True, True]}


def test_what_keeps_a_slice_from_being_made_is_said(samples: Path, default_params: Params) -> None:
    masks, missing = made(samples, default_params, Slice(column="content_type"), Slice(column="item_id", values=(7,)))
    assert list(masks) == ["item_id=7"]
    assert missing == [f"slices of content_type: the samples of day={JUDGED} lack it; make them anew with `hapctl collect --reopen`"]
    (samples / f"day={TRAINED}" / "part-0.parquet").unlink()
    masks, missing = made(samples, default_params, Slice(column="item_id", new=True))
    assert masks == {}
    assert missing == [f"slices of new item_id: {TRAINED} was trained on and has no samples; `hapctl collect --day {TRAINED}` makes them"]
