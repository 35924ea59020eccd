"""What skew says of each fault of the logs, and labels of two faults that no other watcher tells.

    python benchmarks/spoiled_days.py [--requests 1500] [--seed 1] [--json]

Day 4 of a simulation against the two days before it, at the default limits, its logs spoiled by one fault of the simulator at its
default size, or by one of two that only a test of labels needs: `less-interest` (0.4 of the clicks become rows without a click) and
`no-click` (all of them do). Skew: 200 requests as they were logged in truth are taken for what was served, and compared with the logs
that the fault left; scores are not. What the whole product says of the simulator's faults is `benchmarks/drift.py`'s.
"""

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it alone

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.drift_worlds import FIRST, rewrite
from flows.looks import labels
from flows.looks.subject import Subject
from hap.days import day_range
from hap.logs import faults
from hap.logs.simulator import DEFAULTS, settings_digest, simulate
from hap.monitoring.findings import Finding, Look
from hap.monitoring.served import Comparison
from hap.monitoring.skew import Served, look_at_served
from hap.params import Params, load_params
from hap.project import project_file
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.samples.lookup import write_logged
from hap.workspace import Workspace

JUDGED, REFERENCE_DAYS, SERVED = 4, 2, 200
OWN_FAULTS = {"less-interest": 0.4, "no-click": 1.0}  # share of clicks that become rows without one


def spoiled(params: Params, requests: int, seed: int) -> list[dict[str, Any]]:
    """The judged day with each fault."""
    calendar = day_range(FIRST, FIRST + dt.timedelta(days=JUDGED - 1))
    day = calendar[-1]
    with tempfile.TemporaryDirectory(prefix="hap-spoiled-") as folder:
        true = Workspace(Path(folder) / "true")
        simulate(true.logs(params), FIRST, JUDGED, requests, seed, params.features)
        for past in calendar:
            collect_day(true, params, past)
        chosen = np.sort(pq.read_table(partitions.parquet_files(true, [day])[0], columns=["request_id"])["request_id"].to_numpy())[:SERVED]
        write_logged(true, params, day, chosen, Path(folder) / "served.parquet")
        rows = []
        for name in (*(name for name in faults.FAULTS if name not in faults.WORLD), *OWN_FAULTS):
            ws = Workspace(Path(folder) / name)
            shutil.copytree(true.root, ws.root)
            rewrite(Path(ws.logs(params)), day, lambda table, rows, name=name: _wrong(name, table, rows, day, params, seed))
            collect_day(ws, params, day, reopen=True)
            seen = labels.look(Subject(ws, params, day, 1, tuple(calendar[-1 - REFERENCE_DAYS : -1])))
            skew = _skew(ws, params, day, chosen, Path(folder) / "served.parquet")
            rows.append({"fault": name, "skew": _told(skew.findings), "labels": _told(seen.findings)})
            print(f"{name}: done", file=sys.stderr)
        return rows


def _wrong(name: str, table: str, rows: pa.Table, day: dt.date, params: Params, seed: int) -> pa.Table:
    """A table as the fault leaves it."""
    share = OWN_FAULTS.get(name)
    if share is None:
        return faults.distort(table, rows, [faults.parse(name, day, None, seed, params.features, DEFAULTS.content_types)])
    if table != "feedback":
        return rows
    kept = np.random.default_rng(seed).random(rows.num_rows) >= share
    clicks = pa.array(rows["click"].to_numpy() & kept)
    return rows.set_column(rows.column_names.index("click"), rows.schema.field("click"), clicks)


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


def _told(findings: Sequence[Finding]) -> list[str]:
    return [f"{one.cause} {one.severity} {one.excess:.1f}" for one in findings]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500, help="of each day (default 1500)")
    parser.add_argument("--seed", type=int, default=1, help="of the simulation (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args()
    params = load_params(project_file("params.yaml")).model_copy(update={"seed": args.seed})
    rows = spoiled(params, args.requests, args.seed)
    about = {"cpus": os.cpu_count(), "machine": platform.machine(), "duckdb": duckdb.__version__, "settings": settings_digest()[:12]}
    if args.json:
        print(json.dumps({"environment": about, "requests": args.requests, "faults": rows}, indent=2))
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items()) + f", {args.requests} requests a day")
    for row in rows:
        print(f"{row['fault']:<16} skew: {', '.join(row['skew']) or '-'}   labels: {', '.join(row['labels']) or '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
