"""Two sorted streams become one row per request, however they are cut into batches."""

import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hap.samples.grouping import group_batches

REQUESTS = pa.schema([("request_id", pa.int64()), ("user_id", pa.int64())])
CANDIDATES = pa.schema([("request_id", pa.int64()), ("cand_item_id", pa.int64()), ("cand_bucket", pa.string())])


def reader(schema: pa.Schema, rows: list[dict], sizes: list[int]) -> pa.RecordBatchReader:
    """The rows in batches of the given sizes, over and over; a size may be 0."""
    batches, begin = [], 0
    for size in itertools.cycle(sizes):
        if begin >= len(rows):
            break
        batches.append(pa.RecordBatch.from_pylist(rows[begin : begin + size], schema))
        begin += size
    return pa.RecordBatchReader.from_batches(schema, batches)


SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 4)), max_size=12, unique_by=lambda pair: pair[0]), SIZES, SIZES)
def test_each_request_with_candidates_comes_out_whole(counts: list[tuple[int, int]], request_sizes: list[int], sizes: list[int]) -> None:
    counts = sorted(counts)
    requests = [{"request_id": key, "user_id": key * 10} for key, _ in counts]
    rows = [{"request_id": key, "cand_item_id": n, "cand_bucket": f"b{n}"} for key, count in counts for n in range(count)]
    found = group_batches(reader(REQUESTS, requests, request_sizes), reader(CANDIDATES, rows, sizes)).read_all().to_pylist()
    assert found == [
        {"request_id": key, "user_id": key * 10, "cand_item_id": [*range(count)], "cand_bucket": [f"b{n}" for n in range(count)]}
        for key, count in counts
        if count
    ]


@pytest.mark.parametrize("absent", [1, 2, 3])
def test_a_candidate_without_its_request_is_a_defect_and_not_dropped(absent: int) -> None:
    requests = [{"request_id": key, "user_id": 1} for key in (1, 2, 3) if key != absent]
    rows = [{"request_id": key, "cand_item_id": 1, "cand_bucket": "b"} for key in (1, 2, 3)]
    with pytest.raises(ValueError, match="absent"):
        group_batches(reader(REQUESTS, requests, [2]), reader(CANDIDATES, rows, [3])).read_all()
