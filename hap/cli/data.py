"""Words about workspaces and data: init, simulate, import, collect, show."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hap.cli.options import Day, DryRun, Json, Root, answer, day_of
from hap.errors import UsageError
from hap.params import KINDS
from hap.tables import table
from hap.workspace import Workspace, find_workspace, init_workspace, workspace_lock

sources = typer.Typer(help="Turn another system's logs into a workspace's logs.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these words to hapctl."""
    app.command()(init)
    app.command()(simulate)
    app.add_typer(sources, name="import")
    app.command()(collect)
    app.command()(show)


def init(directory: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")], dry_run: DryRun = False) -> None:
    """Make a folder a workspace: a git and DVC repo with params.yaml.

    Example: hapctl init ~/feeds
    """
    if dry_run:
        typer.echo(f"would make {directory.resolve()} a workspace: git, DVC, params.yaml, hap.toml")
        return
    ws = init_workspace(directory)
    typer.echo(
        f"{ws.root} is a workspace; edit params.yaml, then write logs to {ws.logs(ws.params())} or try `hapctl simulate --root {directory}`"
    )


def simulate(
    root: Root = None,
    first_day: Annotated[str, typer.Option("--from", help="First day, YYYY-MM-DD.")] = "2026-01-01",
    days: Annotated[int, typer.Option(help="Days of logs.", min=1)] = 4,
    requests_per_day: Annotated[int, typer.Option(help="Requests of each day.", min=1)] = 2000,
    seed: Annotated[int | None, typer.Option(help="Seed of the world; else params.yaml's.", show_default=False)] = None,
    setting: Annotated[str, typer.Option(help="A named world: default, single-interest, double-noise or fast-drift.")] = "default",
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="A fault of the logs, new-category, broken-feature[:null|constant|zero], shifted-prices, late-logs or click-outage, or "
            "of the world, interest-drift. Repeatable.",
            show_default=False,
        ),
    ] = None,
    fault_from: Annotated[str | None, typer.Option(help="First day of the faults; else the last one.", show_default=False)] = None,
    fault_size: Annotated[
        list[float] | None,
        typer.Option(help="Size of a fault, once for each --fault in their order; docs/simulator.md names defaults.", show_default=False),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Write the logs of a simulated four-stage cascade; a folder that is no workspace yet becomes one.

    Example: hapctl simulate --root ~/try --days 4 --requests-per-day 5000 --fault click-outage
    """
    import orjson

    from flows.talk import Talk
    from hap import durable
    from hap.logs import contract
    from hap.logs.faults import asked, parse
    from hap.logs.simulator import SETTINGS
    from hap.logs.simulator import simulate as write_logs

    first = day_of(first_day)
    last = first + dt.timedelta(days=days - 1)
    if setting not in SETTINGS:
        raise UsageError(f"--setting {setting}: there is no such world; choose one of {', '.join(SETTINGS)}")
    faults: list[str] = fault or []
    sizes: Sequence[float | None] = fault_size or [None] * len(faults)
    if len(sizes) != len(faults):
        raise UsageError(f"{len(sizes)} --fault-size for {len(faults)} --fault; give one for each fault in their order, or none at all")
    for text, size in zip(faults, sizes, strict=True):
        asked(text, size)  # what is wrong with them is told before a workspace is made
    since = day_of(fault_from) if fault_from else last
    if not first <= since <= last:
        raise UsageError(f"--fault-from {since} is not among the days simulated, {first} to {last}")
    if dry_run:
        typer.echo(f"would write {days} days of {requests_per_day} requests from {first}")
        return
    ws = init_workspace(root) if root is not None else find_workspace(None)
    params, talk = ws.params(), Talk()
    seed = params.seed if seed is None else seed
    types = SETTINGS[setting].content_types
    wrong = [parse(text, since, size, seed, params.features, types) for text, size in zip(faults, sizes, strict=True)]
    with workspace_lock(ws, "simulate", dt.datetime.now(dt.UTC)):
        logs, begun = ws.logs(params), ws.state / "simulate" / f"{first}.json"
        asked_for = {
            "from": str(first), "days": days, "requests": requests_per_day, "seed": seed, "setting": setting, "faults": faults,
            "sizes": list(sizes), "since": str(since),
        }  # fmt: skip
        killed = orjson.loads(begun.read_bytes()) if begun.exists() else None
        days_there = {(day, name) for name in contract.TABLES for day in contract.table_days(logs, name) if first <= day <= last}
        days_there |= {(day, "feedback") for day in contract.table_days(logs, "feedback") if day == last + dt.timedelta(days=1)}
        if days_there and killed != asked_for:  # what was killed is written again, the same bytes
            day, name = min(days_there)
            raise UsageError(
                f"{logs} holds {name} of {day} already, and days are written with the feedback of the day after the last; "
                "simulate other days, or into another workspace"
            )
        durable.write_json(begun, asked_for)
        with talk.step("simulate"):
            written = write_logs(
                logs, first, days, requests_per_day, seed, params.features, settings=SETTINGS[setting], wrong=wrong,
                progress=lambda done, of: talk.bar("simulate", done / of, f"{done:,} of {of:,} requests"),
            )  # fmt: skip
        begun.unlink()
    typer.echo(f"{written.days[0]} to {written.days[-1]}: " + ", ".join(f"{count:,} {name}" for name, count in written.rows.items()))


@sources.command("recflow")
def import_recflow(
    source: Annotated[Path, typer.Argument(help="The folder that holds all_stage/, realshow/, ...", metavar="SRC")],
    root: Root = None,
    dry_run: DryRun = False,
) -> None:
    """Turn RecFlow's folders into the log contract; a folder that is no workspace yet becomes one.

    Example: hapctl import recflow ~/RecFlow --root ~/recflow-ws
    """
    from flows.talk import Talk
    from hap.logs import recflow

    if dry_run:
        typer.echo(f"would import {source} into {root or 'the workspace here'}")
        return
    recflow.source_files(source)  # a wrong folder is told before a workspace is made
    ws = init_workspace(root, recflow.RECFLOW_PARAMS) if root is not None else find_workspace(None)
    talk = Talk()
    with workspace_lock(ws, f"import recflow {source}", dt.datetime.now(dt.UTC)), talk.step("import"):
        days = recflow.import_recflow(source, ws, progress=lambda done, of: talk.bar("import", done / of, f"{done} of {of} files"))
    typer.echo(f"{len(days)} days from {days[0]} to {days[-1]} are in {ws.logs(ws.params())}")
    typer.echo(f"next: `hapctl retrain --day {days[-1]} --root {ws.root}`")


def collect(
    day: Day,
    root: Root = None,
    reopen: Annotated[
        bool, typer.Option("--reopen", help="Collect a closed day anew; under a new manifest id if a sample differs.")
    ] = False,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="Use what was ingested up to here (ISO 8601 UTC), at most the day's end plus the label delay, which is the default.",
            show_default=False,
        ),
    ] = None,
    quarantine: Annotated[
        bool | None,
        typer.Option(
            "--quarantine/--no-quarantine",
            help="Set rows that break the log contract aside, up to logs.max_bad_share; else logs.quarantine decides.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Literal["duckdb", "spark"] | None,
        typer.Option("--engine", help="What evaluates the samples; else collect.engine of params.yaml.", show_default=False),
    ] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Check one day's logs and turn them into samples; a closed day is left as it is.

    Example: hapctl collect --day 2026-01-03
    """
    from hap.logs import contract
    from hap.samples import late, partitions
    from hap.samples.collect import collect_day

    ws = find_workspace(root)
    params, wanted = ws.params(), day_of(day)
    if engine is not None:
        params = params.model_copy(update={"collect": params.collect.model_copy(update={"engine": engine})})
    moment = _moment(as_of) if as_of else None
    with workspace_lock(ws, f"collect --day {wanted}", dt.datetime.now(dt.UTC)):
        manifest = collect_day(ws, params, wanted, as_of=moment, reopen=reopen, set_aside=quarantine, dry_run=dry_run)
    if dry_run:
        stays = manifest == partitions.find(ws, wanted)
        said = "is closed and would stay as it is" if stays else "was checked and collected, and nothing of it was kept"
        typer.echo(f"dry run: {wanted} {said}", err=True)
    elif found := late.find(ws, wanted):
        taken = f"all were ingested after {manifest.as_of}, so --reopen would change nothing"
        if found.by_as_of:
            taken = f"`hapctl collect --day {wanted} --reopen` takes in the {found.by_as_of:,} that were ingested by {manifest.as_of}"
        rows = f"{found.total:,} late rows ({_counts(found.rows)})"
        typer.echo(f"{wanted} is closed and stays as it is: {rows} lie in {ws.late}; {taken}", err=True)
    if absent := [label for label, told in manifest.labels.items() if told["state"] == contract.ABSENT]:
        typer.echo(
            f"{wanted} was collected without feedback of {', '.join(absent)}: clicks told after midnight are missing until it is there "
            f"and `hapctl collect --day {wanted} --reopen` takes it in",
            err=True,
        )
    answer(manifest.to_json(), _manifest_text(manifest.to_json()), json)


def show(
    what: Annotated[str, typer.Argument(help="A version (v42) or a collected day (2026-01-03).", metavar="VERSION|DAY")],
    root: Root = None,
    json: Json = False,
) -> None:
    """Show one version with its verdict, or one day's samples with the versions trained on them.

    Example: hapctl show v2
    """
    ws = find_workspace(root)
    if what.count("-") == 2:
        _show_day(ws, day_of(what), json)
    else:
        _show_version(ws, what, json)


def _show_day(ws: Workspace, day: dt.date, json: bool) -> None:
    from hap.registry import versions
    from hap.samples import late, partitions

    manifest = partitions.load(ws, day).to_json()
    known = versions.list_versions(ws, ws.params())
    trained = [version.label for version in known if day.isoformat() in version.window]
    judged = [version.label for version in known if day.isoformat() in (versions.read_verdict(ws, version.number) or {}).get("days", ())]
    since = late.find(ws, day)
    value = {**manifest, "late_since": since.rows if since else {}, "trained": trained, "judged": judged}
    lines = [
        _manifest_text(manifest),
        f"late since      {_counts(since.rows) if since else 'none'}",
        f"trained on it   {', '.join(trained) or 'none'}",
        f"judged by it    {', '.join(judged) or 'none'}",
    ]
    answer(value, "\n".join(lines), json)


def _show_version(ws: Workspace, what: str, json: bool) -> None:
    from flows.page import page_path
    from hap.evaluation.verdict import Verdict
    from hap.evaluation.wording import verdict_text
    from hap.registry import versions

    version = versions.get(ws, ws.params(), versions.parse_version(what))
    raw = versions.read_verdict(ws, version.number)
    lines = [
        f"{version.label}  registered {version.created:%Y-%m-%d %H:%M} UTC, trained on {_span(version.window)}, judged on {version.day}",
        f"bundle {version.bundle_digest[:16]}  workspace {(version.workspace_rev or '-')[:12]}  code {(version.code_rev or '-')[:12]}",
        verdict_text(Verdict.from_json(raw)) if raw else f"no verdict yet; `hapctl gate run --model {version.label}` gives one",
    ]
    page = page_path(ws, version.number)
    lines += [f"page: {page}"] * page.exists()
    answer({**version.as_json(), "verdict": raw, "page": str(page) if page.exists() else None}, "\n".join(lines), json)


def _manifest_text(manifest: dict[str, Any]) -> str:
    labels = ", ".join(f"{label} {told['state']}" for label, told in manifest["labels"].items())
    rows, logged = manifest["rows_by_kind"], manifest["logged"]
    of = {"RN": logged["rank"] + logged["rerank"], "PRN": logged["prerank"]}  # sampled from these; all exposures are taken
    kinds = table(["kind", "rows", "of logged"], [[k, f"{rows[k]:,}", f"{rows[k] / of[k]:.1%}" if of.get(k) else ""] for k in KINDS])
    buckets = ", ".join(f"{name} {rows:,}" for name, rows in manifest["rows_by_bucket"].items())
    return (
        f"{manifest['day']}  manifest {manifest['id']}  {manifest['requests']:,} requests  as of {manifest['as_of']}\n{kinds}\n"
        f"buckets         {buckets}\nGN shortfall    {manifest['gn_shortfall']:,}\nsamples_hash    {manifest['samples_hash']}\n"
        f"watermark       {manifest['watermark']}\n"
        f"labels          {labels}\n"
        f"late rows       {_counts(manifest['late'])}\n"
        f"torn requests   {manifest['requests_torn']:,} left out, since candidates of theirs were late\n"
        f"unknown items   {manifest['items_unknown']:,} samples of items that the day's catalogue lacks\n"
        f"quarantined     {_quarantined(manifest['quarantined'])}\n"
        f"unmatched       {manifest['feedback_unmatched']:,} feedback rows of requests that no day near has"
    )


def _counts(rows: dict[str, int]) -> str:
    from hap.logs.schema import TABLES

    return ", ".join(f"{name} {rows[name]:,}" for name in TABLES if name in rows) or "none"


def _quarantined(aside: dict[str, dict[str, int]]) -> str:
    """Rows set aside by table, with the rule that most of them broke."""
    from hap.logs.schema import TABLES

    said = []
    for name in TABLES:
        if name not in aside:
            continue
        rules = aside[name]
        worst = max(sorted(rules), key=lambda rule: rules[rule])
        said.append(f"{name} {sum(rules.values()):,} (mostly: {worst})")
    return "; ".join(said) or "none"


def _span(days: tuple[str, ...]) -> str:
    return f"{days[0]} to {days[-1]}" if days else "-"


def _moment(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
        return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a time; write it as 2026-01-04T02:00:00+00:00") from None
