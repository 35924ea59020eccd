"""What a model costs: parameters, and floating-point operations per request and per candidate."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hap.evaluation.cascade import Cost
from hap.models.build import build_model, dense_parameters
from hap.params import MODELS, Params

SHOWN_CANDIDATES = (100, 1000)  # where `hapctl describe` shows the user side's share


@dataclass(frozen=True)
class Description:
    """Sizes of one model. Operations are those of matrix products, a multiply-add counted as two."""

    model: str
    size: int
    parameters: int
    dense_parameters: int  # outside the embedding tables
    user_parameters: int  # of those, used once per request
    flops_per_request: int  # the user side: whatever the number of candidates
    flops_per_candidate: int

    def flops(self, candidates: int) -> int:
        """Operations of one request with so many candidates."""
        return self.flops_per_request + candidates * self.flops_per_candidate

    @property
    def cost(self) -> Cost:
        """Operations, as the routing curve counts them."""
        return Cost(self.flops_per_request, self.flops_per_candidate)

    def user_share(self, candidates: int) -> float:
        """Share of a request's operations that the user side takes."""
        return self.flops_per_request / self.flops(candidates)


def describe(name: str, params: Params) -> Description:
    """Measure a model of the given parameters, freshly built."""
    with torch.random.fork_rng(devices=[]):  # building draws weights; the caller's generator stays where it is
        model = build_model(name, params).eval()
    one, two = _flops(model, params, 1), _flops(model, params, 2)
    return Description(
        model=name,
        size=getattr(params, name).size,
        parameters=sum(p.numel() for p in model.parameters()),
        dense_parameters=dense_parameters(model),
        user_parameters=sum(p.numel() for p in user_side(model)),
        flops_per_request=one - (two - one),
        flops_per_candidate=two - one,
    )


def describe_all(params: Params) -> list[Description]:
    """Every model."""
    return [describe(name, params) for name in MODELS]


def user_side(model: nn.Module) -> list[nn.Parameter]:
    """The dense parameters that work once per request: those that a request without candidates still needs."""
    request = _tensors(model.columns.features, 0)  # type: ignore[union-attr]
    model.zero_grad(set_to_none=True)
    encoded = model.encode_user(*[tensor[None] for tensor in request[:4]])  # type: ignore[operator]
    outputs = encoded if isinstance(encoded, tuple) else (encoded,)
    torch.stack([output.sum() for output in outputs if output is not None and output.is_floating_point()]).sum().backward()
    used = [p for n, p in model.named_parameters() if ".tables." not in n and p.grad is not None]
    model.zero_grad(set_to_none=True)
    return used


def _flops(model: nn.Module, params: Params, candidates: int) -> int:
    arrays = _tensors(params.features, candidates)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.score_request(*arrays)  # type: ignore[operator]
    return int(counter.get_total_flops())


def _tensors(features: Any, candidates: int) -> list[torch.Tensor]:
    """One request of ones, in the serving shape."""
    length = features.history_length
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((len(features.ids("user")),), torch.int64),
        ((len(features.dense("user")),), torch.float32),
        ((length, len(features.ids("history"))), torch.int64),
        ((length, len(features.dense("history"))), torch.float32),
        ((candidates, len(features.ids("item"))), torch.int64),
        ((candidates, len(features.dense("item"))), torch.float32),
    ]
    return [torch.ones(shape, dtype=dtype) for shape, dtype in shapes]
