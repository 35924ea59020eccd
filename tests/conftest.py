"""Fixtures that more than one part of the tests needs."""

import datetime as dt
import os
from collections.abc import Iterator

import pytest

# Nothing that a test starts tells anybody outside; OpenMP threads sleep while they wait.
os.environ.update(DO_NOT_TRACK="1", DVC_NO_ANALYTICS="true", MLFLOW_DISABLE_TELEMETRY="true", PREFECT_SERVER_ANALYTICS_ENABLED="false")
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are taken by the other workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

from hap.params import Params, load_params
from hap.project import project_file
from hap.workspace import Workspace, init_workspace

# A busy machine draws slowly; that says nothing about the code.
settings.register_profile("hap", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("hap")

FIRST_DAY = dt.date(2026, 1, 1)


@pytest.fixture(scope="session")
def default_params() -> Params:
    """params.yaml as a new workspace gets it."""
    return load_params(project_file("params.yaml"))


@pytest.fixture(scope="session")
def small_params(default_params: Params) -> Params:
    """Models and training small enough for tests."""
    train = default_params.train.model_copy(update={"days": 2, "epochs": 2})
    light, expressive = (
        getattr(default_params, name).model_copy(update={"size": 16, "embedding_dim": 4}) for name in ("light", "expressive")
    )
    return default_params.model_copy(update={"train": train, "light": light, "expressive": expressive})


@pytest.fixture(scope="session")
def logged_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with two simulated days of 150 requests; tests read it and write only what is theirs."""
    from hap.logs.simulator import simulate

    ws = init_workspace(tmp_path_factory.mktemp("logged") / "ws")
    params = ws.params()
    simulate(ws.logs(params), FIRST_DAY, 2, 150, 3, params.features)
    yield ws
