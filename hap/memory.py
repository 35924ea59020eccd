"""How much memory a process holds, as Linux counts it."""

from pathlib import Path
from typing import Literal


def resident_mb(which: Literal["now", "peak"] = "peak") -> float:
    """MiB of memory that this process holds, or the most it ever held since its program was started.

    getrusage's ru_maxrss begins with what the parent held when it started this process, which may be far more.
    """
    field = {"now": "VmRSS:", "peak": "VmHWM:"}[which]
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
