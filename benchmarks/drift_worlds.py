"""Workspaces that benchmarks/drift.py watches: a simulated calendar, champions by the real steps, and copies with a fault."""

import datetime as dt
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flows import record, steps
from flows.demo import DEMO_PARAMS
from flows.judge import judge, opponent_of
from hap.days import day_range
from hap.logs import contract, faults
from hap.logs.simulator import DEFAULTS, simulate
from hap.logs.world import TURN_DAYS
from hap.params import MODELS, NEGATIVES
from hap.project import project_file
from hap.registry.ledger import Entry, open_ledger
from hap.workspace import Workspace, init_workspace

FIRST = dt.date(2026, 1, 1)
DAY = dt.timedelta(days=1)
TRAINED = 2  # days that a champion is trained on; the third judges it, from the fourth on it is watched
# The demo's trainings. Days are retrained by hand here, and whether a version passes is not the question: floors are off.
PARAMS = DEMO_PARAMS | {
    "funnel": {"requests": 500},
    "staleness": {"overdue_hours": None},
    "gate": DEMO_PARAMS["gate"] | {"floors": dict.fromkeys(NEGATIVES, 0.0), "min_requests": 1, "min_positives": 1},
}


@dataclass(frozen=True)
class Case:
    """A fault of a size, from the first watched day on."""

    fault: str
    size: float

    @property
    def ramp(self) -> int:
        """Days before the one on which it has its size."""
        return TURN_DAYS - 1 if self.fault in faults.WORLD else 0


def sizes_of(fault: str) -> tuple[float, ...]:
    """Half of the documented size, it, and double of it: of prices, whose size is a factor, of what it lies above 1."""
    size = faults.asked(fault, None)[2]
    if fault == "shifted-prices":
        return 1 + (size - 1) / 2, size, 1 + (size - 1) * 2
    return size / 2, size, min(size * 2, 1.0)


def make(root: Path, requests: int, days: int, seed: int, max_rows: int | None = None) -> Workspace:
    """A workspace with the logs of the days that a first champion needs, and `days` more to watch."""
    raw = yaml.safe_load(project_file("params.yaml").read_text())
    for section, values in PARAMS.items():
        raw[section] = {**raw.get(section, {}), **values}
    raw["seed"] = seed
    if max_rows is not None:
        raw["drift"]["max_rows"] = max_rows
    ws = init_workspace(root, yaml.safe_dump(raw, sort_keys=False))
    params = ws.params()
    simulate(ws.logs(params), FIRST, TRAINED + 1 + days, requests, seed, params.features)
    return ws


def watched_days(days: int) -> list[dt.date]:
    """The days after the first champion was judged."""
    first = FIRST + (TRAINED + 1) * DAY
    return day_range(first, first + (days - 1) * DAY)


def enthrone(ws: Workspace, day: dt.date) -> int:
    """Retrain, judged on the day, and let the version serve: what `hapctl retrain` does, in its order, without Prefect and a server."""
    params = ws.params()
    window = steps.window_of(ws, params, day)
    steps.collect(ws, params, window)
    steps.prepare(ws, params, window)
    for names in steps.training_order(params, MODELS):
        for name in names:
            steps.train(ws, name)
    steps.evaluate(ws)
    steps.export(ws)
    version = record.register(ws, params, day, steps.keep(ws, params, day))
    judge(ws, params, version, opponent_of(ws, params, version), window.judging)
    now = dt.datetime.now(dt.UTC)
    open_ledger(ws, params).append(Entry(at=now, actor="benchmark", action="promote", state="served", to_version=version))
    return version


def spoiled(ws: Workspace, root: Path, case: Case, requests: int, days: Sequence[dt.date]) -> Workspace:
    """A copy of a workspace whose watched days are logged with the fault; days after them are left out."""
    params, first = ws.params(), days[0]
    late = days[-1] + DAY  # whose feedback holds the last clicks
    beyond = {f"day={day}" for day in day_range(late + DAY, late + 400 * DAY)}
    # What only trainings and restores read stays behind.
    shutil.copytree(ws.root, root, ignore=lambda folder, names: {*(beyond & set(names)), *({"remote", "cache", ".git"} & set(names))})
    copy = Workspace(root)
    wrong = [faults.parse(case.fault, first, case.size, params.seed, params.features, DEFAULTS.content_types)]
    logs = Path(copy.logs(params))
    if case.fault in faults.WORLD:
        made = root / "simulated"
        simulate(made, FIRST, (days[-1] - FIRST).days + 1, requests, params.seed, params.features, wrong=wrong)
        for table in contract.TABLES:
            for day in contract.table_days(made, table):
                if day >= first:
                    shutil.rmtree(logs / table / f"day={day}")
                    shutil.move(made / table / f"day={day}", logs / table / f"day={day}")
        return copy
    rewrite(logs, first, lambda table, rows: faults.distort(table, rows, wrong))
    return copy


def rewrite(logs: Path, first: dt.date, change: Callable[[str, pa.Table], pa.Table]) -> None:
    """Write the logs from a day on again, as `change` leaves each table's rows."""
    for table in contract.TABLES:
        for day in contract.table_days(logs, table):
            if day >= first:
                rows = pa.concat_tables([pq.ParquetFile(path).read() for path in contract.read_paths(logs, table, day)])
                contract.write_day(logs, table, day, change(table, rows))
