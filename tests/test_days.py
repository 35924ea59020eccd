"""Days, windows and ripeness in UTC."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hap import days
from hap.errors import UsageError

D = dt.date(2026, 1, 10)


@given(st.integers(1, 40), st.integers(1, 9))
def test_no_day_is_trained_on_and_judged_by(train: int, gate: int) -> None:
    training, judging = days.training_window(D, train, gate), days.judging_days(D, gate)
    assert judging[-1] == D
    assert len(training) == train
    assert len(judging) == gate
    assert not set(training) & set(judging)
    assert training[-1] == judging[0] - dt.timedelta(days=1)


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-1", "20260101", ""])
def test_what_is_no_day_is_refused_with_the_form_to_write(text: str) -> None:
    with pytest.raises(UsageError, match="YYYY-MM-DD"):
        days.parse_day(text)


def test_a_day_is_ripe_once_its_labels_had_their_time() -> None:
    end = dt.datetime(2026, 1, 11, 2, tzinfo=dt.UTC)
    assert not days.is_ripe(D, 2, end - dt.timedelta(seconds=1))
    assert days.is_ripe(D, 2, end)
    assert days.default_as_of(D, 2) == end


def test_feedback_is_read_as_far_as_the_label_delay_reaches() -> None:
    assert days.feedback_days(D, 0) == [D]
    assert days.feedback_days(D, 2) == [D, D + dt.timedelta(days=1)]
    assert len(days.feedback_days(D, 49)) == 4


def test_a_backward_range_is_refused() -> None:
    with pytest.raises(UsageError, match="backwards"):
        days.day_range(D, D - dt.timedelta(days=1))
