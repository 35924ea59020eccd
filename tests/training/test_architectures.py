"""A third architecture is one file and one line in ARCHITECTURES: it trains, is described and exports like the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hap.models import build
from hap.models.batch import Batch
from hap.models.build import load_model, save_model
from hap.models.describe import describe
from hap.models.features import Columns, mlp
from hap.params import Features, Model, Params
from hap.training.feed import Feed
from hap.training.loop import train


class DotModel(nn.Module):
    """Two towers and their product: all that an architecture must have, and nothing else."""

    def __init__(self, features: Features, settings: Model) -> None:
        super().__init__()
        self.columns = Columns(features, settings.embedding_dim)
        self.user = mlp([self.columns.width("user"), settings.size])
        self.item = mlp([self.columns.width("item"), settings.size])

    def encode_user(self, ids: Tensor, dense: Tensor, hist_ids: Tensor, hist_dense: Tensor) -> Tensor:
        return self.user(self.columns("user", ids, dense))

    def forward(self, batch: Batch) -> Tensor:
        user = self.encode_user(batch.user_ids, batch.user_dense, batch.hist_ids, batch.hist_dense)
        return (user[batch.request] * self.item(self.columns("item", batch.cand_ids, batch.cand_dense))).sum(-1)

    def score_request(
        self, user_ids: Tensor, user_dense: Tensor, hist_ids: Tensor, hist_dense: Tensor, cand_ids: Tensor, cand_dense: Tensor
    ) -> Tensor:
        user = self.encode_user(user_ids[None], user_dense[None], hist_ids[None], hist_dense[None])
        return self.item(self.columns("item", cand_ids, cand_dense)) @ user[0]


@pytest.mark.parametrize("place", ["light", "expressive"])
def test_a_third_architecture_trains_and_is_kept_and_described(
    place: str, small_params: Params, sample_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build.ARCHITECTURES, place, DotModel)
    trained = train(place, small_params, sample_files, lambda _: None)
    assert isinstance(trained.model, DotModel) and len(trained.gaucs) == small_params.train.epochs
    assert trained.losses[1]["bce"] < trained.losses[0]["bce"]
    save_model(trained.model, tmp_path, trained.facts)
    loaded = load_model(tmp_path, small_params)
    pool = next(Feed(sample_files, small_params, heldout=True).pools())
    one = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in pool.request(0).items()}
    with torch.inference_mode():
        assert torch.allclose(loaded.score_request(**one), loaded(pool.batch(np.array([0]))), atol=1e-5)
    size = describe(place, small_params)
    assert 0 < size.user_parameters < size.dense_parameters == trained.facts["dense_parameters"]
