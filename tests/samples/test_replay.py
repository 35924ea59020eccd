"""Logged requests come back whole, in the form that a score file has."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hap.errors import DataError
from hap.logs import contract
from hap.samples.replay import logged_requests
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY


def test_a_logged_request_has_every_candidate_and_every_declared_feature(logged_workspace: Workspace) -> None:
    params = logged_workspace.params()
    requests = list(logged_requests(logged_workspace, params, FIRST_DAY, 5))
    assert len(requests) == 5
    assert [r["request_id"] for r in requests] == sorted(r["request_id"] for r in requests)
    for request in requests:
        assert len(request["candidates"]) == 300
        assert {feature.name for feature in params.features.user + params.features.context} <= request.keys()
        declared = {feature.name for feature in params.features.item} - {"age_hours"} | {"published"}
        assert request["candidates"][0].keys() == declared
        times = [event["event_time"] for event in request["history"]]
        assert times == sorted(times), "the most recent event comes last"


def test_broken_logs_are_told_in_one_line(logged_workspace: Workspace, tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "ws")
    shutil.copytree(logged_workspace.root / "logs", ws.root / "logs")
    shutil.copy(logged_workspace.params_file, ws.params_file)
    path = Path(contract.read_paths(ws.logs(ws.params()), "requests", FIRST_DAY)[0])
    rows = pq.read_table(path)
    for broken in (lambda: pq.write_table(rows.drop_columns(["activity"]), path), lambda: path.write_bytes(path.read_bytes()[:-50])):
        broken()
        with pytest.raises(DataError, match=r"part-0\.parquet") as refusal:
            next(logged_requests(ws, ws.params(), FIRST_DAY, 1))
        assert "\n" not in str(refusal.value)
