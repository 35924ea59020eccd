import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hap.params import Route
from hap.serving import graphs
from hap.serving.bundle import Bundle
from hap.serving.merge import hard_select, merge, routed_count
from hap.serving.session import BundleSession, session_options
from tests.serving.conftest import SHIFTS
from tests.serving.handmade import ROUTE, core, expected, request_of


def load(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])


SHARED = load(graphs.hard_select_graph(ROUTE))
FIXED = load(graphs.hard_select_graph(Route(share=None, k=5)))


def selected(session: onnxruntime.InferenceSession, light: NDArray[np.float32], k: int | None) -> list[int]:
    feed = {"light_score": light} | ({} if k is None else {"k": np.array([k], np.int64)})
    return sorted(session.run(None, feed)[0].tolist())


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-1.5, 0.0, 0.25, 3.0, float("nan")]), max_size=60),
    st.one_of(st.none(), st.integers(0, 70)),
)
def test_hard_selection_matches_its_reference_with_ties_and_nan(values: list[float], k: int | None) -> None:
    light = np.array(values, np.float32)
    for session, route in ((SHARED, ROUTE), (FIXED, Route(share=None, k=5))):
        assert selected(session, light, k) == sorted(hard_select(light, routed_count(route, len(light), k)).tolist())


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 1.0])
def test_the_graph_rounds_a_share_as_the_client_does(share: float) -> None:
    session = load(graphs.hard_select_graph(Route(share=share)))
    for count in (0, 1, 2, 3, 7, 10, 30, 100, 1000):
        assert len(selected(session, np.arange(count, dtype=np.float32), None)) == routed_count(Route(share=share), count)


@pytest.mark.parametrize("candidates", [0, 1, 2, 15, 16, 17, 2000])
@pytest.mark.parametrize("k", [None, 0, 1, 16, 5000])
def test_the_three_graphs_answer_as_the_reference(bundles: dict[int, Bundle], candidates: int, k: int | None) -> None:
    request = request_of(candidates, seed=candidates)
    score, routed = BundleSession(bundles[1]).score(request, k)
    wanted, wanted_routed = expected(request, k, SHIFTS[1])
    assert routed.tolist() == wanted_routed.tolist()
    np.testing.assert_allclose(score, wanted, rtol=1e-5, atol=1e-5)


def test_very_low_logits_stay_apart() -> None:
    """A plain log(1 + exp(x)) in float32 is 0 below -17: all such candidates would tie."""
    session = load(graphs.expressive_graph(core((1.0, 0.0, 0.0))))
    request = request_of(50)
    request.cand_dense[:] = np.linspace(-55, -20, 50, dtype=np.float32)[:, None]
    request.cand_ids[:] = 7  # contributes 0
    light = np.linspace(-55, 55, 50, dtype=np.float32)
    index = np.arange(25, dtype=np.int64)
    score, routed = session.run(None, {**request.arrays(), "light_score": light, "hard_index": index})
    wanted, wanted_routed = merge(light, index, request.cand_dense[index, 0])
    np.testing.assert_allclose(score, wanted, rtol=1e-5)
    assert routed.tolist() == wanted_routed.tolist()
    assert (np.diff(score[:25]) > 0).all()
    assert (np.diff(score[25:]) > 0).all()


def test_a_nan_feature_puts_its_candidate_last_and_unrouted(bundles: dict[int, Bundle]) -> None:
    request = request_of(20)
    request.cand_dense[4, 0] = np.nan
    for score, routed in (BundleSession(bundles[1]).score(request, 20), BundleSession(bundles[1]).score_all(request)):
        assert np.argmin(score) == 4
        assert routed.tolist() == [place != 4 for place in range(20)]
