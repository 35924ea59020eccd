"""params.yaml as frozen values: every key has a type, a unit and a range, and an unknown one is refused.

People edit params.yaml; `resolve` fills in the defaults; a retrain writes the result to run.yaml, which
the reproducible stages read. Defaults stand here, reasons beside them; params.yaml of a new workspace
shows the ones that people change first.
"""

from hap.params.base import KINDS, MODELS, NEGATIVES, SEVERITIES, Severity
from hap.params.features import Feature, Features
from hap.params.judging import Gate, Slice
from hap.params.load import load_params, resolve
from hap.params.release import Export, Keep, Mlflow, Serving, TensorRT
from hap.params.samples import Collect, Window
from hap.params.training import SHARE_SLACK, Light, Loss, Model, Route
from hap.params.watching import Alerts, Drift, Estimate, Funnel, Labels, Skew, Staleness, Traffic
from hap.params.whole import Params

__all__ = [
    "Alerts",
    "Collect",
    "Drift",
    "Estimate",
    "Export",
    "Feature",
    "Features",
    "Funnel",
    "Gate",
    "KINDS",
    "Keep",
    "Labels",
    "Light",
    "Loss",
    "MODELS",
    "Mlflow",
    "Model",
    "NEGATIVES",
    "Params",
    "Route",
    "SEVERITIES",
    "SHARE_SLACK",
    "Serving",
    "Severity",
    "Skew",
    "Slice",
    "Staleness",
    "Traffic",
    "TensorRT",
    "Window",
    "load_params",
    "resolve",
]
