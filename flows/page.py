"""A version's page: written beside the verdict, and attached to the version in MLflow."""

import re
from pathlib import Path

from flows.record import TRAINING
from hap import durable
from hap.evaluation.verdict import Verdict
from hap.pages.version import Subject, render
from hap.params import Params
from hap.registry import versions
from hap.serving.bundle import Bundle
from hap.workspace import Workspace


def page_path(ws: Workspace, version: int) -> Path:
    """Where the page of a version lies."""
    return ws.pages / f"{versions.label(version)}.html"


def artifact_key(ws: Workspace, what: str) -> str:
    """A page's name among Prefect's artifacts, which may hold only lowercase letters, numbers and dashes."""
    return f"{re.sub('[^a-z0-9]+', '-', ws.root.name.lower()).strip('-') or 'hap'}-{what}"


def write_page(ws: Workspace, params: Params, verdict: Verdict, bundle: Bundle) -> Path:
    """Write the page of the judged version, and attach it to the version in MLflow.

    Raises:
        HapError: MLflow cannot be reached; the page may be written already, and judging again finishes.
    """
    registered = versions.get(ws, params, verdict.version)
    training = versions.read_artifact(ws, params, registered, TRAINING)
    path = page_path(ws, verdict.version)
    durable.write_text(path, render(Subject(registered, verdict, bundle, training)))
    versions.attach_page(ws, params, registered, path)
    return path
