"""The bundles of promoted versions on the serving host: rollback and replay work from them while MLflow is away."""

import contextlib
import shutil
from pathlib import Path

from hap.errors import HapError, NotFound
from hap.params import Params
from hap.registry import versions
from hap.registry.versions import label
from hap.serving import repository
from hap.serving.bundle import Bundle, read_bundle
from hap.workspace import Workspace

SPARE_BYTES = 16 * 2**20  # for the ledger, pins and logs beside the copies


def bundle_folder(ws: Workspace, version: int) -> Path:
    """The local copy of a promoted version's bundle."""
    return ws.registry / "bundles" / label(version)


def local_versions(ws: Workspace) -> list[int]:
    """The versions with a local copy, ascending."""
    return sorted(versions.parse_version(entry.name) for entry in (ws.registry / "bundles").glob("v[0-9]*"))


def fetched(ws: Workspace, params: Params, version: int, digest: str | None = None) -> Bundle:
    """The local copy of a bundle, fetched from MLflow where it is absent, damaged or not the one that was registered."""
    folder = bundle_folder(ws, version)
    with contextlib.suppress(HapError):
        bundle = read_bundle(folder)
        if digest in (None, bundle.digest):
            return bundle
    return read_bundle(versions.fetch_bundle(ws, params, version, folder))


def local(ws: Workspace, version: int) -> Bundle:
    """The local copy of a bundle, without MLflow.

    Raises:
        NotFound: it is not here; the message names the word that fetches it.
        DataError: it is damaged.
    """
    folder = bundle_folder(ws, version)
    if not folder.is_dir():
        raise NotFound(
            f"the bundle of {label(version)} is not on this host (keep.versions says how many stay); "
            f"`hapctl promote --model {label(version)} --force --reason TEXT` fetches it"
        )
    return read_bundle(folder)


def require_room(ws: Workspace, version: int, stored_bytes: int, doing: str) -> None:
    """Let a move begin only where its copies fit: the bundle where it is not local, the rendered files where they are not there.

    Args:
        stored_bytes: of the bundle in MLflow's store; asked for only where it is not local.

    Raises:
        HapError: they do not fit.
    """
    folder = bundle_folder(ws, version)
    fetch_bytes = 0 if folder.is_dir() else stored_bytes
    render_bytes = 0 if version in repository.rendered(ws.triton) else folder_bytes(folder) or stored_bytes
    needs = {ws.registry: fetch_bytes, ws.triton: render_bytes}
    by_disk: dict[int, tuple[Path, int]] = {}
    for place, needed in needs.items():
        place = next(parent for parent in (place, *place.parents) if parent.is_dir())
        disk = place.stat().st_dev
        first, before = by_disk.get(disk, (place, 0))
        by_disk[disk] = first, before + needed
    for place, needed in by_disk.values():
        free = shutil.disk_usage(place).free
        if needed + SPARE_BYTES > free:
            raise HapError(
                f"{doing} needs {_mib(needed + SPARE_BYTES)} on the disk of {place}, and {_mib(free)} is free; nothing was changed: "
                "make room (`hapctl gc --dry-run` lists what it would free), then run this again"
            )


def folder_bytes(folder: Path) -> int:
    """What the files below a folder take, links not followed; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
