"""How much chance is allowed to move a figure before somebody is told.

A night judges dozens of figures. Were each allowed to pass its limit by chance once in a thousand nights, a quiet month would have
two tickets for nothing (benchmarks/drift.py saw four in two months); at once in ten thousand it has one in four months or so.
Where there are rows enough a limit is what params.yaml says, however sure one wants to be.
"""

from statistics import NormalDist

ONE = 1e-4  # chance alone moves a figure beyond its limit this often


def deviations(of: int = 1) -> float:
    """Standard deviations that the largest of `of` figures exceeds by chance as often as one figure may, to either side (Bonferroni)."""
    return -NormalDist().inv_cdf(ONE / (2 * of))
