"""Figures of a day beside their reference, and what it comes to where one moved.

A figure moved when it lies further from its reference than what is allowed and what chance does, together as the root of their
squares: large samples keep the threshold, small ones alarm at nothing but a plain change.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from hap.monitoring import chance
from hap.monitoring.clustered import Measured
from hap.monitoring.findings import Figure, Finding, Look, as_one, ranked
from hap.params import Severity

LEAST_REQUESTS = 20  # on each side; fewer say nothing


@dataclass(frozen=True)
class Known:
    """A value that was written down earlier, without what each user moved it by.

    `relative` is the day's requests over those that it rests on: its noise is taken to be the day's, by their number.
    """

    value: float | None
    relative: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Watched:
    """A figure of the day beside its reference."""

    name: str
    title: str
    cause: str | None  # None: a figure alone, of what another one judges
    now: Measured  # undefined where the day does not have it
    before: Measured | Known | None
    allowed: float  # it may move by so much, in its own units
    side: Literal["both", "fall"] = "both"
    range: tuple[float, float] = (-math.inf, math.inf)  # of what it can be

    @property
    def reference(self) -> float | None:
        """The value that it is compared with; None where there is none."""
        value = self.before.value if self.before is not None else None
        return value if value is not None and math.isfinite(value) else None

    @property
    def limit(self) -> float | None:
        """How far it may lie from the reference; None where one of the two says too little."""
        now, before = self.now, self.before
        if self.cause is None or before is None or self.reference is None or not now.defined or now.requests < LEAST_REQUESTS:
            return None
        if isinstance(before, Measured):
            enough, noise = before.requests >= LEAST_REQUESTS, now.minus(before).half_width(1 - chance.ONE)
        else:
            enough, noise = True, now.half_width(1 - chance.ONE) * math.sqrt(1 + before.relative)
        limit = math.hypot(self.allowed, noise)
        return limit if enough and 0 < limit < math.inf else None

    def figure(self) -> Figure:
        """With its interval, its reference, and from where on it is a finding."""
        value, reference, limit, (low, high) = self.now.value, self.reference, self.limit, self.range
        half = self.now.half_width() if self.now.defined else math.inf
        bounded = math.isfinite(half)
        least = most = None
        if reference is not None and limit is not None:
            least, most = reference - limit, reference + limit if self.side == "both" else None
        return Figure(
            name=self.name,
            title=self.title,
            value=value if self.now.defined else None,
            lower=max(value - half, low) if bounded else None,
            upper=min(value + half, high) if bounded else None,
            reference=reference,
            least=least,
            most=most,
        )

    def finding(self, page_from: float, do: str) -> Finding | None:
        """That it moved beyond its limit; a page from `page_from` times the limit on."""
        reference, limit = self.reference, self.limit
        if self.cause is None or reference is None or limit is None:
            return None
        moved = self.now.value - reference
        if abs(moved) <= limit or (moved > 0 and self.side == "fall"):
            return None
        severity: Severity = "page" if abs(moved) >= page_from * limit else "ticket"
        said = f"{self.title} went from {reference:.4g} to {self.now.value:.4g}, by more than {limit:.2g}"
        return Finding(cause=self.cause, severity=severity, said=said, value=abs(moved), limit=limit, do=do, figure=self.name)


def look_at(
    watcher: str, day: str, watched: Sequence[Watched], page_from: float, requests: int, findings: Collection[Finding] = ()
) -> Look:
    """What a day's figures come to: one finding for each cause, led by its worst figure.

    A cause none of whose figures could be compared is not judged; nor is one that looks healed while the day lacks a figure
    which the reference has.

    Args:
        requests: of the day; of fewer than LEAST_REQUESTS nothing is said.
        findings: what is known already, such as scores that are no numbers.
    """
    found: dict[str, list[Finding]] = {}
    compared, dark = set[str](), set[str]()
    judging = [(one, one.cause) for one in watched if one.cause is not None]
    for one, cause in judging:
        if one.limit is not None:
            compared.add(cause)
        elif one.reference is not None:
            dark.add(cause)
        if (finding := one.finding(page_from, f"hapctl show {day}")) is not None:
            found.setdefault(cause, []).append(finding)
    listed = [*findings, *(as_one(ranked(several)) for several in found.values())]
    blind = dark | ({cause for _, cause in judging} - compared)
    return Look(
        watcher=watcher,
        day=day,
        findings=tuple(ranked(listed)),
        unjudged=frozenset(blind - {finding.cause for finding in listed}),
        missing=requests < LEAST_REQUESTS,
        figures=tuple(one.figure() for one in watched),
    )
