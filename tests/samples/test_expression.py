"""The expression against the rules in plain Python, row by row and column by column."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hap.errors import ConfigError
from hap.params import KINDS, Params
from hap.samples import engines
from tests.samples.handmade import awkward_day, changed, collected, collected_by_hand, write_day

WINDOWS = st.builds(
    lambda share, below, count, edges: {
        "below": below / 40 if share else below,
        "count": count,
        "edges": sorted({edge / 40 if share else edge for edge in edges}),
    },
    st.booleans(), st.integers(0, 30), st.one_of(st.none(), st.integers(1, 12)), st.lists(st.integers(1, 39), max_size=3),
)  # fmt: skip
CHOICES = st.fixed_dictionaries(
    {
        "rank": WINDOWS,
        "prerank": WINDOWS,
        "global_per_positive": st.integers(0, 4),
        "max_positives": st.integers(1, 6),
        "requests_without_positive": st.sampled_from(["keep", "drop"]),
    }
)


@pytest.fixture(scope="module")
def engine(default_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    con = engines.connect(default_params.collect, tmp_path_factory.mktemp("scratch"))
    yield con
    engines.disconnect(con)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_day_with_everything_awkward_is_collected_by_the_rules(default_params: Params, engine: Any, seed: int, tmp_path: Path) -> None:
    window = {"below": 3, "count": 4, "edges": [3, 8, 20]}
    params = changed(default_params, rank=window, prerank=window)
    day = awkward_day(seed, 20, params)
    found, expected = collected(engine, write_day(tmp_path, day, params), params).to_pylist(), collected_by_hand(day, params)
    assert {kind for row in expected for kind in row["cand_kind"]} == set(range(len(KINDS))), "every kind occurs"
    assert found == expected


@pytest.mark.long
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 24), st.sampled_from([0.0, 0.3, 1.0]), CHOICES)
def test_any_day_under_any_parameters_is_collected_by_the_rules(
    default_params: Params, engine: Any, tmp_path: Path, seed: int, requests: int, missing: float, choice: dict[str, Any]
) -> None:
    params = changed(default_params, **choice)
    day = awkward_day(seed, requests, params, missing)
    assert collected(engine, write_day(tmp_path, day, params), params).to_pylist() == collected_by_hand(day, params)


def test_a_share_of_a_list_is_taken_exactly(default_params: Params, engine: Any, tmp_path: Path) -> None:
    window = {"below": 0.29, "count": None, "edges": [0.29, 0.57]}  # 100 * 0.29 is 28.999999999999996 in floats
    params = changed(default_params, prerank=window)
    day = awkward_day(3, 1, params)
    one = {**day["requests"][0], "request_id": 7, "ingest_time": day["requests"][0]["event_time"]}
    base = {"request_id": 7, "event_time": one["event_time"], "ingest_time": one["event_time"], "stage": "prerank"}
    places = {"rank_position": None, "rerank_position": None, "exposure_position": None}
    day |= {
        "requests": [one],
        "feedback": [],
        "candidates": [{**base, "item_id": n, "prerank_position": n, **places} for n in range(1, 101)],
    }
    [row] = collected(engine, write_day(tmp_path, day, params), params).to_pylist()
    assert row["cand_position"] == [*range(30, 101)]
    assert row["cand_bucket"] == ["Prerank-0.29"] * 28 + ["Prerank-0.57"] * 43


def test_edges_in_two_units_are_refused(default_params: Params) -> None:
    with pytest.raises(ConfigError, match=r"edges.*all positions or all shares"):
        changed(default_params, rank={"below": 0.5, "count": 10, "edges": [0.5, 50]})
