"""What a verdict records beside its rules agrees with what it judges, and never stands in its way."""

import numpy as np
import orjson
import pytest

from hap.evaluation.auc import auc, gauc, request_aucs
from hap.evaluation.detail import describe_scores
from hap.evaluation.evidence import MEMBERS
from hap.params import KINDS, NEGATIVES, Gate

RULES = Gate(bootstrap_draws=200)
KIND = np.array([0] + [1] * 4 + [2] * 6 + [3] * 4 + [4] * 2, np.int8)
BUCKET = np.array(["EP"] + ["EN"] * 4 + ["Rank-50"] * 3 + ["Rank-200"] * 3 + ["Prerank-200"] * 4 + ["GN"] * 2)
REQUESTS = 150
OFFSETS = np.arange(REQUESTS + 1) * KIND.size


def scores(seed, shift=0.0):
    rng = np.random.default_rng(seed)
    kind = np.tile(KIND, REQUESTS)
    return {member: rng.normal(0, 1, kind.size) - 0.4 * kind + shift * (kind == 0) for member in MEMBERS}


def described(ours, theirs=None):
    return describe_scores(np.tile(KIND, REQUESTS), np.tile(BUCKET, REQUESTS), OFFSETS, ours, theirs, RULES, 1)


def test_a_kind_of_one_bucket_has_the_gauc_that_the_gate_judges():
    ours = scores(1)
    found = described(ours)["buckets"]
    for member in MEMBERS:
        judged = request_aucs(ours[member], np.tile(KIND, REQUESTS), OFFSETS)
        for bucket, kind in (("EN", "EN"), ("Prerank-200", "PRN"), ("GN", "GN")):
            value = found[bucket]["members"][member]["value"]
            assert value["value"] == pytest.approx(gauc(judged[kind]), abs=1e-12)
            assert value["lower"] < value["value"] < value["upper"]


def test_buckets_of_one_kind_share_its_gauc_by_their_number():
    ours = scores(1)
    found = described(ours)["buckets"]
    assert list(found) == ["EN", "Rank-50", "Rank-200", "Prerank-200", "GN"]
    assert found["Rank-50"]["kind"] == "RN" and found["Rank-50"]["negatives"] == 3 * REQUESTS
    halves = [found[name]["members"]["light"]["value"]["value"] for name in ("Rank-50", "Rank-200")]
    whole = gauc(request_aucs(ours["light"], np.tile(KIND, REQUESTS), OFFSETS)["RN"])
    assert np.mean(halves) == pytest.approx(whole, abs=1e-12)


def test_changes_against_a_champion_are_paired():
    ours = scores(1, shift=0.5)
    theirs = scores(1)
    found = described(ours, theirs)
    for bucket in found["buckets"].values():
        change = bucket["members"]["cascade"]["change"]
        assert 0 < change["lower"] < change["value"] < change["upper"]
    same = described(theirs, theirs)
    assert same["buckets"]["EN"]["members"]["light"]["change"] == {"value": 0.0, "lower": 0.0, "upper": 0.0}
    assert same["pooled"]["light"]["RN"]["change"] == {"value": 0.0, "lower": 0.0, "upper": 0.0}


def test_pooled_auc_is_over_all_requests_at_once_and_leaves_the_cascade_out():
    ours = scores(1)
    kind = np.tile(KIND, REQUESTS)
    found = described(ours)["pooled"]
    assert set(found) == {"light", "expressive"}
    for name in NEGATIVES:
        expected = auc(ours["light"][kind == 0], ours["light"][kind == KINDS.index(name)])
        assert found["light"][name]["value"]["value"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("broken", [np.full(REQUESTS * KIND.size, np.nan), np.zeros(3)])
def test_scores_that_cannot_be_read_are_left_out(broken):
    found = described(scores(1) | {"light": broken}, scores(2) | {"expressive": broken})
    assert set(found["calibration"]) == {"expressive"} and set(found["buckets"]["EN"]["members"]) == {"expressive", "cascade"}
    assert "change" not in found["buckets"]["EN"]["members"]["expressive"]
    assert described(dict.fromkeys(MEMBERS, broken)) == {}


def test_it_is_plain_json_also_where_figures_are_undefined():
    kind = np.zeros(4, np.int8)
    found = describe_scores(kind, ["EP"] * 4, np.array([0, 2, 4]), dict.fromkeys(MEMBERS, np.arange(4.0)), None, RULES, 1)
    assert found["buckets"] == {} and found["calibration"]["light"]["EN"]["slope"] is None
    for one in (found, described(scores(1), scores(2))):
        assert orjson.loads(orjson.dumps(one)) == one
