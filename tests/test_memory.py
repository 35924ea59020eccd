"""The peak of a process is its own: not what its parent held, and not less than what it holds."""

import subprocess
import sys

import numpy as np

from hap.memory import resident_mb


def test_a_child_does_not_count_what_its_parent_held() -> None:
    held = np.ones(300 * 2**20, np.uint8)
    said = subprocess.run(
        [sys.executable, "-c", "from hap.memory import resident_mb; print(resident_mb())"], capture_output=True, check=True
    )
    assert resident_mb("now") > 300 and held[0] == 1
    assert 5 < float(said.stdout) < 100


def test_what_is_let_go_counts_for_the_peak_alone() -> None:
    before = resident_mb()
    held = np.ones(int(before + 200) * 2**20, np.uint8)
    assert held[0] == 1
    del held
    assert resident_mb("peak") > before + 150 > resident_mb("now")
