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
    logits: Tensor, kind: Tensor, request: Tensor, requests: int, group: Tensor, groups: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """InfoNCE of every positive against each group of negatives of its own request, all groups in one pass.

    Args:
        logits: F[N]; kind: I8[N]; request: I64[N] in 0..requests-1.
        group: I64[N], each candidate's group in 0..groups-1, or `groups` where it is no negative of any.

    Returns:
        Sums F32[groups] of the losses over (positive, group) pairs, and how many pairs they are, I64[groups]; a request
        without a positive or without negatives of a group has none.
    """
    scaled = logits.float() / temperature  # bf16 cannot hold a sum of exponentials
    segments = (groups + 1) * requests
    negative = segment_logsumexp(scaled, request * (groups + 1) + group, segments).view(requests, groups + 1)
    (positive,) = torch.nonzero(kind == EP, as_tuple=True)
    against = negative.index_select(0, request[positive])[:, :groups]
    # -log(e^s / (e^s + e^z)) = softplus(z - s), exact for any size of s and z; an empty group has z = -inf and adds 0.
    losses = softplus(against - scaled[positive][:, None])
    return losses.sum(0), torch.isfinite(against.detach()).sum(0)


def loss_terms(logits: Tensor, kind: Tensor, request: Tensor, requests: int, settings: Loss, kinds: tuple[str, ...]) -> dict[str, Term]:
    """The terms of the configured loss by name; the sum of their means is what is minimised.

    Args:
        kinds: the kinds of negatives that this model trains on.
    """
    terms: dict[str, Term] = {}
    if settings.name.startswith("ghcl"):
        weights = {name: settings.kind_weights.get(name, 1.0) for name in kinds}  # type: ignore[call-overload]
        groups = [kinds.index(name) if name in kinds else len(kinds) for name in KINDS]
        terms = _terms(logits, kind, request, requests, groups, weights, settings.temperature)
    elif settings.name.startswith("infonce"):
        groups = [int(name == "EP") for name in KINDS]
        terms = _terms(logits, kind, request, requests, groups, {"pooled": 1.0}, settings.temperature)
    if "bce" in settings.name and settings.bce_weight > 0:
        losses = binary_cross_entropy_with_logits(logits.float(), (kind == EP).float(), reduction="sum")
        terms["bce"] = Term(losses, torch.tensor(len(logits), device=logits.device), settings.bce_weight)
    return terms


def _terms(
    logits: Tensor, kind: Tensor, request: Tensor, requests: int, groups: list[int], weights: dict[str, float], temperature: float
) -> dict[str, Term]:
    """The contrastive terms by name, with weights that sum to 1; groups[code] is the group of a kind's candidates."""
    group = torch.tensor(groups, device=kind.device)[kind.long()]
    totals, counts = contrastive(logits, kind, request, requests, group, len(weights), temperature)
    whole = sum(weights.values()) or 1.0
    parts = zip(weights.items(), totals.unbind(), counts.unbind(), strict=True)
    return {name: Term(total, count, weight / whole) for (name, weight), total, count in parts}
