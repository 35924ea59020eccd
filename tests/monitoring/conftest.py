"""Three simulated days, collected, and copies of them with the last one spoiled."""

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.looks.subject import Subject
from hap.days import day_range
from hap.logs import contract, faults
from hap.logs.simulator import DEFAULTS, simulate
from hap.params import Params
from hap.samples.collect import collect_day
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY

DAYS = day_range(FIRST_DAY, FIRST_DAY + dt.timedelta(days=2))
Spoil = Callable[[str, pa.Table], pa.Table]  # of a table's name and its rows


@pytest.fixture(scope="session")
def three_days(tmp_path_factory: pytest.TempPathFactory, default_params: Params) -> Subject:
    """The third of three quiet days, beside the first two; tests read it."""
    ws = Workspace(tmp_path_factory.mktemp("three"))
    simulate(ws.logs(default_params), DAYS[0], 3, 400, 1, default_params.features)
    for day in DAYS:
        collect_day(ws, default_params, day)
    return Subject(ws, default_params, DAYS[-1], 1, tuple(DAYS[:-1]))


@pytest.fixture
def spoiled(three_days: Subject, tmp_path: Path) -> Callable[[str | Spoil], Subject]:
    """A copy whose third day was logged with a fault of the simulator (NAME, NAME=SIZE) or a change of the tables, and collected so."""

    def make(fault: str | Spoil) -> Subject:
        params, ws = three_days.params, Workspace(tmp_path / "spoiled")
        shutil.copytree(three_days.ws.root, ws.root)
        if isinstance(fault, str):
            name, _, size = fault.partition("=")
            asked = faults.parse(name, DAYS[-1], float(size) if size else None, 1, params.features, DEFAULTS.content_types)
            change: Spoil = lambda table, rows: faults.distort(table, rows, [asked])  # noqa: E731
        else:
            change = fault
        for table in contract.TABLES:
            for day in (DAYS[-1], DAYS[-1] + dt.timedelta(days=1)):  # the last feedback lies in the day after
                if contract.has_day(ws.logs(params), table, day):
                    rows = pa.concat_tables([pq.ParquetFile(path).read() for path in contract.read_paths(ws.logs(params), table, day)])
                    contract.write_day(ws.logs(params), table, day, change(table, rows))
        collect_day(ws, params, DAYS[-1], reopen=True)
        return Subject(ws, params, DAYS[-1], 1, three_days.window)

    return make
