"""Slices choose the rows they name, and their GAUC is that of their clicks against all negatives."""

from itertools import pairwise

import numpy as np
import pytest

from hap.errors import ConfigError
from hap.evaluation.auc import by_request, gauc, rank
from hap.evaluation.slices import slice_masks
from hap.params import Slice, resolve

KIND = np.array([0, 1, 1, 0, 2, 3])
COLUMNS = {"content_type": np.array([1, 1, 2, 3, 3, 3]), "history_length": np.array([2, 2, 2, 9, 9, 9])}


def masks(*slices, floor=1, seen=None):
    return slice_masks(slices, COLUMNS, seen or {}, KIND == 0, floor)


def test_a_column_alone_makes_a_slice_of_each_value_with_clicks_enough_and_of_the_most_clicked_others(monkeypatch):
    assert set(masks(Slice(column="content_type"))) == {"content_type=1", "content_type=3"}
    assert set(masks(Slice(column="content_type"), floor=2)) == {"content_type=1", "content_type=3"}
    values = np.repeat([9, 4, 5, 6], [5, 4, 3, 2])
    for reported, found in ((0, ["content_type=4", "content_type=9"]), (1, ["content_type=4", "content_type=5", "content_type=9"])):
        monkeypatch.setattr("hap.evaluation.slices.REPORTED", reported)
        made = slice_masks([Slice(column="content_type")], {"content_type": values}, {}, np.ones(14, bool), 4)
        assert list(made) == found


def test_named_values_are_slices_whatever_they_hold():
    named = masks(Slice(column="content_type", values=(2, 7)), floor=9)
    assert named["content_type=2"].tolist() == [False, False, True, False, False, False]
    assert not named["content_type=7"].any()


def test_below_takes_small_values():
    assert masks(Slice(column="history_length", below=5))["history_length below 5"].tolist() == [True] * 3 + [False] * 3


def test_new_is_what_the_training_window_did_not_have_and_nothing_where_that_is_unknown():
    one = Slice(column="content_type", new=True)
    assert masks(one, seen={"content_type": np.array([1, 2])})["content_type new"].tolist() == [False] * 3 + [True] * 3
    assert masks(one) == {}


def test_a_column_that_the_model_has_not_makes_no_slice():
    assert masks(Slice(column="age_band")) == {}


def test_a_slice_asks_one_thing():
    with pytest.raises(ValueError, match="give one of"):
        Slice(column="item_id", new=True, below=3)


def test_a_slice_of_an_undeclared_column_is_refused_by_name(default_params):
    raw = default_params.model_dump(mode="json")
    raw["gate"]["slices"] = [{"column": "colour"}]
    with pytest.raises(ConfigError, match="'colour' is none of user_id, age_band"):
        resolve(raw, "params.yaml")
    raw["gate"]["slices"] = [{"column": "history_length", "new": True}]
    with pytest.raises(ConfigError, match="history_length is a number of events"):
        resolve(raw, "params.yaml")


def test_gauc_of_a_slice_is_that_of_its_clicks_against_every_negative():
    rng = np.random.default_rng(1)
    for _ in range(20):
        counts = rng.integers(0, 9, 30)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        kind = rng.integers(0, 5, offsets[-1])
        scores = rng.integers(0, 4, offsets[-1]).astype(float)  # many ties
        chosen = rng.random(offsets[-1]) < 0.5
        ranked = rank(scores, np.minimum(kind, 1), offsets, ("all",))
        found = gauc(by_request(ranked, chosen[ranked.row])["all"])
        shares = []
        for start, end in pairwise(offsets.tolist()):
            negatives = scores[start:end][kind[start:end] > 0]
            clicks = scores[start:end][(kind[start:end] == 0) & chosen[start:end]]
            shares += [np.mean((negatives < click) + 0.5 * (negatives == click)) for click in clicks if len(negatives)]
        assert found == pytest.approx(np.mean(shares), abs=1e-12, nan_ok=True)
