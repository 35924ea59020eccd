"""The kinds' gradients add up to the whole one, for every loss."""

from pathlib import Path

import pytest
import torch

from hap.models.build import build_model
from hap.params import KINDS, NEGATIVES, Loss, Params
from hap.training.conflict import draw_conflict, measure_conflict, save_figure
from hap.training.feed import Feed
from hap.training.losses import loss_terms


@pytest.mark.parametrize("name", ["bce", "infonce", "infonce+bce", "ghcl", "ghcl+bce"])
def test_norms_and_cosines_describe_gradients_that_add_up_to_the_whole(name: str, small_params: Params, sample_files: list[Path]) -> None:
    torch.manual_seed(1)
    model = build_model("light", small_params)
    batch = next(Feed(sample_files, small_params, heldout=False).batches(1, 1))
    shared = [p for n, p in model.named_parameters() if ".tables." not in n]
    logits = model(batch)
    terms = loss_terms(logits, batch.kind, batch.request, batch.requests, Loss(name=name), NEGATIVES)
    loss = torch.stack([term.mean() for term in terms.values()]).sum()
    found = measure_conflict(loss, logits, batch.kind, shared)
    assert set(found["norm"]) == set(KINDS)
    assert all(-1 - 1e-9 <= cosine <= 1 + 1e-9 for cosine in found["cosine"].values())
    # |sum g_k|^2 = sum |g_k|^2 + 2 sum |g_a| |g_b| cos(a, b)
    norms = found["norm"]
    squared = sum(norm**2 for norm in norms.values())
    squared += 2 * sum(norms[a] * norms[b] * cosine for pair, cosine in found["cosine"].items() for a, b in [pair.split("|")])
    loss.backward()  # the graph is still there
    whole = sum(float((p.grad.double() ** 2).sum()) for p in shared if p.grad is not None)
    assert squared == pytest.approx(whole, rel=1e-3)


def test_grouping_narrows_the_gap_between_hard_and_easy_pulls() -> None:
    logits = torch.tensor([0.0, 3.0, 3.0, -3.0, -3.0], requires_grad=True)
    kind, request = torch.tensor([0, 2, 2, 4, 4], dtype=torch.int8), torch.zeros(5, dtype=torch.int64)
    gap = {}
    for name in ("infonce", "ghcl"):
        loss = torch.stack([term.mean() for term in loss_terms(logits, kind, request, 1, Loss(name=name), NEGATIVES).values()]).sum()
        pull = measure_conflict(loss, logits, kind, [logits])["pull"]
        gap[name] = pull["RN"] / pull["GN"]
    assert gap["ghcl"] < gap["infonce"] / 5


def test_a_kind_that_is_absent_has_no_figures_and_the_picture_is_drawn(tmp_path: Path) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    kind, request = torch.tensor([0, 1, 2], dtype=torch.int8), torch.zeros(3, dtype=torch.int64)
    loss = torch.stack([term.mean() for term in loss_terms(logits, kind, request, 1, Loss(), NEGATIVES).values()]).sum()
    record = {"step": 0, **measure_conflict(loss, logits, kind, [logits])}
    assert set(record["norm"]) == {"EP", "EN", "RN"}
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        save_figure(draw_conflict([record, {**record, "step": 10}], "light, ghcl+bce"), path)
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert paths[0].read_bytes() == paths[1].read_bytes()
