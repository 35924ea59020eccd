"""What one day's collection costs, next to hand-written DuckDB SQL and pandas (docs/results.md, "Collection").

    python -m benchmarks.collect --rows 10000000 --json
    python -m benchmarks.collect --rows 30000000 --engines hap --memory-limit 600MB
    python -m benchmarks.collect --rows 1000000 --engines hap --days 7

A day of about N candidates is generated (benchmarks/collect_logs.py). Each engine runs in a fresh process: `hap` is what
`hapctl collect` calls after the log contract is checked, `checked` is all of it with the checks, `sql` and `pandas` are
benchmarks/collect_rivals.py. CPU is user and system time of the whole process with its imports and, for spark, its JVM;
memory is the largest resident size. Nothing is compared unless every engine wrote the same bytes.
"""

import argparse
import datetime as dt
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

FIRST_DAY = dt.date(2026, 1, 1)
ENGINES = ("hap", "checked", "sql", "pandas", "spark")
NAMED = ("duckdb", "ibis-framework", "pyarrow", "pandas", "numpy")


def usage() -> float:
    """User and system seconds of this process and of the children it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def params_of(root: Path, memory_limit: str, threads: int, engine: str = "duckdb") -> Any:
    """A new workspace's parameters with the machine's own."""
    from hap.params import load_params
    from hap.project import project_file

    params = load_params(project_file("params.yaml"))
    machine = {"memory_limit": memory_limit, "threads": threads, "engine": engine, "spark_master": f"local[{threads}]"}
    logs = params.logs.model_copy(update={"path": str(root)})
    return params.model_copy(update={"collect": params.collect.model_copy(update=machine), "logs": logs})


def write_samples(engine: str, root: Path, params: Any) -> dict[str, Any]:
    """Collect the first day without checks into a file that is thrown away; returns the writer's counts and hash."""
    from hap.days import default_as_of
    from hap.logs import contract
    from hap.samples.collect import _write

    as_of, rows = default_as_of(FIRST_DAY, params.collect.label_delay_hours), params.collect.row_group_requests
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        out = Path(scratch) / "part-0.parquet"
        if engine in ("sql", "pandas"):
            from benchmarks.collect_rivals import RIVALS

            return _write(RIVALS[engine](root, FIRST_DAY, as_of, params), out, rows)
        from hap.samples import engines
        from hap.samples.expression import LogTables, sample_table

        con = engines.connect(params, Path(scratch))
        try:
            logs = LogTables(
                **{name: engines.read_parquet(con, contract.read_paths(root, name, FIRST_DAY), name) for name in contract.TABLES}
            )
            samples = sample_table(logs, params, as_of, engines.row_count(con, logs.items))
            return _write(engines.batches(con, samples, rows), out, rows)
        finally:
            engines.disconnect(con)


def run(engine: str, root: Path, days: int, memory_limit: str, threads: int) -> dict[str, Any]:
    """One measurement, in this process: `checked` collects `days` days as `hapctl collect` does, the others the first day."""
    from hap.memory import resident_mb

    begin = time.perf_counter()
    params = params_of(root, memory_limit, threads, "spark" if engine == "spark" else "duckdb")
    more: dict[str, Any] = {}
    if engine == "checked":
        from hap.samples.collect import collect_day
        from hap.workspace import Workspace

        ws = Workspace(root / "workspace")
        hashes = [collect_day(ws, params, FIRST_DAY + dt.timedelta(days=n)).samples_hash for n in range(days)]
        first_cpu, digest = usage(), hashes[0]
        collect_day(ws, params, FIRST_DAY)
        more = {"rerun_cpu_s": round(usage() - first_cpu, 4)}
    else:
        digest = write_samples(engine, root, params)["samples_hash"]
    peak_mb = max(resident_mb(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    seconds = {"cpu_s": round(usage(), 2), "wall_s": round(time.perf_counter() - begin, 2)}
    return {**seconds, "peak_mb": round(peak_mb), "samples_hash": digest, **more}


def measure(engine: str, args: argparse.Namespace, root: Path, days: int = 1) -> dict[str, Any]:
    """`run` in a fresh process, the one with the least CPU of `--repeat`."""
    words = [
        "--run",
        engine,
        "--scratch",
        str(root),
        "--days",
        str(days),
        "--memory-limit",
        args.memory_limit,
        "--threads",
        str(args.threads),
    ]
    found = []
    for _ in range(args.repeat):
        shutil.rmtree(root / "workspace", ignore_errors=True)
        done = subprocess.run([sys.executable, "-m", "benchmarks.collect", *words], capture_output=True, text=True)
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if "Error" in line] or [f"exit {done.returncode}"]
            return {"failed": told[-1][:200]}
        found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{engine}: {found}", file=sys.stderr, flush=True)
    return min(found, key=lambda one: one["cpu_s"])


def environment() -> dict[str, Any]:
    """Hardware, versions and the commit measured."""
    listing = Path("/proc/cpuinfo")  # Linux only
    lines = listing.read_text().splitlines() if listing.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory_gb = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent)
    facts = {"cpu": cpu, "cpus": os.cpu_count(), "memory_gb": memory_gb, "load_1_min": round(os.getloadavg()[0], 1)}
    facts |= {"python": platform.python_version(), **{name: version(name) for name in NAMED}}
    return facts | {"commit": commit.stdout.strip() or "unknown"}


def ratios(engines: dict[str, dict[str, Any]]) -> dict[str, float]:
    """CPU and memory of hap over those of its rivals; CPU of a rerun over that of the first run."""
    found = {}
    for rival in ("pandas", "sql"):
        if {"hap", rival} <= engines.keys() and "failed" not in engines["hap"] and "failed" not in engines[rival]:
            for unit in ("cpu_s", "peak_mb"):
                found[f"hap/{rival} {unit}"] = round(engines["hap"][unit] / engines[rival][unit], 3)
    if "rerun_cpu_s" in engines.get("checked", {}):
        found["rerun/first cpu_s"] = round(engines["checked"]["rerun_cpu_s"] / engines["checked"]["cpu_s"], 4)
    return found


def backfill(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """`--days` days collected by one process, and by one process each."""
    together = measure("checked", args, root, args.days)
    single = measure("checked", args, root)
    return {"days": args.days, "one_process_cpu_s": together["cpu_s"], "single_day_cpu_s": single["cpu_s"],
            "backfill/days cpu_s": round(together["cpu_s"] / (args.days * single["cpu_s"]), 3)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="candidates of a day (default 1000000)")
    parser.add_argument("--engines", default="hap,checked,sql,pandas", help=f"some of {','.join(ENGINES)} (default all but spark)")
    parser.add_argument("--days", type=int, default=1, help="also collect this many days in one process, against one process each")
    parser.add_argument("--memory-limit", default="2GB", help="collect.memory_limit (default 2GB)")
    parser.add_argument("--threads", type=int, default=2, help="collect.threads (default 2)")
    parser.add_argument("--repeat", type=int, default=1, help="processes per engine; the least CPU is reported (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the generated logs (default 1)")
    parser.add_argument("--scratch", type=Path, help="folder of the logs; kept and used again (default: a temporary one, removed)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    parser.add_argument("--run", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(args.run, args.scratch, args.days, args.memory_limit, args.threads)))
        return 0
    wanted = args.engines.split(",")
    if unknown := [name for name in wanted if name not in ENGINES]:
        parser.error(f"--engines {unknown[0]!r} is not one of {', '.join(ENGINES)}")

    with tempfile.TemporaryDirectory() as temporary:
        root = args.scratch or Path(temporary)
        rows = generate(root, args)
        engines = {name: measure(name, args, root) for name in wanted}
        hashes = {one["samples_hash"] for one in engines.values() if "failed" not in one}
        protocol = {"rows": rows, "memory_limit": args.memory_limit, "threads": args.threads, "repeat": args.repeat, "seed": args.seed}
        answer: dict[str, Any] = {"environment": environment(), "protocol": protocol, "engines": engines, "equal_output": len(hashes) == 1}
        answer["ratios"] = ratios(engines) if len(hashes) == 1 else {}
        if args.days > 1:
            answer["backfill"] = backfill(args, root)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        for title in ("environment", "protocol"):
            print(f"{title}: {', '.join(f'{key} {fact}' for key, fact in answer[title].items())}")
        for name, one in engines.items():
            print(f"{name:8} " + "  ".join(f"{key} {value}" for key, value in one.items()))
        print({**answer["ratios"], **answer.get("backfill", {})})
    return 0 if len(hashes) == 1 and not any("failed" in one for one in engines.values()) else 1


def generate(root: Path, args: argparse.Namespace) -> dict[str, int]:
    """The logs of `--days` days below `root`, unless they stand there; rows of the first day."""
    import pyarrow.parquet as pq

    from benchmarks.collect_logs import write_logs
    from hap.logs import contract

    params = params_of(root, args.memory_limit, args.threads)
    days = [FIRST_DAY + dt.timedelta(days=n) for n in range(args.days)]
    for day in days:
        if day not in contract.logged_days(root):
            write_logs(root, day, args.rows, args.seed, params.features)
    paths = {name: contract.read_paths(root, name, FIRST_DAY) for name in contract.TABLES}
    return {name: sum(pq.read_metadata(path).num_rows for path in files) for name, files in paths.items()}


if __name__ == "__main__":
    sys.exit(main())
