"""Distilling the expressive model into the light one, so that what routing lets through is what the expressive model wants.

For each request, the cross entropy between the softmax of the teacher's logits over the request's candidates and that of the
student's, less the teacher's own entropy: the Kullback-Leibler divergence, 0 where both agree. It is ListNet's top-one loss (Cao et
al., ICML 2007) with the teacher's logits as the relevance, at temperature 1 what Hinton et al. (arXiv 1503.02531) minimise. Only
differences within a request count, so the level of the logits stays with BCE.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from hap.models.batch import Batch
from hap.models.build import load_model
from hap.params import Params
from hap.training.losses import Term, segment_logsumexp


def load_teacher(folder: Path, params: Params, device: torch.device) -> nn.Module:
    """The model in `folder`, fixed.

    Raises:
        NotFound: there is none.
    """
    return load_model(folder, params).to(device).requires_grad_(False)


def distill_term(logits: Tensor, batch: Batch, teacher: nn.Module, weight: float) -> Term:
    """The divergence of each request's order of candidates from the teacher's, averaged over requests.

    Args:
        logits: the student's, F[N]; a request without candidates counts for nothing.
    """
    if not len(batch.kind):  # this process's share of the batch is empty
        return Term(logits.sum(), torch.zeros((), dtype=torch.int64, device=logits.device), weight)
    with torch.no_grad():
        wanted = _log_softmax(teacher(batch).float(), batch.request, batch.requests)
    found = _log_softmax(logits.float(), batch.request, batch.requests)
    return Term((torch.exp(wanted) * (wanted - found)).sum(), (torch.bincount(batch.request) > 0).sum(), weight)


def _log_softmax(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """log softmax of values F[N] within each segment -> F[N]."""
    return values - segment_logsumexp(values, segment, segments)[segment]
