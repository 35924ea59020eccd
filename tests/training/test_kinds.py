"""The kinds' parts of a gradient: exact where the loss pairs, balanced where it does not, and nothing lost."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hap.models.build import build_model
from hap.params import KINDS, NEGATIVES, Loss, Params
from hap.training.feed import Feed
from hap.training.kinds import keep_compiled_graphs, kind_gradients, kind_pulls
from hap.training.losses import loss_terms
from hap.training.ranks import ALONE
from tests.training.test_losses import LOSSES, jagged

WEIGHTS = {"EN": 2.0, "RN": 1.0, "PRN": 0.5, "GN": 0.0}


def reference(name: str, logits: list[float], kind: list[int], request: list[int], t: float) -> list[list[float]]:
    """[4][N]: who pushes whom, pair by pair, in Python floats. A positive's gradient is put together from the pairs it is in."""
    rows = range(len(logits))
    parts = [[0.0] * len(logits) for _ in NEGATIVES]

    def pairs(groups: list[set[int]], weights: list[float]) -> None:
        for group, weight in zip(groups, weights, strict=True):
            found = []
            for i in rows:
                against = [j for j in rows if kind[j] in group and request[j] == request[i]]
                if kind[i] == 0 and against:
                    found.append((i, against))
            for i, against in found:
                top = max(logits[j] for j in (i, *against)) / t
                whole = sum(math.exp(logits[j] / t - top) for j in (i, *against))
                for j in against:
                    push = weight * math.exp(logits[j] / t - top) / whole / t / len(found)
                    parts[kind[j] - 1][j] += push
                    parts[kind[j] - 1][i] -= push

    if name.startswith("ghcl"):
        pairs([{1}, {2}, {3}, {4}], [WEIGHTS[k] / sum(WEIGHTS.values()) for k in NEGATIVES])
    elif name.startswith("infonce"):
        pairs([{1, 2, 3, 4}], [1.0])
    if "bce" in name:
        chance = [1 / (1 + math.exp(-s)) / len(logits) for s in logits]
        for i in rows:
            if kind[i]:
                parts[kind[i] - 1][i] += chance[i]
                continue
            mass = [sum(chance[j] for j in rows if request[j] == request[i] and kind[j] == code) for code in (1, 2, 3, 4)]
            for k in range(4):
                parts[k][i] -= (1 / len(logits) - chance[i]) * (mass[k] / sum(mass) if sum(mass) else 0.25)
    return parts


def pulls(name: str, logits: torch.Tensor, kind: torch.Tensor, request: torch.Tensor, requests: int, t: float = 1.0) -> torch.Tensor:
    loss = Loss(name=name, temperature=t, kind_weights=WEIGHTS)
    terms = [term.mean() for term in loss_terms(logits, kind, request, requests, loss, NEGATIVES).values()]
    return kind_pulls(terms, logits, kind, request, requests, NEGATIVES)


@pytest.mark.parametrize("name", LOSSES)
@given(jagged(), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=60)
def test_each_part_is_what_the_pairs_with_that_kind_push(name: str, batch, t: float) -> None:
    logits, kind, request, requests = batch
    found = pulls(name, logits.requires_grad_(), kind, request, requests, t)
    expected = reference(name, logits.tolist(), kind.tolist(), request.tolist(), t)
    assert torch.allclose(found, torch.tensor(expected, dtype=found.dtype).reshape(4, -1), atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@given(jagged())
@settings(max_examples=60)
def test_the_parts_add_up_to_the_whole_gradient(name: str, batch) -> None:
    logits, kind, request, requests = batch
    logits.requires_grad_()
    terms = loss_terms(logits, kind, request, requests, Loss(name=name, kind_weights=WEIGHTS), NEGATIVES)
    (whole,) = torch.autograd.grad(torch.stack([term.mean() for term in terms.values()]).sum(), logits)
    assert torch.allclose(pulls(name, logits, kind, request, requests).sum(0), whole.to(torch.float64), atol=1e-6)


@pytest.mark.parametrize("name", ["infonce", "ghcl"])
@given(jagged())
@settings(max_examples=40)
def test_a_part_of_a_contrastive_loss_leaves_each_requests_level_alone(name: str, batch) -> None:
    logits, kind, request, requests = batch
    found = pulls(name, logits.requires_grad_(), kind, request, requests)
    by_request = found.new_zeros((4, requests)).index_add_(1, request, found)
    assert torch.allclose(by_request, torch.zeros_like(by_request), atol=1e-5)


@pytest.mark.parametrize("extreme", [200.0, -200.0])
@pytest.mark.parametrize("name", LOSSES)
def test_masses_that_vanish_still_leave_a_gradient_to_share(name: str, extreme: float) -> None:
    logits = torch.tensor([0.0, extreme, extreme, 0.5], requires_grad=True)
    kind, request = torch.tensor([0, 1, 3, 0], dtype=torch.int8), torch.tensor([0, 0, 0, 1])
    found = pulls(name, logits, kind, request, 2)
    terms = loss_terms(logits, kind, request, 2, Loss(name=name, kind_weights=WEIGHTS), NEGATIVES)
    (whole,) = torch.autograd.grad(torch.stack([term.mean() for term in terms.values()]).sum(), logits)
    assert torch.isfinite(found).all()
    assert torch.allclose(found.sum(0), whole, atol=1e-6)


@pytest.mark.parametrize("model_name", ["light", "expressive"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_the_parameters_add_up_and_the_graph_stays(
    name: str, model_name: str, small_params: Params, sample_files: list[Path]
) -> None:
    torch.manual_seed(1)
    model = build_model(model_name, small_params)
    batch = next(Feed(sample_files, small_params, heldout=False).batches(1, 1))
    shared = [p for n, p in model.named_parameters() if ".tables." not in n]
    logits = model(batch)
    means = [t.mean() for t in loss_terms(logits, batch.kind, batch.request, batch.requests, Loss(name=name), NEGATIVES).values()]
    parts = kind_gradients(logits, kind_pulls(means, logits, batch.kind, batch.request, batch.requests, NEGATIVES), shared, ALONE)
    assert (parts.norm(dim=1) > 0).all()
    torch.stack(means).sum().backward()
    whole = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in shared])
    assert torch.allclose(parts.sum(0), whole, atol=1e-6)


def test_a_model_of_hard_kinds_has_hard_parts_only() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    kind, request = torch.tensor([0, 1, 2], dtype=torch.int8), torch.zeros(3, dtype=torch.int64)
    means = [term.mean() for term in loss_terms(logits, kind, request, 1, Loss(), ("EN", "RN")).values()]
    found = kind_pulls(means, logits, kind, request, 1, ("EN", "RN"))
    assert found.shape == (2, 3)
    assert found[0, KINDS.index("RN")] == found[1, KINDS.index("EN")] == 0


def test_an_empty_share_of_a_batch_has_parts_of_nothing() -> None:
    none = torch.zeros(0)
    means = [t.mean() for t in loss_terms(none, none.to(torch.int8), none.long(), 0, Loss(), NEGATIVES).values()]
    found = kind_pulls(means, none, none.to(torch.int8), none.long(), 0, NEGATIVES)
    assert found.shape == (4, 0)
    weight = torch.nn.Parameter(torch.ones(3))
    assert torch.equal(kind_gradients(none, found, [weight], ALONE), torch.zeros(4, 3))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of torch itself
def test_a_compiled_graph_is_gone_through_for_each_kind() -> None:
    keep_compiled_graphs()
    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    kind, request = torch.arange(20, dtype=torch.int8) % 5, torch.zeros(20, dtype=torch.int64)
    features, found = torch.randn(20, 6), []
    for forward in (model, torch.compile(model, dynamic=True)):
        logits = forward(features).squeeze(-1)
        means = [term.mean() for term in loss_terms(logits, kind, request, 1, Loss(), NEGATIVES).values()]
        pulls = kind_pulls(means, logits, kind, request, 1, NEGATIVES)
        found.append(kind_gradients(logits, pulls, list(model.parameters()), ALONE))
        torch.stack(means).sum().backward()
    assert torch.allclose(*found, atol=1e-6)
