"""Adagrad for embedding tables that works on the rows a batch touched, and on nothing else.

A lookup's gradient comes as (row, gradient) pairs in which a row occurs as often as the batch named it. torch's Adagrad
sorts the pairs to add them up, then builds several sparse tensors; here a row is found again in a table-long list of
places, so that adding up is one pass in the order of the batch. Same formula, same bits from run to run.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-10  # torch.optim.Adagrad's


class RowAdagrad(torch.optim.Optimizer):
    """sum += g^2; w -= lr * g / (sqrt(sum) + eps), for touched rows. Row 0 stands for missing ids and never moves.

    Args:
        tables: parameters F32[rows, D] whose gradients are sparse in the first dimension.
    """

    def __init__(self, tables: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(tables, {"lr": lr})
        self._places = {table: torch.empty(len(table), dtype=torch.int64, device=table.device) for table in self._tables()}
        for table in self._tables():
            self.state[table]["sum"] = torch.zeros_like(table)

    def _tables(self) -> list[nn.Parameter]:
        return [table for group in self.param_groups for table in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the rows that have a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                rows, grads = row_sums(table.grad, self._places[table])
                grads.masked_fill_((rows == 0)[:, None], 0.0)
                whole = self.state[table]["sum"]
                sums = whole.index_select(0, rows).addcmul_(grads, grads)
                whole.index_copy_(0, rows, sums)
                moved = table.index_select(0, rows).addcdiv_(grads, sums.sqrt_().add_(EPSILON), value=-group["lr"])
                table.index_copy_(0, rows, moved)


def row_sums(grad: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """A sparse gradient as distinct rows I64[n], and the sum of each one's gradients F32[n, D].

    Args:
        places: I64[rows of the table], scratch whose content does not matter and is overwritten.
    """
    rows, values = grad._indices()[0], grad._values()
    if grad.is_coalesced():
        return rows, values
    order = torch.arange(len(rows), device=rows.device)
    places[rows] = order  # of a row that occurs often, one occurrence stays
    distinct = rows[places[rows] == order]
    places[distinct] = order[: len(distinct)]
    # What the gradient of a dense lookup is made with: adds the gradients row by row, in their order.
    return distinct, torch.ops.aten.embedding_dense_backward(values, places[rows], len(distinct), -1, False)
