"""GHCL and its ablations, by segments of a jagged batch: no padding, no loop over requests.

L_g = mean over (positive, group) pairs of -log( exp(s+/t) / ( exp(s+/t) + sum_{k in N_g} exp(s_k/t) ) ),
one denominator per group of negatives (GHCL) or one for all (pooled InfoNCE). hap.md, "GHCL" [derived].
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from hap.params import KINDS, Loss

EP = KINDS.index("EP")


def segment_logsumexp(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """log sum exp of values F[N] by segment I64[N] -> F[segments]; -inf where a segment is empty."""
    peak = values.new_full((segments,), -torch.inf).scatter_reduce(0, segment, values.detach(), "amax")
    safe = torch.where(torch.isfinite(peak), peak, torch.zeros_like(peak))
    total = values.new_zeros(segments).index_add(0, segment, torch.exp(values - safe[segment]))
    return torch.where(total > 0, torch.log(total.clamp(min=torch.finfo(total.dtype).tiny)) + safe, peak)


def contrastive(logits: Tensor, kind: Tensor, request: Tensor, requests: int, group: Tensor, temperature: float) -> Tensor:
    """The mean InfoNCE of every positive against the negatives marked in `group` of its own request.

    Args:
        logits: F[N]; kind: I8[N]; request: I64[N] in 0..requests-1; group: BOOL[N], the negatives.

    Returns:
        A scalar; 0 where no request has both a positive and a negative of the group.
    """
    scaled = logits.float() / temperature  # bf16 cannot hold a sum of exponentials
    negative = segment_logsumexp(scaled[group], request[group], requests)
    positive = kind == EP
    against = negative[request[positive]]
    pairs = torch.isfinite(against)
    # -log(e^s / (e^s + e^z)) = softplus(z - s), exact for any size of s and z.
    losses = softplus(against[pairs] - scaled[positive][pairs])
    return losses.sum() / pairs.sum().clamp(min=1)


def loss_parts(logits: Tensor, kind: Tensor, request: Tensor, requests: int, settings: Loss, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """The weighted terms of the configured loss by name; their sum is what is minimised.

    Args:
        kinds: the kinds of negatives that this model trains on.
    """
    parts: dict[str, Tensor] = {}
    if settings.name.startswith("ghcl"):
        weights = {name: settings.kind_weights.get(name, 1.0) for name in kinds}  # type: ignore[call-overload]
        total = sum(weights.values()) or 1.0
        for name, weight in weights.items():
            term = contrastive(logits, kind, request, requests, kind == KINDS.index(name), settings.temperature)
            parts[name] = term * (weight / total)
    elif settings.name.startswith("infonce"):
        parts["pooled"] = contrastive(logits, kind, request, requests, kind != EP, settings.temperature)
    if "bce" in settings.name and settings.bce_weight > 0:
        labels = (kind == EP).float()
        parts["bce"] = binary_cross_entropy_with_logits(logits.float(), labels) * settings.bce_weight
    return parts
