"""Touched rows alone move, as torch's Adagrad on dense gradients would move them."""

import copy

import pytest
import torch
from torch import nn

from hap.training.row_adagrad import RowAdagrad, row_sums

ROWS, WIDTH = 40, 3


def looked_up(table: nn.Parameter, sparse: bool, seed: int) -> torch.Tensor:
    """A loss of two lookups, in which rows repeat within and between them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, ROWS // 2, (2, 60), generator=generator)
    weights = torch.randn(2, 60, WIDTH, generator=generator)
    return sum((nn.functional.embedding(r, table, sparse=sparse) * w).sum() for r, w in zip(rows, weights, strict=True))  # type: ignore[return-value]


def test_it_equals_dense_adagrad_and_leaves_other_rows_alone() -> None:
    torch.manual_seed(0)
    start = torch.randn(ROWS, WIDTH)
    ours, dense = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    rows_only, everything = RowAdagrad([ours], lr=0.1), torch.optim.Adagrad([dense], lr=0.1)
    for seed in range(5):
        for table, optimizer, sparse in ((ours, rows_only, True), (dense, everything, False)):
            optimizer.zero_grad(set_to_none=True)
            looked_up(table, sparse, seed).backward()
            optimizer.step()
    assert torch.allclose(ours, dense, atol=1e-6)
    assert torch.equal(ours[ROWS // 2 :], start[ROWS // 2 :])
    assert torch.equal(ours[0], start[0])
    assert not torch.isclose(ours[1 : ROWS // 2], start[1 : ROWS // 2]).all(dim=1).any()


def test_row_zero_never_moves() -> None:
    table = nn.Parameter(torch.zeros(4, 2))
    nn.functional.embedding(torch.tensor([0, 2, 0]), table, sparse=True).sum().backward()
    RowAdagrad([table], lr=0.1).step()
    assert table.detach().abs().sum(dim=1).bool().tolist() == [False, False, True, False]


@pytest.mark.parametrize("coalesced", [True, False])
def test_row_sums_hold_each_row_once(coalesced: bool) -> None:
    rows = torch.tensor([[3, 1, 3, 0, 3]])
    values = torch.arange(10.0).view(5, 2)
    grad = torch.sparse_coo_tensor(rows, values, (5, 2), check_invariants=False)
    found, sums = row_sums(grad.coalesce() if coalesced else grad, torch.full((5,), -7))
    assert sorted(found.tolist()) == [0, 1, 3]
    assert torch.equal(torch.zeros(5, 2).index_copy(0, found, sums), grad.to_dense())


def test_its_state_comes_back() -> None:
    def steps(table: nn.Parameter, optimizer: RowAdagrad, seeds: range) -> None:
        for seed in seeds:
            optimizer.zero_grad(set_to_none=True)
            looked_up(table, True, seed).backward()
            optimizer.step()

    first = nn.Parameter(torch.ones(ROWS, WIDTH))
    optimizer = RowAdagrad([first], lr=0.1)
    steps(first, optimizer, range(2))
    second = nn.Parameter(first.detach().clone())
    resumed = RowAdagrad([second], lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(first, optimizer, range(2, 4))
    steps(second, resumed, range(2, 4))
    assert torch.equal(first, second)


def test_a_step_without_gradients_moves_nothing() -> None:
    table = nn.Parameter(torch.ones(3, 2))
    RowAdagrad([table], lr=0.1).step()
    assert torch.equal(table, torch.ones(3, 2))
