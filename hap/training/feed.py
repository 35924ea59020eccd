"""Samples to batches: Arrow list columns become jagged tensors without a Python object per sample.

An epoch's order is a pure function of (seed, epoch): row groups are shuffled and taken a pool at a time, each row group's
requests are shuffled and spread evenly over the pool's steps. So a step's batch is the same set of requests however
many processes share it (each reads only its own row groups), every process makes the same number of steps, and a
step can be found again without going through those before it. Memory holds one pool, whatever the number of days.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from hap.models.batch import Batch
from hap.params import KINDS, Feature, Features, Params
from hap.samples import partitions
from hap.samples.order_key import in_share
from hap.workspace import Workspace


@dataclass(frozen=True)
class Pool:
    """Requests in memory, R of them with N candidates in all; `offsets` I64[R + 1] bounds each request's candidates."""

    request_id: NDArray[np.int64]
    user_ids: NDArray[np.int64]  # [R, U]
    user_dense: NDArray[np.float32]  # [R, u]
    hist_ids: NDArray[np.int64]  # [R, L, H]
    hist_dense: NDArray[np.float32]  # [R, L, h]
    cand_ids: NDArray[np.int64]  # [N, I]
    cand_dense: NDArray[np.float32]  # [N, d]
    kind: NDArray[np.int8]  # [N]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.request_id)

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """The chosen requests, in that order, as tensors."""
        starts = self.offsets[chosen]
        counts = self.offsets[chosen + 1] - starts
        request = np.repeat(np.arange(len(chosen)), counts)
        ends = np.cumsum(counts)
        rows = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
        by_request = (self.user_ids, self.user_dense, self.hist_ids, self.hist_dense)
        by_candidate = (self.cand_ids, self.cand_dense)
        arrays = [
            *[array.take(chosen, axis=0) for array in by_request],
            *[array.take(rows, axis=0) for array in by_candidate],
            request,
            self.kind.take(rows),
        ]
        return Batch(*[torch.from_numpy(array) for array in arrays])

    def request(self, place: int) -> dict[str, NDArray[Any]]:
        """One request's tensors by their serving names."""
        rows = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
        names = ("user_ids", "user_dense", "hist_ids", "hist_dense")
        return {name: getattr(self, name)[place] for name in names} | {"cand_ids": self.cand_ids[rows], "cand_dense": self.cand_dense[rows]}

    def keep(self, requests: NDArray[np.bool_], kinds: Sequence[str] = KINDS) -> "Pool":
        """The marked requests, with candidates of the given kinds only."""
        counts = np.diff(self.offsets)
        wanted = np.isin(self.kind, [KINDS.index(name) for name in kinds]) & np.repeat(requests, counts)
        running = np.concatenate([[0], np.cumsum(wanted)])
        bounds = running[self.offsets]
        return Pool(
            self.request_id[requests], self.user_ids[requests], self.user_dense[requests],
            self.hist_ids[requests], self.hist_dense[requests],
            self.cand_ids[wanted], self.cand_dense[wanted], self.kind[wanted],
            np.concatenate([[0], np.cumsum(np.diff(bounds)[requests])]),
        )  # fmt: skip


def read_pool(table: pa.Table, features: Features) -> Pool:
    """Rows of a samples file as arrays; absent ids become 0, absent dense values the feature's `missing`."""
    table = table.combine_chunks()
    kind, offsets = _flat(table["cand_kind"])
    hist_rows = _history_index(table, features)
    rows = table.num_rows

    def request_level(declared: Sequence[Feature], dtype: Any) -> NDArray[Any]:
        return _stack([_filled(table[feature.name], feature) for feature in declared], (rows,), dtype)

    def candidates(declared: Sequence[Feature], dtype: Any) -> NDArray[Any]:
        return _stack([_filled(_values(table[f"cand_{feature.name}"]), feature) for feature in declared], (len(kind),), dtype)

    def history(declared: Sequence[Feature], dtype: Any) -> NDArray[Any]:
        columns = []
        for feature in declared:
            flat = _filled(_values(table[f"hist_{feature.name}"]), feature)
            # Places of padding point at this last one.
            columns.append(np.concatenate([flat, np.zeros(1, flat.dtype)]).take(hist_rows))
        return _stack(columns, hist_rows.shape, dtype)

    return Pool(
        request_id=table["request_id"].to_numpy(),
        user_ids=request_level(features.ids("user"), np.int64),
        user_dense=request_level(features.dense("user"), np.float32),
        hist_ids=history(features.ids("history"), np.int64),
        hist_dense=history(features.dense("history"), np.float32),
        cand_ids=candidates(features.ids("item"), np.int64),
        cand_dense=candidates(features.dense("item"), np.float32),
        kind=kind.to_numpy(zero_copy_only=False).astype(np.int8),
        offsets=offsets,
    )


def _flat(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """A list column's values and offsets starting at 0; a null list counts as empty."""
    lists = _one(column)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return lists.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _values(column: pa.ChunkedArray) -> pa.Array:
    """A list column's values."""
    return _one(column).flatten()


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def _filled(values: Any, feature: Feature) -> NDArray[Any]:
    if feature.type == "dense":
        floats = values.cast(pa.float32())
        floats = pc.fill_null(floats, feature.missing) if floats.null_count else floats
        array = np.asarray(floats.to_numpy(zero_copy_only=False))
        broken = np.isnan(array)
        return np.where(broken, np.float32(feature.missing), array) if broken.any() else array
    ids = values.cast(pa.int64())
    return np.asarray((pc.fill_null(ids, 0) if ids.null_count else ids).to_numpy(zero_copy_only=False))


def _stack(columns: list[NDArray[Any]], shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    whole = np.empty((*shape, len(columns)), dtype)
    for place, column in enumerate(columns):
        whole[..., place] = column
    return whole


def _history_index(table: pa.Table, features: Features) -> NDArray[np.int64]:
    """For [R, L]: the flat row of each of the last L events, left-padded; padding points one beyond the last row."""
    length = features.history_length
    values, offsets = _flat(table[f"hist_{features.history[0].name}"])
    rows = offsets[1:, None] - np.arange(length, 0, -1)[None, :]
    return np.where(rows >= offsets[:-1, None], rows, len(values))


class Feed:
    """The training part, or the held-out part, of a window's samples.

    Held out is the window's last day of a fixed share of the users, by the portable hash: what these users do on a day
    that their model has not seen of them, as on the day that it will serve. Requests drawn from the whole window would lie
    between others of the same user and hour, and a model that learns those by heart would look ever better on them.
    """

    def __init__(self, files: Sequence[Path], params: Params, *, heldout: bool, kinds: Sequence[str] = KINDS) -> None:
        """
        Args:
            files: sample files in the order of their days, each in its day's folder.
        """
        self.files = [pq.ParquetFile(path) for path in files]
        self.last_day = [path.parent == files[-1].parent for path in files]
        self.units = [(place, group) for place, file in enumerate(self.files) for group in range(file.num_row_groups)]
        self.params, self.heldout, self.kinds = params, heldout, tuple(kinds)
        self.columns = sample_columns(params.features)
        self.pooled = params.train.pool_row_groups

    def pools(self, rank: int = 0, world: int = 1) -> Iterator[Pool]:
        """This part's requests in the order of the files, a pool of row groups at a time: every `world`-th row group from `rank` on."""
        units = [unit for unit in range(len(self.units)) if self._share(unit)][rank::world]
        for start in range(0, len(units), self.pooled):
            yield self._kept(units[start : start + self.pooled])

    def plan(self, seed: int, epoch: int) -> list[tuple[list[int], int]]:
        """The pools of an epoch: their units, and how many steps each gives. Known from the files' footers alone."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.units)).tolist()
        pools = [order[start : start + self.pooled] for start in range(0, len(order), self.pooled)]
        requests = [sum(self._rows(unit) * self._share(unit) for unit in units) for units in pools]
        return [(units, max(1, round(count / self.params.train.batch_requests))) for units, count in zip(pools, requests, strict=True)]

    def steps(self, seed: int, epoch: int) -> int:
        """Batches of an epoch."""
        return sum(steps for _, steps in self.plan(seed, epoch))

    def batches(self, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches of whole requests from step `start` on: this process's part of each, which may be empty."""
        for units, steps in self.plan(seed, epoch):
            if start >= steps:
                start -= steps
                continue
            pool, parts = self._shuffled(units[rank::world], seed, epoch)
            for step in range(start, steps):
                yield pool.batch(np.concatenate([part[step * len(part) // steps : (step + 1) * len(part) // steps] for part in parts]))
            start = 0
            del pool  # else it would stay until the next one is whole

    def _shuffled(self, units: Sequence[int], seed: int, epoch: int) -> tuple[Pool, list[NDArray[np.int64]]]:
        """The units' requests, and the places of this part's among them: each unit's in an order of its own."""
        pool, belongs = self._load(units)
        kept = np.flatnonzero(belongs)  # the others stay where they are: leaving them out would copy the pool
        bounds = np.searchsorted(kept, np.cumsum([0, *[self._rows(unit) for unit in units]]))
        parts = [
            kept[first + np.random.default_rng([seed, epoch, unit]).permutation(end - first)]
            for unit, (first, end) in zip(units, pairwise(bounds.tolist()), strict=True)
        ]
        if self.kinds != KINDS:
            pool = pool.keep(np.ones(len(pool), bool), self.kinds)
        return pool, parts or [np.zeros(0, np.int64)]

    def _kept(self, units: Sequence[int]) -> Pool:
        """This part's requests of the units; the whole pool is let go before they are handed on."""
        pool, belongs = self._load(units)
        return pool.keep(belongs, self.kinds)

    def _read(self, unit: int) -> pa.Table:
        file, group = self.units[unit]
        return self.files[file].read_row_group(group, columns=self.columns, use_threads=False)

    def _rows(self, unit: int) -> int:
        file, group = self.units[unit]
        return int(self.files[file].metadata.row_group(group).num_rows)

    def _share(self, unit: int) -> float:
        """About which share of the row group's requests is of this part."""
        heldout = self.params.train.heldout_share if self.last_day[self.units[unit][0]] else 0.0
        return heldout if self.heldout else 1 - heldout

    def _load(self, units: Sequence[int]) -> tuple[Pool, NDArray[np.bool_]]:
        """The row groups' requests, and which of them are of this part [R]."""
        tables = [self._read(unit) for unit in units]
        belongs = [self._belongs(table, self.units[unit][0]) for unit, table in zip(units, tables, strict=True)]
        pool = read_pool(pa.concat_tables(tables or [self._read(0).slice(0, 0)]), self.params.features)
        return pool, np.concatenate(belongs) if belongs else np.zeros(0, bool)

    def _belongs(self, table: pa.Table, file: int) -> NDArray[np.bool_]:
        out = is_heldout(table, self.params) if self.last_day[file] else np.zeros(table.num_rows, bool)
        return out if self.heldout else ~out

    def requests(self) -> int:
        """Requests of this part."""
        whole = sum(file.metadata.num_rows for file in self.files)
        heldout = sum(
            int(is_heldout(file.read(columns=[heldout_by(self.params)]), self.params).sum())
            for file, last in zip(self.files, self.last_day, strict=True)
            if last
        )
        return heldout if self.heldout else whole - heldout


def heldout_by(params: Params) -> str:
    """The column by which requests of the last day are held out: whole users where the features say who they are."""
    return "user_id" if any(feature.name == "user_id" for feature in params.features.user) else "request_id"


def is_heldout(table: pa.Table, params: Params) -> NDArray[np.bool_]:
    """Which requests of the window's last day [R] stop training and are never trained on, by the portable hash."""
    ids = pc.fill_null(table[heldout_by(params)], 0).to_numpy()
    return np.asarray(in_share(ids, f"{params.seed}|heldout", params.train.heldout_share))


def sample_columns(features: Features) -> list[str]:
    """The columns of a samples file that a model with these features reads."""
    return [
        "request_id",
        "cand_kind",
        *[feature.name for feature in features.user + features.context],
        *[f"hist_{feature.name}" for feature in features.history],
        *[f"cand_{feature.name}" for feature in features.item],
    ]


def window_files(ws: Workspace, window: Sequence[str]) -> list[Path]:
    """The sample files of the window's days.

    Raises:
        NotFound: a day was not collected.
    """
    return partitions.parquet_files(ws, [dt.date.fromisoformat(day) for day in window])
