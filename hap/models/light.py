"""The light model: two towers, concat(user, item, user * item), a shallow head. Scores every candidate. [paper, figure 2]

Its parameters sit on the user side, which runs once per request. What runs per candidate is narrow whatever the size:
the item tower is one linear layer, so for one request it and the pair layer are a single product of the candidate's
columns with a small matrix that the user makes. Serving scores that way; a batch of many requests, which would need a
matrix each, takes the layers one by one. Both are the same formula.

Shape letters: B requests, N candidates, L history length; U, H, I ids and u, h, d dense columns; S size, C columns of
an item, O = HIDDEN.
"""

import torch
from torch import Tensor, nn

from hap.models.batch import Batch
from hap.models.features import Columns, PairLayer, mlp
from hap.params import Features, Model

HIDDEN = 16  # units that a candidate runs through: so few that the user side is most of the work up to 2,000 candidates


class LightModel(nn.Module):
    """size = width of the towers' output; the user tower's two hidden layers are 8 x wider and hold nearly all parameters.

    With the default columns, size 64 has 0.35 M dense parameters and size 152 the paper's 1.8 M [review].
    """

    def __init__(self, features: Features, settings: Model) -> None:
        super().__init__()
        size = settings.size
        self.columns = Columns(features, settings.embedding_dim)
        self.user = mlp([self.columns.width("user") + self.columns.width("history"), 8 * size, 8 * size, size])
        self.item = nn.Linear(self.columns.width("item"), size)
        self.pair = PairLayer(size, HIDDEN)
        self.head = nn.Linear(HIDDEN, 1)

    def encode_user(self, ids: Tensor, dense: Tensor, hist_ids: Tensor, hist_dense: Tensor) -> Tensor:
        """[B, U], [B, u], [B, L, H], [B, L, h] -> F32[B, S]; history is averaged over its real events."""
        history_BLD = self.columns("history", hist_ids, hist_dense)
        real_BL1 = (hist_ids[..., :1] > 0).to(history_BLD.dtype)
        pooled = (history_BLD * real_BL1).sum(dim=-2) / real_BL1.sum(dim=-2).clamp(min=1.0)
        return self.user(torch.cat([self.columns("user", ids, dense), pooled], dim=-1))

    def forward(self, batch: Batch) -> Tensor:
        """CTR logits F32[N] of a batch."""
        user_BS = self.encode_user(batch.user_ids, batch.user_dense, batch.hist_ids, batch.hist_dense)
        item_NS = self.item(self.columns("item", batch.cand_ids, batch.cand_dense))
        return self.head(torch.relu(self.pair(user_BS, item_NS, batch.request))).squeeze(-1)

    def score_request(
        self, user_ids: Tensor, user_dense: Tensor, hist_ids: Tensor, hist_dense: Tensor, cand_ids: Tensor, cand_dense: Tensor
    ) -> Tensor:
        """CTR logits F32[N] of one request: [U], [u], [L, H], [L, h], [N, I], [N, d]. The serving shape."""
        user_1S = self.encode_user(user_ids[None], user_dense[None], hist_ids[None], hist_dense[None])
        item_NC = self.columns("item", cand_ids, cand_dense)
        weight_OS, bias_1O = self.pair.for_user(user_1S)
        seen_NO = item_NC @ (weight_OS @ self.item.weight).t() + (self.item.bias @ weight_OS.t() + bias_1O)
        return self.head(torch.relu(seen_NO)).squeeze(-1)
