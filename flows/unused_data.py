"""Data in the DVC cache and remote that no kept revision needs, listed or removed in a process of its own: dvc stays out of hapctl's.

    python -P -m flows.unused_data '{"root": ..., "revisions": [...], "remote": true, "remove": false}'

`dvc gc` takes one revision and its parents, or everything that has a tag or a branch; a workspace keeps the revisions of some versions.
It also forces its way past a kept folder whose list of files is lost, and then removes these files. Here that ends the call.
"""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

DIRECTORY = ".dir"  # how DVC marks the object that lists a folder's files


def main(words: list[str]) -> int:
    """Print one JSON object: by store the unused objects as [path, bytes], and notes on stores that were left alone."""
    from dvc.exceptions import DvcException

    asked = orjson.loads(words[0])
    try:
        print(orjson.dumps(find(**asked)).decode())
    except DvcException as error:
        causes = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        print("error: " + " ".join(": ".join(causes).split()))
        return 1
    return 0


def find(root: str, revisions: list[str], remote: bool, remove: bool) -> dict[str, Any]:
    """The unused objects of the cache and the default remote, removed where asked for.

    Args:
        revisions: whose data stays, beside that of the workspace as it stands.
        remote: whether a remote outside of the workspace is this workspace's alone.
    """
    from dvc.config import NoRemoteError
    from dvc.repo import Repo
    from dvc_data.hashfile.db import get_index

    found: dict[str, Any] = {"stores": {}, "notes": []}
    with Repo(root) as repo, repo.lock:
        # force=False: a kept folder whose list is neither in the cache nor in the remote is an error, not a loss.
        used = {info.value for infos in repo.used_objs(revs=revisions, force=False).values() for info in infos}
        stores = {"DVC cache": repo.cache.local}
        with contextlib.suppress(NoRemoteError):
            stores["DVC remote"] = repo.cloud.get_remote_odb(command="gc", hash_name="md5")
        for name, store in stores.items():
            if not _below(store, root) and (name == "DVC cache" or not remote):
                mended = "" if name == "DVC cache" else ", unless keep.free_remote says that nobody else does"
                found["notes"].append(f"the {name} at {store.path} was left as it is: others may use it{mended}")
                continue
            unused = [oid for oid in _all(store) if oid not in used]
            # Lists of folders go first: one that stands says to DVC that its files do.
            unused.sort(key=lambda oid: not oid.endswith(DIRECTORY))
            found["stores"][name] = [[path, store.fs.size(path)] for path in map(store.oid_to_path, unused)]
            if remove and unused:
                for listing in (True, False):
                    if paths := [store.oid_to_path(oid) for oid in unused if oid.endswith(DIRECTORY) is listing]:
                        store.fs.remove(paths)
                if name == "DVC remote":
                    get_index(store).clear()
    return found


def _below(store: Any, root: str) -> bool:
    return store.fs.protocol in ("local", "file") and Path(store.path).resolve().is_relative_to(Path(root).resolve())


def _all(store: Any) -> Iterable[str]:
    return store.all() if store.fs.exists(store.path) else ()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
