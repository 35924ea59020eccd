"""The slices of gate.slices among the judged rows, read from the samples: what a model knows of a column does not matter here."""

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hap.evaluation.slices import slice_masks
from hap.params import KINDS, Params
from hap.samples import partitions
from hap.workspace import Workspace

LENGTH = "history_length"  # the events of a request: made here, no column of the samples


def slices_of(
    ws: Workspace, params: Params, judging: Sequence[dt.date], training: Sequence[dt.date]
) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
    """The rows [N] of each slice, in the order of the samples; and what keeps a declared slice from being made, in sentences.

    Args:
        judging: the days whose samples are judged.
        training: the days whose values are not new.
    """
    files = partitions.parquet_files(ws, list(judging))
    columns: dict[str, NDArray[np.int64]] = {}
    seen: dict[str, NDArray[np.int64]] = {}
    missing: list[str] = []
    for column in dict.fromkeys(one.column for one in params.gate.slices):
        if lacking := _lacking(files, _stored(params, column)):
            missing.append(f"slices of {column}: the samples of {lacking} lack it; make them anew with `hapctl collect --reopen`")
        else:
            columns[column] = _concatenated(_by_row(path, params, column) for path in files)
    gone = [day for day in training if partitions.find(ws, day) is None]
    for column in dict.fromkeys(one.column for one in params.gate.slices if one.new and one.column in columns):
        before = partitions.parquet_files(ws, [day for day in training if day not in gone])
        if gone:
            wanted = f"{gone[0]} was trained on and has no samples; `hapctl collect --day {gone[0]}` makes them"
            missing.append(f"slices of new {column}: {wanted}")
        elif lacking := _lacking(before, _stored(params, column)):
            missing.append(f"slices of new {column}: the samples of {lacking} lack it; make them anew with `hapctl collect --reopen`")
        else:
            seen[column] = np.unique(_concatenated(_flat(path, _stored(params, column)) for path in before))
    positive = _concatenated(_flat(path, "cand_kind") for path in files) == KINDS.index("EP")
    return slice_masks(params.gate.slices, columns, seen, positive, params.gate.slice_min_positives), missing


def _stored(params: Params, column: str) -> str:
    """The samples' column that a slice's column is made of."""
    if column == LENGTH:
        return "hist_item_id"
    return f"cand_{column}" if column in {feature.name for feature in params.features.ids("item")} else column


def _lacking(files: Sequence[Path], stored: str) -> str | None:
    """The first partition without the column."""
    return next((path.parent.name for path in files if stored not in pq.read_schema(path).names), None)


def _by_row(path: Path, params: Params, column: str) -> NDArray[np.int64]:
    """What each candidate has of a column, I64[N]."""
    stored = _stored(params, column)
    if stored.startswith("cand_"):
        return _flat(path, stored)
    of_requests = np.minimum(_lengths(path, stored), params.features.history_length) if column == LENGTH else _flat(path, stored)
    return np.repeat(of_requests, _lengths(path, "cand_kind"))


def _flat(path: Path, stored: str) -> NDArray[np.int64]:
    """A column's values, of lists what stands in them; an absent one is 0."""
    values = pq.ParquetFile(path).read(columns=[stored])[stored]
    values = pc.list_flatten(values) if pa.types.is_list(values.type) else values
    return np.asarray(pc.fill_null(values, 0).to_numpy(), np.int64)


def _lengths(path: Path, stored: str) -> NDArray[np.int64]:
    values = pq.ParquetFile(path).read(columns=[stored])[stored]
    return np.asarray(pc.fill_null(pc.list_value_length(values), 0).to_numpy(), np.int64)


def _concatenated(parts: Iterator[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *parts])
