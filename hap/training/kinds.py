"""The part of each kind of negatives in a gradient: what separates the positives from that kind.

For any loss L of the logits s, the part of kind k of dL/ds is
- at a negative of kind k: all of dL/ds there; at negatives of other kinds: nothing;
- at a positive: a share of dL/ds there. Term by term of the loss, the share is what kind k has of the L1 mass of the
  term's gradient over the negatives of the positive's own request.
So the parts add up to dL/ds, and nothing is a part of its own that every kind pulls against alike.

The share is exact where the loss itself says what a positive answers. A group of GHCL holds one kind, which gets all. In
pooled InfoNCE a positive's gradient is -(1 - p+)/t, a sum over negatives, of which kind k holds Z_k / Z of the softmax
mass; the L1 masses of its negatives' gradients are in the same proportion. BCE pairs nobody: there, the share is the
rule that makes pushing up and pushing down balance in each part as they do in the request, so that the part is about order and
not about the common level of the logits [derived]. By count instead of mass, the many easy negatives would be given a
lift of positives that they do not answer.

Shape letters: K kinds trained on, N candidates of all requests, R requests, D parameters.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hap.params import KINDS
from hap.training.losses import EP
from hap.training.ranks import Ranks


def kind_pulls(terms: Iterable[Tensor], logits: Tensor, kind: Tensor, request: Tensor, requests: int, kinds: Sequence[str]) -> Tensor:
    """F[K, N]: the part of each kind in the gradient of the sum of the terms by the logits. The graph stays.

    A request's share needs the request alone, so processes that share a batch by whole requests need not talk. Where a
    term moves a positive whose request has no negative that it moves, the positive's gradient is shared evenly.

    Args:
        terms: the averaged terms of the loss, scalars; logits: F[N]; kind: I8[N]; request: I64[N] in 0..requests-1.
        kinds: the kinds of negatives that occur.
    """
    codes = torch.tensor([KINDS.index(name) for name in kinds], dtype=kind.dtype, device=kind.device)
    negative_KN, positive_N = kind == codes[:, None], kind == EP
    parts_KN = torch.zeros((len(codes), len(logits)), device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
    for term in terms if logits.requires_grad else ():
        if not term.requires_grad:
            continue
        (found,) = torch.autograd.grad(term, logits, retain_graph=True, allow_unused=True)
        if found is None:  # a term without logits, such as the price of learned weights
            continue
        pull_N = found.to(parts_KN.dtype)
        mass_KR = pull_N.new_zeros((len(codes), requests)).index_add_(1, request, pull_N.abs() * negative_KN)
        total_R = mass_KR.sum(0)
        share_KR = torch.where(total_R > 0, mass_KR / total_R, 1 / len(codes))
        parts_KN += pull_N * (negative_KN + share_KR[:, request] * positive_N)
    return parts_KN


def kind_gradients(logits: Tensor, pulls_KN: Tensor, parameters: Sequence[nn.Parameter], ranks: Ranks) -> Tensor:
    """F[K, D]: the part of each kind in the gradient by the parameters, over all processes. The graph stays.

    One backward pass for each kind, and one sum over the processes for all of them. Every process takes part, also one
    whose share of the batch is empty.
    """
    size = sum(p.numel() for p in parameters)
    whole_KD = torch.zeros((len(pulls_KN), size), device=pulls_KN.device)
    for row, pull_N in enumerate(pulls_KN if logits.requires_grad else ()):
        found = torch.autograd.grad(logits, parameters, pull_N.to(logits.dtype), retain_graph=True, allow_unused=True)
        start = 0
        for part, parameter in zip(found, parameters, strict=True):
            if part is not None:
                whole_KD[row, start : start + parameter.numel()] = part.reshape(-1)
            start += parameter.numel()
    return ranks.sum(whole_KD)


def keep_compiled_graphs() -> None:
    """Let graphs that torch.compile makes from now on be gone through once for each kind; else torch refuses the second time."""
    from torch._functorch import config

    config.donated_buffer = False
