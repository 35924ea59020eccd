"""Words about versions and what serves: models, parity, promote, rollback, freeze, unfreeze, ledger, restore, gc."""

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hap.cli.options import DryRun, Json, Root, Url, answer, day_of
from hap.tables import table
from hap.workspace import find_workspace

if TYPE_CHECKING:
    from hap.registry.promotion import Promotion

Reason = Annotated[str, typer.Option("--reason", help="Why; the ledger keeps it.")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Settle here what a killed command of another folder left open; only where that one is gone.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Only check and pin it for the next start of the server.")]


def register(app: typer.Typer) -> None:
    """Add these words to hapctl."""
    app.command()(models)
    app.command()(parity)
    app.command()(promote)
    app.command()(rollback)
    app.command()(freeze)
    app.command()(unfreeze)
    app.command()(ledger)
    app.command()(restore)
    app.command()(gc)


def models(root: Root = None, json: Json = False) -> None:
    """List the registered versions with their verdicts.

    Example: hapctl models --json
    """
    from hap.registry.ledger import open_ledger
    from hap.registry.versions import list_versions

    ws = find_workspace(root)
    params = ws.params()
    known, champion = list_versions(ws, params), open_ledger(ws, params).served()
    rows = [
        [
            v.label,
            v.day,
            v.verdict,
            "champion" if v.number == champion else "challenger" if v.challenger else f"freed {v.freed[:10]}" if v.freed else "",
            f"{v.created:%Y-%m-%d %H:%M}",
            v.bundle_digest[:12],
        ]
        for v in known
    ]
    text = (
        table(["version", "day", "verdict", "role", "registered (UTC)", "bundle"], rows)
        if known
        else "no version is registered yet; run `hapctl retrain --day D`"
    )
    answer([{**v.as_json(), "champion": v.number == champion} for v in known], text, json)


def parity(
    model: Annotated[str, typer.Option(help="The version, such as v42.", show_default=False)],
    day: Annotated[
        str | None, typer.Option("--day", help="Ask for logged requests of this day, too, with all their candidates.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="How many requests of the day.", min=1)] = 20,
    root: Root = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Compare PyTorch, ONNX Runtime and the running Triton on golden requests and edges. Exit code 1 where they do not agree.

    A version that does not serve is rehearsed beside the one that does.

    Example: hapctl parity --model v42 --day 2026-01-04
    """
    from flows.parity import measure
    from hap.registry.versions import parse_version
    from hap.serving.remote import server_of, with_url

    version, ws = parse_version(model), find_workspace(root)
    wanted, params = day_of(day) if day else None, with_url(ws.params(), url)
    with server_of(ws, params.serving) as server:
        found = measure(ws, params, version, server=server, now=dt.datetime.now(dt.UTC), day=wanted, limit=limit)
    answer(found.as_json(), str(found), json)
    raise typer.Exit(0 if found.fault is None else 1)


def promote(
    model: Annotated[str, typer.Option(help="The version, such as v42.", show_default=False)],
    root: Root = None,
    force: Annotated[bool, typer.Option("--force", help="Promote without a passing verdict; needs --reason.")] = False,
    reason: Reason = "",
    offline: Offline = False,
    take_over: TakeOver = False,
    url: Url = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a version the one that serves: checked, loaded beside the old one, rehearsed, switched. Exit code 3 if refused.

    Example: hapctl promote --model v42
    """
    from hap.registry import promotion
    from hap.registry.ledger import default_actor
    from hap.registry.versions import parse_version
    from hap.serving.remote import server_of, with_url

    version, ws = parse_version(model), find_workspace(root)
    params = with_url(ws.params(), url)
    with server_of(ws, params.serving) as server:
        moved = promotion.promote(
            ws, params, version, server=server, actor=default_actor(), now=dt.datetime.now(dt.UTC),
            reason=reason, force=force, dry_run=dry_run, offline=offline, take_over=take_over,
        )  # fmt: skip
    _say(moved, json)


def rollback(
    root: Root = None,
    reason: Reason = "",
    offline: Offline = False,
    take_over: TakeOver = False,
    url: Url = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Go back to the version that served before; works while MLflow is unreachable.

    Example: hapctl rollback --reason "click rate fell"
    """
    from hap.registry import promotion
    from hap.registry.ledger import default_actor
    from hap.serving.remote import server_of, with_url

    ws = find_workspace(root)
    params = with_url(ws.params(), url)
    with server_of(ws, params.serving) as server:
        moved = promotion.rollback(
            ws,
            params,
            server=server,
            actor=default_actor(),
            now=dt.datetime.now(dt.UTC),
            reason=reason,
            dry_run=dry_run,
            offline=offline,
            take_over=take_over,
        )
    _say(moved, json)


def freeze(
    reason: Annotated[str, typer.Option("--reason", help="Why; whoever tries to promote is told.", show_default=False)],
    root: Root = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Stop promotions, forced ones too, until `unfreeze`; a rollback stays possible.

    Example: hapctl freeze --reason "holiday sale"
    """
    _set_freeze(root, True, reason, dry_run, json)


def unfreeze(root: Root = None, reason: Reason = "", dry_run: DryRun = False, json: Json = False) -> None:
    """Allow promotions again.

    Example: hapctl unfreeze --reason "sale is over"
    """
    _set_freeze(root, False, reason, dry_run, json)


def _set_freeze(root: Path | None, frozen: bool, reason: str, dry_run: bool, json: bool) -> None:
    from hap.registry import ledger as journal

    ws = find_workspace(root)
    book = journal.open_ledger(ws, ws.params())
    before = journal.freeze_in_force(book.rows())
    held = f"since {before.at:%Y-%m-%d %H:%M} UTC by {before.actor}: {before.reason}" if before else ""
    if before is None and not frozen:
        answer({"frozen": False, "changed": False}, "promotions are not frozen; nothing was changed", json)
        return
    text = "promotions are frozen until `hapctl unfreeze`" if frozen else "promotions are allowed again"
    if dry_run:
        text = "promotions would be frozen" if frozen else "promotions would be allowed again"
    else:
        act = book.freeze if frozen else book.unfreeze
        act(actor=journal.default_actor(), now=dt.datetime.now(dt.UTC), reason=reason)
    text += f"; they {'were frozen already' if frozen else 'were frozen'} {held}" if before else ""
    answer({"frozen": before is not None if dry_run else frozen, "changed": not dry_run}, text, json)


def ledger(
    at: Annotated[
        str | None, typer.Option("--at", help="What served at this time: 2026-01-31T14:30, in UTC without an offset.", show_default=False)
    ] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Print who promoted what, when and why, oldest first, after checking the chain of hashes; or what served at one time.

    Example: hapctl ledger --at 2026-01-31T14:30
    """
    from hap.days import parse_moment
    from hap.registry import ledger as journal
    from hap.registry.incidents import words_of

    moment = parse_moment(at) if at else None
    ws = find_workspace(root)
    book = journal.open_ledger(ws, ws.params())
    sound = book.verify()
    rows = book.rows()
    if moment:
        then = journal.moment_of(rows, moment)
        answer(then.as_json(), str(then), json)
        return
    shown = [
        [
            row.id,
            row.at.strftime("%Y-%m-%d %H:%M:%S"),
            row.actor,
            row.action,
            row.state,
            _label(row.from_version),
            _label(row.to_version),
            "forced" if row.forced else "",
            said,
        ]
        for row, said in zip(rows, words_of(rows), strict=True)
    ]
    text = (
        table(["id", "at (UTC)", "who", "action", "state", "from", "to", "", "reason"], shown) + f"\n{sound} rows, chain unbroken"
        if rows
        else "the ledger is empty"
    )
    answer([row.as_json() for row in rows], text, json)


def restore(
    model: Annotated[str, typer.Argument(help="The version, such as v42.", metavar="VERSION")],
    into: Annotated[Path, typer.Option(help="A new or empty folder; nothing is restored in place.", show_default=False)],
    root: Root = None,
    dry_run: DryRun = False,
) -> None:
    """Bring back the samples, models and bundle of a version, byte for byte, in another folder.

    Example: hapctl restore v42 --into /tmp/v42
    """
    from hap.registry.restore import restore as bring_back
    from hap.registry.versions import get, parse_version

    ws, version = find_workspace(root), parse_version(model)
    if dry_run:
        found = get(ws, ws.params(), version)
        typer.echo(f"would restore {found.label} (workspace revision {(found.workspace_rev or '-')[:12]}) into {into.resolve()}")
        return
    bring_back(ws, ws.params(), version, into)
    typer.echo(f"v{version} lies in {into.resolve()}: samples, models, bundle, run.yaml as they were")


def gc(root: Root = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Free the files of versions that nobody needs: served files, bundles, DVC data, scratch; `keep` in params.yaml says what stays.

    Example: hapctl gc --dry-run
    """
    from flows.free import free
    from hap.registry.ledger import default_actor
    from hap.serving.remote import server_of

    ws = find_workspace(root)
    params = ws.params()
    with server_of(ws, params.serving) as server:
        freed = free(ws, params, server=server, actor=default_actor(), now=dt.datetime.now(dt.UTC), dry_run=dry_run)
    answer(freed.as_json(), str(freed), json)


def _say(moved: "Promotion", json: bool) -> None:
    answer(moved.as_json(), "\n".join([str(moved), *moved.notes]), json)


def _label(version: int | None) -> str | None:
    return None if version is None else f"v{version}"
