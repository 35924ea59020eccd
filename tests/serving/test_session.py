"""The three members scored at once give what each gives alone."""

from pathlib import Path

import numpy as np

from hap.serving.bundle import read_bundle
from hap.serving.session import BundleSession
from tests.serving.handmade import make_bundle


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
