"""Surgery does to the kinds' gradients what the papers' formulas say, and nothing where nothing conflicts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hap.params import Params
from hap.training.loop import train
from hap.training.surgery import Surgery, gradvac, pcgrad

GRADIENTS = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed).normal(size=(4, 6)) * [[1], [10], [0.1], [1]])


def order(rng: np.random.Generator, kinds: int) -> list[list[int]]:
    """Whom each kind meets, in the order that the weights' functions draw."""
    return [[int(j) for j in rng.permutation(kinds) if j != i] for i in range(kinds)]


def slow_pcgrad(gradients: np.ndarray, meetings: list[list[int]]) -> np.ndarray:
    """Algorithm 1 of the paper on the vectors themselves."""
    changed = gradients.copy()
    for i, others in enumerate(meetings):
        for j in others:
            product = changed[i] @ gradients[j]
            if product < 0:
                changed[i] = changed[i] - product / (gradients[j] @ gradients[j]) * gradients[j]
    return changed.sum(0)


def slow_gradvac(gradients: np.ndarray, target: np.ndarray, beta: float, meetings: list[list[int]]) -> np.ndarray:
    """Algorithm 1 of the paper on the vectors themselves; `target` moves on in place."""
    changed = gradients.copy()
    for i, others in enumerate(meetings):
        for j in others:
            phi = changed[i] @ gradients[j] / np.linalg.norm(changed[i]) / np.linalg.norm(gradients[j])
            psi = target[i, j]
            if phi < psi:
                above = np.linalg.norm(changed[i]) * (psi * np.sqrt(1 - phi**2) - phi * np.sqrt(1 - psi**2))
                changed[i] = changed[i] + above / (np.linalg.norm(gradients[j]) * np.sqrt(1 - psi**2)) * gradients[j]
            target[i, j] = (1 - beta) * psi + beta * phi
    return changed.sum(0)


@given(GRADIENTS, st.integers(0, 1000))
def test_pcgrad_by_products_equals_pcgrad_by_vectors(gradients: np.ndarray, seed: int) -> None:
    weights = pcgrad(gradients @ gradients.T, np.random.default_rng(seed))
    assert np.allclose(weights @ gradients, slow_pcgrad(gradients, order(np.random.default_rng(seed), 4)))


@given(GRADIENTS, st.integers(0, 1000), st.floats(-0.9, 0.9), st.sampled_from([0.01, 0.5, 1.0]))
def test_gradvac_by_products_equals_gradvac_by_vectors(gradients: np.ndarray, seed: int, psi: float, beta: float) -> None:
    target, slow = np.full((4, 4), psi), np.full((4, 4), psi)
    weights = gradvac(gradients @ gradients.T, target, beta, np.random.default_rng(seed))
    assert np.allclose(weights @ gradients, slow_gradvac(gradients, slow, beta, order(np.random.default_rng(seed), 4)))
    assert np.allclose(target, slow)


@given(st.integers(0, 10_000))
def test_two_kinds_are_no_longer_against_each_other_after_pcgrad(seed: int) -> None:
    gradients = np.random.default_rng(seed).normal(size=(2, 5))
    step = pcgrad(gradients @ gradients.T, np.random.default_rng(seed)) @ gradients
    assert (gradients @ step >= -1e-9).all()


@given(GRADIENTS, st.integers(0, 1000))
def test_kinds_that_agree_are_left_alone_by_pcgrad(gradients: np.ndarray, seed: int) -> None:
    agreeing = np.abs(gradients)
    assert np.array_equal(pcgrad(agreeing @ agreeing.T, np.random.default_rng(seed)), np.ones(4))


def test_gradvac_lifts_a_pair_to_the_cosine_it_aims_at() -> None:
    gradients = np.array([[1.0, 0.0], [-1.0, 2.0]])
    target = np.array([[0.0, 0.6], [-1.0, 0.0]])  # the second kind aims at nothing
    weights = gradvac(gradients @ gradients.T, target.copy(), 0.5, np.random.default_rng(1))
    lifted = weights @ gradients - gradients[1]
    assert lifted @ gradients[1] / np.linalg.norm(lifted) / np.linalg.norm(gradients[1]) == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_absent_and_opposite_and_equal_kinds_give_finite_steps(name: str, seed: int) -> None:
    one = np.random.default_rng(seed).normal(size=5)
    gradients = np.stack([one, -one, one, np.zeros(5)])
    surgery = Surgery(name, 4, 0.5, 1)
    for step in range(20):
        assert np.isfinite(surgery.weights(gradients @ gradients.T, step)).all()
    assert np.isfinite(surgery.target_KK).all()


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_the_gradients_that_a_step_takes_are_the_weighed_sum(name: str) -> None:
    torch.manual_seed(3)
    parts = torch.randn(4, 10)
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    weights = Surgery(name, 4, 0.1, 7).weights((parts.double() @ parts.double().T).numpy(), 11)
    Surgery(name, 4, 0.1, 7).set_gradients(parts, parameters, 11)
    found = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    assert torch.allclose(found, torch.from_numpy(weights).float() @ parts, atol=1e-5)


def test_gradvac_goes_on_from_what_it_had_seen() -> None:
    draw = np.random.default_rng(2)
    grams = [(vectors := draw.normal(size=(4, 6))) @ vectors.T for _ in range(8)]
    whole, first, second = (Surgery("gradvac", 4, 0.3, 5) for _ in range(3))
    expected = [whole.weights(gram, step) for step, gram in enumerate(grams)]
    for step, gram in enumerate(grams[:4]):
        first.weights(gram, step)
    second.load_state_dict(first.state_dict())
    assert all(np.array_equal(second.weights(gram, 4 + n), expected[4 + n]) for n, gram in enumerate(grams[4:]))


def trained(params: Params, files: list[Path], name: str = "light", **changes: object) -> dict[str, torch.Tensor]:
    settings = params.train.model_copy(update={"batch_requests": 16, "conflict_steps": 0, **changes})
    return train(name, params.model_copy(update={"train": settings}), files, lambda _: None).model.state_dict()


@pytest.mark.parametrize("name", ["light", "expressive"])
def test_surgery_without_conflict_trains_as_none_does(
    name: str, small_params: Params, sample_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every weight 1, dense parameters and embedding rows must come out as of one plain backward pass."""
    monkeypatch.setattr(Surgery, "weights", lambda self, gram, step: np.ones(len(gram)))
    plain, cut = (trained(small_params, sample_files, name, surgery=surgery, epochs=1) for surgery in ("none", "pcgrad"))
    for key, value in plain.items():
        assert torch.allclose(value, cut[key], atol=2e-4), key


@pytest.mark.parametrize("surgery", ["pcgrad", "gradvac"])
def test_surgery_changes_the_network_and_repeats_bit_for_bit(surgery: str, small_params: Params, sample_files: list[Path]) -> None:
    """Trained for as long as it takes the kinds to part: in the first steps they agree, and surgery has nothing to do."""
    longer = {"epochs": 6, "learning_rate": 0.02, "warmup_steps": 0}
    plain, first, second = (trained(small_params, sample_files, surgery=name, **longer) for name in ("none", surgery, surgery))
    assert not torch.allclose(plain["head.weight"], first["head.weight"], atol=0.01)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
