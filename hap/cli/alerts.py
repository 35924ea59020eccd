"""Words about alerts: alerts, ack, snooze."""

import datetime as dt
from typing import Annotated

import typer

from hap.cli.options import DryRun, Json, Root, answer
from hap.errors import HapError
from hap.workspace import find_workspace

Cause = Annotated[str, typer.Argument(help="What `hapctl alerts` lists, such as input:cand_price.", metavar="CAUSE")]
Reason = Annotated[str, typer.Option("--reason", help="Why; the ledger keeps it.")]


def register(app: typer.Typer) -> None:
    """Add these words to hapctl."""
    app.command()(alerts)
    app.command()(ack)
    app.command()(snooze)


def alerts(
    root: Root = None,
    json: Json = False,
    all_: Annotated[bool, typer.Option("--all", help="Closed incidents, too, oldest first.")] = False,
    deliver: Annotated[bool, typer.Option("--deliver", help="Tell what is not told yet. Exit code 1 when something stays so.")] = False,
) -> None:
    """List the open incidents, the worst first: since when, the last figure, who knows, what is undelivered.

    Example: hapctl alerts
    """
    from flows.alerts import alerts_text, deliver_waiting, delivery_text, known_incidents

    ws = find_workspace(root)
    params = ws.params()
    done = deliver_waiting(ws, params) if deliver else []
    for one in done:
        typer.echo(delivery_text(one), err=True)
    known = known_incidents(ws, params)
    shown = list(known.all) if all_ else known.open
    text = alerts_text(shown, params, dt.datetime.now(dt.UTC)) if shown else "no incident is open" if not all_ else "no incident yet"
    answer([one.as_json(params.alerts) for one in shown], text, json)
    if left := [one for one in done if not one.sent.arrived]:
        raise HapError(f"{len(left)} of {len(done)} deliveries failed, first {left[0].place}: {left[0].sent.why}; they are kept")


def ack(cause: Cause, root: Root = None, reason: Reason = "", dry_run: DryRun = False) -> None:
    """Say that you know of an incident; it is told again only when it grows.

    Example: hapctl ack input:cand_price --reason "new price list, checked"
    """
    from hap.monitoring.alerts import acknowledge
    from hap.registry.incidents import incidents
    from hap.registry.ledger import default_actor, open_ledger

    ws = find_workspace(root)
    ledger = open_ledger(ws, ws.params())
    if dry_run:
        typer.echo(f"would acknowledge {incidents(ledger.rows()).named(cause).cause}")
        return
    row = acknowledge(ledger, cause, actor=default_actor(), now=dt.datetime.now(dt.UTC), reason=reason)
    typer.echo(f"{cause} is acknowledged by {row.actor}")


def snooze(
    cause: Cause,
    until: Annotated[str, typer.Option(help="2026-01-05T09:00 (UTC), or 30m, 8h, 2d from now.", metavar="TIME", show_default=False)],
    root: Root = None,
    reason: Reason = "",
    dry_run: DryRun = False,
) -> None:
    """Keep an incident silent until a time, unless its severity gets worse.

    Example: hapctl snooze input:cand_price --until 8h
    """
    from flows.alerts import parse_until
    from hap.monitoring.alerts import snooze as silence
    from hap.registry.incidents import incidents
    from hap.registry.ledger import default_actor, open_ledger

    now = dt.datetime.now(dt.UTC)
    ws, end = find_workspace(root), parse_until(until, now)
    ledger = open_ledger(ws, ws.params())
    if dry_run:
        typer.echo(f"would snooze {incidents(ledger.rows()).named(cause).cause} until {end:%Y-%m-%d %H:%M} UTC")
        return
    silence(ledger, cause, until=end, actor=default_actor(), now=now, reason=reason)
    typer.echo(f"{cause} is silent until {end:%Y-%m-%d %H:%M} UTC, unless its severity gets worse")
