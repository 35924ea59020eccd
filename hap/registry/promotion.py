"""Which version serves: promote, rollback and repair. Each ends whole or leaves what served before.

Who may: what is decided here. How: hap/registry/moves.py. One at a time, across hosts: hap/registry/turns.py. The ledger's last
`served` row is the truth; `repair` makes pins, server and alias follow it, and settles what a kill left `intended`.
"""

import dataclasses
import datetime as dt
import shutil
from dataclasses import dataclass
from typing import Any, Literal

from hap.errors import Busy, HapError, NotFound, Refused, ServingError, UsageError
from hap.params import Params
from hap.registry import ledger as journal
from hap.registry import versions
from hap.registry.incidents import promotions_held
from hap.registry.local import bundle_folder, fetched, local, local_versions, require_room
from hap.registry.moves import Desk, carry_out, clock_from, repaired
from hap.registry.retention import needed_here
from hap.registry.switch import Server, Switched
from hap.registry.turns import promotion_lock
from hap.registry.versions import label
from hap.serving import repository
from hap.workspace import Workspace

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
    take_over: bool = False,
) -> Promotion:
    """Make a version the one that serves.

    Args:
        server: the running Triton; None where none runs.
        force: promote without a passing verdict; needs a reason, which the ledger keeps.
        offline: check the version and pin it for the server's next start.
        take_over: settle here what a killed command of another folder left open; for when that folder is gone.

    Raises:
        UsageError: force without a reason.
        NotFound: no such version, or its bundle was freed.
        Refused: the verdict is not a pass, or an incident holds promotions, and force is not given; or promotions are frozen.
        HapError: the disk has no room for its files; what served before serves on, here and in all that follows.
        Busy: another promotion runs, on this host or another, or one that was killed elsewhere is open.
        ServingError: no server is ready, or it refused the version; what served before serves on.
        DataError: the version's files are damaged or its answers are wrong; what served before serves on.
    """
    if force and not reason.strip():
        raise UsageError("--force needs --reason TEXT: the ledger keeps why a version serves without a passing verdict")
    desk = Desk(ws, params, journal.open_ledger(ws, params), server, actor, clock_from(now), take_over)
    with promotion_lock(ws, desk.ledger, f"promote {label(version)}", now):
        notes = [] if dry_run else repaired(desk, fetch=True)
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
        switched = carry_out(desk, entry, rows, lambda: fetched(ws, params, version, known.bundle_digest), offline)
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
    take_over: bool = False,
) -> Promotion:
    """Go back to the version that served before the current one, or take back a pin that waits for the next start.

    Works from what is on this host, so it works while MLflow is down; the alias follows with the next promotion, be it of the same
    version. A freeze does not stop it.

    Raises:
        NotFound: nothing served before, or its bundle is not on this host.
        HapError: the disk has no room for its files.
        Busy, ServingError, DataError: as `promote`.
    """
    desk = Desk(ws, params, journal.open_ledger(ws, params), server, actor, clock_from(now), take_over)
    with promotion_lock(ws, desk.ledger, "rollback", now):
        notes = [] if dry_run else repaired(desk, fetch=True)  # MLflow is asked only for what is not here
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
        switched = carry_out(desk, entry, rows, lambda: local(ws, target), offline)
        if switched is not None:
            follows = f"MLflow's alias champion follows with the next promotion; `hapctl promote --model {label(target)}` moves it now"
            notes += [*_tidy(desk), follows]
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
    desk = Desk(ws, params, journal.open_ledger(ws, params), server, actor, clock_from(now))
    try:
        with promotion_lock(ws, desk.ledger, "repair", now):
            notes = repaired(desk, fetch=alias)
            truth = desk.ledger.served()
            return notes + (_follow_alias(ws, params, truth) if alias and truth is not None else [])
    except Busy as busy:
        return [str(busy)]


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


def _need_server(desk: Desk, offline: bool) -> None:
    if not offline and desk.live is None:
        serving = desk.params.serving
        own = f"{serving.host}:{serving.grpc_port}; start it with `hapctl serve --detach`"
        raise ServingError(
            f"no server is ready at {own if serving.url is None else f'{serving.url}, which serving.url or --url names; start that one'}, "
            "or pin for its next start with --offline"
        )


def _tidy(desk: Desk) -> list[str]:
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
        return [f"MLflow's alias champion was not moved, `hapctl promote --model {label(version)}` does it later: {error}"]
