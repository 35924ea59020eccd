"""The light model learns the expressive one's order within each request."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hap.errors import ConfigError, NotFound
from hap.models.batch import Batch
from hap.models.build import build_model, save_model
from hap.params import Params
from hap.training.distill import distill_term, load_teacher
from hap.training.feed import Feed
from hap.training.loop import train
from tests.training.test_losses import jagged


class Fixed(torch.nn.Module):
    """A teacher that says what it was told to."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _: Batch) -> torch.Tensor:
        return self.logits


def batch(kind: torch.Tensor, request: torch.Tensor, requests: int) -> Batch:
    none = torch.zeros((requests, 0))
    return Batch(none, none, none, none, none, none, request, kind)


@given(jagged(), st.integers(0, 1000), st.sampled_from([0.5, 2.0]))
def test_the_term_is_the_mean_divergence_of_the_requests(drawn, seed: int, weight: float) -> None:
    logits, kind, request, requests = drawn
    wanted = torch.from_numpy(np.random.default_rng(seed).normal(size=len(logits)) * 3)
    divergences = []
    for r in range(requests):
        own = (request == r).numpy()
        if own.any():
            p, q = (np.exp(v.numpy()[own]) / np.exp(v.numpy()[own]).sum() for v in (wanted, logits))
            divergences.append(float((p * np.log(p / q)).sum()))
    found = float(distill_term(logits, batch(kind, request, requests), Fixed(wanted), weight).mean())
    assert found == pytest.approx(weight * np.mean(divergences) if divergences else 0.0, abs=1e-4)


@given(jagged())
def test_a_student_that_differs_by_a_level_has_nothing_to_learn(drawn) -> None:
    logits, kind, request, requests = drawn
    student = (logits + request).requires_grad_()
    term = distill_term(student, batch(kind, request, requests), Fixed(logits), 1.0)
    assert float(term.mean().detach()) == pytest.approx(0.0, abs=1e-5)
    if len(logits):
        term.mean().backward()
        assert student.grad is not None
        assert float(student.grad.abs().max()) < 1e-5


@pytest.fixture(scope="module")
def teacher(small_params: Params, sample_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expressive model with its weights as drawn: something of its own to say."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("teacher") / "expressive"
    model = build_model("expressive", small_params)
    save_model(model, folder, {"model": "expressive"})
    return folder


def distilled(params: Params, weight: float) -> Params:
    light = params.light.model_copy(update={"distill": weight})
    return params.model_copy(update={"light": light, "train": params.train.model_copy(update={"epochs": 4, "batch_requests": 16})})


def test_the_light_model_comes_closer_to_its_teacher(small_params: Params, sample_files: list[Path], teacher: Path) -> None:
    params = distilled(small_params, 20.0)
    taught = train("light", params, sample_files, lambda _: None, teacher=teacher)
    alone = train("light", distilled(small_params, 0.0), sample_files, lambda _: None)
    whole = next(Feed(sample_files, params, heldout=False).batches(1, 1))
    model = load_teacher(teacher, params, torch.device("cpu"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        near, far = (float(distill_term(one.model(whole), whole, model, 1.0).mean()) for one in (taught, alone))
    assert near < far
    assert set(taught.losses[0]) == {"EN", "RN", "PRN", "GN", "bce", "distill"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_distillation_goes_together_with_surgery(small_params: Params, sample_files: list[Path], teacher: Path) -> None:
    params = distilled(small_params, 1.0)
    params = params.model_copy(update={"train": params.train.model_copy(update={"surgery": "pcgrad", "conflict_steps": 5})})
    trained = train("light", params, sample_files, lambda _: None, teacher=teacher)
    assert np.isfinite([sum(losses.values()) for losses in trained.losses]).all()
    assert trained.conflicts


def test_a_teacher_is_named_where_it_is_needed_and_only_there(small_params: Params, sample_files: list[Path], teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"light\.distill 1: no teacher"):
        train("light", distilled(small_params, 1.0), sample_files, lambda _: None)
    with pytest.raises(ConfigError, match="no use"):
        train("light", small_params, sample_files, lambda _: None, teacher=teacher)
    with pytest.raises(ConfigError, match="no use"):
        train("expressive", distilled(small_params, 1.0), sample_files, lambda _: None, teacher=teacher)
    with pytest.raises(NotFound):
        train("light", distilled(small_params, 1.0), sample_files, lambda _: None, teacher=teacher / "elsewhere")


def test_a_teacher_of_another_size_is_refused_in_one_line(small_params: Params, teacher: Path) -> None:
    grown = small_params.model_copy(
        update={"expressive": small_params.expressive.model_copy(update={"size": 2 * small_params.expressive.size})}
    )
    with pytest.raises(ConfigError, match=r"another size.* wanted, .* found.*`hapctl train expressive --day D`"):
        load_teacher(teacher, grown, torch.device("cpu"))
