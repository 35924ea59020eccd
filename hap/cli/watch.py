"""Words about the state of things: drift, watch, status, doctor."""

import contextlib
import datetime as dt
import sys
from typing import Annotated

import typer

from hap.cli.options import DryRun, Json, Root, Url, answer, day_of
from hap.days import day_range
from hap.errors import UsageError
from hap.workspace import find_workspace


def register(app: typer.Typer) -> None:
    """Add these words to hapctl."""
    app.command()(drift)
    app.command()(watch)
    app.command()(status)
    app.command()(doctor)


def drift(
    day: Annotated[str | None, typer.Option("--day", help="The UTC day, YYYY-MM-DD.", show_default=False)] = None,
    first: Annotated[str | None, typer.Option("--from", help="First day of a range, YYYY-MM-DD.", show_default=False)] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day of the range.", show_default=False)] = None,
    root: Root = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Let every watcher look at a day, or at each day of a range: incidents, an HTML page, JSON. Exit code 4 when something is wrong.

    Example: hapctl drift --day 2026-01-04
    """
    ws, days = find_workspace(root), _days(day, first, last)
    if dry_run:
        typer.echo(f"would look at {', '.join(map(str, days))} beside the champion's training window and write into {ws.pages}")
        return
    from flows.drift import look_at_days
    from flows.talk import Talk, talking
    from hap.monitoring.report import report_text

    values, code = [], 0
    try:
        with talking(Talk()):
            for looked in look_at_days(ws, days, dt.datetime.now(dt.UTC)):
                values.append(looked.to_json())
                code = max(code, looked.report.exit_code)
                if not json:
                    typer.echo("\n".join([report_text(looked.report), f"page {looked.html}", *looked.told.lines()]))
    finally:
        if json and values:  # the days of a range before one that cannot be looked at have been settled and told
            answer(values[0] if day else values, "", True)
    raise typer.Exit(code)


def _days(day: str | None, first: str | None, last: str | None) -> list[dt.date]:
    if day is not None and first is None and last is None:
        return [day_of(day)]
    if day is None and first is not None and last is not None:
        return day_range(day_of(first), day_of(last))
    raise UsageError("drift needs a day: write --day D, or --from D1 --to D2")


def watch(
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0 takes any free one.", min=0, max=65535)] = 18080,
    root: Root = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Serve the pages of days and versions to a browser on this machine, read-only, until Ctrl-C or SIGTERM.

    Example: hapctl watch --port 18080
    """
    from hap.pages.site import HOST, serve

    ws = find_workspace(root)
    if dry_run:
        typer.echo(f"would serve {ws.pages} on http://{HOST}:{port}/")
        return

    def started(url: str) -> None:
        answer({"url": url, "pages": str(ws.pages)}, f"{url} shows {ws.pages}; stop it with Ctrl-C", json)
        sys.stdout.flush()

    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        serve(ws.pages, ws.root, port, started)


def status(root: Root = None, url: Url = None, json: Json = False) -> None:
    """What serves, what the last retrains and the last look came to, and what is due.

    Example: hapctl status
    """
    from flows.status import status_of, status_text

    value = status_of(find_workspace(root), url)
    answer(value, status_text(value), json)


def doctor(root: Root = None, json: Json = False) -> None:
    """Check the machine and the workspace, each finding with what to do about it. Exit code 1 when something is wrong.

    Example: hapctl doctor
    """
    from flows.status import examine

    findings = examine(root)
    answer([finding.to_json() for finding in findings], "\n".join(str(finding) for finding in findings), json)
    raise typer.Exit(0 if all(finding.well for finding in findings) else 1)
