"""A verdict as a value: what the gate says of one version, rule by rule, as verdict.json keeps it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

EXIT_CODES = {"pass": 0, "refuse": 3, "undecided": 5}

Outcome = Literal["pass", "refuse", "undecided"]


@dataclass(frozen=True)
class Rule:
    """One rule as judged: `value` with its one-sided bounds, and the `bound` it had to stay above (parity: below)."""

    name: str
    value: float | None
    lower: float | None
    upper: float | None
    bound: float
    outcome: Outcome
    p_value: float | None = None  # of "no harm beyond the bound"; Holm reads it
    requests: int | None = None  # that define the value


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says about one version, and why."""

    version: int
    against: int | None
    day: str  # the last judging day
    days: tuple[str, ...]
    verdict: Outcome
    reasons: tuple[str, ...]
    rules: tuple[Rule, ...]
    gauc: dict[str, dict[str, float | None]]  # of the challenger: member -> kind, and `all` kinds together
    champion_gauc: dict[str, dict[str, float | None]] | None
    slices: dict[str, dict[str, Any]]  # by name: positives, gauc, champion_gauc, and whether it guards
    reported: dict[str, dict[str, float | None]]  # changes that no rule judges: MEMBER.KIND -> value, lower, upper
    whole: dict[str, Any]  # the cascade on requests with all their candidates: k, recall, relative to expressive on all, curve, ...
    detail: dict[str, Any]  # by difficulty bucket, pooled, calibration: hap.evaluation.detail
    requests: int
    positives: int
    manifests: dict[str, str]  # day -> id of the samples that were judged
    needs_requests: int | None  # undecided: how many would decide, if the values stay; None: no number would, or none is needed
    alpha: float
    margin: float
    draws: int
    parity_max_abs_diff: float | None
    cost: dict[str, Any]
    evidence: str  # sha256 of what was judged

    @property
    def exit_code(self) -> int:
        """0 pass, 3 refuse, 5 undecided."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """verdict.json; NaN does not occur, an undefined number is null."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Verdict":
        """A verdict read back from verdict.json."""
        lists = {name: tuple(raw[name]) for name in ("days", "reasons")}
        return cls(**{**raw, **lists, "rules": tuple(Rule(**rule) for rule in raw["rules"])})
