import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hap.errors import DataError
from hap.serving.request import RequestTensors, requested_k
from tests.serving.handmade import FEATURES, request_of


def raw(**changes: Any) -> dict[str, Any]:
    return {
        "request_id": 9,
        "event_time": "2026-01-04T12:00:00Z",
        "user_id": 7,
        "activity": 0.5,
        "hour": 12,
        "history": [{"item_id": n, "event_time": f"2026-01-04T0{n}:00:00Z"} for n in (1, 2)],
        "candidates": [
            {"item_id": 5, "price": 1.5, "published": "2026-01-03T12:00:00Z"},
            {"item_id": 6, "price": None, "age_hours": 3.5},
        ],
    } | changes


def candidate(**changes: Any) -> dict[str, Any]:
    return raw(candidates=[{"item_id": 5, "price": 1.0, "age_hours": 1.0} | changes])


def test_raw_features_become_tensors_in_declared_order() -> None:
    tensors = RequestTensors.from_json(FEATURES, raw())
    assert tensors.user_ids.tolist() == [7, 12]
    assert tensors.user_dense.tolist() == [0.5]
    assert tensors.cand_ids.tolist() == [[5], [6]]
    assert tensors.cand_dense.tolist() == [[1.5, 24.0], [2.5, 3.5]]  # null price: the declared stand-in
    tensors.check(FEATURES)


def test_history_is_padded_on_the_left_with_the_most_recent_event_last() -> None:
    tensors = RequestTensors.from_json(FEATURES, raw())
    assert tensors.hist_ids.tolist() == [[0], [1], [2]]
    assert tensors.hist_dense.tolist() == [[0.0], [11.0], [10.0]]


def test_a_long_history_keeps_its_most_recent_events() -> None:
    events = [{"item_id": n, "age_hours": float(n)} for n in (9, 8, 7, 6)]
    assert RequestTensors.from_json(FEATURES, raw(history=events)).hist_ids.tolist() == [[8], [7], [6]]


def test_no_history_and_no_candidates_keep_their_shapes() -> None:
    tensors = RequestTensors.from_json(FEATURES, raw(history=[], candidates=[]))
    tensors.check(FEATURES)
    assert tensors.hist_ids.tolist() == [[0], [0], [0]]
    assert tensors.cand_dense.shape == (0, 2)


@pytest.mark.parametrize(
    ("obj", "named"),
    [
        (raw(colour=1), "'colour'"),
        ({key: value for key, value in raw().items() if key != "activity"}, "'activity'"),
        (raw(activity=math.nan), "'activity'"),
        (raw(activity="high"), "'activity'"),
        (raw(user_id=-3), "'user_id'"),
        (raw(user_id=2**63), "'user_id'"),
        (raw(user_id=True), "'user_id'"),
        (raw(history=None), "'history'"),
        (raw(candidates=[3]), "'candidates'"),
        (raw(event_time="noon"), "event_time"),
        (candidate(price=math.nan), "'price'"),
        (candidate(price=1e39), "'price'"),
        (candidate(price=-math.inf), "'price'"),
        (candidate(price=10**400), "'price'"),
        (candidate(item_id=0), "item_id 0"),
        (candidate(item_id=None), "item_id 0"),
        (candidate(size=3), "'size'"),
        (raw(candidates=[{"item_id": 5, "price": 1.0}]), "published"),
        ([], "JSON object"),
    ],
)
def test_a_bad_request_is_refused_by_the_name_of_what_is_wrong(obj: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        RequestTensors.from_json(FEATURES, obj)


@pytest.mark.parametrize("k", [-1, 1.5, "3", True, 2**63])
def test_a_bad_k_is_refused(k: Any) -> None:
    with pytest.raises(DataError, match="k is"):
        requested_k({"k": k})


def test_k_may_be_left_out() -> None:
    assert requested_k({}) is None
    assert requested_k({"k": 0}) == 0


def test_nan_in_tensors_is_refused_by_column_name() -> None:
    tensors = request_of(4)
    tensors.cand_dense[2, 0] = np.nan
    with pytest.raises(DataError, match="'price'"):
        tensors.check(FEATURES)


@pytest.mark.parametrize(
    "change", [{"cand_dense": np.zeros((3, 2), np.float32)}, {"user_ids": np.zeros(3, np.int64)}, {"hist_ids": np.zeros((4, 1), np.int64)}]
)
def test_tensors_of_another_shape_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(change))):
        replace(request_of(4), **change).check(FEATURES)
