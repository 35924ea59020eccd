"""What the figures of the funnel and of quality do on the days after a champion was judged, and how often chance alone alarms.

    make demo
    OMP_NUM_THREADS=1 python benchmarks/watched_days.py [--root build/demo] [--days 5] [--splits 100]

The demo's simulation goes on (same seed, same world) in a copy of its workspace, and its champion, trained on two days, is watched as
it ages. Days with faults, and the alarms of all watchers, are `benchmarks/drift.py`'s. `--splits` asks how often chance alone alarms: the
users of the judged day are drawn into two halves, one is the day and the other its reference, and nothing differs. A figure's
ratio is how far it moved over its limit; a ratio above 1 is a finding.
"""

import argparse
import dataclasses
import datetime as dt
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it alone

import numpy as np

from flows.judge import bundle_of
from flows.looks import estimate, funnel
from flows.looks.served import Days, scored
from flows.looks.subject import Subject
from hap.days import day_range, parse_day
from hap.logs import contract
from hap.logs.simulator import simulate
from hap.monitoring import estimate as quality
from hap.monitoring.findings import Figure, Look
from hap.monitoring.funnel import Counted, watch_routing, watch_shares
from hap.monitoring.watched import look_at
from hap.params import KINDS
from hap.registry.versions import read_verdict
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.tables import table
from hap.workspace import Workspace

SHOWN = ("estimate.auc", "realized.auc", "funnel.unrouted_clicks", "funnel.agreement", "funnel.edge_median", "funnel.edge_spread")


def ratio(one: Figure) -> float:
    """How far a figure moved over its limit; 0 where that is not known."""
    if one.value is None or one.reference is None or one.least is None:
        return 0.0
    moved = one.reference - one.value if one.most is None else abs(one.value - one.reference)
    return moved / (one.reference - one.least)


def go_on(source: Path, folder: Path, days: int) -> tuple[Workspace, list[dt.date]]:
    """A copy of the demo's workspace with the days after its last one simulated and collected."""
    shutil.copytree(source, folder, symlinks=True)
    ws = Workspace(folder)
    params = ws.params()
    known = partitions.collected_days(ws)
    requests = partitions.load(ws, known[0]).requests
    new = day_range(known[-1] + dt.timedelta(days=1), known[-1] + dt.timedelta(days=days))
    logs, made = Path(ws.logs(params)), folder / "simulated"
    simulate(made, known[0], len(known) + days, requests, params.seed, params.features)
    for name in contract.TABLES:
        for part in sorted((made / name).glob("day=*")):
            if part.name > f"day={known[-1]}":
                shutil.rmtree(logs / name / part.name, ignore_errors=True)
                shutil.move(part, logs / name / part.name)
    for day in new:
        collect_day(ws, params, day)
    return ws, new


def watch(ws: Workspace, version: int, day: dt.date) -> dict[str, Any]:
    """Both looks at a day, as a row."""
    params = ws.params()
    window = tuple(parse_day(text) for text in bundle_of(ws, params, version).info["window"])
    subject = Subject(ws, params, day, version, window)
    begun = time.process_time()
    looks: list[Look] = [funnel.look(subject), estimate.look(subject)]
    figures = {one.name: one for look in looks for one in look.figures}
    worst = max(figures.values(), key=ratio)
    return {
        "day": str(day),
        "findings": [f"{finding.cause} ({finding.severity})" for look in looks for finding in look.findings],
        "worst": f"{worst.name} {ratio(worst):.2f}",
        "cpu_s": time.process_time() - begun,
        **{name: figures[name].value for name in SHOWN},
        "reference": {name: figures[name].reference for name in SHOWN},
    }


def split(ws: Workspace, version: int, draws: int) -> Counter[str]:
    """How often each cause is found between two halves of one day's users."""
    params = ws.params()
    bundle, verdict = bundle_of(ws, params, version), read_verdict(ws, version)
    assert verdict is not None
    day = parse_day(verdict["days"][-1])
    whole = scored(Subject(ws, params, day, version, ()), bundle, Days((day,)), whole=True).sound()
    owner, found = whole.owner, Counter()
    kinds = np.stack([np.bincount(owner[whole.kind == code], minlength=len(whole.user)) for code in range(len(KINDS))], axis=1)
    counted = Counted(user=whole.user, kinds=kinds, buckets={})
    users = np.unique(whole.user)
    for draw in range(draws):
        first = np.isin(whole.user, np.random.default_rng([2, draw]).choice(users, len(users) // 2, replace=False))
        now, before = (whole.keep(half) for half in (first, ~first))
        sides = [dataclasses.replace(counted, user=counted.user[half], kinds=kinds[half]) for half in (first, ~first)]
        watched = [*watch_shares(sides[0], sides[1], params.funnel, True), *watch_routing(now, before, params.funnel, True)]
        looks = [look_at("funnel", str(day), watched, params.drift.page_from, len(now.user))]
        told = quality.quality(quality.exposed_of(before), quality.exposed_of(now), labelled=True)
        looks.append(quality.look_at(str(day), told, params.estimate.margin, params.drift.page_from))
        found.update(finding.cause for look in looks for finding in look.findings)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("build/demo"), help="the workspace that `make demo` left (default build/demo)")
    parser.add_argument("--days", type=int, default=5, help="after the judging day (default 5)")
    parser.add_argument("--splits", type=int, default=100, help="of the judged day's users into halves (default 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hap-watched-") as scratch:
        version = max(int(path.stem.removeprefix("v")) for path in (args.root / "verdicts").glob("v*.json"))
        ws, days = go_on(args.root, Path(scratch) / "ws", args.days)
        rows = [watch(ws, version, day) for day in days]
        chance = split(ws, version, args.splits)
    about = {"cpus": os.cpu_count(), "machine": platform.machine(), "numpy": np.__version__, "version": f"v{version}"}
    if args.json:
        print(json.dumps({"environment": about, "days": rows, "splits": args.splits, "found_by_chance": chance}, indent=2))
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    heads = ["day", *SHOWN, "worst", "cpu_s"]
    shown = [{"day": "judged", "worst": "", "cpu_s": "", **rows[0]["reference"]}, *rows]
    cells = [[f"{row[name]:.4f}" if isinstance(row[name], float) else row[name] for name in heads] for row in shown]
    print(table([name.removeprefix("funnel.") for name in heads], cells))
    for row in rows:
        print(f"{row['day']}: {', '.join(row['findings']) or 'quiet'}")
    told = ", ".join(f"{cause} {count}" for cause, count in chance.most_common()) or "none"
    print(f"findings between two halves of one day's users, of {args.splits}: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
