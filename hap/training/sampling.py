"""Fewer negatives of the kinds that are in the others' way [derived].

Conflict of kind k: how far its gradient points against each other kind's on average, as the looks of a training measure it
(hap.training.conflict), in [0, 1]:
    c_k = mean over the other kinds j of max(0, -cos(g_k, g_j))
In a step each negative of kind k is drawn into the loss with probability 1 - c_k, at least LEAST. Positives always are.

In BCE and in a pooled InfoNCE a kind then weighs less in proportion. A group of GHCL is a mean over its (positive, group) pairs and
its negatives' mass is (1 - p) / t, so it keeps most of its weight for as long as one of them is drawn: among ten that tie, half of
them hold 5/6 where all hold 10/11. Under BCE the scores of negatives that are seldom drawn come out too high to be probabilities.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hap.params import KINDS

LEAST = 0.1  # of a kind's negatives: a kind that is never drawn is never learned, whatever it is in the way of
LATEST = 0.1  # share of the latest look in the running mean, since one batch is a noisy witness


class ConflictSampling:
    """What is drawn in each step of a training. Until the first look nothing is left out.

    Draws are a function of seed, step and rank, so a resumed training draws as an undisturbed one does; more processes draw others.
    """

    def __init__(self, kinds: Sequence[str], seed: int, rank: int) -> None:
        self.kinds, self.seed, self.rank = tuple(kinds), seed, rank
        self.conflict: dict[str, float] = {}

    def learn(self, cosines: dict[str, float]) -> None:
        """Take in one look: cosine by pair of kinds ("EN|RN"). A kind that is absent from the batch keeps what it had."""
        for kind in self.kinds:
            against = [max(0.0, -cosine) for pair, cosine in cosines.items() if kind in pair.split("|")]
            if against:
                now = sum(against) / len(against)
                self.conflict[kind] = now if kind not in self.conflict else (1 - LATEST) * self.conflict[kind] + LATEST * now

    def share(self, kind: str) -> float:
        """The probability that a negative of the kind is drawn."""
        return max(1 - self.conflict.get(kind, 0.0), LEAST)

    def shares(self) -> dict[str, float]:
        """What is drawn of each kind now."""
        return {kind: self.share(kind) for kind in self.kinds}

    def drawn(self, kind: Tensor, step: int) -> Tensor:
        """Bool[N]: what takes part in the loss of the step; kind: I8[N]."""
        shares = torch.tensor([self.share(name) if name in self.kinds else 1.0 for name in KINDS])
        luck = torch.from_numpy(np.random.default_rng([self.seed, step, self.rank]).random(len(kind), dtype=np.float32))
        return luck.to(kind.device) < shares.to(kind.device)[kind.long()]

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs to know of the earlier ones."""
        return dict(self.conflict)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.conflict = dict(state)
