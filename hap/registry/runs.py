"""A retrain as one MLflow run: parameters, metrics, curves and files; the same bundle always means the same run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from hap.errors import UsageError
from hap.params import Params
from hap.registry.mlflow_store import connect, require_own_artifacts
from hap.serving.bundle import read_bundle
from hap.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BUNDLE = "bundle"  # folder of the bundle among a run's artifacts
_RUN_TAG = "hap.bundle_digest"


def log_training(
    ws: Workspace,
    params: Params,
    run_name: str,
    run_params: Mapping[str, Any],
    metrics: Mapping[str, float],
    artifacts: Mapping[str, Path],
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> str:
    """Log one retrain as one MLflow run and return its id; the same bundle always means the same run.

    Args:
        run_params: resolved parameters; nested ones become dotted names.
        artifacts: files and folders by the name they get; `bundle` is needed.
        curves: metrics by training step, (step, value) each.

    Raises:
        UsageError: no bundle among the artifacts.
        HapError: MLflow cannot be reached, or refuses; calling again finishes what is missing.
    """
    if BUNDLE not in artifacts:
        raise UsageError(f"a run is logged with its bundle; found only {sorted(artifacts)}")
    digest = read_bundle(artifacts[BUNDLE]).digest
    with connect(ws, params) as client:
        run = _run_of(client, experiment_id(ws, params, client), digest) or client.create_run(
            experiment_id(ws, params, client), run_name=run_name, tags={_RUN_TAG: digest}
        )
        _fill_run(client, run, run_params, metrics, artifacts, curves or {})
        return str(run.info.run_id)


def experiment_id(ws: Workspace, params: Params, client: "MlflowClient") -> str:
    """The id of the experiment that params.yaml names, made on first use."""
    name = params.mlflow.experiment
    artifacts = None if params.mlflow.tracking_uri else str(ws.registry / "artifacts")
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifacts))
    require_own_artifacts(ws, params, found.artifact_location)
    return str(found.experiment_id)


def _run_of(client: "MlflowClient", experiment: str, digest: str) -> "Run | None":
    """The run that already holds this bundle, or was killed while it was logged."""
    found: Sequence[Run] = client.search_runs([experiment], filter_string=f"tags.`{_RUN_TAG}` = '{digest}'", max_results=1)
    return found[0] if found else None


def _fill_run(
    client: "MlflowClient",
    run: "Run",
    run_params: Mapping[str, Any],
    metrics: Mapping[str, float],
    artifacts: Mapping[str, Path],
    curves: Mapping[str, Sequence[tuple[int, float]]],
) -> None:
    """Log what the run lacks and end it; FINISHED is written last and means that nothing is missing."""
    from mlflow.entities import Metric, Param

    if run.info.status == "FINISHED":
        return
    run_id, started_ms = run.info.run_id, run.info.start_time
    logged = [Param(name, value) for name, value in _dotted(run_params) if name not in run.data.params]
    points = [Metric(name, float(value), started_ms, 0) for name, value in metrics.items()]
    points += [Metric(name, float(value), started_ms, step) for name, curve in curves.items() for step, value in curve]
    for first in range(0, len(logged), 100):  # MLflow takes 100 parameters a call
        client.log_batch(run_id, params=logged[first : first + 100])
    for first in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[first : first + 1000])
    for name, path in artifacts.items():
        if path.is_dir():
            client.log_artifacts(run_id, str(path), name)
        else:
            client.log_artifact(run_id, str(path), None if name == path.name else name)
    client.set_terminated(run_id)


def _dotted(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested parameters as dotted names; what is no mapping is written as JSON."""
    flat: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _dotted(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
            flat.append((f"{prefix}{name}", text[:6000]))  # MLflow's limit
    return flat
