"""Versions of model `hap` in MLflow: one version is one bundle, its label v42 is MLflow's own version number.

mlflow is imported by the functions that talk to it, never by importing this module.
"""

import datetime as dt
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from hap import durable
from hap.errors import ConfigError, DataError, NotFound, UsageError
from hap.params import Params
from hap.registry.mlflow_store import connect, own_database, require_own_artifacts, tracking_uri
from hap.registry.runs import BUNDLE, log_training
from hap.serving.bundle import read_bundle
from hap.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL = "hap"
FREED = "freed"  # tag: when `hapctl gc` took the bundle; set before anything goes
PAGE = "page"  # folder of the version's page among its run's artifacts
ALIASES = ("champion", "challenger")


@dataclass(frozen=True)
class Version:
    """One registered bundle. `day` judged it, `window` trained it, `verdict` is the gate's word or None before it spoke.

    `freed` is the UTC time in ISO 8601 at which `hapctl gc` freed its bundle and data; None while they are whole.
    """

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
    freed: str | None = None

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
    """Make the bundle a version and return its number; a bundle that is one already keeps its number, and is whole again if it was freed.

    Args:
        day: the day that judges the version.
        run_id: what `log_training` returned; found or made by the bundle's digest where None.

    Raises:
        DataError: the bundle is damaged.
        HapError: MLflow cannot be reached, or refuses; calling again finishes what is missing.
    """
    sealed = read_bundle(bundle)
    digest = sealed.digest
    with connect(ws, params) as client:
        if known := next((v for v in _all(client) if v.tags.get("bundle_digest") == digest), None):
            if FREED in known.tags:  # made again, byte for byte: it is whole once its bundle is back
                client.log_artifacts(str(known.run_id), str(bundle), BUNDLE)
                for name, value in (("workspace_rev", workspace_rev), ("code_rev", code_rev)):
                    client.set_model_version_tag(MODEL, known.version, name, value)
                client.delete_model_version_tag(MODEL, known.version, FREED)
            return int(known.version)
    run_id = run_id or log_training(ws, params, f"retrain {day}", {}, {}, {BUNDLE: bundle})
    tags = {"bundle_digest": digest, "day": day.isoformat(), "workspace_rev": workspace_rev, "code_rev": code_rev}
    tags["window"] = ",".join(sealed.info.get("window", ()))
    with connect(ws, params) as client:
        _registered_model(client)
        made = client.create_model_version(MODEL, source=f"runs:/{run_id}/{BUNDLE}", run_id=run_id, tags=tags)
        return int(made.version)


def list_versions(ws: Workspace, params: Params) -> list[Version]:
    """Every version, oldest first.

    Raises:
        HapError: MLflow cannot be reached.
    """
    if (database := own_database(ws, params)) is not None and not database.exists():
        return []  # nothing was ever registered here; making the database only to find it empty takes seconds
    with connect(ws, params) as client:
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


def get_whole(ws: Workspace, params: Params, version: int) -> Version:
    """One version that still has its bundle and data.

    Raises:
        NotFound: no such version, or `hapctl gc` freed it.
        HapError: MLflow cannot be reached.
    """
    found = get(ws, params, version)
    if found.freed:
        raise NotFound(
            f"the bundle and data of {found.label} were freed by `hapctl gc` on {found.freed[:10]}; "
            f"see `hapctl models` for those that are whole, or `hapctl retrain --day {found.day}` makes the day's models again"
        )
    return found


def stored_bundle(ws: Workspace, params: Params, version: Version) -> dict[str, int]:
    """The bundle's files in the artifact store with their bytes; empty where there is none.

    Raises:
        HapError: MLflow or its artifact store cannot be reached.
    """
    with connect(ws, params) as client:
        return {entry.path: int(entry.file_size or 0) for entry in client.list_artifacts(version.run_id, BUNDLE)}


def require_own_bundle(ws: Workspace, params: Params, version: Version) -> None:
    """Ask whether this workspace may free the version's bundle, before anything is marked or removed for it.

    Raises:
        HapError: MLflow cannot be reached, or the bundle lies in another workspace, which this one was copied from.
    """
    with connect(ws, params) as client:
        _own_artifacts(client, ws, params, version)


def free_bundle(ws: Workspace, params: Params, version: Version) -> None:
    """Delete a version's bundle from the artifact store; the version, its verdict, page and metrics stay. `mark_freed` comes first.

    Raises:
        HapError: MLflow or its artifact store cannot be reached, or refuses.
    """
    with connect(ws, params) as client:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        # The client has no word for deleting artifacts; its stores have.
        get_artifact_repository(_own_artifacts(client, ws, params, version), tracking_uri(ws, params)).delete_artifacts(BUNDLE)


def mark_freed(ws: Workspace, params: Params, version: int, at: dt.datetime) -> None:
    """Say of a version that its bundle and data are gone, or about to be.

    Raises:
        HapError: MLflow cannot be reached.
    """
    with connect(ws, params) as client:
        client.set_model_version_tag(MODEL, str(version), FREED, at.astimezone(dt.UTC).isoformat(timespec="seconds"))


def fetch_bundle(ws: Workspace, params: Params, version: int, into: Path) -> Path:
    """Copy the bundle of a version from the artifact store to the folder `into`, whole or not at all, and return it.

    Raises:
        NotFound: no such version, or its bundle was freed.
        DataError: what the store holds is not the bundle that was registered.
        HapError: MLflow or its artifact store cannot be reached.
    """
    wanted = get_whole(ws, params, version)
    with durable.new_directory(into) as building, connect(ws, params) as client:
        from mlflow.artifacts import download_artifacts

        stored = f"{client.get_run(wanted.run_id).info.artifact_uri}/{BUNDLE}"  # by run id, mlflow would hide why a copy failed
        fetched = Path(download_artifacts(artifact_uri=stored, dst_path=str(building), tracking_uri=tracking_uri(ws, params)))
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
    with connect(ws, params) as client:
        client.set_registered_model_alias(MODEL, alias, str(version))
        if alias == "champion" and _alias(client, "challenger") == version:
            client.delete_registered_model_alias(MODEL, "challenger")


def drop_alias(ws: Workspace, params: Params, alias: str, version: int) -> None:
    """Take an alias off a version; nothing changes where it points elsewhere.

    Raises:
        HapError: MLflow cannot be reached.
    """
    with connect(ws, params) as client:
        if _alias(client, alias) == version:
            client.delete_registered_model_alias(MODEL, alias)


def get_alias(ws: Workspace, params: Params, alias: str) -> int | None:
    """The version that an alias points at.

    Raises:
        HapError: MLflow cannot be reached.
    """
    if (database := own_database(ws, params)) is not None and not database.exists():
        return None
    with connect(ws, params) as client:
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
    with connect(ws, params) as client:
        _own_artifacts(client, ws, params, wanted)
        client.log_artifact(wanted.run_id, str(path), "verdict")
        client.set_model_version_tag(MODEL, str(version), "verdict", str(verdict["verdict"]))
    return path


def read_artifact(ws: Workspace, params: Params, version: Version, name: str) -> Any:
    """A JSON file of the version's run; None where the run has none of that name.

    Raises:
        HapError: MLflow cannot be reached.
    """
    with connect(ws, params) as client, tempfile.TemporaryDirectory() as scratch:
        if name not in {entry.path for entry in client.list_artifacts(version.run_id)}:
            return None
        return orjson.loads(Path(client.download_artifacts(version.run_id, name, scratch)).read_bytes())


def attach_page(ws: Workspace, params: Params, version: Version, page: Path) -> None:
    """Keep the version's page among its run's artifacts, and have the version name it.

    Raises:
        HapError: MLflow cannot be reached.
    """
    with connect(ws, params) as client:
        _own_artifacts(client, ws, params, version)
        client.log_artifact(version.run_id, str(page), PAGE)
        client.update_model_version(MODEL, str(version.number), f"[{page.name}](#/runs/{version.run_id}/artifacts/{PAGE}/{page.name})")


def _own_artifacts(client: "MlflowClient", ws: Workspace, params: Params, version: Version) -> str:
    """The URI of the artifacts of a version's run, which are about to change.

    Raises:
        HapError: they are those of another workspace.
    """
    uri = str(client.get_run(version.run_id).info.artifact_uri)
    require_own_artifacts(ws, params, uri)
    return uri


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
        freed=tags.get(FREED),
    )
