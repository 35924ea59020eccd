"""Words about making versions: train, evaluate, export, gate, retrain, backfill, schedule, demo."""

import os
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from hap.cli.options import Day, DryRun, Json, Root, answer, day_of
from hap.errors import UsageError
from hap.params import MODELS, NEGATIVES
from hap.tables import table
from hap.workspace import Workspace, find_workspace

StandingDay = Annotated[str | None, typer.Option("--day", help="The day that judges; else the one run.yaml stands at.", show_default=False)]
gate = typer.Typer(help="Judge a registered version.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these words to hapctl."""
    app.command()(demo)
    app.command()(describe)
    app.command()(train)
    app.command()(evaluate)
    app.command()(export)
    app.add_typer(gate, name="gate")
    app.command()(retrain)
    app.command()(backfill)
    app.command()(schedule)


def demo(
    root: Annotated[Path, typer.Option("--root", help="Where the demo's workspace is made; an earlier demo there is replaced.")] = Path(
        "build/demo"
    ),
    requests_per_day: Annotated[int, typer.Option(help="Simulated requests of each day.", min=50)] = 1500,
    seed: Annotated[int, typer.Option(help="Seed of the simulated world and of the training.", min=0)] = 1,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="A fault in the logs of the last day, as of `hapctl simulate`; its page names it. Repeatable.", show_default=False
        ),
    ] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """A first week in minutes: simulate, retrain twice, promote, serve, score, look for drift. Nothing is left running.

    Example: hapctl demo --root build/demo --requests-per-day 5000
    """
    from flows.demo import run_demo, summary_text
    from flows.talk import Talk, talking

    if dry_run:
        typer.echo(f"would make {root.resolve()} a fresh demo workspace with four days of {requests_per_day} requests")
        return
    with talking(Talk()):
        summary = run_demo(root, requests_per_day, seed, fault or ())
    answer(summary, summary_text(summary), json)


def describe(root: Root = None, json: Json = False) -> None:
    """Parameters and operations of both models, per request and per candidate; of params.yaml's sizes, before any training.

    Example: hapctl describe --json
    """
    from dataclasses import asdict

    from hap.models.describe import SHOWN_CANDIDATES, describe_all

    found = describe_all(find_workspace(root).params())
    value = {d.model: {**asdict(d), "user_share": {str(n): d.user_share(n) for n in SHOWN_CANDIDATES}} for d in found}
    rows = [
        [
            d.model, d.size, f"{d.parameters:,}", f"{d.dense_parameters:,}", f"{d.user_parameters:,}",
            f"{d.flops_per_request:,}", f"{d.flops_per_candidate:,}", *[f"{d.user_share(n):.1%}" for n in SHOWN_CANDIDATES],
        ]
        for d in found
    ]  # fmt: skip
    head = ["model", "size", "parameters", "dense", "user side", "FLOPs/request", "FLOPs/candidate"]
    answer(value, table([*head, *[f"user share at {n:,}" for n in SHOWN_CANDIDATES]], rows), json)


def train(
    model: Annotated[
        Literal["light", "expressive"] | None, typer.Argument(help="Which of the two; both where none is named.", show_default=False)
    ] = None,
    day: StandingDay = None,
    root: Root = None,
    dry_run: DryRun = False,
) -> None:
    """Train on the window before the judging day: a DVC stage, so what is up to date is not trained again.

    Example: hapctl train light --day 2026-01-03
    """
    from flows.partly import train_models

    ws, wanted = _standing(root, day)
    names = [model] if model else ["light", "expressive"]
    if dry_run:
        from flows.steps import training_order

        whole = [name for together in training_order(ws.params(), names) for name in together]
        typer.echo(f"would train {' and '.join(whole)} on the window before {wanted}")
        return
    typer.echo("\n".join(train_models(ws, wanted, names)))


def evaluate(
    day: StandingDay = None,
    root: Root = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """GAUC and AUC of both models on the window's held-out requests, training what is not up to date.

    Example: hapctl evaluate --day 2026-01-03
    """
    from flows.partly import evaluate_models

    ws, wanted = _standing(root, day)
    if dry_run:
        typer.echo(f"would train what is stale for {wanted} and write {ws.root / 'metrics.json'}")
        return
    metrics = evaluate_models(ws, wanted)
    rows = []
    for name in MODELS:
        for metric in ("gauc", "auc"):
            found = [metrics[name][metric][kind] for kind in NEGATIVES]
            rows.append([name, metric.upper(), *[None if value is None else f"{value:.4f}" for value in found]])
    answer(metrics, table(["model", "metric", *NEGATIVES], rows), json)


def export(
    day: StandingDay = None,
    root: Root = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Build the bundle: ONNX graphs, schema, golden requests, parity and cost; training what is not up to date.

    Example: hapctl export --day 2026-01-03
    """
    from flows.partly import export_bundle

    ws, wanted = _standing(root, day)
    if dry_run:
        typer.echo(f"would train what is stale for {wanted} and export {ws.bundle}")
        return
    bundle = export_bundle(ws, wanted)
    value = {"bundle": str(bundle.path), "digest": bundle.digest, "parity": bundle.parity(), "cost": bundle.cost()}
    answer(value, f"{bundle.path}  digest {bundle.digest[:16]}  max_abs_diff against PyTorch {bundle.parity()['max_abs_diff']:.1e}", json)


@gate.command("run")
def gate_run(
    model: Annotated[str, typer.Option(help="The version to judge, such as v42.", show_default=False)],
    against: Annotated[str | None, typer.Option(help="The version to compare with; else the champion.", show_default=False)] = None,
    day: Annotated[
        str | None, typer.Option("--day", help="The judging day; else the one it was registered for.", show_default=False)
    ] = None,
    root: Root = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Judge a registered version, write its verdict and its page. Exit code 0 pass, 3 refused, 5 undecided.

    Example: hapctl gate run --model v42 --against v41
    """
    from flows.page import page_path
    from flows.partly import judge_version
    from flows.talk import Talk, talking
    from hap.evaluation.wording import verdict_text
    from hap.registry.versions import parse_version

    ws = find_workspace(root)
    version, other = parse_version(model), parse_version(against) if against else None
    if dry_run:
        typer.echo(f"would judge v{version} and write {ws.verdicts / f'v{version}.json'}")
        return
    with talking(Talk()):
        verdict = judge_version(ws, version, other, day_of(day) if day else None)
    page = page_path(ws, version)
    shown = str(page) if page.exists() else None  # of a version whose bundle is damaged there is none
    answer({**verdict.to_json(), "page": shown}, f"{verdict_text(verdict)}\npage: {shown or 'none'}", json)
    raise typer.Exit(verdict.exit_code)


class Effort(NamedTuple):
    """How much `gate calibrate` does."""

    seeds: int
    pairs: int
    coverage_pairs: int
    sizes: str


QUICK = Effort(2, 60, 100, "500,1000,2000,4000")
WHOLE = Effort(4, 300, 500, "500,1000,2000,4000,8000,16000")


@gate.command("calibrate")
def gate_calibrate(
    day: Day,
    seeds: Annotated[int | None, typer.Option(help="Models to train, which differ by seed.", min=2, show_default="4")] = None,
    pairs: Annotated[
        int | None, typer.Option(help="Pairs for each size and true difference.", min=20, max=100_000, show_default="300")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Requests of a pair, with commas between; the day's own number is added.", show_default=WHOLE.sizes)
    ] = None,
    margin: Annotated[float | None, typer.Option(help="In place of gate.margin.", min=1e-6, max=1, show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK.seeds} seeds, {QUICK.pairs} pairs, sizes {QUICK.sizes}.")] = False,
    root: Root = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """How often the gate errs on the day's data: trains models that differ by seed, and judges pairs whose difference is known.

    Example: hapctl gate calibrate --day 2026-01-03 --quick
    """
    from flows.calibrate import calibrate_gate
    from flows.talk import Talk, talking
    from hap.evaluation.calibrate import calibration_text

    ws, wanted, usual = find_workspace(root), day_of(day), QUICK if quick else WHOLE
    chosen, models, count = _sizes(sizes or usual.sizes), seeds or usual.seeds, pairs or usual.pairs
    if dry_run:
        typer.echo(f"would train {models} pairs of models for {wanted} below {ws.state / 'calibrate'} and judge {count} pairs a cell")
        return
    with talking(Talk()):
        found = calibrate_gate(ws, wanted, models, chosen, count, usual.coverage_pairs, margin)
    answer(found, calibration_text(found), json)


def _sizes(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 2:
        raise UsageError(f"--sizes {text!r} is no list of numbers of requests, 2 or more each; write for example 500,1000,2000")
    return found


def retrain(day: Day, root: Root = None, json: Json = False, dry_run: DryRun = False) -> None:
    """The whole daily flow for the day that judges. Exit code 0 pass, 3 refused, 5 undecided; never promotes by itself.

    Example: hapctl retrain --day 2026-01-03
    """
    ws, wanted = find_workspace(root), day_of(day)
    if dry_run:
        from flows.steps import window_of

        window = window_of(ws, ws.params(), wanted)
        typer.echo(f"would train on {window.training[0]} to {window.training[-1]} and judge on {', '.join(map(str, window.judging))}")
        return
    from flows.daily import retrain_day
    from flows.page import page_path
    from flows.talk import Talk, talking
    from hap.evaluation.wording import verdict_text

    with talking(Talk()) as talk:
        outcome = retrain_day(ws, wanted)
    page = page_path(ws, outcome.version)
    value = {"version": f"v{outcome.version}", "verdict": outcome.verdict.to_json(), "page": str(page), "seconds_by_step": talk.seconds}
    answer(value, f"{verdict_text(outcome.verdict)}\npage: {page}", json)
    raise typer.Exit(outcome.verdict.exit_code)


def backfill(
    first: Annotated[str, typer.Option("--from", help="First judging day, YYYY-MM-DD.", show_default=False)],
    last: Annotated[str, typer.Option("--to", help="Last judging day, YYYY-MM-DD.", show_default=False)],
    root: Root = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Retrain every day of a range, oldest first; finished days cost next to nothing.

    Example: hapctl backfill --from 2026-01-03 --to 2026-01-04
    """
    from hap.days import day_range

    ws, days = find_workspace(root), day_range(day_of(first), day_of(last))
    if dry_run:
        typer.echo(f"would retrain {len(days)} days: {', '.join(map(str, days))}")
        return
    from flows.backfill import backfill as run
    from flows.talk import Talk, talking

    with talking(Talk()):
        outcomes = run(ws, days)
    value = [
        {"day": str(o.day), "version": f"v{o.version}", "verdict": o.verdict.verdict, "reasons": list(o.verdict.reasons)} for o in outcomes
    ]
    rows = [[entry["day"], entry["version"], entry["verdict"], entry["reasons"][0] if entry["reasons"] else ""] for entry in value]
    answer(value, table(["day", "version", "verdict", "first reason"], rows), json)


def schedule(root: Root = None, dry_run: DryRun = False) -> None:
    """Serve the schedule of params.yaml in this process: a look at every day that is due, and every ripe unfinished day retrained.

    Example: hapctl schedule --root ~/feeds
    """
    ws = find_workspace(root)
    params = ws.params()
    cron = params.schedule
    said = f"{ws.root}: looks at {params.drift.cron!r}, retrains at {cron.cron!r}, {cron.timezone}"
    if dry_run:
        typer.echo(f"would serve {said}")
        return
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    from flows.deployments import serve_schedule

    def started(url: str) -> None:
        typer.echo(f"serving {said}; runs are shown at {url.removesuffix('/api')}; stop it with Ctrl-C", err=True)

    serve_schedule(ws, started)


def _standing(root: Path | None, day: str | None):  # type: ignore[no-untyped-def]
    """The workspace, and the day that was typed or that run.yaml stands at."""
    ws: Workspace = find_workspace(root)
    if day is not None:
        return ws, day_of(day)
    if not ws.run_file.exists():
        raise UsageError(f"no retrain has run in {ws.root} yet, so name the day that judges: --day YYYY-MM-DD")
    from hap.training.run import read_run

    return ws, day_of(read_run(ws).day)
