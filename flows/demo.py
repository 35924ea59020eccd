"""The demo: what a first week does, in minutes, all through the real flow. Nothing is left running."""

import datetime as dt
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from flows.bundles import bundle_of
from flows.daily import Outcome, retrain_day
from flows.drift import look_at_day
from flows.page import page_path
from flows.prefect_server import prefect_api
from flows.talk import Talk, current
from hap import durable
from hap.errors import HapError, UsageError
from hap.logs.faults import asked, parse
from hap.logs.simulator import DEFAULTS, simulate
from hap.params import NEGATIVES, Params
from hap.ports import free_ports
from hap.project import project_file
from hap.registry import promotion
from hap.registry.ledger import default_actor, open_ledger
from hap.samples.replay import logged_requests
from hap.serving import runtime
from hap.serving.client import HapClient
from hap.serving.install import check_platform, require_runtime
from hap.serving.request import RequestTensors
from hap.tables import table
from hap.workspace import Workspace, exclusive, init_workspace, workspace_lock

FIRST_DAY = dt.date(2026, 1, 1)
DAYS = 4
SCORED_REQUESTS = 200
DEMO_MARK = "demo"  # a file in the workspace's state folder, made first

# Small enough for minutes; everything else is as in any workspace. The margin fits a judging day of
# fifteen hundred requests, where half-widths of a GAUC's interval are near .01.
DEMO_PARAMS: dict[str, Any] = {
    "train": {"days": 2, "epochs": 3, "conflict_steps": 25},
    "gate": {"margin": 0.02, "recall": {"requests": 500, "min_positives": 400, "margin": 0.06}},
    "funnel": {"requests": 200},
}


def run_demo(root: Path, requests_per_day: int, seed: int, faults: Sequence[str] = ()) -> dict[str, Any]:
    """Make a workspace at `root`, live a first week in it, and return the summary.

    Args:
        faults: that spoil the logs of the last day, by their names (hap.logs.faults), each at its default size.

    Raises:
        UsageError: `root` holds something that is not an earlier demo, or there is no such fault.
        Busy: another demo works there.
        ServingError: Triton is not installed.
    """
    for text in faults:
        asked(text, None)
    talk, begun = current(), psutil.Process().create_time()  # what a person waits for, the start of Python with it
    check_platform()
    require_runtime()
    with _alone(root) as ws:
        return _first_week(ws, requests_per_day, seed, faults, talk, begun)


def _first_week(ws: Workspace, requests_per_day: int, seed: int, faults: Sequence[str], talk: Talk, begun: float) -> dict[str, Any]:
    last = FIRST_DAY + dt.timedelta(days=DAYS - 1)

    def data() -> None:
        with talk.step("workspace"):
            _fresh(ws, seed)
        params = ws.params()
        with talk.step("simulate"):
            simulate(
                ws.logs(params), FIRST_DAY, DAYS, requests_per_day, seed, params.features,
                wrong=[parse(text, last, None, seed, params.features, DEFAULTS.content_types) for text in faults],
                progress=lambda done, of: talk.bar("simulate", done / of, f"{done:,} of {of:,} requests"),
            )  # fmt: skip

    outcomes: list[Outcome] = []
    with prefect_api(ws, meanwhile=data), _server(ws, talk):
        params = ws.params()
        for day in (last - dt.timedelta(days=1), last):
            talk.say(f"retrain, judged on {day}")
            outcomes.append(retrain_day(ws, day))
            talk.say(f"  v{outcomes[-1].version}: {outcomes[-1].verdict.verdict}; {outcomes[-1].verdict.reasons[0]}")
            _promote_if_passed(ws, params, outcomes[-1], talk)
        with talk.step("score"):
            serving = _score(ws, params, last)
    with talk.step("drift"):
        looked = look_at_day(ws, last, dt.datetime.now(dt.UTC)) if serving else None
    champion = open_ledger(ws, params).served()
    return {
        "workspace": str(ws.root),
        "versions": [_version(ws, outcome) for outcome in outcomes],
        "champion": f"v{champion}" if champion else None,
        "serving": serving,
        "drift": looked.to_json() if looked else None,
        "seconds": round(time.time() - begun, 1),
        "seconds_by_step": {name: round(seconds, 2) for name, seconds in talk.seconds.items()},
    }


def summary_text(summary: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    rows, against = [], []
    for version in summary["versions"]:
        for member in ("light", "expressive"):
            gauc = version["gauc"][member]
            rows.append([version["label"], version["day"], member, *[_figure(gauc.get(kind)) for kind in NEGATIVES], version["verdict"]])
        against.append(f"  {version['label']}  {version['verdict']}: {version['reasons'][0] if version['reasons'] else ''}")
    lines = [
        "",
        "GAUC of positives against each kind of negative, on the judging day",
        table(["version", "day", "model", *NEGATIVES, "verdict"], rows),
        "",
        "verdicts",
        *against,
        "",
        f"champion   {summary['champion'] or 'none: no version passed'}",
    ]
    if serving := summary["serving"]:
        p50 = serving["p50_ms"]
        what = f"{serving['requests']} requests of {serving['candidates']} candidates each by {serving['version']} on {serving['server']}"
        lines.append(f"served     {what}, {serving['failed']} failed, max difference to PyTorch {serving['max_abs_diff']:.1e}")
        if len(p50) == 2:
            lines.append(f"latency    {_ratio(p50)} at {serving['candidates']} candidates over gRPC")
            bare = serving["in_process"]
            lines.append(f"           {_ratio(bare['p50_ms'])} at {bare['candidates']:,} candidates in process")
    if drift := summary["drift"]:
        causes = [finding["cause"] for look in drift["looks"].values() for finding in look["findings"]]
        lines.append(f"drift      {drift['state']}{': ' + ', '.join(causes) if causes else ''}")
        lines.append(f"pages      {drift['html']}")
    lines += [f"{'pages' if not summary['drift'] else '':<11}{version['page']}" for version in summary["versions"][-1:]]
    steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["seconds_by_step"].items())
    lines += [
        f"workspace  {summary['workspace']}  (try: hapctl status --root {summary['workspace']})",
        f"seconds    {summary['seconds']:.0f} in all: {steps}",
    ]
    return "\n".join(lines)


@contextmanager
def _alone(root: Path) -> Iterator[Workspace]:
    """`root` for one demo at a time: an earlier one there is stopped and taken away, anything else is not touched.

    Raises:
        UsageError: it holds something that is not a demo.
        Busy: another demo or command works in it.
    """
    ws = Workspace(root.resolve())
    now = dt.datetime.now(dt.UTC)
    if ws.root.exists() and any(ws.root.iterdir()):
        if not (ws.state / DEMO_MARK).exists():
            raise UsageError(f"{ws.root} is not an earlier demo, so it is left alone; give another folder with --root DIR")
        with exclusive(ws, "demo", f"runs in {ws.root}", "demo", now), workspace_lock(ws, "demo", now):
            runtime.stop(ws)
            shutil.rmtree(ws.root)
            (ws.state).mkdir(parents=True)  # the locks lie here until the new demo holds its own
    ws.state.mkdir(parents=True, exist_ok=True)
    (ws.state / DEMO_MARK).touch()
    with exclusive(ws, "demo", f"runs in {ws.root}", "demo", now):
        yield ws


def _fresh(ws: Workspace, seed: int) -> Workspace:
    """A new workspace with the demo's parameters and free ports."""
    raw = yaml.safe_load(project_file("params.yaml").read_text())
    for section, values in DEMO_PARAMS.items():
        raw[section] = {**raw.get(section, {}), **values}
    raw["seed"] = seed
    raw["serving"] = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    text = "# The parameters of `hapctl demo`: small sizes and free ports; see the project's params.yaml for what each means.\n"
    durable.write_text(ws.state / "init", "demo\n")  # so that init_workspace takes the folder, which holds the demo's mark
    return init_workspace(ws.root, text + yaml.safe_dump(raw, sort_keys=False))


@contextmanager
def _server(ws: Workspace, talk: Talk) -> Iterator[None]:
    """The server of the workspace for the block, whatever ends it."""
    with talk.step("serve"):
        runtime.start(ws, ws.params(), detach=True, tied=True)
    try:
        yield
    finally:
        with talk.step("stop"):
            runtime.stop(ws)


def _promote_if_passed(ws: Workspace, params: Params, outcome: Outcome, talk: Talk) -> None:
    if outcome.verdict.verdict != "pass":
        talk.say(f"  v{outcome.version} is not promoted: its verdict is {outcome.verdict.verdict}")
        return
    with talk.step("promote"), _client(ws, params) as client:
        moved = promotion.promote(
            ws, params, outcome.version, server=client, actor=default_actor(), now=dt.datetime.now(dt.UTC), reason="demo"
        )
    talk.say(f"  {moved}")


def _client(ws: Workspace, params: Params) -> HapClient:
    return HapClient(runtime.require_server(ws).grpc_url, params.serving.deadline_s)


def _score(ws: Workspace, params: Params, day: dt.date) -> dict[str, Any] | None:
    """Score logged requests over gRPC: failures, the largest difference to PyTorch, and p50 of both ensembles, interleaved."""
    champion = open_ledger(ws, params).served()
    if champion is None:
        return None
    expected_of = _pytorch(ws, params, champion)
    requests = [RequestTensors.from_json(params.features, request) for request in logged_requests(ws, params, day, SCORED_REQUESTS)]
    took: dict[str, list[float]] = {"hap": [], "expressive_all": []}
    failed, largest = 0, 0.0
    with _client(ws, params) as client:
        for place, tensors in enumerate(requests):
            current().bar("score", place / len(requests), f"{place} of {len(requests)} requests")
            try:
                for name, model in (("hap", "hap"), ("expressive_all", "hap_all")):
                    begun = time.perf_counter()
                    scored = client.score(tensors, model=model)
                    took[name].append((time.perf_counter() - begun) * 1000)
                    if name == "hap":
                        largest = max(largest, float(np.abs(scored.score - expected_of(tensors)).max(initial=0.0)))
            except HapError:
                failed += 1
        server = client.url
    return {
        "server": server,
        "version": f"v{champion}",
        "requests": len(requests),
        "candidates": int(np.median([tensors.candidates for tensors in requests])),
        "failed": failed,
        "max_abs_diff": largest,
        "p50_ms": {name: round(float(np.median(values)), 3) for name, values in took.items() if values},
        "in_process": bundle_of(ws, params, champion).cost()["in_process"],
    }


def _pytorch(ws: Workspace, params: Params, version: int) -> Any:
    """The merged score by PyTorch of a version's own weights, brought back as `hapctl restore` does."""
    import torch

    from hap.models.build import load_model
    from hap.registry.restore import restore
    from hap.serving.merge import hard_select, merge, routed_count
    from hap.training.run import read_run

    with tempfile.TemporaryDirectory(prefix="hap-demo-") as folder:
        restored = Workspace(Path(folder) / "restored")
        restore(ws, params, version, restored.root)
        run = read_run(restored)
        models = {name: load_model(restored.models / name, run.params) for name in ("light", "expressive")}

    def expected(tensors: RequestTensors) -> np.ndarray:
        with torch.inference_mode():
            arrays = [torch.from_numpy(array) for array in tensors.arrays().values()]
            light, expressive = (models[name].score_request(*arrays).numpy() for name in ("light", "expressive"))  # type: ignore[operator]
        index = hard_select(light, routed_count(run.params.route, tensors.candidates))
        return merge(light, index, expressive[index])[0]

    return expected


def _version(ws: Workspace, outcome: Outcome) -> dict[str, Any]:
    verdict = outcome.verdict
    bundle = bundle_of(ws, ws.params(), outcome.version)
    return {
        "label": f"v{outcome.version}",
        "day": outcome.day.isoformat(),
        "window": bundle.info["window"],
        "verdict": verdict.verdict,
        "reasons": list(verdict.reasons),
        "gauc": {member: verdict.gauc.get(member, {}) for member in ("light", "expressive", "cascade")},
        "params": bundle.cost()["parameters"],
        "page": str(page_path(ws, outcome.version)),
    }


def _ratio(p50_ms: dict[str, float]) -> str:
    hap, everything = p50_ms["hap"], p50_ms["expressive_all"]
    return f"p50 {hap:.2f} ms ensemble, {everything:.2f} ms expressive on all: {hap / everything:.2f} of it"


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
