"""The light model: two towers, concat(user, item, user * item), a shallow head. Scores every candidate. [paper, figure 2]

Its parameters sit on the user side, which runs once per request. What runs per candidate is narrow whatever the size:
the item tower is one linear layer, so for one request it and the pair layer are a single product of the candidate's
columns with a small matrix that the user makes. Serving scores that way; a batch of many requests, which would need a
matrix each, takes the layers one by one. Both are the same formula.

Interests are ours, not the paper's: a few weighted means of the history, each multiplied with the columns that candidates
and events share. They go into the same small matrix, so that a candidate meets the user's history and costs nothing more.

Shape letters: B requests, N candidates, L history length; U, H, I ids and u, h, d dense columns; S size, C columns of
an item, E of them shared with events, P interests, O = HIDDEN.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from hap.models.batch import Batch
from hap.models.features import Columns, PairLayer, mlp, shared_columns
from hap.params import Features, Light

HIDDEN = 16  # units that a candidate runs through: so few that the user side is most of the work up to 2,000 candidates


class LightModel(nn.Module):
    """size = width of the towers' output; the user tower's two hidden layers are 8 x wider and hold nearly all parameters.

    With the default columns, size 64 has 0.35 M dense parameters and size 152 the paper's 1.8 M [review].
    """

    def __init__(self, features: Features, settings: Light) -> None:
        super().__init__()
        size = settings.size
        self.columns = Columns(features, settings.embedding_dim)
        self.user = mlp([self.columns.width("user") + self.columns.width("history"), 8 * size, 8 * size, size])
        self.item = nn.Linear(self.columns.width("item"), size)
        self.pair = PairLayer(size, HIDDEN)
        self.interests = Interests(self.columns, features, settings.interests) if settings.interests else None
        self.head = nn.Linear(HIDDEN, 1)

    def encode_user(self, ids: Tensor, dense: Tensor, hist_ids: Tensor, hist_dense: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, U], [B, u], [B, L, H], [B, L, h] -> user F32[B, S] from the history's mean, and interests F32[B, P, E]."""
        history_BLD = self.columns("history", hist_ids, hist_dense)
        real_BL1 = (hist_ids[..., :1] > 0).to(history_BLD.dtype)
        pooled = (history_BLD * real_BL1).sum(dim=-2) / real_BL1.sum(dim=-2).clamp(min=1.0)
        user_BS = self.user(torch.cat([self.columns("user", ids, dense), pooled], dim=-1))
        return user_BS, self.interests.of(history_BLD, real_BL1) if self.interests else None

    def forward(self, batch: Batch) -> Tensor:
        """CTR logits F32[N] of a batch."""
        user_BS, interest_BPE = self.encode_user(batch.user_ids, batch.user_dense, batch.hist_ids, batch.hist_dense)
        columns_NC = self.columns("item", batch.cand_ids, batch.cand_dense)
        seen_NO = self.pair(user_BS, self.item(columns_NC), batch.request)
        if self.interests and interest_BPE is not None:
            seen_NO = seen_NO + self.interests(interest_BPE, columns_NC, batch.request)
        return self.head(torch.relu(seen_NO)).squeeze(-1)

    def score_request(
        self, user_ids: Tensor, user_dense: Tensor, hist_ids: Tensor, hist_dense: Tensor, cand_ids: Tensor, cand_dense: Tensor
    ) -> Tensor:
        """CTR logits F32[N] of one request: [U], [u], [L, H], [L, h], [N, I], [N, d]. The serving shape."""
        user_1S, interest_1PE = self.encode_user(user_ids[None], user_dense[None], hist_ids[None], hist_dense[None])
        columns_NC = self.columns("item", cand_ids, cand_dense)
        weight_OS, bias_1O = self.pair.for_user(user_1S)
        weight_OC = weight_OS @ self.item.weight
        if self.interests and interest_1PE is not None:
            weight_OC = weight_OC + self.interests.for_user(interest_1PE)
        seen_NO = columns_NC @ weight_OC.t() + (self.item.bias @ weight_OS.t() + bias_1O)
        return self.head(torch.relu(seen_NO)).squeeze(-1)


class Interests(nn.Module):
    """Weighted means of the history, and a linear layer over each one's product with a candidate.

    The weights of events are a softmax over the history of what an event is and how long ago in the list it stands. A mean
    has the columns that events share with items, in the items' own embeddings: its product with a candidate is large where
    the candidate is of the author or the type of what counted.
    """

    select: Tensor

    def __init__(self, columns: Columns, features: Features, count: int) -> None:
        super().__init__()
        self.shared = shared_columns(features, columns.tables.dim)
        width = len(self.shared["item"])
        self.count = nn.Linear(columns.width("history"), count)  # what an event counts in each interest
        self.place = nn.Parameter(torch.zeros(features.history_length, count))
        self.out = nn.Linear(count * width, HIDDEN, bias=False)
        select_EC = torch.zeros(width, columns.width("item"))
        select_EC[range(width), self.shared["item"]] = 1.0
        self.register_buffer("select", select_EC, persistent=False)

    def of(self, history_BLD: Tensor, real_BL1: Tensor) -> Tensor:
        """-> F32[B, P, E]; zeros where there is no history."""
        weight_BLP = (self.count(history_BLD) + self.place).masked_fill(real_BL1 == 0, -1e9).softmax(dim=-2) * real_BL1
        return weight_BLP.transpose(-1, -2) @ history_BLD[..., self.shared["history"]]

    def forward(self, interest_BPE: Tensor, columns_NC: Tensor, request_N: Tensor) -> Tensor:
        """-> F32[N, O], by way of each candidate's products with its request's interests."""
        interest_NPE = embedding(request_N, interest_BPE.flatten(1)).unflatten(1, interest_BPE.shape[1:])
        return self.out((interest_NPE * columns_NC[:, None, self.shared["item"]]).flatten(1))

    def for_user(self, interest_1PE: Tensor) -> Tensor:
        """What the layer is to the columns of one request's candidates, F32[O, C]: sum over p of W_p diag(interest_p)."""
        weight_OPE = self.out.weight.unflatten(1, interest_1PE.shape[1:])
        return (weight_OPE * interest_1PE).sum(dim=1) @ self.select
