"""Logged requests come back whole, in the form that a score file has."""

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
