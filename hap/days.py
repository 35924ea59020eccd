"""UTC days and times: parsing, training windows, and when a day's labels have matured."""

import datetime as dt
import math
import re

from hap.errors import UsageError

UTC = dt.UTC
_SPANS = {"m": "minutes", "h": "hours", "d": "days"}


def parse_day(text: str) -> dt.date:
    """A day written YYYY-MM-DD.

    Raises:
        UsageError: the text is not such a date, or one that no log can have.
    """
    try:
        day = dt.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise UsageError(f"{text!r} is not a day; write it as YYYY-MM-DD, for example 2026-01-31") from None
    if not 1970 <= day.year <= 2200:
        raise UsageError(f"{text} lies outside 1970 to 2200; write the day as YYYY-MM-DD, for example 2026-01-31")
    return day


def parse_moment(text: str) -> dt.datetime:
    """A time in ISO 8601, aware; without an offset it is UTC, and a day alone is its first moment.

    Raises:
        UsageError: the text is no such time.
    """
    try:
        moment = dt.datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a time; write it as 2026-01-31T14:30 (UTC) or 2026-01-31T14:30+02:00") from None


def parse_span(text: str) -> dt.timedelta | None:
    """A span such as 30m, 8h or 2d; None where the text is none."""
    span = re.fullmatch(r"(\d{1,5})([mhd])", text.strip())
    return dt.timedelta(**{_SPANS[span[2]]: int(span[1])}) if span else None


def start_of(day: dt.date) -> dt.datetime:
    """00:00 UTC of the day."""
    return dt.datetime.combine(day, dt.time.min, UTC)


def day_range(first: dt.date, last: dt.date) -> list[dt.date]:
    """Every day from `first` to `last`, both included.

    Raises:
        UsageError: `last` lies before `first`.
    """
    if last < first:
        raise UsageError(f"the range {first} to {last} runs backwards; give the earlier day first")
    return [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]


def judging_days(day: dt.date, gate_days: int) -> list[dt.date]:
    """The last `gate_days` days up to and with `day`: the gate pools them."""
    return day_range(day - dt.timedelta(days=gate_days - 1), day)


def training_window(day: dt.date, train_days: int, gate_days: int = 1) -> list[dt.date]:
    """The `train_days` days before the first judging day, so that no day is trained on and judged by."""
    last = judging_days(day, gate_days)[0] - dt.timedelta(days=1)
    return day_range(last - dt.timedelta(days=train_days - 1), last)


def default_as_of(day: dt.date, label_delay_hours: float) -> dt.datetime:
    """End of the day plus the label delay: never the clock, so that a rerun reads the same rows."""
    return start_of(day) + dt.timedelta(days=1, hours=label_delay_hours)


def feedback_days(day: dt.date, label_delay_hours: float) -> list[dt.date]:
    """The partitions of feedback that can hold labels of the day's requests."""
    return day_range(day, day + dt.timedelta(days=math.ceil(label_delay_hours / 24)))


def is_ripe(day: dt.date, label_delay_hours: float, now: dt.datetime) -> bool:
    """Whether every label that counts for the day has had its time to arrive."""
    return now >= default_as_of(day, label_delay_hours)
