"""Versions of model `hap` in MLflow: one version is one bundle, its label v42 is MLflow's own version number.

mlflow is imported by the functions that talk to it, never by importing this module.
"""

import contextlib
import datetime as dt
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from filelock import FileLock

from hap import durable
from hap.errors import ConfigError, DataError, HapError, NotFound, UsageError
from hap.params import Params
from hap.serving.bundle import read_bundle
from hap.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "hap"
ALIASES = ("champion", "challenger")
_BUNDLE = "bundle"  # folder of the bundle among a run's artifacts
_RUN_TAG = "hap.bundle_digest"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a registry that is down is told within seconds, not minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@dataclass(frozen=True)
class Version:
    """One registered bundle. `day` judged it, `window` trained it, `verdict` is the gate's word or None before it spoke."""

    number: int
    day: str | None
    window: tuple[str, ...]
    verdict: str | None
    created: dt.datetime
    bundle_digest: str
    workspace_rev: str | None
    code_rev: str | None
    run_id: str
    champion: bool
    challenger: bool

    @property
    def label(self) -> str:
        return label(self.number)

    def as_json(self) -> dict[str, Any]:
        """The fields with the label; the time as ISO 8601 in UTC."""
        return {"label": self.label, **asdict(self), "created": self.created.isoformat()}


def label(version: int) -> str:
    """How a version is written: v42."""
    return f"v{version}"


def parse_version(text: str) -> int:
    """The number of a version written v42 or 42.

    Raises:
        UsageError: the text is neither.
    """
    if not (match := re.fullmatch(r"[vV]?([1-9][0-9]{0,8})", text.strip())):
        raise UsageError(f"{text!r} is not a version; write it as v42, see `hapctl models`")
    return int(match[1])


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
    if _BUNDLE not in artifacts:
        raise UsageError(f"a run is logged with its bundle; found only {sorted(artifacts)}")
    digest = read_bundle(artifacts[_BUNDLE]).digest
    with _client(ws, params) as client:
        run = _run_of(client, _experiment(ws, params, client), digest) or client.create_run(
            _experiment(ws, params, client), run_name=run_name, tags={_RUN_TAG: digest}
        )
        _fill_run(client, run, run_params, metrics, artifacts, curves or {})
        return str(run.info.run_id)


def register(
    ws: Workspace,
    params: Params,
    bundle: Path,
    *,
    day: dt.date,
    workspace_rev: str,
    code_rev: str,
    run_id: str | None = None,
) -> int:
    """Make the bundle a version and return its number; a bundle that is one already keeps its number.

    Args:
        day: the day that judges the version.
        run_id: what `log_training` returned; found or made by the bundle's digest where None.

    Raises:
        DataError: the bundle is damaged.
        HapError: MLflow cannot be reached, or refuses; calling again finishes what is missing.
    """
    sealed = read_bundle(bundle)
    digest = sealed.digest
    with _client(ws, params) as client:
        if known := next((v for v in _all(client) if v.tags.get("bundle_digest") == digest), None):
            return int(known.version)
    run_id = run_id or log_training(ws, params, f"retrain {day}", {}, {}, {_BUNDLE: bundle})
    tags = {"bundle_digest": digest, "day": day.isoformat(), "workspace_rev": workspace_rev, "code_rev": code_rev}
    tags["window"] = ",".join(sealed.info.get("window", ()))
    with _client(ws, params) as client:
        _registered_model(client)
        made = client.create_model_version(MODEL, source=f"runs:/{run_id}/{_BUNDLE}", run_id=run_id, tags=tags)
        return int(made.version)


def list_versions(ws: Workspace, params: Params) -> list[Version]:
    """Every version, oldest first.

    Raises:
        HapError: MLflow cannot be reached.
    """
    if (database := _default_database(ws, params)) is not None and not database.exists():
        return []  # nothing was ever registered here; making the database only to find it empty takes seconds
    with _client(ws, params) as client:
        champion, challenger = (_alias(client, alias) for alias in ALIASES)
        found = [_version(entry, champion, challenger) for entry in _all(client)]
    return sorted(found, key=lambda version: version.number)


def get(ws: Workspace, params: Params, version: int) -> Version:
    """One version.

    Raises:
        NotFound: no such version; the message lists those that exist.
        HapError: MLflow cannot be reached.
    """
    known = list_versions(ws, params)
    for candidate in known:
        if candidate.number == version:
            return candidate
    listed = ", ".join(one.label for one in known[-20:]) or "none"
    raise NotFound(f"{label(version)} is not registered; registered: {listed}; see `hapctl models`")


def fetch_bundle(ws: Workspace, params: Params, version: int, into: Path) -> Path:
    """Copy the bundle of a version from the artifact store to the folder `into`, whole or not at all, and return it.

    Raises:
        NotFound: no such version.
        DataError: what the store holds is not the bundle that was registered.
        HapError: MLflow or its artifact store cannot be reached.
    """
    wanted = get(ws, params, version)
    with durable.new_directory(into) as building, _client(ws, params) as client:
        from mlflow.artifacts import download_artifacts

        stored = f"{client.get_run(wanted.run_id).info.artifact_uri}/{_BUNDLE}"  # by run id, mlflow would hide why a copy failed
        fetched = Path(download_artifacts(artifact_uri=stored, dst_path=str(building), tracking_uri=_tracking_uri(ws, params)))
        for entry in fetched.iterdir():
            shutil.move(entry, building / entry.name)
        fetched.rmdir()
        found = read_bundle(building).digest
        if found != wanted.bundle_digest:
            raise DataError(f"the stored bundle of {wanted.label} has digest {found[:12]}, registered was {wanted.bundle_digest[:12]}")
    return into


def set_alias(ws: Workspace, params: Params, alias: str, version: int) -> None:
    """Point an alias at a version; a version that becomes champion is no longer the challenger.

    Raises:
        HapError: MLflow cannot be reached, or does not know the version.
    """
    with _client(ws, params) as client:
        client.set_registered_model_alias(MODEL, alias, str(version))
        if alias == "champion" and _alias(client, "challenger") == version:
            client.delete_registered_model_alias(MODEL, "challenger")


def get_alias(ws: Workspace, params: Params, alias: str) -> int | None:
    """The version that an alias points at.

    Raises:
        HapError: MLflow cannot be reached.
    """
    if (database := _default_database(ws, params)) is not None and not database.exists():
        return None
    with _client(ws, params) as client:
        return _alias(client, alias)


def set_verdict(ws: Workspace, params: Params, version: int, verdict: Mapping[str, Any]) -> Path:
    """Write verdicts/vN.json, the verdict's home, then attach a copy and the word to the version in MLflow.

    Raises:
        NotFound: no such version.
        HapError: MLflow cannot be reached; the file is written then, and calling again finishes.
    """
    wanted = get(ws, params, version)
    path = verdict_path(ws, version)
    durable.write_json(path, dict(verdict))
    with _client(ws, params) as client:
        client.log_artifact(wanted.run_id, str(path), "verdict")
        client.set_model_version_tag(MODEL, str(version), "verdict", str(verdict["verdict"]))
    return path


def verdict_path(ws: Workspace, version: int) -> Path:
    """Where the verdict of a version lies."""
    return ws.verdicts / f"{label(version)}.json"


def read_verdict(ws: Workspace, version: int) -> dict[str, Any] | None:
    """The verdict of a version; None before the gate has judged it. Needs no MLflow.

    Raises:
        ConfigError: the file is not a verdict, or is the verdict of another version.
    """
    path = verdict_path(ws, version)
    try:
        verdict = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON ({error}); judge the version again with `hapctl gate run`") from None
    if not isinstance(verdict, dict) or "verdict" not in verdict or parse_version(str(verdict.get("version"))) != version:
        raise ConfigError(f"{path} is not the verdict of {label(version)}; judge it again with `hapctl gate run`")
    return verdict


@contextlib.contextmanager
def _client(ws: Workspace, params: Params) -> Iterator["MlflowClient"]:
    """A client of the tracking store, quiet, whose failures are one line."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow's own use of SQLAlchemy and pydantic, nothing that a user can mend
        import sqlalchemy.exc
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is raised, too, and told in one line
        uri = _tracking_uri(ws, params)
        try:
            if (database := _default_database(ws, params)) is not None and not database.exists():
                _create_database(database)
            yield MlflowClient(tracking_uri=uri, registry_uri=uri)
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
            raise HapError(f"MLflow at {uri} refused: {_said(error)}; mlflow.tracking_uri in params.yaml names it") from None


def _said(error: BaseException) -> str:
    """An error in one line; MLflow hides a full disk or a missing file behind words of its own, so the operating system's come first."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.strerror} ({cause.filename})" if cause.filename else cause.strerror
        cause = cause.__cause__ or cause.__context__
    said = " ".join(str(error).split())
    if failed := re.search(r"##### File (\S+) ##### (.+?)(?: #####|$)", said):  # the first of the files that could not be copied
        return f"{failed[1]}: {failed[2]}"
    return said[:300] or type(error).__name__


def _tracking_uri(ws: Workspace, params: Params) -> str:
    return params.mlflow.tracking_uri or f"sqlite:///{ws.registry / 'mlflow.db'}"


def _default_database(ws: Workspace, params: Params) -> Path | None:
    """The workspace's own database file; None where params.yaml names another store."""
    return None if params.mlflow.tracking_uri else ws.registry / "mlflow.db"


def _create_database(database: Path) -> None:
    """Make the database under another name first: MLflow's migrations take seconds, and killed half-way they cannot be resumed."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    building = database.with_name(".mlflow.db.new")
    with FileLock(database.with_name(".mlflow.db.lock")):
        if database.exists():
            return
        building.unlink(missing_ok=True)
        SqlAlchemyStore(f"sqlite:///{building}", str(database.parent / "artifacts")).engine.dispose()
        os.replace(building, database)
        durable.fsync_path(database.parent)


def _experiment(ws: Workspace, params: Params, client: "MlflowClient") -> str:
    """The id of the experiment that params.yaml names, made on first use."""
    name = params.mlflow.experiment
    artifacts = None if params.mlflow.tracking_uri else str(ws.registry / "artifacts")
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifacts))
    if artifacts is not None and found.artifact_location != artifacts:
        raise HapError(
            f"this workspace was made at {Path(found.artifact_location).parents[1]}, where its artifacts are; move it back there"
        )
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


def _registered_model(client: "MlflowClient") -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _all(client: "MlflowClient") -> "list[ModelVersion]":
    """Every version of the model, page by page; their aliases come back empty from a search."""
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name='{MODEL}'", max_results=1000, page_token=token)
        found += page
        if not (token := page.token):
            return found


def _alias(client: "MlflowClient", alias: str) -> int | None:
    from mlflow.exceptions import MlflowException

    try:
        return int(client.get_model_version_by_alias(MODEL, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: the model has no such alias
            return None
        raise


def _version(entry: "ModelVersion", champion: int | None, challenger: int | None) -> Version:
    number, tags = int(entry.version), entry.tags
    return Version(
        number=number,
        day=tags.get("day"),
        window=tuple(day for day in tags.get("window", "").split(",") if day),
        verdict=tags.get("verdict"),
        created=dt.datetime.fromtimestamp(entry.creation_timestamp / 1000, dt.UTC),
        bundle_digest=tags.get("bundle_digest", ""),
        workspace_rev=tags.get("workspace_rev"),
        code_rev=tags.get("code_rev"),
        run_id=str(entry.run_id),
        champion=number == champion,
        challenger=number == challenger,
    )
