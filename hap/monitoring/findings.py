"""What watching comes to: findings, each with its cause, how bad it is, the figure, and what to do about it.

Every watcher returns findings; the page ranks them, alerts group them by cause, and the runbook has a line for each kind.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hap.params import SEVERITIES, Severity


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    cause: str  # KIND:SUBJECT, such as input:cand_price; findings of one cause on many days are one incident
    severity: Severity
    said: str  # one sentence, with the figure
    value: float | None = None  # what was measured, in units of `limit`
    limit: float | None = None  # from where on it is a finding
    do: str = ""  # the command that comes next
    figure: str | None = None  # the name of the figure that it speaks of

    @property
    def kind(self) -> str:
        """What the runbook has a line for."""
        return self.cause.partition(":")[0]

    @property
    def excess(self) -> float:
        """How far beyond its limit, 1 at it; 1 where that cannot be said."""
        return self.value / self.limit if self.value is not None and self.limit else 1.0

    def to_json(self) -> dict[str, Any]:
        """The fields, with the kind."""
        return {**asdict(self), "kind": self.kind}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One watched number of one day, which a trend is drawn of: wrong or not, it is kept."""

    name: str  # GROUP.NAME, such as funnel.share_EN; the same every day
    title: str  # in words, with the unit: share of exposed negatives
    value: float | None  # None: the day does not have it
    lower: float | None = None  # bounds of an interval of 95%, where there is one
    upper: float | None = None
    reference: float | None = None  # what it is compared with
    least: float | None = None  # below, or above, is a finding
    most: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one watcher saw of one day."""

    watcher: str  # what looked, such as drift; an incident is closed by the watcher that opened it alone
    day: str
    findings: tuple[Finding, ...]  # one for each cause, at most
    unjudged: frozenset[str] = frozenset()  # causes that the day has too little data for
    missing: bool = False  # the day has no data at all, so nothing can be said of any cause
    figures: tuple[Figure, ...] = ()  # what it measured
    notes: tuple[str, ...] = ()  # what it could not look at, and why; a line each
    detail: Mapping[str, Any] = field(default_factory=dict)  # what else its part of the page shows, as JSON


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first: by severity, then by how far beyond the limit."""
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), -one.excess, one.cause))


def as_one(several: Sequence[Finding]) -> Finding:
    """The first finding of one cause, which also says what the others are."""
    worst, *others = several
    return replace(worst, said="; ".join([worst.said, *(other.said for other in others)]))
