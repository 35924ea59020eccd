"""Words about versions and what serves: models, promote, rollback, ledger, restore."""

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hap.cli.options import DryRun, Json, Root, Url, answer
from hap.tables import table
from hap.workspace import find_workspace

if TYPE_CHECKING:
    from hap.registry.promotion import Promotion

Reason = Annotated[str, typer.Option("--reason", help="Why; the ledger keeps it.")]
Offline = Annotated[bool, typer.Option("--offline", help="Only check and pin it for the next start of the server.")]


def register(app: typer.Typer) -> None:
    """Add these words to hapctl."""
    app.command()(models)
    app.command()(promote)
    app.command()(rollback)
    app.command()(ledger)
    app.command()(restore)


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
            "champion" if v.number == champion else "challenger" if v.challenger else "",
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


def promote(
    model: Annotated[str, typer.Option(help="The version, such as v42.", show_default=False)],
    root: Root = None,
    force: Annotated[bool, typer.Option("--force", help="Promote without a passing verdict; needs --reason.")] = False,
    reason: Reason = "",
    offline: Offline = False,
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
            reason=reason, force=force, dry_run=dry_run, offline=offline,
        )  # fmt: skip
    _say(moved, json)


def rollback(
    root: Root = None, reason: Reason = "", offline: Offline = False, url: Url = None, dry_run: DryRun = False, json: Json = False
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
        )
    _say(moved, json)


def ledger(
    root: Root = None,
    json: Json = False,
) -> None:
    """Print who promoted what, when and why, oldest first, after checking the chain of hashes.

    Example: hapctl ledger --json
    """
    from hap.registry.ledger import open_ledger

    ws = find_workspace(root)
    book = open_ledger(ws, ws.params())
    rows, sound = book.rows(), book.verify()
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
            row.reason,
        ]
        for row in rows
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


def _say(moved: "Promotion", json: bool) -> None:
    answer(moved.as_json(), "\n".join([str(moved), *moved.notes]), json)


def _label(version: int | None) -> str | None:
    return None if version is None else f"v{version}"
