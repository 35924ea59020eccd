"""Requests as one version scores them: what the watchers of the funnel and of its quality look at.

Letters: R requests, N candidates of all of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hap.params import KINDS
from hap.serving.merge import NAN_SCORE

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """Requests with their users and the three scores of every candidate."""

    user: I64  # [R] who made the request; a request that nobody is known of is a user of its own
    offsets: I64  # [R + 1]
    kind: NDArray[np.int8]  # [N] place in KINDS; what is not exposed has the kind of the stage it reached
    light: F64  # [N] logits
    expressive: F64  # [N] logits, of every candidate
    cascade: F64  # [N] the served score: above 0 where routed
    whole: bool  # whether these are all candidates of the requests, and so routed as they are served

    @property
    def owner(self) -> I64:
        """The request of each candidate [N]."""
        return np.repeat(np.arange(len(self.user)), np.diff(self.offsets))

    @property
    def routed(self) -> NDArray[np.bool_]:
        """Which candidates the expressive model rescored [N]."""
        return self.cascade > 0

    @property
    def clicked(self) -> NDArray[np.bool_]:
        """Which candidates were clicked [N]."""
        return self.kind == KINDS.index("EP")

    @property
    def exposed(self) -> NDArray[np.bool_]:
        """Which candidates were shown [N]: only of these is known whether they would be clicked."""
        return self.kind <= KINDS.index("EN")

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Which candidates have a score that is no number [N]. Merged ones tell it by a value that no logit gives (hap.serving.merge)."""
        return (self.cascade <= NAN_SCORE) | ~(np.isfinite(self.light) & np.isfinite(self.expressive) & np.isfinite(self.cascade))

    def keep(self, chosen: NDArray[np.bool_]) -> "Scored":
        """The chosen requests [R]."""
        counts = np.diff(self.offsets)
        rows = np.repeat(chosen, counts)
        per_row = {name: getattr(self, name)[rows] for name in ("kind", "light", "expressive", "cascade")}
        return Scored(user=self.user[chosen], offsets=np.concatenate([[0], np.cumsum(counts[chosen])]), whole=self.whole, **per_row)

    def sound(self) -> "Scored":
        """The requests all of whose scores are numbers."""
        spoiled = np.bincount(self.owner[self.broken], minlength=len(self.user)) > 0
        return self.keep(~spoiled) if spoiled.any() else self
