"""The expressive model: towers of its own, the same concat, attention over the history, a deeper head. [paper, figure 2]

Each candidate attends to the user's history, so what it sees of the user depends on itself. Keys and
values are made once per request. It rescores only the candidates that the light model ranks highest.

Columns that items and history events share (item, author, type) enter query and key through one and the same matrix:
an event that resembles the candidate stands out from the first step on, where queries and keys of their own would have
to find each other first. The head sees what was attended to, its product with the candidate, and how well it matched.
"""

import math

import torch
from torch import Tensor, nn

from hap.models.batch import Batch
from hap.models.features import Columns, PairLayer, mlp, shared_columns
from hap.params import Features, Model

HEADS = 4  # each attends by columns of its own; more of them are narrower, and two to eight are customary: not tuned
LIKENESS_GAIN = 4.0  # at the start two shared columns in common add about 2 to an attention logit: felt, not saturated


class ExpressiveModel(nn.Module):
    """size = width of towers and attention (4 heads); the head has three hidden layers of 2, 1 and 1/2 sizes.

    With the default columns, size 96 has 0.29 M dense parameters and size 488 the paper's 6.2 M [review].
    """

    def __init__(self, features: Features, settings: Model) -> None:
        super().__init__()
        size = settings.size
        self.head_width = size // HEADS
        self.columns = Columns(features, settings.embedding_dim)
        self.user = mlp([self.columns.width("user") + self.columns.width("history"), 4 * size, 2 * size, size])
        self.item = mlp([self.columns.width("item"), 2 * size, size])
        self.pair = PairLayer(size, size)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(self.columns.width("history"), size)
        self.shared = shared_columns(features, settings.embedding_dim)
        self.likeness = nn.Linear(len(self.shared["item"]), size, bias=False)
        nn.init.orthogonal_(self.likeness.weight, LIKENESS_GAIN)
        self.value = nn.Linear(self.columns.width("history"), size)
        # One event that is always there: a candidate may attend to nothing, and an empty history is no special case.
        self.nothing_key = nn.Parameter(torch.zeros(size))
        self.head = mlp([3 * size + HEADS, 2 * size, size, size // 2, 1])

    def encode_user(self, ids: Tensor, dense: Tensor, hist_ids: Tensor, hist_dense: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> user F32[B, S], keys F32[B, L+1, S], values F32[B, L+1, S], absent BOOL[B, L+1]."""
        history_BLD = self.columns("history", hist_ids, hist_dense)
        absent_BL = hist_ids[..., 0] <= 0
        real_BL1 = (~absent_BL).to(history_BLD.dtype)[..., None]
        pooled = (history_BLD * real_BL1).sum(dim=-2) / real_BL1.sum(dim=-2).clamp(min=1.0)
        user_BS = self.user(torch.cat([self.columns("user", ids, dense), pooled], dim=-1))
        requests = ids.shape[0]
        nothing = self.nothing_key.expand(requests, 1, -1)
        keys = torch.cat([self.key(history_BLD) + self.likeness(history_BLD[..., self.shared["history"]]), nothing], dim=-2)
        values = torch.cat([self.value(history_BLD), torch.zeros_like(nothing)], dim=-2)
        present = torch.zeros((requests, 1), dtype=torch.bool, device=absent_BL.device)
        return user_BS, keys, values, torch.cat([absent_BL, present], dim=-1)

    def _encode_item(self, ids: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """-> item F32[N, S], and what it shares with history events as part of a query F32[N, S]."""
        columns_ND = self.columns("item", ids, dense)
        return self.item(columns_ND), self.likeness(columns_ND[..., self.shared["item"]])

    def _judge(self, pair_NS: Tensor, item_NS: Tensor, seen_NS: Tensor, match_NH: Tensor) -> Tensor:
        return self.head(torch.cat([pair_NS, seen_NS, seen_NS * item_NS, match_NH], dim=-1)).squeeze(-1)

    def _attend_batch(self, query_NS: Tensor, keys: Tensor, values: Tensor, absent: Tensor, request_N: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of jagged candidates, padded to the longest request only here, where a batched product pays.

        -> what is attended to F32[N, S], and how well it matches: the mean logit under the weights F32[N, HEADS].
        """
        requests, length, size = keys.shape
        counts = torch.bincount(request_N, minlength=requests)
        starts = torch.cumsum(counts, 0) - counts
        slot_N = torch.arange(len(request_N), device=request_N.device) - starts[request_N]
        longest = int(counts.max()) if len(request_N) else 0
        query = query_NS.new_zeros((requests, longest, size)).index_put((request_N, slot_N), query_NS)
        query = query.view(requests, longest, HEADS, -1).transpose(1, 2)
        keys = keys.view(requests, length, HEADS, -1).transpose(1, 2)
        values = values.view(requests, length, HEADS, -1).transpose(1, 2)
        logits = query @ keys.transpose(-1, -2) / math.sqrt(self.head_width)
        logits = logits.masked_fill(absent[:, None, None, :], -1e9)
        weights = logits.softmax(dim=-1)
        out = (weights @ values).transpose(1, 2).reshape(requests, longest, size)
        return out[request_N, slot_N], (weights * logits).sum(dim=-1).transpose(1, 2)[request_N, slot_N]

    def _attend_one(self, query_NS: Tensor, keys_LS: Tensor, values_LS: Tensor, absent_L: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of one request, head by head in two dimensions: ONNX Runtime's fused 3-D product dies at N = 0."""
        seen, match = [], []
        bias_L = torch.where(absent_L, -1e9, 0.0)
        ones_L1 = torch.ones_like(bias_L)[:, None]  # a product in place of a sum: ONNX Runtime's reductions lose their width at N = 0
        for head in range(HEADS):
            part = slice(head * self.head_width, (head + 1) * self.head_width)
            logits = query_NS[:, part] @ keys_LS[:, part].t() / math.sqrt(self.head_width) + bias_L
            weights = logits.softmax(dim=-1)
            seen.append(weights @ values_LS[:, part])
            match.append((weights * logits) @ ones_L1)
        return torch.cat(seen, dim=-1), torch.cat(match, dim=-1)

    def forward(self, batch: Batch) -> Tensor:
        """CTR logits F32[N] of a batch."""
        user_BS, keys, values, absent = self.encode_user(batch.user_ids, batch.user_dense, batch.hist_ids, batch.hist_dense)
        item_NS, like_NS = self._encode_item(batch.cand_ids, batch.cand_dense)
        pair_NS = torch.relu(self.pair(user_BS, item_NS, batch.request))
        return self._judge(pair_NS, item_NS, *self._attend_batch(self.query(pair_NS) + like_NS, keys, values, absent, batch.request))

    def score_request(
        self, user_ids: Tensor, user_dense: Tensor, hist_ids: Tensor, hist_dense: Tensor, cand_ids: Tensor, cand_dense: Tensor
    ) -> Tensor:
        """CTR logits F32[N] of one request: [U], [u], [L, H], [L, h], [N, I], [N, d]. The serving shape."""
        user_1S, keys, values, absent = self.encode_user(user_ids[None], user_dense[None], hist_ids[None], hist_dense[None])
        item_NS, like_NS = self._encode_item(cand_ids, cand_dense)
        pair_NS = torch.relu(self.pair(user_1S, item_NS, None))
        return self._judge(pair_NS, item_NS, *self._attend_one(self.query(pair_NS) + like_NS, keys[0], values[0], absent[0]))
