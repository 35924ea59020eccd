"""The three members scored at once give what each gives alone."""

from pathlib import Path

import numpy as np

from hap.serving.bundle import read_bundle
from hap.serving.merge import NAN_SCORE
from hap.serving.session import BundleSession
from tests.serving.handmade import make_bundle, request_of


def test_members_equal_the_graphs_run_alone(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    session = BundleSession(read_bundle(bundle.path))
    for golden in bundle.golden():
        if golden.k is not None:
            continue
        light, expressive, cascade = session.members(golden.tensors)
        assert np.array_equal(light, session.light(golden.tensors), equal_nan=True)
        assert np.array_equal(expressive, session.expressive(golden.tensors), equal_nan=True)
        assert np.allclose(cascade, session.score(golden.tensors)[0], atol=1e-5)


def test_an_expressive_logit_that_is_no_number_is_told_though_callers_are_answered_with_one(tmp_path: Path) -> None:
    """Infinite prices and ages cancel in the expressive model, whose weights have one sign, and add up in the light one."""
    session = BundleSession(read_bundle(make_bundle(tmp_path / "bundle").path))
    request = request_of(12)
    request.cand_dense[3] = np.inf, -np.inf
    light, expressive, cascade = session.members(request)
    assert light[3] == np.inf and np.flatnonzero(np.isnan(expressive)).tolist() == [3]
    assert cascade[3] == NAN_SCORE and np.allclose(cascade, session.score(request)[0], atol=1e-5)
