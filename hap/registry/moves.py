"""Carrying a move of the champion out, undoing it, and settling one that was left.

A move: ledger row `intended` -> the bundle, rendered and checked -> `switch` of the server -> row `served`, alias moved.
Whatever fails on the way, the old version comes back and the row is `undone`. An outcome is written only after the very row that it
belongs to, so a move that somebody else has settled in the meantime changes the ledger no more.
"""

import contextlib
import dataclasses
import datetime as dt
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hap.errors import Busy, HapError
from hap.params import Params
from hap.registry import ledger as journal
from hap.registry.ledger import Entry, Ledger, Overtaken, Row, State
from hap.registry.local import bundle_folder, fetched, local
from hap.registry.switch import Server, Switched, answers_as, end_stage, replay, restore, standing, switch, try_apart
from hap.registry.turns import is_here, open_elsewhere, whereabouts
from hap.registry.versions import label
from hap.serving import repository, staging
from hap.serving.bundle import Bundle
from hap.workspace import Workspace, is_held


@dataclass(frozen=True)
class Desk:
    """Where a command works, and who works there. `server` None: files only."""

    ws: Workspace
    params: Params
    ledger: Ledger
    server: Server | None
    actor: str
    clock: Callable[[], dt.datetime]
    take_over: bool = False  # settle what a killed command of another folder left

    @property
    def live(self) -> Server | None:
        """The server if it answers."""
        return self.server if self.server is not None and self.server.live() else None

    def entry(
        self, action: Literal["promote", "rollback"], source: int | None, target: int, reason: str, forced: bool, evidence: dict[str, Any]
    ) -> Entry:
        """The `intended` row of a move; its evidence names the process, should that be killed."""
        return Entry(
            at=self.clock(),
            actor=self.actor,
            action=action,
            state="intended",
            from_version=source,
            to_version=target,
            reason=reason,
            forced=forced,
            evidence={**evidence, **whereabouts(self.ws)},
        )

    def outcome(self, row: Row, state: State, reason: str | None = None, decided_on: int | None = None, **evidence: Any) -> None:
        """Append what the move of an `intended` or `pinned` row came to.

        Args:
            decided_on: the last move that was known; the row itself where None. Behind a pin that waited others may stand, undone.

        Raises:
            Overtaken: somebody else has written a move since.
        """
        said = {field.name: getattr(row, field.name) for field in dataclasses.fields(Entry)}
        said |= {"at": self.clock(), "state": state, "evidence": {**row.evidence, **evidence}}
        said |= {} if reason is None else {"reason": reason}
        self.ledger.append(Entry(**said), after_move=row.id if decided_on is None else decided_on)


def carry_out(desk: Desk, entry: Entry, rows: Sequence[Row], bundle_of: Callable[[], Bundle], offline: bool) -> Switched | None:
    """Carry a move out between its two rows; None where it only pins. Whatever stops it, the old version comes back first.

    Args:
        rows: what the move was decided on.
    """
    repo, target = desk.ws.triton, entry.to_version
    assert target is not None
    row = desk.ledger.append(entry, after_move=journal.last_move(rows))
    try:
        bundle = bundle_of()
        old = journal.served(desk.ledger.rows())
        repository.render(bundle, target, repo, desk.params.serving.backend, desk.params.serving.tensorrt)
        repository.check(repo, target)
        tolerance = desk.params.gate.max_parity
        tried = try_apart(bundle, target, tolerance) if entry.action == "promote" else None  # what is rolled back to has served here
        if offline or desk.server is None:
            repository.pin(repo, target, standing(repo, old, target))
            repository.check(repo, target)
            desk.outcome(row, "pinned")
            return None
        switched = switch(desk.server, repo, bundle, target, old, tolerance, tried)
        desk.outcome(row, "served", **switched.evidence())
        return switched
    except BaseException as error:  # an interrupt, too, must not leave a half-done move
        why = str(error) or type(error).__name__
        still = _undo(desk, row, why, rows)
        if isinstance(error, HapError | OSError):
            kind = type(error) if isinstance(error, HapError) else HapError
            raise kind(f"{entry.action} of {label(target)} failed: {why}; {still}") from None
        raise


def _undo(desk: Desk, row: Row, why: str, known: Sequence[Row]) -> str:
    """Bring back what the ledger says, write how that went, and say it in words.

    Args:
        known: the ledger's rows as last read; what served by them comes back where the ledger is away.
    """
    decided_on = max(row.id, journal.last_move(known))
    with contextlib.suppress(HapError):
        known = desk.ledger.rows()
    truth, overtaken = journal.served(known), journal.last_move(known) > decided_on
    still = f"{label(truth)} serves" if truth is not None else "there is no champion"
    still += "" if overtaken else " as before" if truth is not None else ", as before"
    try:
        _render(desk, {truth}, fetch=True)
        restore(desk.live, desk.ws.triton, truth, [journal.previous_served(known)])
        still += _waits_again(desk, known, row.to_version, truth)
    except (HapError, OSError) as error:
        return f"and restoring failed, too: {error}" + _written(desk, row, "failed", f"{why}; restoring failed, too: {error}", decided_on)
    still += _written(desk, row, "undone", why, decided_on)
    if row.to_version is not None and row.to_version not in journal.served_stack(known):
        with contextlib.suppress(HapError):  # its files may be the fault: the next try fetches and renders them anew
            repository.remove(desk.ws.triton, row.to_version)
            shutil.rmtree(bundle_folder(desk.ws, row.to_version), ignore_errors=True)
    return still


def _waits_again(desk: Desk, known: Sequence[Row], failed: int | None, truth: int | None) -> str:
    """Pin what waited for the next start before another version's move failed; what was said of it, in words."""
    waiting = journal.pinned_for_next_start(known)
    if waiting is None or waiting.to_version in (None, failed):
        return ""
    _pin_waiting(desk, waiting, truth, fetch=True)
    return f", {label(waiting.to_version)} waits for the next start"


def _pin_waiting(desk: Desk, waiting: Row, truth: int | None, fetch: bool) -> None:
    """Have the files say what waits for the next start; the server goes on with what it has."""
    assert waiting.to_version is not None
    _render(desk, {waiting.to_version, truth}, fetch)
    repository.pin(desk.ws.triton, waiting.to_version, standing(desk.ws.triton, truth, waiting.to_version))


def _written(desk: Desk, row: Row, state: State, why: str, decided_on: int) -> str:
    """Append what a failed move came to; where even that fails, as on a full disk, say who will."""
    try:
        desk.outcome(row, state, why, decided_on)
    except Overtaken as overtaken:
        return f"; {overtaken}"
    except HapError as error:
        return f", but the ledger could not be told ({error}): the next command settles it"
    return ""


def _render(desk: Desk, versions: Iterable[int | None], fetch: bool) -> None:
    """Render those of the versions that are not, and lay anew what is damaged of the others and of what is loaded beside them.

    The latter as far as their bundles are here.
    """
    repo, serving = desk.ws.triton, desk.params.serving
    there = set(repository.rendered(repo))
    for version in {*versions, *(there & set(repository.loaded(repo)))} - {None}:
        assert version is not None
        if version in there:
            with contextlib.suppress(HapError):  # it stands, and may well be sound
                repository.render(local(desk.ws, version), version, repo, serving.backend, serving.tensorrt)
        else:
            bundle = fetched(desk.ws, desk.params, version) if fetch else local(desk.ws, version)
            repository.render(bundle, version, repo, serving.backend, serving.tensorrt)


def repaired(desk: Desk, fetch: bool) -> list[str]:
    """Settle what a killed command left, then make pins and server follow the ledger; what was done, in a line each.

    Args:
        fetch: take a bundle that is not here from MLflow.

    Raises:
        Busy: the command was of another folder, whose server nobody here sees, and `take_over` is not given.
        HapError: the ledger cannot be read, or the server does not follow.
    """
    rows, repo = desk.ledger.rows(), desk.ws.triton
    left, waiting = journal.open_move(rows), journal.pinned_for_next_start(rows)
    if left is not None:
        if not (desk.take_over or is_here(desk.ws, left)):
            raise Busy(open_elsewhere(left))
        what = f"{left.action} of {label(left.to_version or 0)} by {left.actor} was interrupted"
        if not is_here(desk.ws, left):  # what it came to is not to be seen from here
            what += f" in {left.evidence.get('folder')}, taken over by {desk.actor}"
            return [f"{what}: undone, {_undo(desk, left, what, rows)}"]
        return [_settle(desk, left, what, rows)]
    if waiting is not None and answers_as(desk.live, waiting.to_version):
        return [_settle(desk, waiting, f"{label(waiting.to_version or 0)}, pinned by {waiting.actor}, was started", rows)]
    for purpose in staging.staged(repo):  # of a `hapctl parity` or `hapctl shadow` that was killed
        if purpose == staging.REHEARSAL or not is_held(desk.ws, purpose):
            end_stage(desk.live, repo, purpose)
    truth = journal.served(rows)
    wanted = waiting.to_version if waiting is not None else truth
    follows = waiting is not None or desk.live is None or answers_as(desk.live, truth)
    if wanted is None:  # a lost ledger must not take down what serves
        pinned = repository.pinned(repo)
        return [f"the pins say {label(pinned)}, but the ledger knows of no version that served"] if pinned is not None else []
    if follows and repository.stands(repo, wanted):
        return []
    if waiting is not None:
        _pin_waiting(desk, waiting, truth, fetch)
    else:
        _render(desk, {truth}, fetch)
        restore(desk.live, repo, truth, [journal.previous_served(rows)])
    return [f"{label(wanted)} is what the ledger says, and was not what the server or its pins said: repaired"]


def _settle(desk: Desk, row: Row, what: str, rows: Sequence[Row]) -> str:
    """End a move that was killed or only pinned: finished where its version answers the golden requests, else undone."""
    target, repo = row.to_version, desk.ws.triton
    if target is not None and desk.live is not None and repository.pinned(repo) == target and answers_as(desk.live, target):
        try:
            requests, largest = replay(desk.live, local(desk.ws, target), target, desk.params.gate.max_parity)
        except HapError as error:
            return f"{what}, but {error}: undone, {_undo(desk, row, f'{what}, but {error}', rows)}"
        repository.pin(repo, target, standing(repo, journal.served(rows), target))  # a kill may have come between two of its files
        decided_on = max(row.id, journal.last_move(rows))
        desk.outcome(row, "served", decided_on=decided_on, settled_by=desk.actor, replay={"requests": requests, "max_abs_diff": largest})
        return f"{what} and answers its golden requests: {label(target)} serves"
    return f"{what}: undone, {_undo(desk, row, what, rows)}"


def clock_from(now: dt.datetime) -> Callable[[], dt.datetime]:
    """`now`, going on: the rows of one command carry the times at which they were written."""
    started = time.monotonic()
    return lambda: now + dt.timedelta(seconds=time.monotonic() - started)
