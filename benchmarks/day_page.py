"""What the page of a day weighs and takes, and what it would with pictures by matplotlib.

    OMP_NUM_THREADS=1 python benchmarks/day_page.py [--figures 60] [--days 30] [--rounds 5] [--json]

Made-up reports: each figure wanders below its limit, two are beyond it for the last three days. CPU seconds are the process's own; the
least of the rounds, since other work on the machine only adds. A picture of matplotlib's is the same trend in the style of the version
page (hap/pages/figures.py).
"""

import argparse
import datetime as dt
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from hap.days import day_range
from hap.monitoring.findings import Figure, Finding
from hap.monitoring.report import Report, Seen
from hap.pages import figures
from hap.pages.drift import Page, render
from hap.pages.trend import trend
from hap.registry.incidents import incidents

LAST = dt.date(2026, 3, 31)


def made_up(day: dt.date, count: int, wrong: bool) -> Report:
    """One day of so many figures."""
    place = day.toordinal()
    values = [0.05 + 0.03 * math.sin(place / 3 + number) for number in range(count)]
    values[:2] = [0.4, 0.3] if wrong else values[:2]
    shown = tuple(
        Figure(name=f"inputs.f{n}", title=f"figure {n}", value=value, most=0.12, reference=0.05) for n, value in enumerate(values)
    )
    found = tuple(
        Finding(cause=f"input:f{n}", severity="page", said=f"f{n} moved", value=values[n], limit=0.12) for n in range(2 if wrong else 0)
    )
    return Report(
        day=str(day), labels="matured", champion=1, reference=(str(LAST),),
        seen=(Seen(watcher="inputs", title="Inputs", findings=found, figures=shown),),
    )  # fmt: skip


def by_matplotlib(series: list[Figure | None]) -> str:
    """The same trend in the version page's style."""

    def draw() -> Any:
        figure, (axes,) = figures.panels(1, 1.4, width=3.4)
        values = [math.nan if one is None or one.value is None else one.value for one in series]
        axes.plot(range(len(values)), values, color=figures.INK)
        axes.axhspan(0.12, 1.1 * max(0.12, *values), color=figures.BAND)
        return figure

    return figures.picture(draw)


def least_cpu_s(rounds: int, work: Callable[[], object]) -> float:
    """CPU seconds of the quickest round, after one that is not counted."""
    work()
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=int, default=60, help="watched figures of a day (default 60)")
    parser.add_argument("--days", type=int, default=30, help="of the trends (default 30)")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args()
    days = day_range(LAST - dt.timedelta(days=args.days - 1), LAST)
    reports = [made_up(day, args.figures, day > LAST - dt.timedelta(days=3)) for day in days]
    page = Page(report=reports[-1], earlier=tuple(reports[:-1]), incidents=incidents([]), rows=(), root="/srv/feeds", there=frozenset())
    series: list[Figure | None] = [report.seen[0].figures[0] for report in reports]
    ours, theirs = trend(series, days[0], []), by_matplotlib(series)
    found = {
        "figures": args.figures,
        "page_bytes": len(render(page).encode()),
        "page_cpu_s": least_cpu_s(args.rounds, lambda: render(page)),
        "picture_bytes": {"drawn here": len(ours), "matplotlib": len(theirs)},
        "picture_cpu_s": {
            "drawn here": least_cpu_s(args.rounds, lambda: trend(series, days[0], [])),
            "matplotlib": least_cpu_s(args.rounds, lambda: by_matplotlib(series)),
        },
    }
    about = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "matplotlib": version("matplotlib"),
    }
    if args.json:
        print(json.dumps({"environment": about, **found}, indent=2))
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"page of {args.figures} figures over {args.days} days: {found['page_bytes'] / 1024:.0f} KiB, {found['page_cpu_s']:.2f} CPU s")
    for name in ("drawn here", "matplotlib"):
        print(f"one picture {name:<11} {found['picture_bytes'][name] / 1024:5.1f} KiB, {1000 * found['picture_cpu_s'][name]:6.2f} CPU ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
