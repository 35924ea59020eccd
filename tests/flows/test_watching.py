"""The drift flow: what is due is looked at, its pages are Prefect's artifacts, and one bad day stops no other; and when it runs."""

import datetime as dt
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest

import flows.drift
import flows.watching
from flows.deployments import deployments
from flows.page import artifact_key
from flows.prefect_server import prefect_api
from flows.watching import drift
from hap.errors import HapError
from hap.workspace import Workspace, init_workspace
from tests.flows.test_drift import mark, saw, serve, trained_on, watch_with
from tests.monitoring.test_drift import write_samples

NEWEST = dt.date(2026, 1, 8)
NOW = dt.datetime(2026, 1, 9, 2, 30, tzinfo=dt.UTC)


class Clock(dt.datetime):
    """A night of January."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return NOW


def test_a_look_and_a_retrain_are_scheduled_each_at_its_cron_under_names_of_the_workspace(tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "ws")
    ws.root.mkdir()
    shutil.copy(Path(__file__).parents[2] / "params.yaml", ws.params_file)
    text = ws.params_file.read_text().replace("timezone: UTC", "timezone: Europe/Berlin")
    ws.params_file.write_text(text)
    nightly, look = deployments(ws)
    assert (nightly.flow_name, look.flow_name) == ("nightly", "drift")
    assert nightly.name.removeprefix("nightly-") == look.name.removeprefix("drift-") != "ws"
    crons = [one.schedules[0].schedule for one in (nightly, look)]
    assert [(one.cron, one.timezone) for one in crons] == [("0 3 * * *", "Europe/Berlin"), ("30 2 * * *", "Europe/Berlin")]
    assert nightly.parameters == look.parameters == {"root": str(ws.root)}


@pytest.mark.long
def test_the_flow_looks_at_what_is_due_and_links_each_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = init_workspace(tmp_path / "My feeds_2")
    monkeypatch.setattr(flows.watching, "dt", SimpleNamespace(datetime=Clock, UTC=dt.UTC))
    watch_with(monkeypatch, saw("funnel", "funnel:share_EN"))
    with prefect_api(ws) as url:
        idle = drift(str(ws.root), return_state=True)
        assert idle.name == "Idle" and "no champion yet" in idle.message
        trained_on(monkeypatch, [NEWEST - dt.timedelta(days=3)])
        serve(ws, 1)
        mark(ws, *(NEWEST - dt.timedelta(days=n) for n in range(4)))
        for n in range(4):
            write_samples(ws, NEWEST - dt.timedelta(days=n), requests=5)
        state = drift(str(ws.root), return_state=True)
        assert state.name == "Needs A Look"
        assert state.message == "; ".join(f"2026-01-0{n} needs a look (funnel:share_EN)" for n in (6, 7, 8))
        for n in (6, 7, 8):
            key = artifact_key(ws, f"drift-2026-01-0{n}")
            assert key == f"my-feeds-2-drift-2026-01-0{n}"
            with urllib.request.urlopen(f"{url}/artifacts/{key}/latest") as answer:
                kept = orjson.loads(answer.read())
            page = ws.pages / f"drift-2026-01-0{n}.html"
            assert page.as_uri() in kept["data"] and "needs a look" in kept["data"] and page.exists()
        assert drift(str(ws.root), return_state=True).message == "no day is due"

        (ws.pages / "drift-2026-01-07.html").unlink()
        (ws.pages / "drift-2026-01-07.html").mkdir()  # that day cannot be written any more
        for n in (7, 8):
            (ws.pages / f"drift-2026-01-0{n}.json").unlink()
        failed = drift(str(ws.root), return_state=True)
        assert failed.is_failed()
        with pytest.raises(HapError, match="the page of 2026-01-07 cannot be written"):
            failed.result()
        assert (ws.pages / "drift-2026-01-08.json").exists(), "the later day was looked at all the same"
