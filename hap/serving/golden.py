"""Golden requests: real ones and edges with PyTorch's answers, which every other way of serving a version is held to."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hap.params import Params, Route
from hap.serving.bundle import Golden
from hap.serving.merge import hard_select, merge, routed_count
from hap.serving.request import RequestTensors

_UNSEEN = 2**62  # far above any id of the logs


def golden_requests(models: Mapping[str, nn.Module], params: Params, real: Sequence[RequestTensors]) -> list[Golden]:
    """The real requests and the edges, each with PyTorch's answer."""
    base, width = real[0], len(params.features.ids("item"))
    item = [feature.name for feature in params.features.ids("item")].index("item_id")
    unseen = RequestTensors(
        base.user_ids + _UNSEEN, base.user_dense, base.hist_ids + _UNSEEN, base.hist_dense, base.cand_ids + _UNSEEN, base.cand_dense
    )
    no_history = RequestTensors(
        base.user_ids, base.user_dense, np.zeros_like(base.hist_ids), np.zeros_like(base.hist_dense), base.cand_ids, base.cand_dense
    )
    k = 16
    cases: list[tuple[str, RequestTensors, int | None]] = [(f"real {place}", request, None) for place, request in enumerate(real)]
    cases += [(f"N={n}", _distinct(base, n, item), None) for n in (0, 1, 2000)]
    cases += [(f"N={n} K={k}", _distinct(base, n, item), k) for n in (k - 1, k, k + 1)]
    cases += [
        ("k=0", _distinct(base, 12, item), 0),
        ("k above N", _distinct(base, 12, item), 100),
        ("empty history", no_history, None),
        ("unseen ids", unseen, None),
        *([("NaN in a candidate", _spoiled(base), None)] if base.cand_dense.shape[1] else []),
        ("equal scores", base.with_candidates(np.repeat(base.cand_ids[:1], 12, 0), np.repeat(base.cand_dense[:1], 12, 0)), None),
    ]
    assert all(request.cand_ids.shape[1] == width for _, request, _ in cases)
    return [answered(models, params.route, name, request, k) for name, request, k in cases]


def answered(models: Mapping[str, nn.Module], route: Route, name: str, request: RequestTensors, k: int | None) -> Golden:
    """A request with PyTorch's answer: the two models, put together as the graphs are held to do it."""
    light = _logits(models["light"], request)
    index = hard_select(light, routed_count(route, request.candidates, k))
    routed = request.with_candidates(request.cand_ids[index], request.cand_dense[index])
    score, is_routed = merge(light, index, _logits(models["expressive"], routed))
    return Golden(name, request, k, score, is_routed, light)


def _logits(model: nn.Module, request: RequestTensors) -> NDArray[np.float32]:
    with torch.inference_mode():
        logit = model.score_request(*(torch.from_numpy(array) for array in request.arrays().values()))  # type: ignore[operator]
    return np.asarray(logit.numpy(), np.float32)


def _distinct(request: RequestTensors, candidates: int, item: int) -> RequestTensors:
    """N candidates made from the request's own: copies get item ids of their own, so that scores do not tie."""
    grown = request.repeated(candidates)
    ids = grown.cand_ids.copy()
    ids[:, item] += np.arange(candidates) // request.candidates * 1_000_000_007
    return grown.with_candidates(ids, grown.cand_dense)


def _spoiled(request: RequestTensors) -> RequestTensors:
    """The request with a NaN in its first candidate: hap's client refuses it, other callers get that candidate last."""
    dense = request.cand_dense.copy()
    dense[0, 0] = np.nan
    return request.with_candidates(request.cand_ids, dense)
