from dataclasses import replace

import numpy as np
import pytest

from hap.errors import DataError, ServingError
from hap.serving.bundle import Bundle
from hap.serving.client import BadRequest, HapClient, Unavailable
from tests.serving.conftest import SHIFTS, Served
from tests.serving.handmade import FEATURES, ROUTE, expected, request_of


@pytest.mark.triton
@pytest.mark.parametrize("candidates", [0, 1, 2, 15, 16, 17, 2000])
def test_the_ensemble_answers_as_the_reference(served: Served, candidates: int) -> None:
    request = request_of(candidates, seed=candidates)
    for k in (None, 0, 1, 16, 5000):
        wanted, wanted_routed = expected(request, k, SHIFTS[1])
        for model in (None, "hap"):
            scored = served.client.score(request, k, model=model)
            assert scored.served_by == 1
            assert scored.routed.tolist() == wanted_routed.tolist()
            np.testing.assert_allclose(scored.score, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.triton
def test_the_one_step_model_answers_where_all_are_routed(served: Served) -> None:
    request = request_of(9)
    one_step, three_steps = served.client.score(request, 9, model="hap_all"), served.client.score(request, 9, model="hap")
    np.testing.assert_allclose(one_step.score, three_steps.score, rtol=1e-6)
    assert one_step.routed.all()
    assert one_step.served_by == three_steps.served_by == 1


@pytest.mark.triton
def test_the_server_tells_its_schema(served: Served, bundles: dict[int, Bundle]) -> None:
    schema = served.client.schema()
    assert (schema.version, schema.digest, schema.features, schema.route) == (1, bundles[1].digest, FEATURES, ROUTE)
    assert served.client.versions("light") == [1, 2]
    assert served.client.versions("hap") == [1]
    assert served.client.live() and served.client.ready("light", 2) and not served.client.ready("light", 9)


@pytest.mark.triton
def test_a_client_follows_a_switch(served: Served) -> None:
    request = request_of(30)
    assert served.client.score(request).served_by == 1
    served.champion(2)
    scored = served.client.score(request)
    assert scored.served_by == 2
    np.testing.assert_allclose(scored.score, expected(request, None, SHIFTS[2])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.triton
def test_nan_is_refused_by_column_name(served: Served) -> None:
    request = request_of(5)
    request.cand_dense[1, 0] = np.nan
    with pytest.raises(DataError, match="'price'"):
        served.client.score(request)


@pytest.mark.triton
def test_a_request_that_does_not_fit_repeats_the_servers_words(served: Served) -> None:
    request = request_of(5)
    for bad, words in (
        (replace(request, cand_dense=request.cand_dense[:3]), "number of candidates"),
        (replace(request, hist_ids=np.ones((9, 1), np.int64)), "hist_ids"),
        (replace(request, user_ids=np.ones((2, 2), np.int64)), "user_ids"),
    ):
        with pytest.raises(BadRequest, match=words):
            served.client.score(bad, model="hap")
    with pytest.raises(BadRequest, match="version 9"):
        served.client.score(request, model="hap", version=9)
    with pytest.raises(ServingError, match="nothing_here"):
        served.client.load("nothing_here")
    assert served.client.score(request).served_by == 1


def test_no_server_is_one_line_that_names_the_address() -> None:
    with HapClient("127.0.0.1:9", deadline_s=1) as client:
        assert not client.live()
        assert not client.ready()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9.*hapctl serve") as refused:
            client.score(request_of(3))
    assert "\n" not in str(refused.value)
