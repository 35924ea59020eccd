"""Samples of two small days for everything that trains."""

from pathlib import Path

import pytest

from hap.params import Params
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY


@pytest.fixture(scope="session")
def sample_files(logged_workspace: Workspace, default_params: Params) -> list[Path]:
    collect_day(logged_workspace, default_params, FIRST_DAY)
    return partitions.parquet_files(logged_workspace, [FIRST_DAY])
