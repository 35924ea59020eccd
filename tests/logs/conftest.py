"""A small simulated workspace's logs, made once."""

import datetime as dt
from pathlib import Path

import pytest

from hap.logs.simulator import Summary, simulate
from hap.params import Params, load_params
from hap.project import project_file

FIRST = dt.date(2026, 1, 1)
DAYS = 2
REQUESTS = 120


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(project_file("params.yaml"))


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory, params: Params) -> tuple[Path, Summary]:
    """Two days of logs; tests that change them copy them first."""
    root = tmp_path_factory.mktemp("simulated") / "logs"
    return root, simulate(root, FIRST, DAYS, REQUESTS, 7, params.features)
