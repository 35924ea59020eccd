"""What a verdict records beside its rules: GAUC by difficulty bucket, pooled AUC, and calibration, with the champion's beside it.

None of it judges. Letters: N rows, R requests, B buckets.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hap.evaluation.auc import RequestAuc, by_request, rank
from hap.evaluation.calibration import calibration_by_kind, reliability
from hap.evaluation.delong import pooled_auc
from hap.evaluation.evidence import MEMBERS
from hap.evaluation.interval import Interval, resample
from hap.params import KINDS, MODELS, NEGATIVES, Gate

Scores = Mapping[str, ArrayLike]


def describe_scores(
    kind: NDArray[np.int8],
    bucket: ArrayLike,
    offsets: NDArray[np.int64],
    challenger: Scores,
    champion: Scores | None,
    rules: Gate,
    seed: int,
) -> dict[str, Any]:
    """Everything that can be read from the scores of the judging days, in plain values.

    Args:
        kind: [N] places in KINDS; bucket: [N] difficulty buckets; offsets: [R+1].
        challenger, champion: member -> [N], light and expressive as logits; a member that cannot be read is left out.

    Returns:
        buckets: bucket -> kind, negatives, members -> value (and change, where there is a champion), each {value, lower, upper}.
        pooled: member -> kind -> AUC over all requests at once, value and change, by DeLong.
        calibration, champion_calibration: model -> kind -> log_loss, ece, slope, intercept; without a champion the latter is empty.
        reliability: model -> the diagram on exposed rows.
    """
    ours, theirs = (_sound(scores, len(kind)) for scores in (challenger, champion or {}))
    if not ours or not len(kind):
        return {}
    return {
        "buckets": _buckets(kind, np.asarray(bucket, dtype=str), offsets, ours, theirs, rules, seed),
        "pooled": _pooled(kind, offsets, ours, theirs, rules.alpha),
        "calibration": _calibration(kind, ours),
        "champion_calibration": _calibration(kind, theirs),
        "reliability": {model: _diagram(ours[model], kind) for model in MODELS if model in ours},
    }


def _sound(scores: Scores, rows: int) -> dict[str, NDArray[np.float64]]:
    """What has a finite score for every row; the rest is the verdict's business."""
    known = {member: np.asarray(scores[member], np.float64) for member in MEMBERS if member in scores}
    return {member: values for member, values in known.items() if values.size == rows and np.isfinite(values).all()}


def _buckets(
    kind: NDArray[np.int8],
    bucket: NDArray[np.str_],
    offsets: NDArray[np.int64],
    ours: Mapping[str, NDArray[np.float64]],
    theirs: Mapping[str, NDArray[np.float64]],
    rules: Gate,
    seed: int,
) -> dict[str, Any]:
    """GAUC of each member by bucket with its interval, and its change, all on one set of draws."""
    negative = kind > 0
    names, inverse = np.unique(bucket[negative], return_inverse=True)
    if not names.size:
        return {}
    code = np.zeros(len(kind), np.int64)
    code[negative] = inverse + 1
    of = {name: KINDS[int(kind[negative][inverse == place].min())] for place, name in enumerate(names.tolist())}
    found: dict[str, Any] = {
        name: {"kind": of[name], "negatives": int((inverse == place).sum()), "members": {}} for place, name in enumerate(names.tolist())
    }
    wanted: list[tuple[str, str, str]] = []
    columns: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for member, scores in ours.items():
        mine = by_request(rank(scores, code, offsets, names.tolist()))
        other = by_request(rank(theirs[member], code, offsets, names.tolist())) if member in theirs else None
        for name in names.tolist():
            for what, value in _values(mine[name], other[name] if other else None):
                wanted.append((name, member, what))
                columns.append((value, mine[name].weight))
    value_RM, weight_RM = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    for (name, member, what), drawn in zip(wanted, resample(value_RM, weight_RM, rules.bootstrap_draws, seed), strict=True):
        found[name]["members"].setdefault(member, {})[what] = _interval(drawn.interval(rules.alpha))
    return dict(sorted(found.items(), key=lambda one: (KINDS.index(one[1]["kind"]), len(one[0]), one[0])))


def _values(mine: RequestAuc, other: RequestAuc | None) -> Iterator[tuple[str, NDArray[np.float64]]]:
    yield "value", mine.auc
    if other is not None:
        yield "change", mine.auc - other.auc


def _pooled(
    kind: NDArray[np.int8],
    offsets: NDArray[np.int64],
    ours: Mapping[str, NDArray[np.float64]],
    theirs: Mapping[str, NDArray[np.float64]],
    alpha: float,
) -> dict[str, Any]:
    """AUC over all requests at once; the cascade's final score is comparable within a request only."""
    table: dict[str, Any] = {}
    for model in (one for one in MODELS if one in ours):
        table[model] = {}
        for name in NEGATIVES:
            positive, negative = kind == 0, kind == KINDS.index(name)
            mine = pooled_auc(ours[model], positive, negative, offsets)
            table[model][name] = {"value": _interval(mine.interval(alpha, 0.0, 1.0))}
            if model in theirs:
                table[model][name]["change"] = _interval(mine.minus(pooled_auc(theirs[model], positive, negative, offsets)).interval(alpha))
    return table


def _calibration(kind: NDArray[np.int8], scores: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Of each model, whose scores are logits, by kind."""
    by_model = {model: calibration_by_kind(scores[model], kind) for model in MODELS if model in scores}
    return {model: {name: _plain(found._asdict()) for name, found in by_kind.items()} for model, by_kind in by_model.items()}


def _diagram(logits: NDArray[np.float64], kind: NDArray[np.int8]) -> dict[str, list[float]]:
    """How often exposed candidates were clicked by predicted probability: the only rows that are logged whole."""
    exposed = kind <= KINDS.index("EN")
    bins = reliability(logits[exposed], kind[exposed] == 0)
    return {"predicted": bins.predicted.tolist(), "observed": bins.observed.tolist(), "rows": bins.rows.tolist()}


def _interval(found: Interval) -> dict[str, float | None]:
    return _plain({"value": found.point, "lower": found.lower, "upper": found.upper})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as JSON has them: what is undefined or infinite is null."""
    return {name: value if isinstance(value, int) else float(value) if np.isfinite(value) else None for name, value in values.items()}
