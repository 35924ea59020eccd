"""Rows of requests and rows of their candidates, both sorted, zipped into one row per request with list columns."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

_KEY = "request_id"
_ASTRAY = "a candidate's request is absent, or one of the streams is not sorted by request_id"


def grouped_schema(requests: pa.Schema, candidates: pa.Schema) -> pa.Schema:
    """The requests' columns, then every column of the candidates but request_id as a list."""
    lists = [pa.field(field.name, pa.list_(field.type)) for field in candidates if field.name != _KEY]
    return pa.schema([*requests, *lists])


def group_batches(requests: pa.RecordBatchReader, candidates: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Stream one row per request that has candidates.

    Args:
        requests: sorted by request_id, which is unique.
        candidates: sorted by request_id; every one of them occurs in `requests`.
    """
    schema = grouped_schema(requests.schema, candidates.schema)
    return pa.RecordBatchReader.from_batches(schema, _zipped(requests, candidates, schema))


def _zipped(requests: pa.RecordBatchReader, candidates: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    waiting, exhausted = candidates.schema.empty_table(), False
    for batch in requests:
        if not batch.num_rows:
            continue
        ids = batch[_KEY].to_numpy()
        # The last request is whole once a later one shows up, or nothing more.
        parts = [waiting]
        while not exhausted and (not parts[-1].num_rows or parts[-1][_KEY][-1].as_py() <= ids[-1]):
            following = next(candidates, None)
            exhausted = following is None
            if following is not None:
                parts.append(pa.Table.from_batches([following]))
        rows = pa.concat_tables(parts)
        keys = rows[_KEY].to_numpy()
        begin, end = np.searchsorted(keys, ids, "left"), np.searchsorted(keys, ids, "right")
        waiting, rows = rows.slice(end[-1]), rows.slice(0, end[-1]).combine_chunks()
        present = end > begin
        if (end - begin).sum() != rows.num_rows:
            raise ValueError(_ASTRAY)
        if present.any():
            offsets = pa.array(np.append(begin[present], end[-1]).astype(np.int32))
            kept = batch if present.all() else batch.filter(pa.array(present))
            lists = [pa.ListArray.from_arrays(offsets, _whole(rows[name])) for name in rows.column_names if name != _KEY]
            yield pa.RecordBatch.from_arrays([*kept.columns, *lists], schema=schema)
    if waiting.num_rows or any(batch.num_rows for batch in candidates):
        raise ValueError(_ASTRAY)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
