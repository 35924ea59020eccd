"""What a canary takes for a fault, and whether a restart would mend it."""

from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from hap.serving import repository, wire
from hap.serving.bundle import read_golden
from hap.serving.canary import Canary, Fault
from hap.serving.request import RequestTensors
from tests.serving.fake_triton import fake_triton


def garbage(repo: Path) -> None:
    repository.canary_file(repo, 1).write_bytes(b"no requests")


def absent(repo: Path) -> None:
    repository.canary_file(repo, 1).unlink()


def torn_pin(repo: Path) -> None:
    (repo / "hap" / repository.CONFIG).write_text("name: {")


@pytest.mark.parametrize("damage", [garbage, absent, torn_pin])
def test_damaged_files_are_told_and_do_not_end_what_serves(repo: Path, damage: Callable[[Path], None]) -> None:
    damage(repo)
    with fake_triton() as (fake, url):
        canary = Canary(repo, url, 5)
        found = canary.fault()
        canary.close()
    assert found is not None and found.restart == "no" and str(repo) in found.said
    assert fake.inferences == 0


@pytest.mark.parametrize(
    ("failure", "restart"),
    [
        ((grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"), "if it stays"),
        ((grpc.StatusCode.INTERNAL, "out of memory"), "if it stays"),
        ((grpc.StatusCode.INTERNAL, "in ensemble 'hap', Stub process 'light_0_0' is not healthy."), "at once"),
    ],
)
def test_what_the_server_says_is_told_and_a_dead_stub_is_no_matter_of_patience(
    repo: Path, failure: tuple[grpc.StatusCode, str], restart: str
) -> None:
    with fake_triton() as (fake, url):
        fake.failures = [failure]
        canary = Canary(repo, url, 5)
        found = canary.fault()
        canary.close()
    assert found is not None and found.restart == restart and failure[1] in found.said


def test_a_wrong_score_of_either_ensemble_is_a_fault(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary, golden = Canary(repo, "127.0.0.1:9", 1), read_golden(repository.canary_file(repo, 1))[0]
    wrong = {"hap": 0.0, "hap_all": 0.0}

    def score(tensors: RequestTensors, k: int | None, model: str) -> wire.Scored:
        return wire.Scored(golden.score + np.float32(wrong[model]), golden.routed, 1)

    monkeypatch.setattr(canary.client, "score", score)
    assert canary.fault() is None
    for model in wrong:
        for off in (0.01, float("nan")):
            wrong[model] = off
            assert canary.fault() == Fault(f"v1 answers a golden request on {model} {off:.2g} away from its score")
        wrong[model] = 0.0
    canary.close()
