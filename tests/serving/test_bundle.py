import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest

from hap.errors import DataError, NotFound
from hap.params import Route
from hap.serving.bundle import GOLDEN, MEASURED, PROMISED, SEAL, Bundle, read_bundle, read_golden, seal_bundle
from tests.serving.handmade import FEATURES, make_bundle


@pytest.fixture
def copied(bundles: dict[int, Bundle], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles[1].path, tmp_path / "copy"))


def test_a_bundle_reads_back_what_was_sealed(bundles: dict[int, Bundle]) -> None:
    bundle = read_bundle(bundles[1].path)
    assert bundle.features == FEATURES
    assert bundle.route == Route(share=0.3)
    assert bundle.info == {"day": "2026-01-04"}
    assert [(golden.k, golden.tensors.candidates) for golden in bundle.golden()] == [(None, 12), (None, 0), (None, 1), (2, 5)]


def test_equal_behaviour_has_an_equal_digest_whatever_was_measured(bundles: dict[int, Bundle], tmp_path: Path) -> None:
    again = make_bundle(tmp_path / "again")
    assert again.digest == bundles[1].digest != bundles[2].digest
    (again.path / "cost.json").write_text('{"p50_ms": 3}')
    assert seal_bundle(again.path, {"day": "another"}).digest == again.digest


@pytest.mark.parametrize("name", [*PROMISED, *MEASURED])
def test_a_tampered_or_missing_file_is_refused_by_name(copied: Path, name: str) -> None:
    original = (copied / name).read_bytes()
    (copied / name).write_bytes(original + b" ")
    with pytest.raises(DataError, match=name):
        read_bundle(copied)
    (copied / name).unlink()
    with pytest.raises(DataError, match=name):
        read_bundle(copied)


def test_a_seal_that_was_rewritten_is_refused(copied: Path) -> None:
    seal = orjson.loads((copied / SEAL).read_bytes())
    (copied / SEAL).write_bytes(orjson.dumps(seal | {"digest": "0" * 64}))
    with pytest.raises(DataError, match="digest"):
        read_bundle(copied)
    (copied / SEAL).write_bytes(orjson.dumps(seal | {"files": seal["files"] | {"../x": "0"}}))
    with pytest.raises(DataError, match="plain file name"):
        read_bundle(copied)
    (copied / SEAL).write_bytes(b"{")
    with pytest.raises(DataError, match="export it again"):
        read_bundle(copied)


def test_a_folder_without_a_seal_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="hapctl export"):
        read_bundle(tmp_path)


def test_golden_requests_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / GOLDEN, names=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_golden(tmp_path / GOLDEN)
