"""What the watch says of quiet days and of faults, beside Evidently's default preset, and what a look at the inputs costs.

    OMP_NUM_THREADS=1 python benchmarks/drift.py --quick [--json]
    OMP_NUM_THREADS=1 python benchmarks/drift.py [--seed 1] [--days 30] [--parts quiet faults cost] [--json]

Whole product: `flows.drift.look_at_day` with every watcher, on simulated days, at the default limits. A champion is trained on two
days by the real steps, judged on the third, and serves for the next --serves days, as one does that is promoted every second night. (A
champion that serves for longer gets worse, and the watch says so: that is no false alarm, and not asked here.) A false alarm is an
incident of severity page or ticket that a quiet day opens. A fault begins on the first watched day, with half of its documented size,
with it and with double (docs/simulator.md; of prices' factor, what lies above 1). It is caught on the first day that opens the incident
whose cause names it: 0 is the day on which it has its size, and the slow one, which takes five days, may be caught before. null: not
within the days looked at.

Evidently: DataDriftPreset() on the frames that hap's own watcher of inputs reads, hap's sampling and columns included. Its verdict is
the dataset's (half of the columns drifted); `any_column` is what it would be if one column were enough, where a fault is caught by
the column that names it.

--quick: 10 quiet days scaled to 30, documented sizes alone, fewer requests. It takes minutes; the whole one takes about an hour of CPU.
"""

import argparse
import datetime as dt
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it alone

from benchmarks import drift_cost
from benchmarks.drift_rival import Preset, default_preset
from benchmarks.drift_worlds import DAY, Case, enthrone, make, sizes_of, spoiled, watched_days
from flows.bundles import bundle_of
from flows.drift import look_at_day
from hap.days import parse_day, start_of
from hap.logs.simulator import settings_digest
from hap.monitoring.findings import Finding
from hap.registry.ledger import open_ledger
from hap.samples.collect import collect_day
from hap.tables import table
from hap.workspace import Workspace

MONTH = 30
SERVES = ".hap/serves"  # stands once the first champion does
LOOK_HOURS = 26.5  # from a day's beginning: 02:30 of the next one, when drift.cron looks at it
# The cause that names a fault, and the columns of Evidently's that do.
NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "new-category": ("input:cand_content_type", ("cand_content_type",)),
    "broken-feature": ("input:cand_quality", ("cand_quality", "cand_quality_present")),
    "shifted-prices": ("input:cand_price", ("cand_price",)),
    "late-logs": ("traffic:late", ()),  # what comes too late is in no frame
    "click-outage": ("labels:outage", ("click_rate", "GN_per_EP")),
    "interest-drift": ("input:cand_content_type", ("cand_content_type",)),
}


@dataclass
class Watched:
    """A day as it was seen: the incidents that it opened (none where hap was not asked), and what Evidently's preset said."""

    day: dt.date
    opened: list[Finding]
    preset: Preset


@dataclass
class Tally:
    """What was asked of one way to watch."""

    alarms: int = 0
    caught: dict[str, dict[str, int | None]] = field(default_factory=dict)

    def to_json(self, days: int) -> dict[str, Any]:
        """The two keys of the table; without quiet days the first is null."""
        return {"false_alarms_per_30_days": round(self.alarms * MONTH / days, 2) if days else None, "caught": self.caught}


def watch(ws: Workspace, day: dt.date, *, by_hap: bool = True) -> Watched:
    """One look at a day, and Evidently's, which is all that is asked of a fault that hap has caught."""
    params, opened = ws.params(), []
    if by_hap:
        looked = look_at_day(ws, day, start_of(day) + dt.timedelta(hours=LOOK_HOURS))
        opened = [finding for finding in looked.told.changes.opened if finding.severity != "info"]
    else:
        collect_day(ws, params, day)
    champion = open_ledger(ws, params).served()
    assert champion is not None  # `enthrone` came first
    window = [parse_day(text) for text in bundle_of(ws, params, champion).info["window"]]
    return Watched(day, opened, default_preset(ws, params, window, day))


def watch_quiet(ws: Workspace, days: Sequence[dt.date], serves: int) -> list[Watched]:
    """Every quiet day; the first champion serves already, another comes after every `serves` days."""
    seen = []
    for place, day in enumerate(days):
        if place and place % serves == 0:
            enthrone(ws, day - DAY)
        seen.append(watch(ws, day))
        say(f"quiet {day}: {_named(seen[-1].opened) or 'quiet'}; Evidently: {_columns(seen[-1].preset)}")
    return seen


def watch_fault(ws: Workspace, folder: Path, case: Case, requests: int, after: int) -> tuple[list[Watched], dict[str, int | None]]:
    """The days of a fault, until every way has caught it or `after` days beyond the one on which it has its size; and the day by way."""
    days = watched_days(case.ramp + after + 1)
    copy = spoiled(ws, folder, case, requests, days)
    cause, columns = NAMED[case.fault]
    seen: list[Watched] = []
    caught: dict[str, int | None] = dict.fromkeys(("hap", "evidently", "any_column"))
    for place, day in enumerate(days):
        one = watch(copy, day, by_hap=caught["hap"] is None or place <= case.ramp)
        seen.append(one)
        found = {
            "hap": cause in {finding.cause for finding in one.opened},
            "evidently": one.preset.dataset,
            "any_column": bool(one.preset.columns & set(columns)),
        }
        caught |= {way: place - case.ramp for way, yes in found.items() if yes and caught[way] is None}
        say(f"{case.fault} {case.size:g} {day}: {_named(one.opened) or 'nothing new'}; Evidently: {_columns(one.preset)}")
        if None not in caught.values() and place >= case.ramp:
            break
    return seen, caught


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All parts that are asked for."""
    ways = {name: Tally() for name in ("hap", "evidently", "any_column")}
    about: dict[str, Any] = {name: version(name) for name in ("evidently", "duckdb", "pandas")}
    about |= {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "settings": settings_digest()[:12],
    }
    about |= {"requests": args.requests, "seed": args.seed, "serves": args.serves, "quiet_days": args.days if "quiet" in args.parts else 0}
    details: dict[str, Any] = {"quiet": [], "faults": []}
    with tempfile.TemporaryDirectory(prefix="hap-drift-") as scratch:
        root = args.root or Path(scratch)
        if {"quiet", "faults"} & set(args.parts) and not (root / "ws" / SERVES).exists():
            longest = max(args.days if "quiet" in args.parts else 0, 5 + args.after)
            enthrone(make(root / "ws", args.requests, longest, args.seed, args.max_rows), watched_days(1)[0] - DAY)
            (root / "ws" / SERVES).touch()
            say("a champion serves")
        ws = Workspace(root / "ws")
        for place, case in enumerate(_cases(args) if "faults" in args.parts else []):
            seen, caught = watch_fault(ws, Path(scratch) / f"fault-{place}", case, args.requests, args.after)
            for way, day in caught.items():
                ways[way].caught.setdefault(case.fault, {})[f"{case.size:g}"] = day
            details["faults"].append({"fault": case.fault, "size": case.size, "days": [_row(one) for one in seen]})
        if "quiet" in args.parts:
            quiet = watch_quiet(ws, watched_days(args.days), args.serves)  # last, since it collects the days that faults spoil in copies
            ways["hap"].alarms = sum(len(one.opened) for one in quiet)
            ways["evidently"].alarms = sum(one.preset.dataset for one in quiet)
            ways["any_column"].alarms = sum(bool(one.preset.columns) for one in quiet)
            details["quiet"] = [_row(one) for one in quiet]
    cost = drift_cost.measure(args.rows, args.looks) if "cost" in args.parts else []
    told = {name: tally.to_json(about["quiet_days"]) for name, tally in ways.items()}
    return {
        "environment": about,
        **told["hap"],
        "evidently": {**told["evidently"], "any_column": told["any_column"]},
        "cpu_s": cost[0]["cpu_s"] if cost else None,
        "peak_mib": cost[0]["peak_mib"] if cost else None,
        "cost": cost,
        "days": details,
    }


def _cases(args: argparse.Namespace) -> list[Case]:
    return [Case(name, size) for name in args.faults for size in (sizes_of(name) if args.sizes == "all" else sizes_of(name)[1:2])]


def _row(one: Watched) -> dict[str, Any]:
    said = [{"cause": finding.cause, "severity": finding.severity, "said": finding.said} for finding in one.opened]
    return {"day": str(one.day), "opened": said, "evidently": {"dataset": one.preset.dataset, "columns": sorted(one.preset.columns)}}


def _named(findings: Sequence[Finding]) -> str:
    return ", ".join(f"{one.cause} {one.severity} {one.excess:.1f}" for one in findings)


def _columns(preset: Preset) -> str:
    return f"{len(preset.columns)} columns{', so the dataset' if preset.dataset else ''}"


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def text_of(found: dict[str, Any]) -> str:
    """The tables, as docs/results.md shows them."""
    rivals = (found, found["evidently"], found["evidently"]["any_column"])
    lines = [", ".join(f"{key} {value}" for key, value in found["environment"].items())]
    if found["environment"]["quiet_days"]:
        alarms = ", ".join(str(one["false_alarms_per_30_days"]) for one in rivals)
        lines.append(f"false alarms per 30 days: {alarms} (hap, Evidently, any column)")
    rows = [
        [fault, size, *["never" if (day := one["caught"][fault][size]) is None else str(day) for one in rivals]]
        for fault, sizes in found["caught"].items()
        for size in sizes
    ]
    if rows:
        lines.append(table(["fault", "size", "hap", "Evidently", "any column"], rows))
    lines += [drift_cost.text_of(one) for one in found["cost"]]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 quiet days, documented sizes, small days")
    parser.add_argument("--seed", type=int, default=1, help="of the world and of hap (default 1)")
    parser.add_argument("--days", type=int, help="quiet ones (default 30, quick 10)")
    parser.add_argument("--serves", type=int, default=2, help="quiet days that a champion serves for (default 2)")
    parser.add_argument("--requests", type=int, help="of a day (default 1500, quick 800)")
    parser.add_argument("--root", type=Path, help="where the workspace stays, and is taken up again with its first champion")
    parser.add_argument("--parts", nargs="+", choices=("quiet", "faults", "cost"), default=["quiet", "faults", "cost"], help="of the table")
    parser.add_argument("--faults", nargs="+", choices=tuple(NAMED), default=list(NAMED), help="that are tried (default all)")
    parser.add_argument("--sizes", choices=("documented", "all"), help="of the faults (default all, quick documented)")
    parser.add_argument("--rows", type=int, default=100_000, help="whose cost is measured (default 100000)")
    parser.add_argument("--looks", type=int, help="processes whose median cost is taken (default 5, quick 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args(words)
    args.days = args.days or (10 if args.quick else 30)
    args.requests = args.requests or (800 if args.quick else 1500)
    args.sizes = args.sizes or ("documented" if args.quick else "all")
    args.looks = args.looks or (3 if args.quick else 5)
    args.after = 0 if args.quick else 2
    args.max_rows = 5000 if args.quick else None
    found = run(args)
    print(json.dumps(found, indent=2) if args.json else text_of(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
