"""What each kind's term weighs: as configured, learned, or from easy to hard over the epochs.

Learned: each kind's term L_k becomes exp(-v_k) L_k + v_k / 2, with v_k = log of the kind's variance a parameter: a kind whose
loss is large by nature weighs less. Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018
(arXiv 1705.07115), equation 10, in the logarithm for classification. Both parts keep the kind's configured share, so a kind
of weight 0 stays out. At rest exp(-v_k) is 1 / (2 L_k).

Curriculum: Bengio et al., Curriculum Learning, ICML 2009. In the first epoch a kind's configured weight counts by its
easiness, 0 for the hardest and 1 for the easiest of the kinds trained on, and grows by equal steps to the whole.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from hap.params import NEGATIVES, Loss
from hap.training.losses import Term

PRICE = "log variance"  # the name of the term that keeps learned weights from vanishing
LIMIT = 6.0  # of log variances either way: weights within 1/400 and 400, also of a kind that is separated or never seen
LEARNING_RATE = 0.01  # of the log variances: few numbers on a scale of 1, which the network's rate would hardly move


class Uncertainty(nn.Module):
    """One log variance for each kind trained on, beginning at 0, where each kind weighs what is configured."""

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.log_variance_K = nn.Parameter(torch.zeros(len(self.kinds)))

    def forward(self, terms: dict[str, Term]) -> dict[str, Term]:
        """The terms with those of the kinds weighed, and the price of that as a term of its own; other terms as they are."""
        weighed = dict(terms)
        price = self.log_variance_K.new_zeros(())
        for kind, log_variance in zip(self.kinds, self.log_variance_K.clamp(-LIMIT, LIMIT), strict=True):
            term = terms[kind]
            weighed[kind] = replace(term, total=term.total * torch.exp(-log_variance))
            price = price + term.weight * log_variance / 2
        # One of the price in each process: averaged by their number it counts once.
        weighed[PRICE] = Term(price, torch.ones((), dtype=torch.int64, device=price.device), 1.0)
        return weighed

    def learned(self) -> dict[str, float]:
        """exp(-v_k) by kind: what the configured weight is multiplied by."""
        factors: Tensor = torch.exp(-self.log_variance_K.detach().clamp(-LIMIT, LIMIT))
        return dict(zip(self.kinds, factors.tolist(), strict=True))


def curriculum(loss: Loss, kinds: Sequence[str], epoch: int) -> Loss:
    """The loss of an epoch (from 1) under `loss.curriculum_epochs`; the whole loss from epoch curriculum_epochs + 1 on."""
    done = min(1.0, (epoch - 1) / loss.curriculum_epochs)
    ordered = [kind for kind in NEGATIVES if kind in kinds]  # hardest first
    easiness = dict(zip(ordered, np.linspace(0, 1, len(ordered)) if len(ordered) > 1 else [1.0], strict=True))
    weights = {kind: loss.kind_weights.get(kind, 1.0) * (easiness.get(kind, 1.0) * (1 - done) + done) for kind in NEGATIVES}  # type: ignore[call-overload]
    return loss.model_copy(update={"kind_weights": weights})
