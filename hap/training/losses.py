"""GHCL and its ablations, by segments of a jagged batch: no padding, no loop over requests.

L_g = mean over (positive, group) pairs of -log( exp(s+/t) / ( exp(s+/t) + sum_{k in N_g} exp(s_k/t) ) ),
one denominator per group of negatives (GHCL) or one for all (pooled InfoNCE). hap.md, "GHCL" [derived].
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from hap.params import KINDS, Loss

EP = KINDS.index("EP")


@dataclass(frozen=True)
class Term:
    """One term of a loss before it is averaged, so that processes can agree on what it is averaged over."""

    total: Tensor  # sum of the losses; carries the gradient
    count: Tensor  # how many they are
    weight: float

    def mean(self, count: Tensor | None = None) -> Tensor:
        """weight * total / count, with the count of all processes where one is given; 0 where there is nothing."""
        return self.total / (self.count if count is None else count).clamp(min=1) * self.weight


def segment_logsumexp(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """log sum exp of values F[N] by segment I64[N] -> F[segments]; -inf where a segment is empty."""
    peak = values.new_full((segments,), -torch.inf).scatter_reduce(0, segment, values.detach(), "amax")
    safe = torch.where(torch.isfinite(peak), peak, torch.zeros_like(peak))
    total = values.new_zeros(segments).index_add(0, segment, torch.exp(values - safe[segment]))
    return torch.where(total > 0, torch.log(total.clamp(min=torch.finfo(total.dtype).tiny)) + safe, peak)


def contrastive(
    logits: Tensor, kind: Tensor, request: Tensor, requests: int, group: Tensor, temperature: float, weight: float = 1.0
) -> Term:
    """InfoNCE of every positive against the negatives marked in `group` of its own request.

    Args:
        logits: F[N]; kind: I8[N]; request: I64[N] in 0..requests-1; group: BOOL[N], the negatives.

    Returns:
        The term over (positive, group) pairs; a request without a positive or without such negatives has none.
    """
    scaled = logits.float() / temperature  # bf16 cannot hold a sum of exponentials
    negative = segment_logsumexp(scaled[group], request[group], requests)
    positive = kind == EP
    against = negative[request[positive]]
    pairs = torch.isfinite(against)
    # -log(e^s / (e^s + e^z)) = softplus(z - s), exact for any size of s and z.
    losses = softplus(against[pairs] - scaled[positive][pairs])
    return Term(losses.sum(), pairs.sum(), weight)


def loss_terms(logits: Tensor, kind: Tensor, request: Tensor, requests: int, settings: Loss, kinds: tuple[str, ...]) -> dict[str, Term]:
    """The terms of the configured loss by name; the sum of their means is what is minimised.

    Args:
        kinds: the kinds of negatives that this model trains on.
    """
    terms: dict[str, Term] = {}
    if settings.name.startswith("ghcl"):
        weights = {name: settings.kind_weights.get(name, 1.0) for name in kinds}  # type: ignore[call-overload]
        total = sum(weights.values()) or 1.0
        for name, weight in weights.items():
            group = kind == KINDS.index(name)
            terms[name] = contrastive(logits, kind, request, requests, group, settings.temperature, weight / total)
    elif settings.name.startswith("infonce"):
        terms["pooled"] = contrastive(logits, kind, request, requests, kind != EP, settings.temperature)
    if "bce" in settings.name and settings.bce_weight > 0:
        losses = binary_cross_entropy_with_logits(logits.float(), (kind == EP).float(), reduction="sum")
        terms["bce"] = Term(losses, torch.tensor(len(logits), device=logits.device), settings.bce_weight)
    return terms
