"""Words about the server: serve, stop, score, shadow."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hap.cli.options import DryRun, Json, Root, Url, answer, day_of
from hap.errors import DataError, HapError, UsageError
from hap.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from hap.params import Params


def register(app: typer.Typer) -> None:
    """Add these words to hapctl."""
    app.command()(serve)
    app.command()(stop)
    app.command()(score)
    app.command()(shadow)


def serve(
    root: Root = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start in the background and return once it is ready.")] = False,
    install: Annotated[bool, typer.Option("--install", help="Install the pinned Triton runtime in a venv of its own, and end.")] = False,
    url: Url = None,
    dry_run: DryRun = False,
) -> None:
    """Start the Triton server of a workspace and watch it; without a champion it is up and empty.

    What a killed promotion left is settled then, and a version that was pinned for this start is written down as served.

    With --url or serving.url nothing is started: the Triton there is asked each second, and what changes is told.

    Example: hapctl serve --root ~/feeds --detach
    """
    from hap.serving import install as runtime_install
    from hap.serving import remote, runtime

    if install:
        runtime_install.check_platform()
        if dry_run:
            typer.echo(f"would install Triton into {runtime_install.runtime_prefix()}")
            return
        typer.echo(f"Triton is installed in {runtime_install.install_runtime(lambda line: typer.echo(line, err=True))}")
        return
    ws = find_workspace(root)
    params = remote.with_url(ws.params(), url)
    settings = params.serving
    if settings.url is not None:
        if detach:
            raise UsageError(
                f"{settings.url} is a Triton that somebody else runs, so there is nothing to start; leave --detach out to watch it"
            )
        if dry_run:
            typer.echo(f"would watch {settings.url}, and start nothing")
            return
        remote.watch(ws, settings, runtime.print_line)
        return
    if dry_run:
        ports = f"gRPC {settings.grpc_port}, HTTP {settings.http_port}, metrics {settings.metrics_port}"
        typer.echo(f"would serve {ws.triton} on {settings.host}: {ports}")
        return
    state = runtime.start(ws, params, detach, when_ready=lambda: _settle(ws, params))
    if state is not None:
        champion = f"v{state.champion}" if state.champion else "no champion yet"
        typer.echo(f"serving {champion} on gRPC {state.grpc_url} (pid {state.pid}); end it with `hapctl stop --root {ws.root}`")


def _settle(ws: Workspace, params: "Params") -> None:
    """Have the ledger and the server that was just started agree; where that fails, the server is there all the same."""
    import datetime as dt

    from hap.registry import promotion
    from hap.registry.ledger import default_actor
    from hap.serving.remote import server_of
    from hap.serving.runtime import print_line

    try:
        with server_of(ws, params.serving) as server:
            for note in promotion.repair(ws, params, now=dt.datetime.now(dt.UTC), server=server, actor=default_actor(), alias=False):
                print_line(note)
    except (HapError, OSError) as error:
        print_line(f"what serves was not compared with the ledger, the next `hapctl promote` does it: {error}")


def stop(root: Root = None, dry_run: DryRun = False) -> None:
    """Stop the workspace's server.

    Example: hapctl stop
    """
    from hap.serving import runtime

    ws = find_workspace(root)
    if dry_run:
        state = runtime.server_state(ws)
        typer.echo(f"would stop pid {state.pid}" if state else "no server runs here")
        return
    if runtime.stop(ws):
        typer.echo("stopped")
        return
    url = ws.params().serving.url
    typer.echo("no server runs here" + (f"; {url}, which serving.url names, is somebody else's to stop" if url else ""))


def score(
    file: Annotated[
        Path | None, typer.Argument(help="JSON lines, one request each, raw features by name; - reads stdin.", show_default=False)
    ] = None,
    from_day: Annotated[str | None, typer.Option(help="Score logged requests of this day instead.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="How many requests of the day.", min=1)] = 10,
    root: Root = None,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, one object a request; a FILE always gets them.")] = False,
) -> None:
    """Score requests with the served version: score, route and click probability of each candidate.

    Example: hapctl score --from-day 2026-01-04 --limit 3
    """
    from hap.samples.replay import logged_requests
    from hap.serving.client import HapClient, log_options
    from hap.serving.merge import logit_and_ctr
    from hap.serving.remote import require_address, with_url
    from hap.serving.request import RequestTensors, check_request_id, requested_k

    if (file is None) == (from_day is None):
        raise UsageError("give either a FILE (- for stdin) or --from-day; see `hapctl score --help`")
    ws = find_workspace(root)
    params = with_url(ws.params(), url)
    settings = params.serving
    if from_day:
        requests = ((f"request {r['request_id']}", r) for r in logged_requests(ws, params, day_of(from_day), limit))
    else:
        requests = _lines(file or Path("-"))
    logged = log_options(settings, ws.root) if file else {}  # a logged day that is scored again is not served
    with HapClient(
        require_address(ws, settings), settings.deadline_s, retries=settings.retries, shared_memory=settings.shared_memory, **logged
    ) as client:
        features = client.schema().features
        for where, request in requests:
            try:
                tensors, k = RequestTensors.from_json(features, request), requested_k(request)
                request_id = check_request_id(request.get("request_id"))
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            scored = client.score(tensors, k, request_id=request_id)
            ctr = logit_and_ctr(scored.score)[1]
            items = [candidate["item_id"] for candidate in request["candidates"]]
            value = {
                "request_id": request_id,
                "version": f"v{scored.served_by}",
                "item_id": items,
                "score": scored.score.tolist(),
                "routed": scored.routed.tolist(),
                "ctr": ctr.tolist(),
            }
            if as_json or file:
                sys.stdout.write(json.dumps(value) + "\n")
            else:
                best = sorted(range(len(items)), key=lambda place: -scored.score[place])[:5]
                shown = "  ".join(
                    f"{items[place]} ({'routed' if scored.routed[place] else 'light'}, ctr {ctr[place]:.3f})" for place in best
                )
                answer(
                    None, f"{where}, {value['version']}, {len(items)} candidates, {int(scored.routed.sum())} routed; best: {shown}", False
                )


def shadow(
    model: Annotated[str, typer.Option(help="The challenger, such as v43.", show_default=False)],
    share: Annotated[
        float | None,
        typer.Option(help="Of the served requests; else, and at most, serving.log_share.", min=0.0, max=1.0, show_default=False),
    ] = None,
    lasts: Annotated[
        str | None, typer.Option("--for", help="30m, 8h or 2d; else until Ctrl-C.", metavar="SPAN", show_default=False)
    ] = None,
    log: Annotated[Path | None, typer.Option(help="The folder of served requests; else serving.log_to.", show_default=False)] = None,
    root: Root = None,
    url: Url = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Ask a challenger for served requests beside the champion, out of the callers' way: score drift, routes, order, time.

    It reads what the log of served requests finishes (serving.log_to), and ends by itself after --for, or by Ctrl-C.

    Example: hapctl shadow --model v43 --share 0.1 --for 30m
    """
    import datetime as dt

    from flows.shadow import shadow as follow
    from hap.days import parse_span
    from hap.registry.ledger import default_actor
    from hap.registry.versions import label, parse_version
    from hap.serving.remote import require_address, server_of, with_url
    from hap.serving.runtime import print_line
    from hap.serving.server import until_signalled

    version, ws = parse_version(model), find_workspace(root)
    params = with_url(ws.params(), url)
    settings, span = params.serving, parse_span(lasts) if lasts else None
    if lasts and span is None:
        raise UsageError(f"--for {lasts!r} is no span; write 30m, 8h or 2d")
    if log is None and settings.log_to is None:
        raise UsageError("no served requests are written down: set serving.log_to in params.yaml, or name the folder of callers by --log")
    if log is None and share is not None and share > settings.log_share:
        raise UsageError(f"--share {share:g} is more than serving.log_share {settings.log_share:g} writes down; raise that, or lower this")
    wanted = settings.log_share if share is None else share
    folder = (log or ws.root / str(settings.log_to)).resolve()
    if dry_run:
        typer.echo(f"would ask {label(version)} for {wanted:g} of the requests that are finished below {folder}, {lasts or 'until Ctrl-C'}")
        return
    require_address(ws, settings)
    with server_of(ws, settings) as server, until_signalled() as ended:
        assert server is not None  # its address is known
        found = follow(
            ws, params, version, server=server, share=wanted, log=folder, seconds=span.total_seconds() if span else None, ended=ended,
            actor=default_actor(), now=dt.datetime.now(dt.UTC), say=print_line,
        )  # fmt: skip
    answer(found.as_json(), str(found), as_json)


def _lines(file: Path):  # type: ignore[no-untyped-def]
    """(where, request) of each line of the file."""
    stream = sys.stdin.buffer if str(file) == "-" else file.open("rb")
    with contextlib.nullcontext(stream) if str(file) == "-" else stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    # The standard parser reads NaN, which orjson does not: then the column that holds it can be named.
                    yield f"{file}, line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of thousands of digits
                    raise DataError(f"{file}, line {number}: not JSON ({error})") from None
