"""The demo and the same job on real input, as a user types them."""

import os
from pathlib import Path

import orjson
import psutil
import pytest

from hap.params import NEGATIVES
from hap.ports import free_ports
from hap.workspace import Workspace, git
from tests.words import hapctl

pytestmark = [pytest.mark.long, pytest.mark.triton, pytest.mark.timeout(900)]


def left_running(root: Path) -> list[str]:
    """Command lines that name the workspace, or work in it."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(root) in " ".join(process.cmdline()) or process.cwd().startswith(str(root)):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_first_week_gives_versions_a_champion_served_scores_and_pages(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    done = hapctl("demo", "--root", root, "--requests-per-day", 600, "--json")
    assert done.returncode == 0, done.stderr
    summary = orjson.loads(done.stdout)
    assert [version["label"] for version in summary["versions"]] == ["v1", "v2"]
    for version in summary["versions"]:
        assert version["verdict"] in ("pass", "refuse", "undecided")
        assert version["reasons"]
        assert version["params"].keys() == {"light", "expressive"}
        assert f"{version['label']}: <span" in Path(version["page"]).read_text()
        for member in ("light", "expressive"):
            assert version["gauc"][member].keys() == {*NEGATIVES, "all"}
            assert version["gauc"][member]["GN"] > 0.6, "a model that learnt nothing"
    assert summary["champion"] in ("v1", "v2")
    assert summary["serving"]["failed"] == 0
    assert summary["serving"]["requests"] == 200
    assert summary["serving"]["max_abs_diff"] < 1e-4
    assert summary["serving"]["p50_ms"].keys() == {"hap", "expressive_all"}
    assert Path(summary["drift"]["html"]).with_name("drift-2026-01-04-columns.html").stat().st_size > 100_000
    assert orjson.loads(Path(summary["drift"]["json"]).read_bytes())["looks"] == summary["drift"]["looks"]
    assert summary["seconds"] >= max(summary["seconds_by_step"].values())
    assert left_running(root) == []
    assert git(Workspace(root), "status", "--porcelain") == ""

    again = hapctl("demo", "--root", root, "--requests-per-day", 600, "--dry-run")
    assert again.returncode == 0
    assert (root / "verdicts" / "v2.json").exists()


def test_the_whole_job_runs_on_recflow(tmp_path: Path) -> None:
    source = os.environ.get("HAP_RECFLOW_DIR")
    if not source:
        pytest.skip("HAP_RECFLOW_DIR names no RecFlow folder")
    root = tmp_path / "recflow"
    done = hapctl("import", "recflow", source, "--root", root)
    assert done.returncode == 0, done.stderr
    days = sorted(path.name.removeprefix("day=") for path in (root / "logs" / "requests").glob("day=*"))
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    params = root / "params.yaml"
    params.write_text(params.read_text() + f"\nserving: {{{', '.join(f'{name}: {port}' for name, port in ports.items())}}}\n")
    for number, day in enumerate(days[-2:], 1):
        judged = hapctl("retrain", "--day", day, "--root", root, "--json")
        assert judged.returncode in (0, 3, 5), judged.stderr
        answer = orjson.loads(judged.stdout)
        assert answer["version"] == f"v{number}"
        assert answer["verdict"]["verdict"] == {0: "pass", 3: "refuse", 5: "undecided"}[judged.returncode]
    assert hapctl("serve", "--detach", "--root", root).returncode == 0
    try:
        if judged.returncode:
            refused = hapctl("promote", "--model", "v2", "--root", root)
            assert refused.returncode == 3
            assert "--force --reason" in refused.stderr
        forced = hapctl("promote", "--model", "v2", "--force", "--reason", "few requests, small launch", "--root", root)
        assert forced.returncode == 0, forced.stderr
        scored = hapctl("score", "--from-day", days[-1], "--limit", 5, "--json", "--root", root)
        assert scored.returncode == 0, scored.stderr
        lines = [orjson.loads(line) for line in scored.stdout.splitlines()]
        assert len(lines) == 5
        for line in lines:
            assert line["version"] == "v2"
            assert len(line["score"]) == len(line["item_id"]) == len(line["routed"]) > 0
            assert all(0 < ctr < 1 for ctr in line["ctr"])
        last = orjson.loads(hapctl("ledger", "--json", "--root", root).stdout)[-1]
        assert (last["state"], last["forced"], last["reason"]) == ("served", True, "few requests, small launch")
    finally:
        assert hapctl("stop", "--root", root).returncode == 0
    assert left_running(root) == []
