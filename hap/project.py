"""Files of the project that a workspace is made from: dvc.yaml, params.yaml, triton_repo/.

They stand at the top of the project; an installed wheel carries them inside the package.
"""

import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


def project_file(name: str) -> Path:
    """`name` from the installed wheel's copy, else from the checkout that the package stands in."""
    packaged = _PACKAGE / "project" / name
    return packaged if packaged.exists() else _PACKAGE.parent / name


@cache
def package_digest() -> str:
    """sha256 over hap's own sources: when it changes, every DVC stage is stale."""
    digest = hashlib.sha256()
    for source in sorted(_PACKAGE.rglob("*.py")):
        digest.update(str(source.relative_to(_PACKAGE)).encode() + b"\0")
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()
