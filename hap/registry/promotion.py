"""Which version serves: promote, rollback and repair. Each ends whole or leaves what served before.

A move: ledger row `intended` -> the bundle, rendered and checked -> `switch` of the server -> row `served`, alias moved.
Whatever fails on the way, the old version comes back and the row is `undone`. The ledger's last `served` row is the truth;
`repair` makes pins, server and alias follow it, and settles what a kill left `intended`.
"""

import contextlib
import dataclasses
import datetime as dt
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from hap.errors import Busy, HapError, NotFound, Refused, ServingError, UsageError
from hap.params import Params
from hap.registry import ledger as journal
from hap.registry import versions
from hap.registry.incidents import promotions_held
from hap.registry.ledger import Entry, Ledger, Row, State
from hap.registry.local import bundle_folder, fetched, local, local_versions, require_room
from hap.registry.retention import needed_here
from hap.registry.switch import Server, Switched, answers_as, end_stage, replay, restore, standing, switch, try_apart
from hap.registry.versions import label
from hap.serving import repository, staging
from hap.serving.bundle import Bundle
from hap.workspace import Workspace, exclusive

Outcome = Literal["served", "pinned", "unchanged", "planned"]


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What a move came to: `planned` is a dry run, `unchanged` a version that serves (or is pinned) already.

    `notes` say in a line each what was repaired on the way, or could not be done yet.
    """

    action: Literal["promote", "rollback"]
    outcome: Outcome
    version: int
    previous: int | None
    forced: bool = False
    reason: str = ""
    switched: Switched | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields, versions as labels."""
        return {
            **dataclasses.asdict(self),
            "version": label(self.version),
            "previous": None if self.previous is None else label(self.previous),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        instead = f" in place of {label(self.previous)}" if self.previous is not None else ""
        return {
            "served": f"{label(self.version)} serves{instead}",
            "pinned": f"{label(self.version)} is pinned{instead} for the next start of `hapctl serve`",
            "unchanged": f"{label(self.version)} is the champion already; nothing was changed",
            "planned": f"{label(self.version)} would serve{instead}",
        }[self.outcome]


def promote(
    ws: Workspace,
    params: Params,
    version: int,
    *,
    server: Server | None,
    actor: str,
    now: dt.datetime,
    reason: str = "",
    force: bool = False,
    dry_run: bool = False,
    offline: bool = False,
) -> Promotion:
    """Make a version the one that serves.

    Args:
        server: the running Triton; None where none runs.
        force: promote without a passing verdict; needs a reason, which the ledger keeps.
        offline: check the version and pin it for the server's next start.

    Raises:
        UsageError: force without a reason.
        NotFound: no such version, or its bundle was freed.
        Refused: the verdict is not a pass, or an incident holds promotions, and force is not given; or promotions are frozen.
        HapError: the disk has no room for its files; what served before serves on, here and in all that follows.
        Busy: another promotion runs.
        ServingError: no server is ready, or it refused the version; what served before serves on.
        DataError: the version's files are damaged or its answers are wrong; what served before serves on.
    """
    if force and not reason.strip():
        raise UsageError("--force needs --reason TEXT: the ledger keeps why a version serves without a passing verdict")
    desk = _Desk(ws, params, journal.open_ledger(ws, params), server, actor, _clock(now))
    with promotion_lock(ws, f"promote {label(version)}", now):
        notes = [] if dry_run else _repair(desk, fetch=True)
        known = versions.get_whole(ws, params, version)
        rows = desk.ledger.rows()
        waiting, current = journal.pinned_for_next_start(rows), journal.served(rows)
        still_to_switch = waiting is not None and not offline and desk.live is not None
        if version == (waiting.to_version if waiting else current) and not still_to_switch:
            notes += [] if dry_run or waiting else _follow_alias(ws, params, version)
            return Promotion(action="promote", outcome="unchanged", version=version, previous=current, notes=tuple(notes))
        journal.refuse_if_frozen(rows)
        word, forced = _allowed(ws, version, current, force)
        held = promotions_held(rows) if params.drift.blocks_promotion else None
        if held and not force:
            raise Refused(held)
        forced |= held is not None
        _need_server(desk, offline)
        stored_bytes = 0 if bundle_folder(ws, version).is_dir() else sum(versions.stored_bundle(ws, params, known).values())
        require_room(ws, version, stored_bytes, f"promote of {label(version)}")
        planned = Promotion(action="promote", outcome="planned", version=version, previous=current, forced=forced, reason=reason)
        if dry_run:
            return planned
        evidence = {"verdict": word, "bundle_digest": known.bundle_digest, "workspace_rev": known.workspace_rev}
        entry = desk.entry("promote", current, version, reason, forced, evidence)
        switched = _move(desk, entry, lambda: fetched(ws, params, version, known.bundle_digest), offline)
        if switched is not None:
            notes += [str(switched), *_tidy(desk), *_follow_alias(ws, params, version)]
    return dataclasses.replace(planned, outcome="served" if switched else "pinned", switched=switched, notes=tuple(notes))


def rollback(
    ws: Workspace,
    params: Params,
    *,
    server: Server | None,
    actor: str,
    now: dt.datetime,
    reason: str = "",
    dry_run: bool = False,
    offline: bool = False,
) -> Promotion:
    """Go back to the version that served before the current one, or take back a pin that waits for the next start.

    Touches no MLflow, so it works while that is down; the alias follows with the next promotion or repair. A freeze does
    not stop it.

    Raises:
        NotFound: nothing served before, or its bundle is not on this host.
        HapError: the disk has no room for its files.
        Busy: another promotion runs.
        ServingError, DataError: as `promote`.
    """
    desk = _Desk(ws, params, journal.open_ledger(ws, params), server, actor, _clock(now))
    with promotion_lock(ws, "rollback", now):
        notes = [] if dry_run else _repair(desk, fetch=False)
        rows = desk.ledger.rows()
        waiting, current = journal.pinned_for_next_start(rows), journal.served(rows)
        target, leaving = (current, waiting.to_version) if waiting else (journal.previous_served(rows), current)
        if target is None:
            seen = f"only {label(current)} has served" if current is not None else "no version has served yet"
            raise NotFound(f"nothing to roll back to: {seen}; promote a version with `hapctl promote --model vN`, see `hapctl models`")
        _need_server(desk, offline)
        local(ws, target)
        require_room(ws, target, 0, f"rollback to {label(target)}")
        planned = Promotion(action="rollback", outcome="planned", version=target, previous=leaving, reason=reason)
        if dry_run:
            return planned
        entry = desk.entry("rollback", leaving, target, reason, False, {})
        switched = _move(desk, entry, lambda: local(ws, target), offline)
        if switched is not None:
            notes += [*_tidy(desk), "MLflow's alias champion follows with the next promotion or repair"]
    return dataclasses.replace(planned, outcome="served" if switched else "pinned", switched=switched, notes=tuple(notes))


def repair(
    ws: Workspace, params: Params, *, now: dt.datetime, server: Server | None = None, actor: str = "repair", alias: bool = True
) -> list[str]:
    """Make pins, server and alias follow the ledger again; what was done, in a line each. An empty list is health.

    A move that was killed is finished where the server answers the golden requests as the new version, else undone. While
    another promotion runs, nothing is touched and the line says so.

    Args:
        alias: move MLflow's champion, too; False keeps mlflow out of the process.

    Raises:
        HapError: the ledger cannot be read, or the server does not follow.
    """
    desk = _Desk(ws, params, journal.open_ledger(ws, params), server, actor, _clock(now))
    try:
        with promotion_lock(ws, "repair", now):
            notes = _repair(desk, fetch=alias)
            truth = desk.ledger.served()
            return notes + (_follow_alias(ws, params, truth) if alias and truth is not None else [])
    except Busy as busy:
        return [str(busy)]


def promotion_lock(ws: Workspace, purpose: str, now: dt.datetime) -> contextlib.AbstractContextManager[None]:
    """Hold the workspace's promotions alone. Raises Busy: a promotion, rollback, repair or gc runs; the message says whose."""
    return exclusive(ws, "promotion", "is changing what serves", purpose, now)


@dataclass(frozen=True)
class _Desk:
    """Where a command works, and who works there. `server` None: files only."""

    ws: Workspace
    params: Params
    ledger: Ledger
    server: Server | None
    actor: str
    clock: Callable[[], dt.datetime]

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
            evidence={**evidence, "process": f"pid {os.getpid()} on {socket.gethostname()}"},
        )

    def outcome(self, entry: Entry, state: State, reason: str | None = None, **evidence: Any) -> None:
        """Append what a move came to."""
        said = {field.name: getattr(entry, field.name) for field in dataclasses.fields(Entry)}
        said |= {"at": self.clock(), "state": state, "evidence": {**entry.evidence, **evidence}}
        self.ledger.append(Entry(**said | ({} if reason is None else {"reason": reason})))


def _move(desk: _Desk, entry: Entry, bundle_of: Callable[[], Bundle], offline: bool) -> Switched | None:
    """Carry a move out between its two rows; None where it only pins. Whatever stops it, the old version comes back first."""
    repo, target = desk.ws.triton, entry.to_version
    assert target is not None
    desk.ledger.append(entry)
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
            desk.outcome(entry, "pinned")
            return None
        switched = switch(desk.server, repo, bundle, target, old, tolerance, tried)
        desk.outcome(entry, "served", **switched.evidence())
        return switched
    except BaseException as error:  # an interrupt, too, must not leave a half-done move
        why = str(error) or type(error).__name__
        still = _undo(desk, entry, why)
        if isinstance(error, HapError | OSError):
            kind = type(error) if isinstance(error, HapError) else HapError
            raise kind(f"{entry.action} of {label(target)} failed: {why}; {still}") from None
        raise


def _undo(desk: _Desk, entry: Entry, why: str) -> str:
    """Bring back what the ledger says, write how that went, and say it in words."""
    rows = desk.ledger.rows()
    truth = journal.served(rows)
    still = f"{label(truth)} serves as before" if truth is not None else "there is no champion, as before"
    try:
        restore(desk.live, desk.ws.triton, truth, [journal.previous_served(rows)])
    except (HapError, OSError) as error:
        return f"and restoring failed, too: {error}" + _written(desk, entry, "failed", f"{why}; restoring failed, too: {error}")
    still += _written(desk, entry, "undone", why)
    if entry.to_version is not None and entry.to_version not in journal.served_stack(rows):
        with contextlib.suppress(HapError):  # its files may be the fault: the next try fetches and renders them anew
            repository.remove(desk.ws.triton, entry.to_version)
            shutil.rmtree(bundle_folder(desk.ws, entry.to_version), ignore_errors=True)
    return still


def _written(desk: _Desk, entry: Entry, state: State, why: str) -> str:
    """Append what a failed move came to; where even that fails, as on a full disk, say who will."""
    try:
        desk.outcome(entry, state, why)
    except HapError as error:
        return f", but the ledger could not be told ({error}): the next command settles it"
    return ""


def _repair(desk: _Desk, fetch: bool) -> list[str]:
    """Settle what a killed command left, then make pins and server follow the ledger."""
    rows, repo = desk.ledger.rows(), desk.ws.triton
    left, waiting = journal.open_move(rows), journal.pinned_for_next_start(rows)
    if left is not None:
        return [_settle(desk, left, f"{left.action} of {label(left.to_version or 0)} by {left.actor} was interrupted")]
    if waiting is not None and answers_as(desk.live, waiting.to_version):
        return [_settle(desk, waiting, f"{label(waiting.to_version or 0)}, pinned by {waiting.actor}, was started")]
    if staging.REHEARSAL in staging.staged(repo):  # of a `hapctl parity` that was killed
        end_stage(desk.live, repo, staging.REHEARSAL)
    truth = journal.served(rows)
    wanted = waiting.to_version if waiting is not None else truth
    follows = waiting is not None or desk.live is None or answers_as(desk.live, truth)
    pinned = repository.pinned(repo)
    if wanted is None:  # a lost ledger must not take down what serves
        return [f"the pins say {label(pinned)}, but the ledger knows of no version that served"] if pinned is not None else []
    if pinned == wanted and follows:
        return []
    for version in {wanted, truth} - {None, *repository.rendered(repo)}:
        assert version is not None
        bundle = fetched(desk.ws, desk.params, version) if fetch else local(desk.ws, version)
        repository.render(bundle, version, repo, desk.params.serving.backend, desk.params.serving.tensorrt)
    if waiting is not None:
        repository.pin(repo, wanted, standing(repo, truth, wanted))
    else:
        restore(desk.live, repo, truth, [journal.previous_served(rows)])
    return [f"{label(wanted)} is what the ledger says, and was not what the server or its pins said: repaired"]


def _settle(desk: _Desk, row: Row, what: str) -> str:
    """End a move that was killed or only pinned: finished where its version answers the golden requests, else undone."""
    target = row.to_version
    if target is not None and desk.live is not None and repository.pinned(desk.ws.triton) == target and answers_as(desk.live, target):
        try:
            requests, largest = replay(desk.live, local(desk.ws, target), target, desk.params.gate.max_parity)
        except HapError as error:
            return f"{what}, but {error}: undone, {_undo(desk, row, f'{what}, but {error}')}"
        desk.outcome(row, "served", settled_by=desk.actor, replay={"requests": requests, "max_abs_diff": largest})
        return f"{what} and answers its golden requests: {label(target)} serves"
    return f"{what}: undone, {_undo(desk, row, what)}"


def _allowed(ws: Workspace, version: int, champion: int | None, force: bool) -> tuple[str, bool]:
    """The verdict's word, and whether it took force to pass.

    Raises:
        Refused: there is no verdict, it is not a pass, or it compares with another version than the champion; and no force.
    """
    verdict = versions.read_verdict(ws, version)
    word = str(verdict["verdict"]) if verdict else "none"
    stale = verdict is not None and champion is not None and verdict.get("against") != champion
    passed = word == "pass" and not stale
    if passed or force:
        return word, not passed
    override = f"`hapctl promote --model {label(version)} --force --reason TEXT` promotes it all the same, and the ledger keeps why"
    if verdict is None:
        raise Refused(f"{label(version)} has no verdict; judge it with `hapctl gate run`, or {override}")
    if stale and word == "pass":
        compared = "judges floors alone" if verdict.get("against") is None else f"compares with {label(verdict['against'])}"
        again = f"judge it again with `hapctl gate run --model {label(version)}`"
        raise Refused(f"the verdict of {label(version)} {compared}, and {label(champion or 0)} serves now: {again}. {override}")
    reasons = "; ".join(str(reason) for reason in verdict.get("reasons", [])) or "no reason given"
    raise Refused(f"the verdict of {label(version)} is {word}, not pass: {reasons}. {override}")


def _need_server(desk: _Desk, offline: bool) -> None:
    if not offline and desk.live is None:
        serving = desk.params.serving
        own = f"{serving.host}:{serving.grpc_port}; start it with `hapctl serve --detach`"
        raise ServingError(
            f"no server is ready at {own if serving.url is None else f'{serving.url}, which serving.url or --url names; start that one'}, "
            "or pin for its next start with --offline"
        )


def _tidy(desk: _Desk) -> list[str]:
    """Take away the rendered versions and bundles that no rollback needs; an old version's bundle is still in MLflow."""
    repo = desk.ws.triton
    try:
        kept = needed_here(desk.ledger.rows(), desk.params.keep, repo)
        for version in sorted({*repository.rendered(repo), *local_versions(desk.ws)} - set(kept)):
            repository.remove(repo, version)
            shutil.rmtree(bundle_folder(desk.ws, version), ignore_errors=True)
    except (HapError, OSError) as error:  # the promotion stands; what is left over is for the next one
        return [f"an old version was not cleared away: {error}"]
    return []


def _follow_alias(ws: Workspace, params: Params, version: int) -> list[str]:
    """Point MLflow's champion at the version that serves; where MLflow is away that is a note, not a failure."""
    try:
        if versions.get_alias(ws, params, "champion") == version:
            return []
        versions.set_alias(ws, params, "champion", version)
        return [f"MLflow's alias champion points at {label(version)} now"]
    except HapError as error:
        return [f"MLflow's alias champion was not moved, the next repair does it: {error}"]


def _clock(now: dt.datetime) -> Callable[[], dt.datetime]:
    """`now`, going on: the rows of one command carry the times at which they were written."""
    started = time.monotonic()
    return lambda: now + dt.timedelta(seconds=time.monotonic() - started)
