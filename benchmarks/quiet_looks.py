"""What the looks at traffic, labels and skew say of simulated days: nothing of quiet ones, one cause of each faulty one.

    python benchmarks/quiet_looks.py [--requests 1500] [--seeds 1 2 3] [--days 10] [--json]

Quiet: days 4 to the last of a simulation, each against the two days before it, at the default limits. Faulty: day 4 of the
first seed, its logs spoiled by one fault of the simulator at its default size, or by one of two that only a test of labels
needs: `less-interest` (0.4 of the clicks become rows without a click) and `no-click` (all of them do). Skew: 200 requests as
they were logged in truth are taken for what was served, and compared with the logs that the fault left; scores are not.
A ratio is a figure over its limit. `drift` is what `hapctl drift` says of the day, before and after it yields to labels.
"""

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.looks import labels, traffic
from flows.looks.subject import Subject
from hap.days import day_range
from hap.logs import contract, faults
from hap.logs.simulator import DEFAULTS, settings_digest, simulate
from hap.monitoring.drift import report_drift
from hap.monitoring.findings import Finding, Look
from hap.monitoring.labels import yielded
from hap.monitoring.served import Comparison
from hap.monitoring.skew import Served, look_at_served
from hap.params import Params, load_params
from hap.project import project_file
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.samples.lookup import write_logged
from hap.workspace import Workspace

FIRST = dt.date(2026, 1, 1)
JUDGED_FROM, REFERENCE_DAYS, SERVED = 4, 2, 200
OWN_FAULTS = {"less-interest": 0.4, "no-click": 1.0}  # share of clicks that become rows without one


def look_at(ws: Workspace, params: Params, calendar: Sequence[dt.date], place: int) -> tuple[Look, Look, float]:
    """Traffic and labels of one day against the days before it, and the CPU seconds that both took."""
    subject = Subject(ws, params, calendar[place], 1, tuple(calendar[place - REFERENCE_DAYS : place]))
    begun = time.process_time()
    found = traffic.look(subject), labels.look(subject)
    return *found, time.process_time() - begun


def quiet(params: Params, requests: int, seed: int, days: int) -> list[dict[str, Any]]:
    """Every judged day of a quiet simulation."""
    calendar = day_range(FIRST, FIRST + dt.timedelta(days=days - 1))
    with tempfile.TemporaryDirectory(prefix="hap-looks-") as folder:
        ws = Workspace(Path(folder))
        simulate(ws.logs(params), FIRST, days, requests, seed, params.features)
        for day in calendar:
            collect_day(ws, params, day)
        rows = []
        for place in range(JUDGED_FROM - 1, days):
            *looks, cpu_s = look_at(ws, params, calendar, place)
            ratios = {figure.name: ratio for look in looks for figure in look.figures if (ratio := _ratio(figure)) is not None}
            worst = max(ratios, key=lambda name: ratios[name])
            found = [finding for look in looks for finding in look.findings]
            about = {"seed": seed, "day": place + 1, "causes": [one.cause for one in found], "said": [one.said for one in found]}
            rows.append({**about, "worst": worst, "ratio": round(ratios[worst], 2), "cpu_s": round(cpu_s, 2)})
        return rows


def faulty(params: Params, requests: int, seed: int) -> list[dict[str, Any]]:
    """Day 4 with each fault."""
    calendar = day_range(FIRST, FIRST + dt.timedelta(days=JUDGED_FROM - 1))
    day = calendar[-1]
    with tempfile.TemporaryDirectory(prefix="hap-looks-") as folder:
        true = Workspace(Path(folder) / "true")
        simulate(true.logs(params), FIRST, JUDGED_FROM, requests, seed, params.features)
        for past in calendar:
            collect_day(true, params, past)
        chosen = np.sort(pq.read_table(partitions.parquet_files(true, [day])[0], columns=["request_id"])["request_id"].to_numpy())[:SERVED]
        write_logged(true, params, day, chosen, Path(folder) / "served.parquet")
        rows = []
        for name in (*faults.FAULTS, *OWN_FAULTS):
            ws = Workspace(Path(folder) / name)
            shutil.copytree(true.root, ws.root)
            _spoil(Path(ws.logs(params)), name, day, params, seed)
            collect_day(ws, params, day, reopen=True)
            seen_traffic, seen_labels, _ = look_at(ws, params, calendar, JUDGED_FROM - 1)
            drift = report_drift(ws, params, calendar[JUDGED_FROM - 1 - REFERENCE_DAYS : -1], day).look
            found = {
                "traffic": seen_traffic.findings,
                "labels": seen_labels.findings,
                "skew": _skew(ws, params, day, chosen, Path(folder) / "served.parquet").findings,
                "drift": drift.findings,
                "drift after labels": yielded(drift, seen_labels).findings,
            }
            rows.append({"fault": name, **{watcher: _told(findings) for watcher, findings in found.items()}})
            print(f"{name}: done", file=sys.stderr)
        return rows


def _spoil(logs: Path, name: str, day: dt.date, params: Params, seed: int) -> None:
    """Write the day's logs again as the fault leaves them; those of the day after hold its last feedback."""
    own = OWN_FAULTS.get(name)
    fault = None if own else faults.parse(name, day, None, seed, params.features, DEFAULTS.content_types)
    for table in contract.TABLES:
        for one in (day, day + dt.timedelta(days=1)):
            if not contract.has_day(logs, table, one):
                continue
            rows = pa.concat_tables([pq.ParquetFile(path).read() for path in contract.read_paths(logs, table, one)])
            if fault:
                rows = faults.distort(table, rows, [fault])
            elif table == "feedback":
                kept = np.random.default_rng(seed).random(rows.num_rows) >= (own or 0.0)
                clicks = pa.array(rows["click"].to_numpy() & kept)
                rows = rows.set_column(rows.column_names.index("click"), rows.schema.field("click"), clicks)
            contract.write_day(logs, table, one, rows)


def _skew(ws: Workspace, params: Params, day: dt.date, ids: np.ndarray, served: Path) -> Look:
    """Requests as they were in truth beside the logs that the fault left."""
    path = ws.state / "logged.parquet"
    write_logged(ws, params, day, ids, path)
    comparison = Comparison(params.skew.dense_tolerance, params.gate.max_parity, complete=True)
    truth = pq.read_table(served)
    comparison.add(
        truth.rename_columns([{"event_time": "served_at"}.get(name, name) for name in truth.column_names]),
        pq.read_table(path),
        params.features,
    )
    return look_at_served(str(day), Served(comparison, np.zeros(len(ids))), params.features, params.skew)


def _ratio(figure: Any) -> float | None:
    """How far a figure is from what it is compared with, over how far it may be."""
    if figure.value is None or figure.most is None:
        return None
    if figure.reference is None:
        return figure.value / figure.most if figure.most else None
    bound = figure.most if figure.value >= figure.reference else figure.least
    return abs(figure.value - figure.reference) / abs(bound - figure.reference) if bound is not None and bound != figure.reference else None


def _told(findings: Sequence[Finding]) -> list[str]:
    return [f"{one.cause} {one.severity} {one.excess:.1f}" for one in findings]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500, help="of each day (default 1500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of quiet simulations (default 1 2 3)")
    parser.add_argument("--days", type=int, default=10, help="of a quiet simulation (default 10)")
    parser.add_argument("--no-faults", action="store_true", help="quiet days alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args()
    base = load_params(project_file("params.yaml"))
    days = []
    for seed in args.seeds:
        days += quiet(base.model_copy(update={"seed": seed}), args.requests, seed, args.days)
        print(f"seed {seed}: done", file=sys.stderr)
    spoiled = [] if args.no_faults else faulty(base.model_copy(update={"seed": args.seeds[0]}), args.requests, args.seeds[0])
    about = {"cpus": os.cpu_count(), "machine": platform.machine(), "duckdb": duckdb.__version__, "settings": settings_digest()[:12]}
    if args.json:
        print(json.dumps({"environment": about, "requests": args.requests, "quiet": days, "faulty": spoiled}, indent=2))
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items()) + f", {args.requests} requests a day")
    for row in days:
        said = "; ".join(row["said"]) or "quiet"
        print(f"seed {row['seed']} day {row['day']:>2}  worst {row['worst']} {row['ratio']:.2f}  {row['cpu_s']:.2f} CPU s  {said}")
    print(f"{sum(bool(row['causes']) for row in days)} alarms on {len(days)} quiet days")
    for row in spoiled:
        print(row.pop("fault"))
        for watcher, told in row.items():
            print(f"    {watcher:<19} {', '.join(told) or '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
