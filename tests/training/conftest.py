"""Samples of two small days for everything that trains."""

from pathlib import Path

import pyarrow.parquet as pq
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


@pytest.fixture(scope="session")
def many_groups(sample_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same samples in row groups of five requests: two pools of them."""
    path = tmp_path_factory.mktemp("groups") / "part-0.parquet"
    pq.write_table(pq.read_table(sample_files[0]), path, row_group_size=5)
    return [path]
