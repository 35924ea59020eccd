"""Norms and cosines of the kinds' gradients, and their picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hap.params import NEGATIVES, Loss
from hap.training.conflict import draw_conflict, measure_conflict, save_figure
from hap.training.kinds import kind_gradients, kind_pulls
from hap.training.losses import loss_terms
from hap.training.ranks import ALONE


def look(features: Tensor, kind: Tensor, request: Tensor, loss: Loss) -> tuple[dict[str, Any], Tensor]:
    """One measurement of a linear model, and its gradients by kind [4, D]."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, features.shape[1]))
    logits = features @ weight
    requests = int(request.max()) + 1
    means = [term.mean() for term in loss_terms(logits, kind, request, requests, loss, NEGATIVES).values()]
    pulls = kind_pulls(means, logits, kind, request, requests, NEGATIVES)
    gradients = kind_gradients(logits, pulls, [weight], ALONE)
    return measure_conflict(gradients, pulls, kind, NEGATIVES, ALONE), gradients


def batch(rows: int, requests: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    kind = torch.arange(rows, dtype=torch.int8) % 5
    return torch.randn(rows, 6, generator=draw), kind, torch.arange(rows) * requests // rows


@pytest.mark.parametrize("name", ["bce", "infonce", "infonce+bce", "ghcl", "ghcl+bce"])
def test_norms_and_cosines_are_those_of_the_gradients(name: str) -> None:
    found, gradients = look(*batch(60, 4), Loss(name=name))
    vectors = dict(zip(NEGATIVES, gradients.double().numpy(), strict=True))
    assert set(found["norm"]) == set(found["pull"]) == set(NEGATIVES)
    assert len(found["cosine"]) == 6
    for kind, norm in found["norm"].items():
        assert norm == pytest.approx(np.linalg.norm(vectors[kind]))
    for pair, cosine in found["cosine"].items():
        a, b = (vectors[kind] for kind in pair.split("|"))
        assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(("second", "cosine"), [(1.0, 1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("name", ["bce", "infonce+bce", "ghcl+bce"])
def test_kinds_that_ask_for_the_same_agree_and_kinds_that_ask_for_opposites_do_not(name: str, second: float, cosine: float) -> None:
    """EN lies on one side of the positive; RN on the same, or on the other."""
    features = torch.tensor([[0.0], [1.0], [second]])
    found, _ = look(features, torch.tensor([0, 1, 2], dtype=torch.int8), torch.zeros(3, dtype=torch.int64), Loss(name=name))
    assert found["cosine"] == {"EN|RN": pytest.approx(cosine)}


def test_a_direction_that_all_logits_have_in_common_makes_no_kinds_agree() -> None:
    """A constant column is what every negative pushes down and every positive up; it must not hide what tells kinds apart."""
    apart = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    kind, request = torch.tensor([0, 1, 2], dtype=torch.int8), torch.zeros(3, dtype=torch.int64)
    for level in (0.0, 100.0):
        features = torch.cat([apart, torch.full((3, 1), level)], dim=1)
        found, _ = look(features, kind, request, Loss(name="ghcl"))
        assert abs(found["cosine"]["EN|RN"]) < 1e-3, level


def test_grouping_narrows_the_gap_between_hard_and_easy_pulls() -> None:
    features, kind = torch.tensor([[0.0], [3.0], [3.0], [-3.0], [-3.0]]), torch.tensor([0, 2, 2, 4, 4], dtype=torch.int8)
    gap = {}
    for name in ("infonce", "ghcl"):
        logits = features[:, 0].clone().requires_grad_()
        request = torch.zeros(5, dtype=torch.int64)
        means = [term.mean() for term in loss_terms(logits, kind, request, 1, Loss(name=name), NEGATIVES).values()]
        pulls = kind_pulls(means, logits, kind, request, 1, NEGATIVES)
        pull = measure_conflict(pulls, pulls, kind, NEGATIVES, ALONE)["pull"]
        gap[name] = pull["RN"] / pull["GN"]
    assert gap["infonce"] == pytest.approx(np.exp(6), rel=1e-4)
    assert gap["ghcl"] < gap["infonce"] / 5


def test_a_kind_that_is_absent_has_no_figures_and_the_picture_is_drawn(tmp_path: Path) -> None:
    kind, request = torch.tensor([0, 1, 2], dtype=torch.int8), torch.zeros(3, dtype=torch.int64)
    measured, _ = look(torch.tensor([[0.0], [1.0], [2.0]]), kind, request, Loss())
    record = {"step": 0, **measured}
    assert set(record["norm"]) == {"EN", "RN"}
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        save_figure(draw_conflict([record, {**record, "step": 10}], "light, ghcl+bce"), path)
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_picture_has_a_curve_for_each_kind_and_pair() -> None:
    measured, _ = look(*batch(60, 4), Loss())
    figure = draw_conflict([{"step": step, **measured} for step in range(0, 400, 10)], "light, ghcl+bce")
    norms, cosines, heat = figure.axes
    assert [text.get_text() for text in norms.get_legend().get_texts()] == list(NEGATIVES)
    assert len(cosines.get_legend().get_texts()) == 6
    assert len(heat.texts) == 16
