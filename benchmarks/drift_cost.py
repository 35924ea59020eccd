"""What a look at the inputs costs: CPU seconds and peak memory of a fresh process, and nothing else in it.

    OMP_NUM_THREADS=1 python -m benchmarks.drift_cost [--rows 100000] [--looks 5] [--json]

A made-up day of so many requests beside two days of as many each, 30 compared columns. Asked twice: with drift.max_rows
at the rows, so that all of them are read and compared (100,000 requests and 100,000 candidates a side), and at its default, which
draws 20,000 of each by the portable key. CPU seconds are of the whole process; what of them went into imports, most of it Evidently's,
is told beside them. Medians of --looks processes, both ways in turn, and the least and the most, since the same work differs by a
fifth from one process to the next.
"""

import argparse
import datetime as dt
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hap import durable
from hap.days import day_range, start_of
from hap.memory import resident_mb
from hap.monitoring.drift import report_drift
from hap.params import Drift, Params, load_params
from hap.project import project_file
from hap.samples import partitions
from hap.samples.collect import parameters
from hap.workspace import Workspace

DAYS = day_range(dt.date(2026, 1, 1), dt.date(2026, 1, 3))
KINDS = np.array([0, 1, 1, 1, 2, 2, 3, 3, 4, 4], np.int8)
ITEMS, USERS, MORE = 3000, 25_000, 9  # columns beside those of the default parameters, so that 30 are compared


def wide_params(max_rows: int) -> Params:
    """The default parameters with dense item features that nothing but this benchmark has."""
    params = load_params(project_file("params.yaml"))
    dense = [{"name": f"extra_{number}", "type": "dense"} for number in range(MORE)]
    raw = params.model_dump(mode="json")
    raw["features"]["item"] += dense
    raw["drift"]["max_rows"] = max_rows
    return Params.model_validate(raw)


def write_day(ws: Workspace, params: Params, day: dt.date, requests: int) -> None:
    """A closed day of made-up samples."""
    rng, rows = np.random.default_rng(day.toordinal()), requests * KINDS.size
    ends, length = np.arange(requests + 1, dtype=np.int32) * KINDS.size, rng.integers(0, 20, requests)
    user, item = rng.integers(1, USERS, requests), rng.integers(1, ITEMS, rows)
    of_item = np.random.default_rng(7).random((ITEMS, 3 + MORE))  # what an item is stays, whichever day asks
    flat = {"kind": np.tile(KINDS, requests), "item_id": item, "author_id": item % 400 + 1, "content_type": item % 12 + 1}
    named = ["price", "quality", "age_hours", *(f"extra_{number}" for number in range(MORE))]
    flat |= {name: of_item[item, place].astype(np.float32) for place, name in enumerate(named)}
    history = pa.ListArray.from_arrays(np.append(0, np.cumsum(length)).astype(np.int32), pa.array(rng.random(length.sum())))
    columns = {
        "request_id": np.arange(1, requests + 1) + day.toordinal() * 10**7,
        "user_id": user, "age_band": user % 8 + 1, "activity": user * 31 % 97 / 97, "hour": rng.integers(1, 25, requests),
        "hist_age_hours": history,
        **{f"cand_{name}": pa.ListArray.from_arrays(ends, pa.array(values)) for name, values in flat.items()},
    }  # fmt: skip
    folder = ws.samples / f"day={day}"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "part-0.parquet", row_group_size=params.collect.row_group_requests)
    counted = {"requests": requests, "rows_by_kind": {}, "rows_by_bucket": {}, "items_unknown": 0, "samples_hash": ""}
    known = dict.fromkeys(("gn_shortfall", "requests_torn", "feedback_unmatched"), 0)
    known |= {"watermark": "", "labels": {}, "logged": {}, "sources": [], "quarantined": {}, "late": {}}
    durable.write_json(
        folder / partitions.MANIFEST, partitions.Manifest.of(day, start_of(day), parameters(params), counted, known).to_json()
    )
    (folder / "_SUCCESS").touch()


def look(root: Path, max_rows: int) -> dict[str, Any]:
    """The look at the last day, and what this process has used since it began."""
    import evidently.metrics  # noqa: F401

    imports_s = time.process_time()
    result = report_drift(Workspace(root), wide_params(max_rows), DAYS[:2], DAYS[2])
    used = resource.getrusage(resource.RUSAGE_SELF)
    compared = [column for column in result.columns.values() if column.value is not None]
    return {
        "max_rows": max_rows,
        "columns": len(compared),
        "rows": max(column.current_rows for column in compared),
        "import_cpu_s": round(imports_s, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_mib": round(resident_mb()),
        "drifted": list(result.drifted),
    }


def measure(rows: int, looks: int) -> list[dict[str, Any]]:
    """All rows, then the default, each look in a process of its own: medians, with the least and the most CPU seconds."""
    with tempfile.TemporaryDirectory(prefix="hap-cost-") as folder:
        ws, params = Workspace(Path(folder)), wide_params(rows)
        for day in DAYS:
            write_day(ws, params, day, rows)
        words = [sys.executable, "-m", "benchmarks.drift_cost", "--look", folder, "--json", "--rows"]
        asked = [rows, min(rows, Drift().max_rows)]
        found: list[list[dict[str, Any]]] = [[], []]
        for _ in range(looks):
            for seen, limit in zip(found, asked, strict=True):
                seen.append(json.loads(subprocess.run([*words, str(limit)], capture_output=True, text=True, check=True).stdout))
    return [summed_up(seen) for seen in found]


def summed_up(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Looks at the same rows as one."""
    spent = sorted(one["cpu_s"] for one in seen)
    medians = {key: round(statistics.median(one[key] for one in seen), 2) for key in ("import_cpu_s", "cpu_s", "peak_mib")}
    return {**seen[0], **medians, "looks": len(seen), "cpu_s_lo": spent[0], "cpu_s_hi": spent[-1]}


def text_of(one: dict[str, Any]) -> str:
    """Looks as a line."""
    spent = f"{one['cpu_s']:.1f} CPU s ({one['cpu_s_lo']:.1f} to {one['cpu_s_hi']:.1f}), {one['import_cpu_s']:.1f} of them imports"
    return f"{one['rows']:,} rows, {one['columns']} columns: {spent}, peak {one['peak_mib']:,.0f} MiB (medians of {one['looks']} processes)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="requests of the day (default 100000)")
    parser.add_argument("--looks", type=int, default=5, help="processes that look each way (default 5)")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)  # the process that is measured
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")
    args = parser.parse_args()
    found: Any = look(args.look, args.rows) if args.look else measure(args.rows, args.looks)
    if args.json or args.look:
        print(json.dumps(found))
        return 0
    for one in found:
        print(text_of(one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
