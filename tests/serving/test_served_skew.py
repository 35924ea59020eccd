"""From simulated logs through the client and a real Triton into the served log, and back beside the logs: nothing may differ."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest

from flows.looks import skew
from flows.looks.subject import Subject
from hap.logs.simulator import simulate
from hap.registry.local import bundle_folder
from hap.samples.replay import logged_requests
from hap.serving.client import HapClient
from hap.serving.request import RequestTensors
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.serving.conftest import SHIFTS, Served
from tests.serving.handmade import FEATURES, make_bundle

REQUESTS = 40


@pytest.mark.triton
def test_what_two_versions_served_has_no_skew_and_what_another_model_served_has(served: Served, tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "ws")
    serving = served.params.serving.model_copy(update={"log_to": "served"})
    skewed = served.params.skew.model_copy(update={"min_requests": 10})
    params = served.params.model_copy(update={"features": FEATURES, "serving": serving, "skew": skewed})
    simulate(ws.logs(params), FIRST_DAY, 1, REQUESTS, 3, FEATURES)
    for version, shift in SHIFTS.items():
        make_bundle(bundle_folder(ws, version), shift)
    with HapClient(served.client.url, deadline_s=5, log_to=ws.root / "served", log_share=1.0) as client:
        assert client.log is not None
        for place, request in enumerate(logged_requests(ws, params, FIRST_DAY, REQUESTS)):
            if place == REQUESTS // 2:
                served.champion(2)
            now = dt.datetime.fromisoformat(request["event_time"]) + dt.timedelta(milliseconds=20)
            client.log.clock = lambda now=now: now
            k = (None, 5, 0, 300)[place % 4]  # of all candidates, the client asks hap_all
            client.score(RequestTensors.from_json(FEATURES, request), k, request_id=request["request_id"])
    subject = Subject(ws, params, FIRST_DAY, 2, ())
    look = skew.look(subject)
    assert look.findings == () and not look.notes and not look.unjudged
    values = {figure.name: figure.value for figure in look.figures}
    assert values.pop("skew.requests") == REQUESTS and values.pop("skew.clock") == pytest.approx(0.02)
    assert set(values.values()) == {0.0}

    other = Workspace(tmp_path / "other")  # where v2 is another model than the one that answered
    make_bundle(bundle_folder(other, 1), SHIFTS[1])
    make_bundle(bundle_folder(other, 2), 0.9)
    away = params.logs.model_copy(update={"path": ws.logs(params)}), serving.model_copy(update={"log_to": str(ws.root / "served")})
    look = skew.look(replace(subject, ws=other, params=params.model_copy(update={"logs": away[0], "serving": away[1]})))
    assert "skew:score" in {finding.cause for finding in look.findings} <= {"skew:score", "skew:routed"}
