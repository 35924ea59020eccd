"""What `hapctl drift` says of simulated days: nothing, it should be, of quiet ones, and the right column of faulty ones.

    python benchmarks/quiet_days.py [--requests 1500] [--seeds 1 2 3] [--json]

Quiet: days 4 to 10 of a simulation of ten, each against the two days before it, at the default thresholds. Faulty: day 4
with one fault of its default size, against the same two days, first seed. A column's ratio is its value over its threshold.
"""

import argparse
import datetime as dt
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hap.days import day_range
from hap.logs import faults
from hap.logs.simulator import DEFAULTS, settings_digest, simulate
from hap.monitoring.drift import report_drift
from hap.params import Params, load_params
from hap.project import project_file
from hap.samples.collect import collect_day
from hap.workspace import Workspace

FIRST = dt.date(2026, 1, 1)
DAYS, JUDGED_FROM, REFERENCE_DAYS = 10, 4, 2


def judge(params: Params, requests: int, seed: int, days: int, first_judged: int, fault: str | None) -> list[dict[str, Any]]:
    """Simulate `days` days and judge those from the `first_judged`-th on."""
    calendar = day_range(FIRST, FIRST + dt.timedelta(days=days - 1))
    with tempfile.TemporaryDirectory(prefix="hap-quiet-") as folder:
        ws = Workspace(Path(folder))
        wrong = [faults.parse(fault, calendar[-1], None, seed, params.features, DEFAULTS.content_types)] if fault else []
        simulate(ws.logs(params), FIRST, days, requests, seed, params.features, wrong=wrong)
        for day in calendar:
            collect_day(ws, params, day)
        found = []
        for place in range(first_judged - 1, days):
            result = report_drift(ws, params, calendar[place - REFERENCE_DAYS : place], calendar[place])
            ratios = {name: c.value / c.threshold for name, c in result.columns.items() if c.value is not None and c.threshold}
            worst = max(ratios, key=lambda name: ratios[name])
            about = {"requests": requests, "seed": seed, "fault": fault, "day": place + 1, "drifted": list(result.drifted)}
            found.append({**about, "worst": worst, "ratio": round(ratios[worst], 2)})
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500, help="of each day (default 1500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of quiet simulations (default 1 2 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args()
    base = load_params(project_file("params.yaml"))
    rows = []
    for seed in args.seeds:
        rows += judge(base.model_copy(update={"seed": seed}), args.requests, seed, DAYS, JUDGED_FROM, None)
        print(f"seed {seed}: done", file=sys.stderr)
    for fault in faults.FAULTS:
        params = base.model_copy(update={"seed": args.seeds[0]})
        rows += judge(params, args.requests, args.seeds[0], JUDGED_FROM, JUDGED_FROM, fault)
        print(f"{fault}: done", file=sys.stderr)
    quiet = [row for row in rows if row["fault"] is None]
    summary = {"quiet_days": len(quiet), "alarms": sum(bool(row["drifted"]) for row in quiet)}
    about = {"cpus": os.cpu_count(), "machine": platform.machine(), "evidently": version("evidently"), "settings": settings_digest()[:12]}
    if args.json:
        print(json.dumps({"environment": about, "summary": summary, "days": rows}, indent=2))
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for row in rows:
        said = ", ".join(row["drifted"]) or "quiet"
        print(f"{row['fault'] or 'none':<16} seed {row['seed']} day {row['day']:>2}  worst {row['worst']} {row['ratio']:.2f}  {said}")
    print(f"{summary['alarms']} alarms on {summary['quiet_days']} quiet days")
    return 0


if __name__ == "__main__":
    sys.exit(main())
