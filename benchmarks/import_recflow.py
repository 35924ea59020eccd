"""Memory and time of `hapctl import recflow` against the number of days: it reads a day at a time, so memory stays flat.

    python benchmarks/import_recflow.py [--requests 4000] [--json]

Writes folders of RecFlow's layout with made-up rows (50 videos of each request, 50 past clicks), 7, 14 and 28 days long,
into a temporary place, and imports each in a process of its own. Peak memory is that process's largest resident set.
"""

import argparse
import datetime as dt
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

FIRST = dt.date(2024, 1, 13)
VIDEOS = 50  # of each request: 5 shown, 15 ranked, 30 pre-ranked
POOL = 200_000
VIDEO = ("video_id", "author_id", "category_level_one", "category_level_two", "upload_type", "upload_timestamp", "duration")


def write_folder(src: Path, days: int, requests: int) -> None:
    """`days` days of `requests` requests in RecFlow's files and dtypes."""
    for name in ("all_stage", "realshow", "seq_effective_50_dict", "others/realshow_video_info_daily"):
        (src / name).mkdir(parents=True)
    for place in range(days):
        day, rng = FIRST + dt.timedelta(days=place), np.random.default_rng(place)
        start_ms = int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp() * 1000)
        at = np.sort(rng.integers(0, 86_400_000, requests)) + start_ms
        ids = place * requests + np.arange(requests)
        video = np.stack([rng.choice(POOL, VIDEOS, replace=False) for _ in range(requests)]).ravel()
        slot = np.tile(np.arange(VIDEOS), requests)
        shown, ranked = slot < 5, slot < 20
        columns = {"request_id": np.repeat(ids, VIDEOS), "request_timestamp": np.repeat(at, VIDEOS)}
        for name in ("user_id", "device_id", "age", "gender", "province"):
            columns[name] = np.repeat(rng.integers(0, 50, requests), VIDEOS)
        columns |= {
            "video_id": video, "author_id": video % 5000, "category_level_one": video % 30, "category_level_two": video % 200,
            "upload_type": video % 9, "upload_timestamp": 1_690_000_000 + video, "duration": 10_000 + video,
            "realshow": shown, "rerank_pos": shown, "rerank_neg": slot < 0, "rank_pos": shown, "rank_neg": ranked & ~shown,
            "coarse_neg": ~ranked, "prerank_neg": slot < 0,
            "rank_index": np.where(ranked, slot + 1, 0), "rerank_index": np.where(shown, slot + 1, 0),
        }  # fmt: skip
        clicked = shown & (rng.random(len(slot)) < 0.3)
        columns |= {"playing_time": clicked * 20_000, "effective_view": clicked, "long_view": clicked}
        columns |= {name: np.zeros(len(slot)) for name in ("like", "follow", "forward", "comment")}
        table = pa.table({name: np.asarray(values).astype(np.int64) for name, values in columns.items()})
        exposed = table.filter(pa.array(shown))
        for name, rows in (("all_stage", table), ("realshow", exposed), ("others/realshow_video_info_daily", exposed.select(VIDEO))):
            feather.write_feather(rows, src / name / f"{day}.feather")
        past = np.zeros((requests, 50, 10), np.int64)
        past[..., 0] = rng.integers(0, POOL, (requests, 50))
        past[..., 7] = np.sort(at[:, None] - rng.integers(1, 10**9, (requests, 50)), axis=1)
        with open(src / "seq_effective_50_dict" / f"{day}.pkl", "wb") as handle:
            pickle.dump(dict(zip(ids.tolist(), past, strict=True)), handle)


def measure(src: Path, root: Path) -> dict[str, float]:
    """Import in this process: CPU seconds, wall seconds, peak MB."""
    from hap.logs.recflow import RECFLOW_PARAMS, import_recflow
    from hap.memory import resident_mb
    from hap.workspace import Workspace

    root.mkdir()
    (root / "params.yaml").write_text(RECFLOW_PARAMS)
    begun, used = time.perf_counter(), time.process_time()
    days = import_recflow(src, Workspace(root))
    peak = resident_mb()
    return {"days": len(days), "cpu_s": time.process_time() - used, "wall_s": time.perf_counter() - begun, "peak_mb": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000, help="requests of each day")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("SRC", "ROOT"), help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.one:
        print(json.dumps(measure(Path(said.one[0]), Path(said.one[1]))))
        return 0
    results = []
    for days in (7, 14, 28):
        with tempfile.TemporaryDirectory(prefix="hap-recflow-") as folder:
            src, root = Path(folder) / "src", Path(folder) / "ws"
            write_folder(src, days, said.requests)
            command = [sys.executable, __file__, "--one", str(src), str(root)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
    rows = said.requests * VIDEOS
    host = f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, duckdb {version('duckdb')}"
    if said.json:
        print(json.dumps({"host": host, "rows_per_day": rows, "runs": results}))
        return 0
    print(f"{host}; {rows:,} stage rows a day")
    for run in results:
        print(f"{run['days']:>3.0f} days  {run['cpu_s']:7.1f} CPU s  {run['wall_s']:7.1f} s  peak {run['peak_mb']:7.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
