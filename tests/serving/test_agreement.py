"""Systems beside each other: pairs, the worst of them, and what a person reads."""

from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from hap.serving.agreement import ONNXRUNTIME, PYTORCH, TRITON, beside, golden_answers, refused_by_name
from hap.serving.bundle import Golden
from hap.serving.parity import asked
from tests.serving.handmade import FEATURES, expected, logits, request_of


@dataclass(frozen=True)
class Said:
    score: NDArray[np.float32]
    routed: NDArray[np.bool_]


def golden(name: str, candidates: int, k: int | None = None) -> Golden:
    request = request_of(candidates, seed=candidates)
    return Golden(name, request, k, *expected(request, k, 0.0), logits(request, (1.0, -0.5, 0.3)))


REQUESTS = [golden("real 0", 20), golden("real 1", 30), golden("N=0", 0), golden("k=2", 12, 2)]


def told(off: float = 0.0, at: str = "") -> list[Said]:
    """The golden answers, the scores of one request moved."""
    return [Said(entry.score + np.float32(off) * (entry.name == at), entry.routed) for _, entry in asked(REQUESTS)]


def test_three_that_agree_make_three_pairs() -> None:
    found = beside(REQUESTS, {PYTORCH: golden_answers(REQUESTS), ONNXRUNTIME: told(), TRITON: told()}, 1e-4)
    assert list(found.pairs) == ["ONNX Runtime / PyTorch", "Triton / PyTorch", "Triton / ONNX Runtime"]
    assert found.fault is None
    assert [one.name for one in found.requests] == ["real 0", "real 1", "N=0", "N=0, one step", "k=2"]
    stored = orjson.loads(orjson.dumps(found.as_json()))
    assert stored["agrees"] and stored["requests"][4]["k"] == 2 and stored["requests"][1]["Triton / PyTorch"]["max_abs_diff"] == 0


def test_the_first_pair_that_differs_is_the_fault_and_its_request_is_named() -> None:
    found = beside(REQUESTS, {PYTORCH: golden_answers(REQUESTS), ONNXRUNTIME: told(), TRITON: told(0.5, "k=2")}, 1e-4)
    assert found.fault is not None and found.fault.startswith("Triton differs by 0.5 from PyTorch with 0 misrouted candidates (worst: k=2)")
    assert found.pairs["ONNX Runtime / PyTorch"]["max_abs_diff"] == 0
    assert found.pairs["Triton / ONNX Runtime"]["worst"] == "k=2"


def test_candidates_routed_otherwise_are_a_fault_without_a_difference() -> None:
    answers = told()
    flipped = answers[0].routed.copy()
    flipped[[np.argmax(answers[0].score), np.argmin(answers[0].score)]] ^= True
    answers[0] = Said(answers[0].score, flipped)
    found = beside(REQUESTS, {PYTORCH: golden_answers(REQUESTS), TRITON: answers}, 1e-4)
    assert list(found.pairs) == ["Triton / PyTorch"]
    assert found.fault is not None and "with 2 misrouted candidates (worst: real 0)" in found.fault


def test_requests_that_one_system_was_not_asked_are_in_its_pairs_no_more() -> None:
    known = [entry if entry.name != "k=2" else None for entry in golden_answers(REQUESTS)]  # type: ignore[union-attr]
    found = beside(REQUESTS, {PYTORCH: known, ONNXRUNTIME: told(), TRITON: told()}, 1e-4)
    assert {pair: one["requests"] for pair, one in found.pairs.items()} == {
        "ONNX Runtime / PyTorch": 4,
        "Triton / PyTorch": 4,
        "Triton / ONNX Runtime": 5,
    }
    assert str(found).splitlines()[4].split() == ["k=2", "12", "2", "-", "-", "0.0e+00", "1.0000", "1.0000", "0"]
    alone = beside(REQUESTS, {PYTORCH: known, ONNXRUNTIME: told()}, 1e-4)
    assert str(alone).splitlines()[4].split() == ["k=2", "12", "2", "-", "-", "-", "-"] and alone.fault is None


def test_the_table_puts_requests_of_one_kind_together_and_ends_with_the_worst() -> None:
    lines = str(beside(REQUESTS, {PYTORCH: golden_answers(REQUESTS), TRITON: told(0.25, "real 1")}, 1e-4)).splitlines()
    assert lines[0].split("  ")[0] == "request" and "Triton / PyTorch" in lines[0] and "ONNX Runtime" not in lines[0]
    assert lines[1].split() == ["2", "x", "real", "20", "to", "30", "route", "2.5e-01", "1.0000", "1.0000", "0"]
    assert lines[-1].split()[:4] == ["worst", "of", "5", "2.5e-01"] and len(lines) == 6


def test_a_nan_is_refused_by_the_name_of_each_dense_feature() -> None:
    request = request_of(5)
    before = request.copy()
    assert refused_by_name(FEATURES, request) == {
        "user activity": True,
        "item price": True,
        "item age_hours": True,
        "history age_hours": True,
    }
    assert np.array_equal(request.cand_dense, before.cand_dense)
