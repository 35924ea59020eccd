"""A version served beside the champion under names of its own: `hap_rehearsal` and `hap_all_rehearsal`, say, that no caller asks for.

A purpose (rehearsal, shadow) has at most one version. Its ensembles' configs in the repository say which one, so whoever changes the
pins sees that its members are still in use.
"""

import shutil
from pathlib import Path

from hap import durable
from hap.serving import repository
from hap.serving.repository import CONFIG, ENSEMBLES

REHEARSAL = "rehearsal"  # of a promotion, and of `hapctl parity`
SHADOW = "shadow"  # of `hapctl shadow`, which holds the workspace's lock of that name
PURPOSES = (REHEARSAL, SHADOW)


def names(purpose: str) -> dict[str, str]:
    """Each ensemble's name for the purpose."""
    return {ensemble: f"{ensemble}_{purpose}" for ensemble in ENSEMBLES}


def stage(repo: Path, purpose: str, version: int) -> dict[str, str]:
    """Write the ensembles of a rendered version under the purpose's names, check them, and return those names; nothing is loaded by it.

    Raises:
        DataError: the members' configs do not load the version.
    """
    for ensemble, name in names(purpose).items():
        (repo / name / str(version)).mkdir(parents=True, exist_ok=True)
        durable.write_text(repo / name / CONFIG, repository.ensemble_config(repo, ensemble, version, name))
        repository.check_ensemble(repo, ensemble, name)
    return names(purpose)


def unstage(repo: Path, purpose: str) -> None:
    """Take the purpose's ensembles out of the repository."""
    for name in names(purpose).values():
        shutil.rmtree(repo / name, ignore_errors=True)


def staged(repo: Path) -> dict[str, int]:
    """The version of each purpose that the repository holds an ensemble for."""
    found = {}
    for purpose in PURPOSES:
        for name in names(purpose).values():
            if (repo / name / CONFIG).exists():
                found[purpose] = int(repository.parse_config(repo / name / CONFIG).version_policy.specific.versions[0])
    return found
