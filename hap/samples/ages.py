"""Ages in hours: the one definition that collection and the serving client share."""

from typing import Any

SECONDS_PER_HOUR = 3600


def age_hours(later_s: Any, earlier_s: Any) -> Any:
    """Hours from `earlier_s` to `later_s` (whole UTC seconds since 1970); what lies ahead has a negative age.

    Operators alone: ints, NumPy arrays and Ibis columns all work.
    """
    return (later_s - earlier_s) / SECONDS_PER_HOUR
