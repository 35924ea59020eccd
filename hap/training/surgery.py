"""Gradient surgery between kinds: PCGrad and GradVac over the shared dense parameters.

PCGrad takes out of each kind's gradient what goes against another kind's. Yu et al., Gradient Surgery for Multi-Task Learning,
NeurIPS 2020 (arXiv 2001.06782), algorithm 1:
    where g_i . g_j < 0:  g_i <- g_i - (g_i . g_j / |g_j|^2) g_j          for the other kinds j in random order
GradVac raises the cosine of each pair to what it has been on average. Wang et al., Gradient Vaccine, ICLR 2021
(arXiv 2010.05874), algorithm 1, with phi = cos(g_i, g_j) and psi its running mean, which begins at 0:
    where phi < psi:      g_i <- g_i + |g_i| (psi sqrt(1 - phi^2) - phi sqrt(1 - psi^2)) / (|g_j| sqrt(1 - psi^2)) g_j
    then                  psi <- (1 - beta) psi + beta phi
In both, g_i is the one changed so far and g_j the untouched one, and the step goes along the sum of all changed g_i.

Every changed gradient is a sum of the untouched ones, so all of it is done on the K x K matrix of their products, and what
comes out is one weight for each kind: a step with surgery is a step along sum_k w_k g_k.

Embedding rows keep their whole gradient. A row belongs to an item, an author or a user and is moved by the few candidates
that name it; what all kinds share, and where they can be in each other's way, is the dense part.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hap.training.conflict import gram_matrix

F64 = NDArray[np.float64]
ALMOST_ONE = 1 - 1e-6  # cosines beyond it leave no angle to turn by


class Surgery:
    """The surgery of one training. Processes that see the same gradients and steps do the same, and so does a rerun."""

    def __init__(self, name: str, kinds: int, beta: float, seed: int) -> None:
        """`name` is pcgrad or gradvac; `beta` is GradVac's share of the latest cosine in the running mean."""
        self.name, self.beta, self.seed = name, beta, seed
        self.target_KK = np.zeros((kinds, kinds))

    def weights(self, gram_KK: F64, step: int) -> F64:
        """[K]: what each kind's gradient weighs in the step; changes GradVac's running means."""
        rng = np.random.default_rng([self.seed, step])
        return pcgrad(gram_KK, rng) if self.name == "pcgrad" else gradvac(gram_KK, self.target_KK, self.beta, rng)

    def set_gradients(self, gradients_KD: Tensor, parameters: Sequence[nn.Parameter], step: int) -> None:
        """Give the dense parameters the gradient after surgery.

        Args:
            gradients_KD: `kind_gradients`, of all processes.
        """
        weights_K = torch.from_numpy(self.weights(gram_matrix(gradients_KD), step)).to(gradients_KD)
        whole_D = weights_K @ gradients_KD
        for parameter, part in zip(parameters, whole_D.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step needs to know of the earlier ones."""
        return {"target": torch.from_numpy(self.target_KK.copy())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.target_KK = state["target"].numpy().copy()


def pcgrad(gram_KK: F64, rng: np.random.Generator) -> F64:
    """[K]: the weight of each gradient in the sum of the projected ones.

    Args:
        gram_KK: products of the gradients.
        rng: draws the order in which each kind meets the others.
    """
    kinds = len(gram_KK)
    mixed_KK = np.eye(kinds)  # row i: the changed g_i as a sum of the untouched ones
    for i in range(kinds):
        for j in _others(i, kinds, rng):
            product = mixed_KK[i] @ gram_KK[:, j]
            if product < 0 and gram_KK[j, j] > 0:
                mixed_KK[i, j] -= product / gram_KK[j, j]
    return mixed_KK.sum(0)


def gradvac(gram_KK: F64, target_KK: F64, beta: float, rng: np.random.Generator) -> F64:
    """[K]: the weight of each gradient in the sum of the vaccinated ones. `target_KK`, the running means, moves on in place."""
    kinds = len(gram_KK)
    mixed_KK = np.eye(kinds)
    for i in range(kinds):
        for j in _others(i, kinds, rng):
            length_i = np.sqrt(max(mixed_KK[i] @ gram_KK @ mixed_KK[i], 0.0))
            length_j = np.sqrt(gram_KK[j, j])
            if length_i == 0 or length_j == 0:  # a kind that is absent from the batch says nothing
                continue
            cosine = np.clip(mixed_KK[i] @ gram_KK[:, j] / (length_i * length_j), -1.0, 1.0)
            target = np.clip(target_KK[i, j], -ALMOST_ONE, ALMOST_ONE)
            if cosine < target:
                turn = target * np.sqrt(1 - cosine**2) - cosine * np.sqrt(1 - target**2)
                mixed_KK[i, j] += length_i * turn / (length_j * np.sqrt(1 - target**2))
            target_KK[i, j] += beta * (cosine - target_KK[i, j])
    return mixed_KK.sum(0)


def _others(kind: int, kinds: int, rng: np.random.Generator) -> list[int]:
    return [int(other) for other in rng.permutation(kinds) if other != kind]
