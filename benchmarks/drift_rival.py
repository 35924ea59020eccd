"""Evidently's default preset over the frames that hap's own watcher of inputs reads, as somebody uses it who sets nothing."""

import datetime as dt
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from hap.monitoring.columns import judged_columns
from hap.monitoring.frames import sample_frames
from hap.params import Params
from hap.workspace import Workspace


@dataclass(frozen=True)
class Preset:
    """What DataDriftPreset() says: whether its dataset drifted (half of the columns), and which columns did."""

    dataset: bool
    columns: frozenset[str]


def default_preset(ws: Workspace, params: Params, reference_days: Sequence[dt.date], day: dt.date) -> Preset:
    """A day beside its reference days.

    Column types are hap's. Ids that hap keeps in the frame to count its noise by are left out, since they drift every day by what
    they are; so are columns without a value on one side, which the preset cannot take.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    frames = sample_frames(ws, params, reference_days, day)
    there = [column for column in judged_columns(params.features) if all(column.name in f and f[column.name].notna().any() for f in frames)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        kinds = {kind: [column.name for column in there if column.type == kind] for kind in ("numeric", "categorical")}
        definition = DataDefinition(numerical_columns=kinds["numeric"], categorical_columns=kinds["categorical"])
        names = [column.name for column in there]
        reference, current = (Dataset.from_pandas(frame[names], data_definition=definition) for frame in frames)
        told = Report([DataDriftPreset()], include_tests=True).run(current, reference).dict()
    failed = [test["metric_config"]["params"].get("column") for test in told["tests"] if test["status"].value == "FAIL"]
    count = next(metric["value"] for metric in told["metrics"] if "DriftedColumnsCount" in metric["metric_name"])
    return Preset(float(count["share"]) >= 0.5, frozenset(name for name in failed if name))
