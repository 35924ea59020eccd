"""The days' columns in Evidently's own workspace, for who likes to browse them there: `evidently ui --workspace pages/evidently`.

One project with a run for each day, and a plot over the days for each column. Ids follow from names and days, so a day that is
looked at again takes the place of its earlier run.
"""

import datetime as dt
import os
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hap.monitoring.report import reported_days

PROJECT, ABOUT = "hap inputs", "each day beside the training window of the version that served"
OURS = uuid.UUID("0c0f2a5e-6d3b-5f4e-9a51-9f6b7c1d2e30")  # what ids are derived from: any constant


def workspace_folder(pages: Path) -> Path:
    """Evidently's workspace among the pages."""
    return pages / "evidently"


def keep_run(pages: Path, day: dt.date, run: Any, columns: Sequence[str]) -> None:
    """Write the run of a day into the workspace, which is made where it is missing.

    Args:
        run: what Evidently's Report.run returned.
        columns: whose distances are drawn over the days.

    Raises:
        OSError: the folder cannot be written.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")  # read by Evidently's telemetry
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of its libraries, at import
        from evidently.sdk.models import DashboardModel, DashboardTabModel, PanelMetric, ProjectModel
        from evidently.sdk.panels import line_plot_panel
        from evidently.ui.workspace import Workspace

    workspace, project = Workspace.create(str(workspace_folder(pages))), _project()
    if workspace.get_project(project) is None:
        workspace.add_project(ProjectModel(id=project, name=PROJECT, description=ABOUT))
    panels = [
        line_plot_panel(name, [PanelMetric(legend="distance", metric="ValueDrift", metric_labels={"column": name})], size="half")
        for name in columns
    ]
    tab = DashboardTabModel(title="Columns", panels=[panel.id for panel in panels])
    workspace.save_dashboard(project, DashboardModel(tabs=[tab], panels=panels))
    # `add_run` would draw an id, and a day that is looked at twice would be there twice.
    workspace.state.write_snapshot(project, _run(day), run.to_snapshot_model())


def run_file(pages: Path, day: dt.date) -> Path:
    """Where the run of a day lies."""
    return workspace_folder(pages) / str(_project()) / "snapshots" / f"{_run(day)}.json"


def kept_runs(pages: Path) -> dict[dt.date, Path]:
    """The runs by day: large, and made again by a look at the day."""
    return {day: path for day in reported_days(pages) if (path := run_file(pages, day)).is_file()}


def _project() -> uuid.UUID:
    return uuid.uuid5(OURS, PROJECT)


def _run(day: dt.date) -> uuid.UUID:
    return uuid.uuid5(OURS, str(day))
