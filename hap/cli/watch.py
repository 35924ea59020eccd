"""Words about the state of things: drift, status, doctor."""

import typer

from hap.cli.options import Day, DryRun, Json, Root, Url, answer, day_of
from hap.tables import table
from hap.workspace import find_workspace


def register(app: typer.Typer) -> None:
    """Add these words to hapctl."""
    app.command()(drift)
    app.command()(status)
    app.command()(doctor)


def drift(day: Day, root: Root = None, json: Json = False, dry_run: DryRun = False) -> None:
    """Compare a day with the champion's training window: an HTML page, JSON and alerts. Exit code 4 when something drifted.

    Example: hapctl drift --day 2026-01-04
    """
    from flows.drift import drift_day
    from flows.talk import Talk, talking

    ws, wanted = find_workspace(root), day_of(day)
    if dry_run:
        typer.echo(f"would compare {wanted} with the champion's training window and write into {ws.pages}")
        return
    with talking(Talk()):
        watched = drift_day(ws, wanted)
    found = watched.drift
    rows = [
        [name, one.method, _figure(one.value), _figure(one.threshold), "DRIFTED" if one.drifted else one.note or ""]
        for name, one in found.columns.items()
    ]
    text = table(["column", "method", "value", "threshold", ""], rows)
    reference = f"{found.reference_days[0]} to {found.reference_days[-1]}"
    text += f"\n{len(found.drifted)} of {len(found.columns)} columns drifted from {reference}; page {found.html}"
    text = "\n".join([text, *watched.told.lines()])
    answer({**found.to_json(), "html": str(found.html), "json": str(found.json), "alerts": watched.told.to_json()}, text, json)
    raise typer.Exit(found.exit_code)


def status(root: Root = None, url: Url = None, json: Json = False) -> None:
    """What serves, what the last retrains came to, and what is due.

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


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
