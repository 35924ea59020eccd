"""Declared columns -> vectors: hashed embeddings, and dense values scaled inside the model.

Raw ids go in, so training, the exported graph and every caller agree without a vocabulary.
Shape letters: B requests, N candidates of all requests, L history length, D width.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from hap.params import Feature, Features
from hap.samples.order_key import constants, embedding_rows

DENSE_LIMIT = 8.0  # standard deviations; a broken upstream value must not own the logit


class Tables(nn.Module):
    """One embedding table per feature name, shared by every group that declares the name. Row 0 is missing or padding."""

    def __init__(self, features: Features, dim: int) -> None:
        super().__init__()
        declared: dict[str, Feature] = {}
        for group in ("user", "item", "history"):
            declared |= {feature.name: feature for feature in features.ids(group)}  # type: ignore[arg-type]
        self.dim = dim
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(int(feature.rows or 0), dim, padding_idx=0, sparse=True) for name, feature in declared.items()}
        )
        for table in cast(list[nn.Embedding], list(self.tables.values())):
            with torch.no_grad():
                table.weight.normal_(0.0, dim**-0.5)
                table.weight[0] = 0.0

    def forward(self, ids: Tensor, declared: Sequence[Feature]) -> Tensor:
        """ids I64[..., F] of the declared features -> F32[..., F * D]."""
        rows = hashed_rows(ids, declared)
        return torch.cat([self._look_up(feature.name, rows[..., place]) for place, feature in enumerate(declared)], dim=-1)

    def _look_up(self, name: str, rows: Tensor) -> Tensor:
        """Rows of a table. Sparse gradients keep those of row 0, which filtering would copy; RowAdagrad leaves that row alone."""
        table = cast(nn.Embedding, self.tables[name])
        return embedding(rows, table.weight, padding_idx=None if table.sparse else 0, sparse=table.sparse)


@torch.compiler.disable  # on a CPU torch 2.13 makes a kernel of it that divides by the zeros beyond the last column
def hashed_rows(ids: Tensor, declared: Sequence[Feature]) -> Tensor:
    """ids I64[..., F] of the declared features -> rows of their tables I64[..., F]; id 0 (missing, padding) is row 0."""
    salts = [constants(feature.name) for feature in declared]
    a, b = (torch.tensor(column, dtype=torch.int64, device=ids.device) for column in zip(*salts, strict=True))
    sizes = torch.tensor([feature.rows for feature in declared], dtype=torch.int64, device=ids.device)
    return torch.where(ids > 0, embedding_rows(ids, a, b, sizes), 0)  # all columns at once: one run of a dozen operations


class DenseScaler(nn.Module):
    """Declared log scaling, then (x - mean) / deviation with figures taken from the training window."""

    mean: Tensor
    deviation: Tensor
    log: Tensor

    def __init__(self, declared: Sequence[Feature]) -> None:
        super().__init__()
        self.register_buffer("log", torch.tensor([feature.scale == "log" for feature in declared], dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(len(declared)))
        self.register_buffer("deviation", torch.ones(len(declared)))

    def scaled(self, x: Tensor) -> Tensor:
        """Log scaling alone; the normalisation figures are measured on this."""
        return torch.where(self.log, torch.log1p(torch.clamp(x, min=0.0)), x)

    def forward(self, x: Tensor) -> Tensor:
        """x F32[..., d] -> F32[..., d]."""
        return torch.clamp((self.scaled(x) - self.mean) / self.deviation, -DENSE_LIMIT, DENSE_LIMIT)


class Columns(nn.Module):
    """All groups of declared columns as vectors."""

    def __init__(self, features: Features, dim: int) -> None:
        super().__init__()
        self.features = features
        self.tables = Tables(features, dim)
        self.scalers = nn.ModuleDict({group: DenseScaler(features.dense(group)) for group in ("user", "item", "history")})  # type: ignore[arg-type]

    def width(self, group: str) -> int:
        """D of the group's vector."""
        return len(self.features.ids(group)) * self.tables.dim + len(self.features.dense(group))  # type: ignore[arg-type]

    def forward(self, group: str, ids: Tensor, dense: Tensor) -> Tensor:
        """ids I64[..., F], dense F32[..., d] -> F32[..., width(group)]."""
        return torch.cat([self.tables(ids, self.features.ids(group)), self.scalers[group](dense)], dim=-1)  # type: ignore[arg-type]

    def set_scales(self, figures: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Store mean and deviation of each group's scaled dense columns."""
        for group, (mean, deviation) in figures.items():
            scaler = cast(DenseScaler, self.scalers[group])
            scaler.mean.copy_(mean)
            # A constant column carries nothing: dividing by 1 keeps it at 0 instead of blowing up noise.
            scaler.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them."""
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(widths)):
        if place:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


class PairLayer(nn.Module):
    """First layer over concat(user, item, user * item) [paper, figure 2], without repeating the user.

    W [u, v, u*v] = Wu u + Wv v + Wx (u*v): the first product is made once per request.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.user = nn.Linear(width, out)
        self.item = nn.Linear(width, out, bias=False)
        self.cross = nn.Linear(width, out, bias=False)

    def forward(self, user_BD: Tensor, item_ND: Tensor, request_N: Tensor | None) -> Tensor:
        """-> F32[N, out]; `request_N` names each candidate's request, None where there is only one."""
        projected = self.user(user_BD)
        if request_N is not None:
            # A lookup, not an index: its gradient is added up row by row, several times faster on a CPU.
            user_BD, projected = embedding(request_N, user_BD), embedding(request_N, projected)
        return projected + self.item(item_ND) + self.cross(user_BD * item_ND)

    def for_user(self, user_1D: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer is to the items of one user: weight F32[out, D], bias F32[1, out]. Wi v + Wx (u*v) = (Wi + Wx diag(u)) v."""
        return self.item.weight + self.cross.weight * user_1D, self.user(user_1D)


def shared_columns(features: Features, dim: int) -> dict[str, list[int]]:
    """Where the embeddings of the ids that items and history share lie in the vectors of either group, in the same order.

    There is always one: both groups must declare item_id.
    """
    names = {group: [feature.name for feature in features.ids(group)] for group in ("item", "history")}  # type: ignore[arg-type]
    shared = [name for name in names["history"] if name in names["item"]]
    return {group: [place * dim + d for place in map(own.index, shared) for d in range(dim)] for group, own in names.items()}
