"""A judged day made up: labels, scores that know them a little, and the evidence of two versions on it."""

import numpy as np

from hap.evaluation.evidence import MEMBERS, gather
from hap.params import NEGATIVES, Gate

RULES = Gate()
KIND = np.array([0] + [1] * 6 + [2] * 8 + [3] * 8 + [4] * 2)  # one request: its rows by kind


def judged_day(requests=1200, seed=1):
    """Labels of `requests` requests and, per member, scores that know them a little."""
    rng = np.random.default_rng(seed)
    kind = np.tile(KIND, requests)
    easiness = np.array([1.2, 0.6, 0.4, 0.0, -0.4])[kind]
    quality = {member: easiness + rng.normal(0, 0.8, kind.size) for member in MEMBERS}
    return kind, np.arange(requests + 1) * KIND.size, quality


def evidence(challenger=None, champion="same", requests=1200, against=1, **changes):
    kind, offsets, scores = judged_day(requests)
    named = {
        "version": 2,
        "against": against,
        "days": ["2026-01-04"],
        "manifests": {"2026-01-04": "abc"},
        "expressive_kinds": NEGATIVES,
        "kind": kind,
        "offsets": offsets,
        "challenger": scores if challenger is None else challenger,
        "champion": scores if isinstance(champion, str) else champion,
        "parity_max_abs_diff": 2e-6,
        "budgets": {"p99_ms": 5.0, "operations": 0.4, "light.age_days": 1.0, "expressive.age_days": 1.0},
    }
    return gather(**{**named, **changes})


def harmed(members=MEMBERS, kinds=(1, 2, 3, 4), by=0.35, requests=1200):
    """Scores in which the negatives of some kinds rise by `by`, for some members only."""
    kind, _, scores = judged_day(requests)
    return {member: values + (by * np.isin(kind, kinds) if member in members else 0.0) for member, values in scores.items()}


def first(**changes):
    return evidence(against=None, champion=None, **changes)
