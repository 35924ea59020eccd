"""Input drift of one day against the champion's training window: Evidently measures and draws, column by column.

Judged are, per request: user and context features, the features of one event of its history, history length, logged candidates,
shares of the exposed, ranked and pre-ranked among them, click rate, GN per positive; per candidate: item features. Effect sizes
decide (Wasserstein in standard deviations, Jensen-Shannon distance, or PSI; of missing values the share itself), never p-values and
never a share of columns: one broken column is an alarm.
"""

import datetime as dt
import math
import os
import tempfile
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hap.monitoring.causes import LEAST_ROWS, MISSING, look_at
from hap.monitoring.chance import ONE, deviations
from hap.monitoring.columns import Column, ColumnDrift, judged_columns
from hap.monitoring.findings import Look
from hap.monitoring.frames import sample_frames
from hap.params import Drift, Features, Params
from hap.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

SHOWN_CATEGORIES = 40  # the most frequent of both sides together; all others count as one
DIGITS = 6  # of a distance
# What the distance of two equal samples exceeds by chance as seldom as a figure may, in units of sqrt(1/n + 1/m): drawn, 3.83 for uniform
# values, 3.94 for normal ones, 4.33 for lognormal ones. Never less than `deviations()`, since means lie no further apart than samples.
WASSERSTEIN_NOISE = 4.0


@dataclass(frozen=True)
class DriftResult:
    """What drifted, worst first, and Evidently's page of it."""

    day: str
    reference_days: tuple[str, ...]
    drifted: tuple[str, ...]
    columns: dict[str, ColumnDrift]
    html: bytes
    run: Any  # Evidently's own; None where no column could be compared
    look: Look  # what it comes to, by cause


def drift_report(
    reference: "pd.DataFrame",
    current: "pd.DataFrame",
    features: Features,
    settings: Drift,
    *,
    day: dt.date,
    reference_days: Sequence[dt.date],
    waiting: Collection[str] = (),
) -> DriftResult:
    """Compare two frames column by column.

    A column that is constant, empty, new or gone is a finding. Columns of `reference` and `current` that no declared
    feature accounts for are not judged.

    Args:
        waiting: columns that cannot be judged before the day's labels have matured.
    """
    import numpy as np
    import pandas as pd

    left, right = {}, {}
    judged: dict[str, ColumnDrift] = {}
    wanted: list[Column] = []
    thresholds: dict[str, float] = {}
    for column in judged_columns(features):
        name = column.name
        if name not in reference and name not in current:
            continue
        sides = []
        for frame in (reference, current):
            values = frame[name] if name in frame else pd.Series(dtype=object)
            values = pd.to_numeric(values, errors="coerce").replace([np.inf, -np.inf], np.nan) if column.type == "numeric" else values
            sides.append(values.dropna())
        before, after = sides
        if name in waiting:
            judged[name] = ColumnDrift(None, None, None, False, _mean(before), None, 0, 0, "waits for the day's labels")
            continue
        if column.type == "categorical":
            if column.role == "present" and not any((side == "missing").any() for side in sides):
                continue  # nothing is ever missing: not worth a row on the page
            before, after = _folded(before, after)
            if column.role == "present" and min(before.size, after.size) >= LEAST_ROWS:
                judged[name] = _presence(before, after, settings, _noise(reference, current, before, after, column))
                continue
        if note := _absence(column, name in reference, name in current, before.size, after.size):
            silent = column.level == "event" and name in current  # no request has events: history_length tells it
            lost = bool(before.size) and not after.size and column.role != "seen" and not silent
            judged[name] = ColumnDrift(None, None, None, lost, _mean(before), _mean(after), before.size, after.size, note)
            continue
        thresholds[name] = _widened(column, settings, before, after, _noise(reference, current, before, after, column))
        wanted.append(column)
        left[name], right[name] = before, after
    # Rows are packed from the top, since each column is read alone; a frame's nulls are padding.
    packed = [pd.DataFrame({name: values.reset_index(drop=True) for name, values in side.items()}) for side in (left, right)]
    page, run, measured = _evidently(packed[0], packed[1], day, wanted, thresholds, settings)
    for column in wanted:
        name, value = column.name, measured[column.name]
        before, after = left[name], right[name]
        note = "constant in the reference" if before.nunique() == 1 else None
        judged[name] = ColumnDrift(
            _method(column, settings), value, round(thresholds[name], 4), value >= thresholds[name],
            _mean(before), _mean(after), before.size, after.size, note, _moved(before, after) if column.type == "categorical" else None,
        )  # fmt: skip
    drifted = sorted((name for name, one in judged.items() if one.drifted), key=lambda name: -_severity(judged[name]))
    ordered = {column.name: judged[column.name] for column in judged_columns(features) if column.name in judged}
    look = look_at(str(day), judged_columns(features), judged, settings.page_from)
    return DriftResult(str(day), tuple(str(past) for past in sorted(reference_days)), tuple(drifted), ordered, page, run, look)


def report_drift(
    ws: Workspace, params: Params, reference_days: Sequence[dt.date], day: dt.date, waiting: Collection[str] = ()
) -> DriftResult:
    """Day D against the reference days, from the workspace's samples.

    Raises:
        NotFound: a day was not collected.
        DataError: no reference day is given, or day D is one of them.
    """
    reference, current = sample_frames(ws, params, reference_days, day)
    return drift_report(reference, current, params.features, params.drift, day=day, reference_days=reference_days, waiting=waiting)


def _evidently(
    reference: "pd.DataFrame",
    current: "pd.DataFrame",
    day: dt.date,
    columns: Sequence[Column],
    thresholds: dict[str, float],
    settings: Drift,
) -> tuple[bytes, Any, dict[str, float]]:
    """Evidently's page (one file, opens offline), what it was made from, and the value of each column."""
    if not columns:
        return b"<!doctype html><meta charset=utf-8><title>Drift</title><p>No column could be compared.</p>\n", None, {}
    os.environ.setdefault("DO_NOT_TRACK", "1")  # read by Evidently's telemetry
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # of its own use of pandas and NumPy, at import and at run
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        definition = DataDefinition(
            numerical_columns=[column.name for column in columns if column.type == "numeric"],
            categorical_columns=[column.name for column in columns if column.type == "categorical"],
        )
        # One by one: DataDriftPreset measures each column three times and draws it twice (docs/decisions.md).
        asked = [ValueDrift(column=one.name, method=_method(one, settings), threshold=thresholds[one.name]) for one in columns]
        sides = [Dataset.from_pandas(frame, data_definition=definition) for frame in (current, reference)]
        midnight = dt.datetime.combine(day, dt.time())
        run = Report(list(asked), include_tests=True).run(*sides, timestamp=midnight, name=str(day))
        target = Path(scratch) / "page.html"
        run.save_html(str(target))
        page = target.read_bytes()
        metrics = run.dict()["metrics"]
    values = {metric["config"]["column"]: float(metric["value"]) for metric in metrics if "ValueDrift" in metric["metric_name"]}
    # Rounding takes the root of a number just below 0 when two distributions are equal. Evidently adds categories up in the order of a
    # set of texts, which is another one in every process: what is rounded is the same each time.
    return page, run, {name: 0.0 if math.isnan(value) else round(value, DIGITS) for name, value in values.items()}


def _method(column: Column, settings: Drift) -> str:
    return settings.numeric_method if column.type == "numeric" else settings.categorical_method


def _widened(column: Column, settings: Drift, before: "pd.Series[Any]", after: "pd.Series[Any]", noise: float) -> float:
    """The configured threshold, widened by what chance alone does; `noise` as `_noise` gives it.

    Large samples keep the configured value; on a few hundred rows nothing less than a plain change alarms.
    """
    import pandas as pd
    from scipy.stats import chi2

    method = _method(column, settings)
    threshold = settings.numeric_threshold if column.type == "numeric" else settings.categorical_threshold
    if method == "wasserstein":
        return math.hypot(threshold, WASSERSTEIN_NOISE * math.sqrt(noise))
    levels = int(pd.concat([before, after]).nunique())
    bins = levels if column.type == "categorical" else min(levels, 30)
    chance = float(chi2.isf(ONE, max(bins - 1, 1))) * noise
    return threshold + chance if method == "psi" else math.hypot(threshold, math.sqrt(chance / 8))


def _presence(before: "pd.Series[Any]", after: "pd.Series[Any]", settings: Drift, noise: float) -> ColumnDrift:
    """The shares of rows without a value, beside each other; `noise` as `_noise` gives it."""
    then, now = (float((side == "missing").mean()) for side in (before, after))
    pooled = (then * before.size + now * after.size) / (before.size + after.size)
    threshold = math.hypot(settings.missing_threshold, deviations() * math.sqrt(pooled * (1 - pooled) * noise))
    moved = abs(now - then)
    return ColumnDrift(MISSING, moved, round(threshold, 4), moved >= threshold, then, now, before.size, after.size)


def _noise(reference: "pd.DataFrame", current: "pd.DataFrame", before: "pd.Series[Any]", after: "pd.Series[Any]", column: Column) -> float:
    """Variance of the difference of two means, in units of the column's own: 1/n + 1/m for independent rows.

    Where rows of one cluster share a value, it is the squared difference of the clusters' shares: all of it for a
    catalogue that turned over, next to nothing for the same users on both sides. Where they are only alike, it is measured.
    """
    least = 1 / before.size + 1 / after.size
    if column.cluster is None or column.cluster not in reference or column.cluster not in current:
        return least
    owners = [frame.loc[rows.index, column.cluster] for frame, rows in ((reference, before), (current, after))]
    if column.alike:
        return max(least, _measured_noise(before, after, *owners, numeric=column.type == "numeric"))
    shares = [owner.value_counts(normalize=True) for owner in owners]
    return max(least, float((shares[0].sub(shares[1], fill_value=0.0) ** 2).sum()))


def _measured_noise(
    before: "pd.Series[Any]", after: "pd.Series[Any]", before_owner: "pd.Series[Any]", after_owner: "pd.Series[Any]", *, numeric: bool
) -> float:
    """What `_noise` says, from how alike the rows of one owner are: the mean design effect over K categories (a number's: its
    tenths), sum_k v_k / p_k / (K - 1), which is what a chi-square of clustered rows is divided by (Rao and Scott, Journal of the
    American Statistical Association 76:221, 1981). v_k is the variance of the difference of category k's shares, over owners.

    One owner whose rows are all of a side shows no variance there: that is left to the column's ranks.
    """
    import numpy as np
    import pandas as pd

    values = pd.concat([before, after], ignore_index=True)
    if numeric:
        cuts = np.unique(values.quantile(np.arange(1, 10) / 10).to_numpy())
        values = pd.Series(np.searchsorted(cuts, values.to_numpy(), side="right"))
    code, categories = pd.factorize(values)
    owner = pd.concat([before_owner, after_owner], ignore_index=True)
    place, owners = pd.factorize(owner)
    unknown = place < 0  # a row of nobody known is an owner of its own
    place = np.where(unknown, len(owners) + np.cumsum(unknown) - 1, place)
    width, count = len(categories), len(owners) + int(unknown.sum())
    if width < 2:
        return 0.0
    difference = np.zeros((count, width))  # [owners, K] what each owner moves the difference of the shares by
    for sign, chosen in ((-1, slice(0, before.size)), (1, slice(before.size, None))):
        rows = len(code[chosen])
        held = np.bincount(place[chosen] * width + code[chosen], minlength=count * width).reshape(count, width)
        share = held.sum(axis=0) / rows
        difference += sign * (held - held.sum(axis=1, keepdims=True) * share) / rows
    pooled = np.bincount(code, minlength=width) / len(code)
    return float(((difference**2).sum(axis=0) / pooled).sum() / (width - 1))


def _folded(before: "pd.Series[Any]", after: "pd.Series[Any]") -> "tuple[pd.Series[Any], pd.Series[Any]]":
    """Categories as text, all but the most frequent as one; both sides choose, so that a flood of a new value shows."""
    before, after = before.astype(str), after.astype(str)
    shares = before.value_counts(normalize=True).add(after.value_counts(normalize=True), fill_value=0.0)
    if len(shares) <= SHOWN_CATEGORIES:
        return before, after
    shown = shares.sort_index().sort_values(ascending=False, kind="stable").index[:SHOWN_CATEGORIES]
    return before.where(before.isin(shown), "other"), after.where(after.isin(shown), "other")


def _moved(before: "pd.Series[Any]", after: "pd.Series[Any]") -> tuple[str, float, float] | None:
    """The category whose share of the rows changed most, and its shares; of ties the first by name. None where all stayed."""
    then, now = (side.value_counts(normalize=True) for side in (before, after))
    change = now.sub(then, fill_value=0.0).sort_index().abs()
    if not change.max() > 0:
        return None
    name = change.idxmax()
    return str(name), float(then.get(name, 0.0)), float(now.get(name, 0.0))


def _absence(column: Column, in_reference: bool, in_current: bool, before: int, after: int) -> str | None:
    """Why a column cannot be compared, in words; None where it can."""
    if not in_current:
        return "the column is gone"
    if not in_reference:
        return "the column is new, there is nothing to compare with"
    if before >= LEAST_ROWS and after >= LEAST_ROWS:
        return None
    if before and after:
        return f"too few rows to compare: {before} in the reference, {after} on the day, {LEAST_ROWS} are needed"
    if column.role == "seen":
        return "no earlier day to look ids up in"
    if before:
        words = "no request of the day has events" if column.level == "event" else "every value is missing on the day"
        return f"{words}; the reference had {'some' if column.level == 'event' else 'values'}"
    return "every value is missing in the reference" if after else "every value is missing, in the reference too"


def _severity(one: ColumnDrift) -> float:
    return one.value / one.threshold if one.value is not None and one.threshold else math.inf


def _mean(values: "pd.Series[Any]") -> float | None:
    import pandas as pd

    return float(values.mean()) if values.size and pd.api.types.is_numeric_dtype(values) else None
