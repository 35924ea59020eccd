"""Both models: one request scored alone equals the same request in a batch, and ids need no vocabulary."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hap.models.batch import Batch
from hap.models.build import ARCHITECTURES, build_model, dense_parameters
from hap.models.features import Columns, DenseScaler
from hap.params import Feature, Params


def random_batch(params: Params, candidates: list[int], seed: int = 0) -> Batch:
    """A batch with that many candidates per request and histories of random length, also none."""
    rng, features, requests = np.random.default_rng(seed), params.features, len(candidates)
    length, total = features.history_length, sum(candidates)

    def ids(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(1, 2**62, shape))

    def dense(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    hist_ids = ids(requests, length, len(features.ids("history")))
    for request in range(requests):
        hist_ids[request, : int(rng.integers(0, length + 1))] = 0
    hist_ids[0] = 0
    return Batch(
        ids(requests, len(features.ids("user"))), dense(requests, len(features.dense("user"))),
        hist_ids, dense(requests, length, len(features.dense("history"))),
        ids(total, len(features.ids("item"))), dense(total, len(features.dense("item"))),
        torch.from_numpy(np.repeat(np.arange(requests), candidates)), torch.zeros(total, dtype=torch.int8),
    )  # fmt: skip


def alone(model: torch.nn.Module, batch: Batch, request: int) -> torch.Tensor:
    rows = batch.request == request
    user = (batch.user_ids[request], batch.user_dense[request], batch.hist_ids[request], batch.hist_dense[request])
    return model.score_request(*user, batch.cand_ids[rows], batch.cand_dense[rows])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("candidates", [[3, 1, 5], [1], [4, 0, 2], [2, 30, 7, 1]])
def test_a_request_alone_scores_as_in_a_batch(name: str, candidates: list[int], small_params: Params) -> None:
    torch.manual_seed(0)
    model, batch = build_model(name, small_params).eval(), random_batch(small_params, candidates)
    with torch.inference_mode():
        together = model(batch)
        for request, count in enumerate(candidates):
            found = alone(model, batch, request)
            assert found.shape == (count,)
            assert torch.allclose(found, together[batch.request == request], atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_candidates_give_no_scores(name: str, small_params: Params) -> None:
    model, batch = build_model(name, small_params).eval(), random_batch(small_params, [0])
    assert alone(model, batch, 0).shape == (0,)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_padding_holds_does_not_matter(name: str, small_params: Params) -> None:
    model, batch = build_model(name, small_params).eval(), random_batch(small_params, [4, 4])
    before = model(batch)
    batch.hist_dense[(batch.hist_ids[..., 0] == 0)] = 1e6
    assert torch.allclose(model(batch), before, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_reach_every_parameter(name: str, small_params: Params) -> None:
    model = build_model(name, small_params)
    model(random_batch(small_params, [5, 5, 5])).square().sum().backward()
    missing = [key for key, value in model.named_parameters() if value.grad is None]
    assert not missing


def test_features_of_one_name_share_one_table(small_params: Params) -> None:
    columns = Columns(small_params.features, 4)
    assert sorted(columns.tables.tables) == ["age_band", "author_id", "content_type", "hour", "item_id", "user_id"]


def test_id_zero_is_a_zero_vector_and_unseen_ids_have_one(small_params: Params) -> None:
    tables = Columns(small_params.features, 4).tables
    declared = small_params.features.ids("item")[:1]
    assert tables(torch.tensor([[0]]), declared).abs().sum() == 0
    assert tables(torch.tensor([[2**62 + 12345]]), declared).abs().sum() > 0


def test_a_constant_column_stays_finite(small_params: Params) -> None:
    scaler = DenseScaler([Feature(name="x", type="dense"), Feature(name="y", type="dense", scale="log")])
    assert torch.isfinite(scaler(torch.tensor([[1e30, -5.0]]))).all()
    columns = Columns(small_params.features, 4)
    columns.set_scales({"user": (torch.ones(1), torch.zeros(1))})
    assert columns.scalers["user"].deviation.tolist() == [1.0]


def test_the_size_dial_sizes_the_model(small_params: Params) -> None:
    sizes = []
    for size in (16, 32, 64):
        params = small_params.model_copy(update={"light": small_params.light.model_copy(update={"size": size})})
        sizes.append(dense_parameters(build_model("light", params)))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 4 * sizes[0]


def test_a_fresh_expressive_model_looks_first_at_events_like_the_candidate(small_params: Params) -> None:
    torch.manual_seed(0)
    settings = small_params.expressive.model_copy(update={"size": 96, "embedding_dim": 16})
    model = build_model("expressive", small_params.model_copy(update={"expressive": settings})).eval()
    item, history = small_params.features.ids("item"), small_params.features.ids("history")
    batch = random_batch(small_params, [40] * 3, seed=2)
    batch.hist_ids[:] = random_batch(small_params, [40] * 3, seed=3).hist_ids.abs() + 1  # no padding
    alike = small_params.features.history_length // 2
    found = []
    with torch.inference_mode():
        for request in range(3):
            for place, feature in enumerate(history):  # one event shows what the first candidate shows
                batch.hist_ids[request, alike, place] = batch.cand_ids[batch.request == request][0, item.index(feature)]
            user, keys, values, absent = model.encode_user(batch.user_ids, batch.user_dense, batch.hist_ids, batch.hist_dense)
            ids, dense = (side[batch.request == request][:1] for side in (batch.cand_ids, batch.cand_dense))
            item_NS, like_NS = model._encode_item(ids, dense)
            query = model.query(torch.relu(model.pair(user[request : request + 1], item_NS, None))) + like_NS
            marked = torch.zeros_like(values[request])
            marked[alike] = 1.0
            found.append(float(model._attend_one(query, keys[request], marked, absent[request])[0].mean()))
    assert min(found) > 2 / (small_params.features.history_length + 1)


def with_interests(params: Params, count: int) -> Params:
    return params.model_copy(update={"light": params.light.model_copy(update={"interests": count})})


def test_which_event_is_the_recent_one_matters_to_attention_and_to_interests_and_not_to_a_mean(small_params: Params) -> None:
    batch = random_batch(small_params, [20], seed=1)
    batch.hist_ids[0] = torch.arange(1, batch.hist_ids[0].numel() + 1).view_as(batch.hist_ids[0])
    turned = replace(batch, hist_dense=batch.hist_dense.flip(1))
    moved = {}
    for name, interests in (("light", 0), ("light", 4), ("expressive", 0)):
        torch.manual_seed(0)
        model = build_model(name, with_interests(small_params, interests)).eval()
        with torch.inference_mode():
            moved[name, interests] = float((model(batch) - model(turned)).abs().max())
    assert moved["light", 0] < 1e-5 < 1e-4 < min(moved["light", 4], moved["expressive", 0])


def test_an_interest_is_large_where_a_candidate_resembles_events(small_params: Params) -> None:
    torch.manual_seed(0)
    model = build_model("light", small_params)
    batch = random_batch(small_params, [2], seed=1)
    batch.hist_ids[0] = 7  # one item over and over, that the first candidate is, too
    batch.cand_ids[0], batch.cand_ids[1] = 7, 8
    with torch.inference_mode():
        _, interest_BPE = model.encode_user(batch.user_ids, batch.user_dense, batch.hist_ids, batch.hist_dense)
        columns_NC = model.columns("item", batch.cand_ids, batch.cand_dense)
        likeness_NP = (interest_BPE * columns_NC[:, None, model.interests.shared["item"]]).sum(dim=-1)
    assert (likeness_NP[0] > 2 * likeness_NP[1].abs()).all()


def test_without_a_history_interests_say_nothing(small_params: Params) -> None:
    model = build_model("light", small_params)
    batch = random_batch(small_params, [3], seed=1)
    batch.hist_ids.zero_()
    with torch.inference_mode():
        _, interest_BPE = model.encode_user(batch.user_ids, batch.user_dense, batch.hist_ids, batch.hist_dense)
    assert not interest_BPE.any()


def test_the_published_light_model_has_no_interests_and_scores_alike_alone_and_in_a_batch(small_params: Params) -> None:
    params = with_interests(small_params, 0)
    model, batch = build_model("light", params).eval(), random_batch(params, [3, 2])
    assert not [name for name, _ in model.named_parameters() if "interests" in name]
    with torch.inference_mode():
        assert torch.allclose(alone(model, batch, 1), model(batch)[3:], atol=1e-5)


def test_item_id_alone_may_be_shared_by_items_and_history(small_params: Params) -> None:
    features = small_params.features.model_copy(update={"history": small_params.features.history[:1]})
    params = small_params.model_copy(update={"features": features})
    model, batch = build_model("expressive", params).eval(), random_batch(params, [3, 2])
    with torch.inference_mode():
        assert torch.allclose(alone(model, batch, 1), model(batch)[3:], atol=1e-5)
