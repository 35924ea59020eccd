"""The light model: two towers, concat(user, item, user * item), a shallow head. Scores every candidate. [paper, figure 2]

Its parameters sit on the user side, which runs once per request; what runs per candidate is narrow.
"""

import torch
from torch import Tensor, nn

from hap.models.batch import Batch
from hap.models.features import Columns, PairLayer, mlp
from hap.params import Features, Model


class LightModel(nn.Module):
    """size = width of the towers' output; the user tower is 4 x wider, the head half as wide."""

    def __init__(self, features: Features, settings: Model) -> None:
        super().__init__()
        size = settings.size
        self.columns = Columns(features, settings.embedding_dim)
        self.user = mlp([self.columns.width("user") + self.columns.width("history"), 4 * size, 2 * size, size])
        self.item = mlp([self.columns.width("item"), size])
        self.pair = PairLayer(size, size)
        self.head = mlp([size, size // 2, 1])

    def encode_user(self, ids: Tensor, dense: Tensor, hist_ids: Tensor, hist_dense: Tensor) -> Tensor:
        """[B, U], [B, u], [B, L, H], [B, L, h] -> F32[B, size]; history is averaged over its real events."""
        history_BLD = self.columns("history", hist_ids, hist_dense)
        real_BL1 = (hist_ids[..., :1] > 0).to(history_BLD.dtype)
        pooled = (history_BLD * real_BL1).sum(dim=-2) / real_BL1.sum(dim=-2).clamp(min=1.0)
        return self.user(torch.cat([self.columns("user", ids, dense), pooled], dim=-1))

    def _score(self, user_BD: Tensor, cand_ids: Tensor, cand_dense: Tensor, request_N: Tensor | None) -> Tensor:
        item_ND = self.item(self.columns("item", cand_ids, cand_dense))
        return self.head(torch.relu(self.pair(user_BD, item_ND, request_N))).squeeze(-1)

    def forward(self, batch: Batch) -> Tensor:
        """CTR logits F32[N] of a batch."""
        user_BD = self.encode_user(batch.user_ids, batch.user_dense, batch.hist_ids, batch.hist_dense)
        return self._score(user_BD, batch.cand_ids, batch.cand_dense, batch.request)

    def score_request(
        self, user_ids: Tensor, user_dense: Tensor, hist_ids: Tensor, hist_dense: Tensor, cand_ids: Tensor, cand_dense: Tensor
    ) -> Tensor:
        """CTR logits F32[N] of one request: [U], [u], [L, H], [L, h], [N, I], [N, d]. The serving shape."""
        user_1D = self.encode_user(user_ids[None], user_dense[None], hist_ids[None], hist_dense[None])
        return self._score(user_1D, cand_ids, cand_dense, None)
