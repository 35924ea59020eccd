"""A share of the served requests, written as Parquet: what Triton was sent and what it answered, to be compared with the logs later.

A request is written or not by the hash of its request_id alone, so every client of one service writes the same ones. The
caller only puts a record into a bounded queue; a thread writes. A file holds one UTC day and one version, lies at
FOLDER/day=YYYY-MM-DD/, and has its name from the moment it is whole: a process that is killed loses the rows of its open
file, at most those of `file_s` seconds.

Columns: request_id, served_at (UTC), version, k (what the request asked for, or null), score and routed (lists of N); user
and context features by name; hist_NAME and cand_NAME, lists of L and N. Ids are int64, dense features float32, as served.
"""

import atexit
import contextlib
import datetime as dt
import io
import logging
import os
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hap import durable
from hap.errors import DataError, HapError
from hap.params import Features
from hap.samples.order_key import in_share
from hap.serving.request import TENSORS, RequestTensors
from hap.serving.wire import Scored, ServedSchema

SALT = "served requests"
FILE_S = 600.0
_ROW_GROUP_BYTES = 4 * 2**20  # of tensors, before compression
_RECORD_BYTES = 1024  # of a record beside its values
_TICK_S = 1.0  # how often the thread looks whether an open file is too old
_LEFT_S = 3600.0  # a killed writer's open file is removed by the next one after so long
_log = logging.getLogger("hap.serving")


@dataclass(frozen=True, eq=False)
class Record:
    """One request as it was served; `tensors` are the log's own copy."""

    request_id: int
    served_at: dt.datetime
    schema: ServedSchema
    tensors: RequestTensors
    k: int | None
    scored: Scored

    @property
    def nbytes(self) -> int:
        """What the record takes in memory, about."""
        tensors = sum(getattr(self.tensors, name).nbytes for name in TENSORS)
        return tensors + self.scored.score.nbytes + self.scored.routed.nbytes + _RECORD_BYTES


@dataclass(frozen=True)
class Counts:
    """Requests in finished files, and requests lost: `dropped` by a full queue, `failed` by the disk."""

    written: int
    dropped: int
    failed: int


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class ServedLog:
    """Writes records below a folder until it is closed, at the latest when the process ends.

    Args:
        share: of all request ids.
        file_bytes: a file that has grown beyond it is closed.
        queue_bytes: of records that wait; one beyond it is dropped and counted.
        file_s: a file that was begun so long ago is closed.

    Raises:
        HapError: the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Path | str,
        share: float = 0.01,
        file_bytes: int = 64 * 2**20,
        queue_bytes: int = 64 * 2**20,
        file_s: float = FILE_S,
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self.folder, self.share, self.file_bytes, self.queue_bytes, self.file_s = Path(folder), share, file_bytes, queue_bytes, file_s
        self.clock = clock
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HapError(f"log_to {self.folder} cannot be made: {error.strerror}; give a folder that can be written") from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise HapError(f"log_to {self.folder} cannot be written; give a folder that can")
        # The first write loads half a second of modules: now, not while requests are served, nor at exit, when it cannot.
        pq.write_table(pa.schema(_OWN).empty_table(), io.BytesIO(), compression="zstd")
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()  # bounded by `_waiting`
        self._lock = threading.Lock()
        self._waiting = self._written = self._dropped = self._failed = 0
        self._closed = False
        self._file: _File | None = None
        self._thread = threading.Thread(target=self._run, name="hap served log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def wants(self, request_id: int) -> bool:
        """Whether this request is of the share."""
        return bool(in_share(request_id, SALT, self.share))

    def take(self, request_id: int, schema: ServedSchema, tensors: RequestTensors, k: int | None, scored: Scored) -> bool:
        """`offer` for a request that was served just now; the log keeps the tensors, so they must be a copy."""
        return self.offer(Record(request_id, self.clock(), schema, tensors, k, scored))

    def offer(self, record: Record) -> bool:
        """Queue a record; False where the queue is full or closed, and the record is dropped. Never waits for the disk."""
        size = record.nbytes
        with self._lock:
            if self._closed or self._waiting + size > self.queue_bytes:
                self._dropped += 1
                return False
            self._waiting += size
            self._queue.put(record)
            return True

    def counts(self) -> Counts:
        """What became of the records so far; those that wait or lie in the open file are in none."""
        with self._lock:
            return Counts(self._written, self._dropped, self._failed)

    def close(self) -> None:
        """Write what waits, finish the open file, end the thread."""
        with self._lock:
            was, self._closed = self._closed, True
        if not was:
            self._queue.put(None)
            atexit.unregister(self.close)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                record = self._queue.get(timeout=_TICK_S)
            except queue.Empty:
                self._finish(if_old=True)
                continue
            if record is None:
                self._finish()
                return
            self._add(record)
            with self._lock:
                self._waiting -= record.nbytes
            self._finish(if_old=True)

    def _add(self, record: Record) -> None:
        if self._file is not None and not self._file.takes(record):
            self._finish()
        if self._file is None:
            self._file = _File(self.folder, record)
        try:
            self._file.add(record, min(_ROW_GROUP_BYTES, self.file_bytes))
        except Exception as error:  # whatever is wrong with one file must not end the log
            self._abandon(error)
            return
        if self._file.written_bytes >= self.file_bytes:
            self._finish()

    def _finish(self, if_old: bool = False) -> None:
        file = self._file
        if file is None or (if_old and not file.is_over(self.clock(), self.file_s)):
            return
        try:
            file.finish()
        except Exception as error:  # as above
            self._abandon(error)
            return
        with self._lock:
            self._written += file.rows
        self._file = None

    def _abandon(self, error: Exception) -> None:
        file, self._file = self._file, None
        assert file is not None
        file.abandon()
        _log.warning("%d served requests could not be written below %s: %s", file.rows, self.folder, error)
        with self._lock:  # counted once it is told: who sees the count finds the reason
            self._failed += file.rows


class _File:
    """One file while it is written; opened on disk with its first row group."""

    def __init__(self, folder: Path, first: Record) -> None:
        self.day, self.schema, self.begun = first.served_at.date(), first.schema, first.served_at
        who = f"{socket.gethostname()}-{os.getpid()}"
        name = f"served-{self.begun:%H%M%S}-v{self.schema.version}-{who}-{secrets.token_hex(4)}.parquet"
        self.path = folder / f"day={self.day}" / name
        self.open_path = self.path.with_name(f".{name}.tmp")
        self.rows = self.written_bytes = 0
        self._buffer: list[Record] = []
        self._buffered_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._handle: Any = None

    def takes(self, record: Record) -> bool:
        """Whether the record is of this file's day and version."""
        same = (record.schema.version, record.schema.digest) == (self.schema.version, self.schema.digest)
        return same and record.served_at.date() == self.day

    def is_over(self, now: dt.datetime, file_s: float) -> bool:
        """Whether its day, or its time, has passed."""
        return now.date() > self.day or (now - self.begun).total_seconds() >= file_s

    def add(self, record: Record, group_bytes: int) -> None:
        """Take a record; write a row group once there is one."""
        self.rows += 1
        self._buffer.append(record)
        self._buffered_bytes += record.nbytes
        if self._buffered_bytes >= group_bytes:
            self._flush()

    def finish(self) -> None:
        """Write the rest, sync, and give the file its name."""
        self._flush()
        assert self._writer is not None
        self._writer.close()
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        os.replace(self.open_path, self.path)
        durable.fsync_path(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written, as far as the disk lets."""
        with contextlib.suppress(OSError):
            if self._handle is not None:
                self._handle.close()
            self.open_path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_leftovers(self.path.parent)
            self._handle = open(self.open_path, "wb")  # noqa: SIM115 - `finish` or `abandon` closes it
            self._writer = pq.ParquetWriter(self._handle, arrow_schema(self.schema.features), compression="zstd")
        if self._buffer:
            self._writer.write_table(to_table(self._buffer))
            self._buffer, self._buffered_bytes = [], 0
            self.written_bytes = self._handle.tell()


def arrow_schema(features: Features) -> pa.Schema:
    """The columns of served requests under these features."""
    fields = list(_OWN)
    for group, prefix in (("user", ""), ("history", "hist_"), ("item", "cand_")):
        for feature in (*features.ids(group), *features.dense(group)):  # type: ignore[arg-type]
            kind = pa.float32() if feature.type == "dense" else pa.int64()
            fields.append(pa.field(prefix + feature.name, kind if group == "user" else pa.list_(kind)))
    return pa.schema(fields)


def to_table(records: Sequence[Record]) -> pa.Table:
    """Records of one version as a table of `arrow_schema`."""
    features = records[0].schema.features
    columns: list[pa.Array] = [
        pa.array([record.request_id for record in records], pa.int64()),
        pa.array([record.served_at for record in records], _TIME),
        pa.array([record.scored.served_by for record in records], pa.int32()),
        pa.array([record.k for record in records], pa.int64()),
        _lists([record.scored.score for record in records]),
        _lists([record.scored.routed for record in records]),
    ]
    for tensor, group in (("user", "user"), ("hist", "history"), ("cand", "item")):
        for kind, named in (("ids", features.ids(group)), ("dense", features.dense(group))):  # type: ignore[arg-type]
            arrays = [getattr(record.tensors, f"{tensor}_{kind}") for record in records]
            for place in range(len(named)):
                if group == "user":
                    columns.append(pa.array(np.array([array[place] for array in arrays])))
                else:
                    columns.append(_lists([array[:, place] for array in arrays]))
    schema = arrow_schema(features)
    return pa.Table.from_arrays([column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def read_served(folder: Path | str, day: dt.date) -> pa.Table:
    """The finished files of a day of serving as one table, file after file, in the order in which they were begun.

    Files of versions with other features are put together by column name; what a version does not have is null. A request
    that was scored twice is there twice. Without a file the table is empty and has the columns that every version shares.

    Raises:
        DataError: a file is damaged; it is named.
    """
    tables = [pa.schema(_OWN).empty_table()]
    for path in sorted((Path(folder) / f"day={day}").glob("served-*.parquet")):
        try:
            tables.append(pq.ParquetFile(path).read())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} does not read: {str(error).splitlines()[0]}; move it away") from None
    return pa.concat_tables(tables, promote_options="default")


def served_tensors(table: pa.Table, row: int, features: Features) -> RequestTensors:
    """What the server was sent, from a row of `read_served` and the features of its version."""
    values = {name: column[0] for name, column in zip(table.column_names, table.slice(row, 1).columns, strict=True)}

    def columns(prefix: str, group: Any, kind: str, dtype: type[np.generic]) -> NDArray[Any]:
        named = features.ids(group) if kind == "ids" else features.dense(group)
        found = [values[prefix + feature.name] for feature in named]
        if group == "user":
            return np.array([value.as_py() for value in found], dtype)
        length = len(values["score"]) if group == "item" else features.history_length
        lists = [np.asarray(value.values.to_numpy(zero_copy_only=False), dtype) for value in found]
        return np.stack(lists, axis=1) if lists else np.zeros((length, 0), dtype)

    return RequestTensors(
        columns("", "user", "ids", np.int64),
        columns("", "user", "dense", np.float32),
        columns("hist_", "history", "ids", np.int64),
        columns("hist_", "history", "dense", np.float32),
        columns("cand_", "item", "ids", np.int64),
        columns("cand_", "item", "dense", np.float32),
    )


_TIME = pa.timestamp("us", "UTC")
_OWN = (
    pa.field("request_id", pa.int64()),
    pa.field("served_at", _TIME),
    pa.field("version", pa.int32()),
    pa.field("k", pa.int64()),
    pa.field("score", pa.list_(pa.float32())),
    pa.field("routed", pa.list_(pa.bool_())),
)


def _lists(arrays: Sequence[NDArray[Any]]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


def _drop_leftovers(folder: Path) -> None:
    """Remove the open files that killed processes of this host left."""
    now = utc_now().timestamp()
    for left in folder.glob(f".served-*-{socket.gethostname()}-*.parquet.tmp"):
        pid = left.name.split("-")[-2]
        try:
            if pid.isdigit() and not durable.is_running(int(pid)) and now - left.stat().st_mtime > _LEFT_S:
                left.unlink()
        except FileNotFoundError:
            continue
