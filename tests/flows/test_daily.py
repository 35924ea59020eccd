"""The daily flow on a small world: whole, twice, killed half way, and two at once."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import orjson
import psutil
import pytest
import yaml

from flows.page import artifact_key
from flows.prefect_server import prefect_api
from hap.logs.simulator import simulate
from hap.monitoring.alerts import apply
from hap.monitoring.findings import Finding, Look
from hap.params import NEGATIVES, Alerts
from hap.project import project_file
from hap.registry import mlflow_store, versions
from hap.registry.ledger import open_ledger
from hap.workspace import Workspace, git, holder_file, init_workspace
from tests.conftest import FIRST_DAY
from tests.words import hapctl

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
DAY = FIRST_DAY + dt.timedelta(days=2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Three logged days of 300 requests, and models that train in seconds."""
    raw = yaml.safe_load(project_file("params.yaml").read_text())
    raw["train"] = {"days": 2, "epochs": 2, "batch_requests": 16}
    raw["light"], raw["expressive"] = {"size": 16, "embedding_dim": 4}, {"size": 16, "embedding_dim": 4}
    raw["gate"] = {"margin": 0.05, "min_requests": 100, "min_positives": 50}
    ws = init_workspace(tmp_path_factory.mktemp("daily") / "ws", yaml.safe_dump(raw))
    simulate(ws.logs(ws.params()), FIRST_DAY, 3, 300, 5, ws.params().features)
    return ws


@pytest.fixture
def ws(prepared: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    copy = Workspace(tmp_path / "ws")
    shutil.copytree(prepared.root, copy.root)
    yield copy


def registered(ws: Workspace) -> list[str]:
    return [version.label for version in versions.list_versions(ws, ws.params())]


def descendants_in(ws: Workspace) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(ws.root)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_day_is_retrained_once_and_the_second_time_is_a_no_op(ws: Workspace) -> None:
    first = hapctl("retrain", "--day", DAY, "--root", ws.root, "--json")
    assert first.returncode in (0, 5), first.stderr
    answer = orjson.loads(first.stdout)
    assert answer["version"] == "v1"
    assert set(answer["verdict"]["gauc"]) == {"light", "expressive", "cascade"}
    assert (ws.verdicts / "v1.json").exists()
    assert git(ws, "status", "--porcelain") == ""
    page = Path(answer["page"])
    assert page == ws.pages / "v1.html" and "v1: <span" in page.read_text() and "no record of this version" not in page.read_text()
    with mlflow_store.connect(ws, ws.params()) as client:
        run = versions.get(ws, ws.params(), 1).run_id
        assert [entry.path for entry in client.list_artifacts(run, "page")] == ["page/v1.html"]
        assert "page/v1.html" in client.get_model_version("hap", "1").description
    with prefect_api(ws) as url, urllib.request.urlopen(f"{url}/artifacts/{artifact_key(ws, 'v1')}/latest") as response:
        assert page.as_uri() in orjson.loads(response.read())["data"]
    revision = git(ws, "rev-parse", "HEAD")
    stamps = {path: path.stat().st_mtime_ns for path in ws.models.rglob("*.pt")}

    second = hapctl("retrain", "--day", DAY, "--root", ws.root, "--json")
    assert second.returncode == first.returncode, second.stderr
    assert orjson.loads(second.stdout)["verdict"] == answer["verdict"]
    assert registered(ws) == ["v1"]
    assert git(ws, "rev-parse", "HEAD") == revision
    assert {path: path.stat().st_mtime_ns for path in ws.models.rglob("*.pt")} == stamps

    restored = ws.root.parent / "restored"
    assert hapctl("restore", "v1", "--into", restored, "--root", ws.root).returncode == 0
    for name in ("samples", "models", "spent", "bundle"):
        here = {p.relative_to(ws.root / name): p.read_bytes() for p in (ws.root / name).rglob("*") if p.is_file()}
        there = {p.relative_to(restored / name): p.read_bytes() for p in (restored / name).rglob("*") if p.is_file()}
        assert here == there, name


def test_a_refused_day_ends_as_a_completed_run_of_that_name_and_its_version_stays_registered(ws: Workspace) -> None:
    raw = yaml.safe_load(ws.params_file.read_text())
    raw["gate"] |= {"floors": dict.fromkeys(NEGATIVES, 1.0)}
    ws.params_file.write_text(yaml.safe_dump(raw))
    done = hapctl("retrain", "--day", DAY, "--root", ws.root, "--json")
    answer = orjson.loads(done.stdout)
    assert (done.returncode, answer["verdict"]["verdict"]) == (3, "refuse"), done.stderr
    (version,) = versions.list_versions(ws, ws.params())
    assert (version.label, version.verdict, version.challenger) == ("v1", "refuse", False)
    with prefect_api(ws) as url:
        newest = orjson.dumps({"sort": "START_TIME_DESC", "limit": 1})  # other tests' runs are in the same database
        asked = urllib.request.Request(f"{url}/flow_runs/filter", newest, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as response:
            (run,) = orjson.loads(response.read())
    assert (run["name"], run["state_type"], run["state_name"]) == (f"retrain-{DAY}", "COMPLETED", "Refused")
    assert run["state"]["message"] == f"v1: {answer['verdict']['reasons'][0]}"


@pytest.mark.parametrize("seen", ["samples/day=2026-01-02/_SUCCESS", "models/light/model.pt", "registry/mlflow.db"])
def test_a_retrain_killed_half_way_is_finished_by_the_next_and_nothing_is_doubled(ws: Workspace, seen: str) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-m", "hap.cli", "retrain", "--day", str(DAY), "--root", str(ws.root)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (ws.root / seen).exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = hapctl("retrain", "--day", DAY, "--root", ws.root, "--json")
    assert again.returncode in (0, 5), again.stderr
    assert registered(ws) == ["v1"]
    assert git(ws, "status", "--porcelain") == ""
    assert descendants_in(ws) == []
    assert sorted(path.name for path in ws.samples.iterdir() if not path.name.startswith(".git")) == [
        f"day={FIRST_DAY + dt.timedelta(days=n)}" for n in range(3)
    ]


def test_the_second_of_two_retrains_says_who_holds_the_lock(ws: Workspace) -> None:
    first = subprocess.Popen(
        [sys.executable, "-m", "hap.cli", "retrain", "--day", str(DAY), "--root", str(ws.root), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not holder_file(ws).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = hapctl("retrain", "--day", DAY, "--root", ws.root)
    assert second.returncode == 1
    assert f"retrain --day {DAY} (pid {first.pid} on " in second.stderr
    assert second.stderr.count("\n") == 1, second.stderr
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=120)
    assert descendants_in(ws) == [], "Ctrl-C ends the stages, too"


def test_the_schedule_takes_the_due_day_and_leaves_nothing_when_it_is_stopped(ws: Workspace) -> None:
    raw = yaml.safe_load(ws.params_file.read_text())
    ws.params_file.write_text(yaml.safe_dump(raw | {"schedule": {"cron": "* * * * *"}}))
    served = subprocess.Popen(
        [sys.executable, "-m", "hap.cli", "schedule", "--root", str(ws.root)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + 800
        while not (ws.verdicts / "v1.json").exists() and served.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        time.sleep(3)  # the verdict's commit
        served.send_signal(signal.SIGINT)
        said = served.communicate(timeout=240)[0].decode()
    finally:
        served.kill()
        served.wait()
    assert registered(ws) == ["v1"], said
    assert orjson.loads((ws.verdicts / "v1.json").read_bytes())["day"] == str(DAY)
    assert descendants_in(ws) == []
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(ws.root) in " ".join(p.info["cmdline"] or ())]


def test_a_light_model_that_is_taught_comes_after_its_teacher_and_changes_with_it(ws: Workspace) -> None:
    def trained(expressive_size: int) -> dict[str, int]:
        raw = yaml.safe_load((ws.root / "params.yaml").read_text())
        raw["light"]["distill"], raw["expressive"]["size"], raw["train"]["log_steps"] = 0.5, expressive_size, 1
        (ws.root / "params.yaml").write_text(yaml.safe_dump(raw))
        done = hapctl("train", "light", "--day", DAY, "--root", ws.root)
        assert done.returncode == 0, done.stderr
        return {name: (ws.models / name / "model.pt").stat().st_mtime_ns for name in ("light", "expressive")}

    first = trained(16)
    assert first["expressive"] < first["light"]
    assert "distill" in orjson.loads((ws.models / "light" / "curves.json").read_bytes())["steps"][0]
    assert trained(16) == first
    second = trained(24)
    assert first["light"] < second["expressive"] < second["light"]


def test_an_incident_that_pages_holds_the_flows_promotion_and_ends_no_retrain(ws: Workspace) -> None:
    raw = yaml.safe_load(ws.params_file.read_text())
    raw["gate"] |= {"margin": 0.5, "floors": dict.fromkeys(("EN", "RN", "PRN", "GN"), 0.01)}
    raw |= {"promotion": {"auto": True}, "drift": {"blocks_promotion": True}}
    ws.params_file.write_text(yaml.safe_dump(raw))
    found = Finding(cause="input:cand_price", severity="page", said="cand_price moved")
    look = Look(watcher="drift", day=str(DAY), findings=(found,))
    apply(open_ledger(ws, ws.params()), look, Alerts(), dt.datetime.now(dt.UTC))
    done = hapctl("retrain", "--day", DAY, "--root", ws.root, "--json")
    assert (done.returncode, orjson.loads(done.stdout)["verdict"]["verdict"]) == (0, "pass"), done.stderr
    assert f"promotions are held: input:cand_price is open since {DAY}" in done.stderr
    assert open_ledger(ws, ws.params()).served() is None and versions.list_versions(ws, ws.params())[0].challenger
