"""A batch of whole requests: user side once per request, candidates of all requests in one run.

Shape letters: B requests, N candidates of all requests, L history length; U, H, I ids and u, h, d dense columns.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Raw ids (0 = missing or padding) and unscaled dense values."""

    user_ids: Tensor  # I64[B, U]
    user_dense: Tensor  # F32[B, u]
    hist_ids: Tensor  # I64[B, L, H], left-padded, most recent last
    hist_dense: Tensor  # F32[B, L, h]
    cand_ids: Tensor  # I64[N, I]
    cand_dense: Tensor  # F32[N, d]
    request: Tensor  # I64[N], 0..B-1, ascending
    kind: Tensor  # I8[N], a place in hap.params.KINDS

    @property
    def requests(self) -> int:
        return self.user_ids.shape[0]
