"""Which versions keep their files, and why. Values in, values out; `hapctl gc` and every promotion ask here before anything goes."""

import datetime as dt
from collections.abc import Iterable, Sequence
from pathlib import Path

from hap.params import Keep
from hap.registry import ledger as journal
from hap.registry.ledger import Row
from hap.registry.versions import Version
from hap.serving import repository

Reasons = dict[int, str]  # version -> the first reason to keep it


def needed_here(rows: Sequence[Row], keep: Keep, repo: Path, loaded: Iterable[int] = ()) -> Reasons:
    """The versions whose bundle and rendered files stay on the serving host, so that a rollback needs neither MLflow nor room.

    That is the champion and what rollbacks in a row would return to, `keep.versions` in all and at least two; what the served
    repository or the server itself has loaded; what is pinned for the next start; and both ends of a move that was killed.

    Args:
        loaded: the versions that the running server says it has.
    """
    found: Reasons = {}
    stack = journal.served_stack(rows)[-max(2, keep.versions) :]
    _add(found, stack[-1:], "serves")
    _add(found, stack[:-1], "a rollback returns to it")
    waiting, moving = journal.pinned_for_next_start(rows), journal.open_move(rows)
    _add(found, [waiting.to_version if waiting else None, repository.pinned(repo)], "pinned for the next start")
    _add(found, [moving.from_version, moving.to_version] if moving else [], "a killed promotion left it open")
    _add(found, [*repository.loaded(repo), *loaded], "loaded")
    return found


def kept_whole(known: Sequence[Version], here: Reasons, keep: Keep, now: dt.datetime) -> Reasons:
    """The versions whose stored bundle and data stay, so that they can be promoted and restored.

    That is `here`, MLflow's champion and challenger, the newest `keep.versions`, and what was registered in the last `keep.days`.
    """
    found = dict(here)
    _add(found, [one.number for one in known if one.champion], "champion")
    _add(found, [one.number for one in known if one.challenger], "challenger")
    _add(found, sorted(one.number for one in known)[-keep.versions :], f"of the newest {keep.versions}")
    young = [one.number for one in known if now - one.created < dt.timedelta(days=keep.days)]
    _add(found, young, f"registered in the last {keep.days} days")
    return found


def _add(found: Reasons, versions: Iterable[int | None], why: str) -> None:
    for version in versions:
        if version is not None:
            found.setdefault(version, why)
