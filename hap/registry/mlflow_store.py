"""MLflow's tracking store as a workspace uses it: a quiet client, a database of its own, failures in one line.

mlflow is imported by the functions that talk to it, never by importing this module.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from hap import durable
from hap.errors import HapError
from hap.params import Params
from hap.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a registry that is down is told within seconds, not minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@contextlib.contextmanager
def connect(ws: Workspace, params: Params) -> Iterator["MlflowClient"]:
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
        uri = tracking_uri(ws, params)
        try:
            if (database := own_database(ws, params)) is not None and not database.exists():
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


def tracking_uri(ws: Workspace, params: Params) -> str:
    return params.mlflow.tracking_uri or f"sqlite:///{ws.registry / 'mlflow.db'}"


def own_database(ws: Workspace, params: Params) -> Path | None:
    """The workspace's own database file; None where params.yaml names another store."""
    return None if params.mlflow.tracking_uri else ws.registry / "mlflow.db"


def require_own_artifacts(ws: Workspace, params: Params, uri: str) -> None:
    """Keep a workspace that was copied from writing among the artifacts of the one it was copied from.

    Raises:
        HapError: `uri`, of an experiment or a run, lies outside this workspace, whose artifacts are its own.
    """
    if own_database(ws, params) is None:
        return
    place = Path(uri.removeprefix("file://"))
    if not place.is_relative_to(ws.registry / "artifacts"):
        made = str(place).partition("/registry/artifacts")[0]
        raise HapError(f"this workspace was made at {made}, where its artifacts are; move it back there")


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
