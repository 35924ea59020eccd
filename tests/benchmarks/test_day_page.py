"""The benchmark of the page runs; what it times is not looked at."""

import subprocess
import sys

import orjson


def test_it_tells_what_the_page_and_a_picture_of_either_kind_weigh() -> None:
    words = [sys.executable, "-m", "benchmarks.day_page", "--figures", "3", "--days", "8", "--rounds", "1", "--json"]
    found = orjson.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert found["figures"] == 3 and found["page_bytes"] > found["picture_bytes"]["drawn here"] > 0
    assert set(found["picture_cpu_s"]) == {"drawn here", "matplotlib"}
