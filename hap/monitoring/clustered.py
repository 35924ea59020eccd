"""Values of a day with what each user moves them by, so that noise is counted over users and not over rows.

Requests of one user are alike, and one user may have many: rows taken as independent make a value look surer than it is, and a
quiet day an alarm. A value is linearised: each request has an influence on it, influences are summed by user, and the variance
is the sum of their squares (Binder, International Statistical Review 51:279, 1983). Users who come on both of two days are in
both values; what they have in common cancels in the difference, which is therefore taken user by user.

Letters: R requests, C users.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
SURE = 0.95  # of the intervals that are shown


@dataclass(frozen=True, eq=False)
class Measured:
    """A value and what each user moves it by; NaN where no request defines it."""

    value: float
    users: I64  # [C], each once, rising
    influence: F64  # [C]
    requests: int  # that define the value

    @property
    def defined(self) -> bool:
        """Whether there is a value at all."""
        return math.isfinite(self.value)

    def error(self) -> float:
        """Standard error over users; infinite where there are fewer than two, who show no spread."""
        count = len(self.users)
        return math.sqrt(count / (count - 1) * float((self.influence**2).sum())) if count > 1 else math.inf

    def half_width(self, confidence: float = SURE) -> float:
        """Half of the two-sided interval, by Student's t with a degree of freedom for each user but one."""
        from scipy import stats

        count = len(self.users)
        return float(stats.t.ppf((1 + confidence) / 2, count - 1)) * self.error() if count > 1 else math.inf

    def minus(self, other: "Measured") -> "Measured":
        """The difference; a user who is in both counts once."""
        users, influence = _by_user(np.concatenate([self.users, other.users]), np.concatenate([self.influence, -other.influence]))
        return Measured(self.value - other.value, users, influence, min(self.requests, other.requests))

    def plus(self, other: "Measured") -> "Measured":
        """The sum; a user who is in both counts once."""
        return self.minus(Measured(-other.value, other.users, -other.influence, other.requests))


def measured(value: float, influence: ArrayLike, user: ArrayLike, requests: int) -> Measured:
    """A value from the influence of each row [N] and the row's user [N]."""
    users, summed = _by_user(np.asarray(user, np.int64), np.asarray(influence, np.float64))
    return Measured(float(value), users, summed, requests)


def undefined() -> Measured:
    """What nothing defines."""
    return Measured(float("nan"), np.zeros(0, np.int64), np.zeros(0), 0)


def ratio(numerator: ArrayLike, denominator: ArrayLike, user: ArrayLike) -> Measured:
    """sum(numerator) / sum(denominator) over requests; one whose denominator is 0 is left out.

    Args:
        numerator, denominator: [R], the denominator not negative.
        user: [R] who made each request.
    """
    above, below, who = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64), np.asarray(user, np.int64)
    used = below > 0
    above, below, who = above[used], below[used], who[used]
    if not len(below):
        return undefined()
    value = float(above.sum() / below.sum())
    return measured(value, (above - value * below) / below.sum(), who, len(below))


def quantile(values: ArrayLike, level: float, user: ArrayLike) -> Measured:
    """A quantile over requests. Its spread is that of the share of requests below it, turned into the values' units by the
    quantiles one interval to either side (Woodruff, Journal of the American Statistical Association 47:635, 1952).

    Args:
        values: [R], finite; user: [R].
    """
    x, who = np.asarray(values, np.float64), np.asarray(user, np.int64)
    if not x.size:
        return undefined()
    value = float(np.quantile(x, level))
    share = measured(level, ((x <= value) - np.mean(x <= value)) / x.size, who, x.size)
    reach = share.half_width()
    low, high = max(level - reach, 0.0), min(level + reach, 1.0)
    slope = float(np.quantile(x, high) - np.quantile(x, low)) / (high - low) if high > low else 0.0
    return Measured(value, share.users, -slope * share.influence, x.size)


def _by_user(user: I64, influence: F64) -> tuple[I64, F64]:
    users, place = np.unique(user, return_inverse=True)
    return users, np.bincount(place, weights=influence, minlength=len(users)).astype(np.float64)
