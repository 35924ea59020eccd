"""One real Triton server for the whole session, and bundles made by hand for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hap.params import Params, Serving, load_params
from hap.ports import free_ports
from hap.project import project_file
from hap.serving import repository, runtime
from hap.serving.bundle import Bundle
from hap.serving.client import HapClient
from hap.workspace import Workspace
from tests.serving.handmade import make_bundle

SHIFTS = {1: 0.0, 2: 0.5}  # what sets the versions apart


def free_serving() -> Serving:
    """Serving parameters with three ports that nobody else takes."""
    http, grpc, metrics = free_ports(3)
    return Serving(http_port=http, grpc_port=grpc, metrics_port=metrics, canary_s=0.3, deadline_s=3)


def params_with(serving: Serving) -> Params:
    """The project's parameters with other serving ones."""
    return load_params(project_file("params.yaml")).model_copy(update={"serving": serving})


@dataclass(frozen=True)
class Served:
    """A workspace whose server runs with v1 as champion and v2 loaded beside it."""

    ws: Workspace
    params: Params
    client: HapClient

    def champion(self, version: int) -> None:
        """Pin and load a version, as a promotion does."""
        repository.pin(self.ws.triton, version, [1, 2])
        self.client.load("hap")
        self.client.load("hap_all")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    root = tmp_path_factory.mktemp("bundles")
    return {version: make_bundle(root / f"v{version}", shift) for version, shift in SHIFTS.items()}


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, bundles: dict[int, Bundle]) -> Iterator[Served]:
    ws, params = Workspace(tmp_path_factory.mktemp("served")), params_with(free_serving())
    for version, bundle in bundles.items():
        repository.render(bundle, version, ws.triton)
    repository.pin(ws.triton, 1, [1, 2])
    state = runtime.start(ws, params, detach=True)
    assert state is not None
    with HapClient(state.grpc_url, deadline_s=10) as client:
        yield Served(ws, params, client)
    assert runtime.stop(ws)


@pytest.fixture
def served(running: Served) -> Served:
    """The server with v1 as champion again, whatever the test before did."""
    if repository.pinned(running.ws.triton) != 1:
        running.champion(1)
    return running


@pytest.fixture
def repo(tmp_path: Path, bundles: dict[int, Bundle]) -> Path:
    """A rendered repository with v1 pinned and v2 loaded, and no server."""
    folder = tmp_path / "triton"
    for version, bundle in bundles.items():
        repository.render(bundle, version, folder)
    repository.pin(folder, 1, [1, 2])
    return folder
