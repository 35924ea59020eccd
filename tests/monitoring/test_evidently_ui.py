"""Evidently's own workspace has each day once, and its UI shows it."""

import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hap.monitoring.drift import DriftResult
from hap.monitoring.evidently_ui import PROJECT, keep_run, kept_runs, workspace_folder
from hap.monitoring.report import report_file
from hap.ports import free_ports
from tests.monitoring.test_drift import DAYS, report, workspace


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> DriftResult:
    return report(workspace(tmp_path_factory.mktemp("samples"), requests=60))


def theirs(pages: Path) -> Any:
    """The workspace as Evidently reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at import
        from evidently.ui.workspace import Workspace
    return Workspace(str(workspace_folder(pages)))


@contextmanager
def ui(folder: Path) -> Iterator[str]:
    """Evidently's server on a free port; yields its address."""
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).parent / "evidently"), "ui", "--host", "127.0.0.1", "--port", str(port), "--workspace", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"DO_NOT_TRACK": "1"})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def answer(url: str, seconds: float = 240) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=10).read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_day_that_is_kept_again_takes_the_place_of_its_run(measured: DriftResult, tmp_path: Path) -> None:
    columns = ["cand_price", "hour"]
    for day in (DAYS[2], DAYS[3], DAYS[3]):
        keep_run(tmp_path, day, measured.run, columns)
    kept = theirs(tmp_path)
    (project,) = kept.list_projects()
    assert project.name == PROJECT and len(kept.list_runs(project.id)) == 2
    dashboard = project.dashboard.model()
    assert [panel.title for panel in dashboard.panels] == columns
    assert [dict(panel.values[0].metric_labels) for panel in dashboard.panels] == [{"column": name} for name in columns]
    assert {kept.get_run(project.id, one).name for one in kept.list_runs(project.id)} == {"2026-01-04"}, "as it was measured"


def test_runs_are_found_by_the_days_that_have_a_report(measured: DriftResult, tmp_path: Path) -> None:
    for day in DAYS[2:]:
        keep_run(tmp_path, day, measured.run, ["hour"])
    assert kept_runs(tmp_path) == {}
    report_file(tmp_path, DAYS[3]).write_text("{}")
    ((day, path),) = kept_runs(tmp_path).items()
    assert day == DAYS[3] and path.stat().st_size > 10_000


def test_evidentlys_ui_shows_the_project_and_the_distances_by_day(measured: DriftResult, tmp_path: Path) -> None:
    keep_run(tmp_path, DAYS[3], measured.run, ["cand_price"])
    (project,) = theirs(tmp_path).list_projects()
    with ui(workspace_folder(tmp_path)) as url:
        assert PROJECT in answer(f"{url}/api/projects")
        assert "2026-01-04" in answer(f"{url}/api/projects/{project.id}/reports")


def test_a_folder_that_cannot_be_written_is_an_os_error(measured: DriftResult, tmp_path: Path) -> None:
    workspace_folder(tmp_path).write_text("no folder")
    with pytest.raises(OSError):
        keep_run(tmp_path, DAYS[3], measured.run, ["hour"])
