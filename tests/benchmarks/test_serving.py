"""The benchmarks of serving run end to end on small models; what they time is not looked at."""

import os
import shutil
import subprocess
import sys

import orjson
import pytest

pytestmark = [pytest.mark.long, pytest.mark.triton, pytest.mark.timeout(600)]
SMALL = ["--light-size", "16", "--expressive-size", "16", "--json"]


def answer(*words):
    done = subprocess.run([sys.executable, "-m", *words, *SMALL], capture_output=True, text=True, check=True)
    return orjson.loads(done.stdout)


def test_serve_reports_every_way_of_every_size_and_equal_scores_where_all_are_routed():
    words = ["--block", "10", "--rounds", "1", "--seconds", "0.2", "--throughput-rounds", "1"]
    found = answer("benchmarks.serve", *words)
    assert [(case["candidates"], case["k"]) for case in found["cases"]] == [(1000, 200), (1830, 550)]
    for case in found["cases"]:
        assert case["ways"].keys() == {"ensemble", "expressive on all", "in process", "in process, expressive on all"}
        assert case["steps_ms"].keys() == {"hap", "light", "hard_select", "expressive"}
        assert all(rate > 0 for rates in case["throughput"].values() for rate in rates.values())
    assert found["small"]["equal_scores"] is True and len(found["targets"]) == 9
    assert found["server_adds_cpu_ms"].keys() == {"1000", "1830"}


def test_switch_moves_under_load_without_a_failed_or_mixed_answer():
    found = answer("benchmarks.switch", "--moves", "4", "--soak", "2")
    assert (found["switches"], found["failed"], found["mixed"]) == (4, 0, 0), (found["wrong"], found.get("http"))
    assert found["requests"] > 10 and set(found["by_version"]) == {"1", "2"} and found["ledger_rows"] == 10
    assert found["soak"]["seconds"] >= 2 and found["soak"]["rss_mb_after"] > 0
    if shutil.which("hey") or "CI" in os.environ:  # the second, independent caller
        assert found["http"]["requests"] > 10 and set(found["http"]["by_status"]) == {"200"}
