"""Which declared buckets have no rows."""

import pytest

from hap.params import Collect, Window
from hap.samples.difficulty import PRN, RN, empty_buckets


def collect(below: float, edges: tuple[float, ...]) -> Collect:
    return Collect(rank=Window(below=below, count=10, edges=edges))


@pytest.mark.parametrize(
    ("below", "edges", "known", "empty"),
    [
        (50, (50,), {"Rank-50", "Prerank-200"}, {}),
        (50, (50, 100, 200), {"Rank-50", "Rank-200", "Prerank-200"}, {"Rank-100": RN}),
        (50, (50, 100), {"Rank-50", "Rank-100", "Prerank-0"}, {"Prerank-200": PRN}),
        (50, (10, 50), {"Rank-50"}, {}),  # nothing is sampled from 11 to 50
        (0, (0.25, 0.5), {"Rank-0.5"}, {"Rank-0.25": RN}),
        (50, (0.25, 0.5), {"Rank-0.5"}, {"Rank-0.25": RN}),  # whether 50 is behind a half depends on the list
        (50, (50, 100), {"Rank", "Prerank"}, {}),  # logs without positions
        (50, (50, 100), {"EN", "GN"}, {}),  # no row of the kind at all is the kind's matter
    ],
)
def test_a_declared_bucket_that_a_position_could_lie_in_and_none_does(below, edges, known, empty):
    assert empty_buckets(collect(below, edges), known) == empty
