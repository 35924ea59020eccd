"""What status says of the promotions that are on their way, and of the watch."""

import datetime as dt
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flows.due
import flows.status
from flows.status import status_of, status_text
from hap import durable
from hap.errors import HapError
from hap.logs import contract
from hap.monitoring.findings import Finding
from hap.monitoring.report import Report, Seen, report_file, write_report
from hap.params import Severity
from hap.registry.ledger import Entry, State, open_ledger
from hap.registry.local import bundle_folder
from hap.serving.bundle import SEAL
from hap.workspace import Workspace, init_workspace
from tests.flows.test_drift import mark, serve

AT = dt.datetime(2026, 1, 4, 3, 5, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return init_workspace(tmp_path_factory.mktemp("status") / "ws")


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (("intended",), "the promote of v1 by ana at 2026-01-04 03:05 UTC runs, or was killed"),
        (("intended", "pinned"), "v1, pinned by ana, serves from the next `hapctl serve` on"),
        (("intended", "served"), None),
        (("intended", "failed"), None),
    ],
)
def test_a_move_without_an_outcome_is_told(made: Workspace, tmp_path: Path, states: tuple[State, ...], said: str | None) -> None:
    ws = Workspace(shutil.copytree(made.root, tmp_path / "ws"))
    ledger = open_ledger(ws, ws.params())
    for state in states:
        ledger.append(Entry(at=AT, actor="ana", action="promote", state=state, to_version=1))
    value = status_of(ws)
    assert (value["move"] is None) == (said is None)
    assert said is None or said in status_text(value)


def report_of(day: dt.date, severity: Severity = "ticket") -> Report:
    found = (Finding(cause="input:cand_price", severity=severity, said="prices trebled"),)
    return Report(
        day=str(day),
        labels="matured",
        champion=1,
        reference=("2026-01-01",),
        seen=(Seen(watcher="inputs", title="Inputs", findings=found),),
    )


def watched_line(value: dict[str, Any]) -> list[str]:
    return [line for line in status_text(value).splitlines() if line.startswith("watched")]


@pytest.fixture
def watched(made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A morning on which v1, trained on the 1st, serves, ten days are logged, and the copy of its bundle is here; MLflow is not."""
    ws = Workspace(shutil.copytree(made.root, tmp_path / "ws"))
    mark(ws, *(dt.date(2026, 1, n) for n in range(1, 11)))
    durable.write_json(bundle_folder(ws, 1) / SEAL, {"files": {}, "digest": "x", "window": ["2026-01-01"]})
    monkeypatch.setattr(flows.status, "dt", SimpleNamespace(datetime=Clock, UTC=dt.UTC))
    monkeypatch.setattr(flows.due, "bundle_of", None)
    return ws


class Clock(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return dt.datetime(2026, 1, 11, 9, tzinfo=dt.UTC)


def test_a_watch_that_stopped_shows_in_its_last_day_and_in_what_is_due(watched: Workspace) -> None:
    assert status_of(watched)["watched"] is None and watched_line(status_of(watched)) == [], "nothing is watched without a champion"
    serve(watched, 1)
    assert watched_line(status_of(watched))[0].startswith(
        "watched     no day yet; due for a look: 2026-01-02, 2026-01-03, 2026-01-04 and 6 more; "
    )
    for n in range(2, 5):
        write_report(watched.pages, report_of(dt.date(2026, 1, n), "page"))
    value = status_of(watched)
    left = [f"2026-01-{n:02}" for n in range(5, 11)]
    assert value["watched"] == {"day": "2026-01-04", "state": "page", "said": "broken", "due": left, "problem": None}
    (line,) = watched_line(value)
    assert line.startswith(
        "watched     2026-01-04: broken; due for a look: 2026-01-05, 2026-01-06, 2026-01-07 and 3 more; `hapctl schedule`"
    )
    assert line.endswith("`hapctl drift --day 2026-01-05`")
    for n in range(5, 11):
        write_report(watched.pages, report_of(dt.date(2026, 1, n)))
    assert watched_line(status_of(watched)) == ["watched     2026-01-10: needs a look; no day is due for a look"]


def test_a_report_or_logs_that_cannot_be_read_keep_no_status_from_being_told(watched: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(watched, 1)
    for n in range(2, 11):
        write_report(watched.pages, report_of(dt.date(2026, 1, n)))
    durable.write_text(report_file(watched.pages, "2026-01-10"), "{")
    (line,) = watched_line(status_of(watched))
    assert line.startswith("watched     2026-01-10: its report cannot be read; due for a look: 2026-01-10; ")

    def away(_: object) -> list[dt.date]:
        raise HapError("the bucket does not answer")

    monkeypatch.setattr(contract, "logged_days", away)
    (line,) = watched_line(status_of(watched))
    assert line.endswith("which days are due for a look is not known: the bucket does not answer")


def test_status_loads_none_of_what_looks_at_a_day() -> None:
    heavy = "torch", "scipy", "evidently", "mlflow", "prefect", "onnxruntime", "pandas"
    code = f"import sys, flows.status, flows.due; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
