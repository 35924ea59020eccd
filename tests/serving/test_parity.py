from dataclasses import replace

import numpy as np
import pytest

from hap.serving.bundle import Golden
from hap.serving.merge import hard_select, merge
from hap.serving.parity import asked, compare, fault, summary
from tests.serving.handmade import expected, logits, request_of


def golden(candidates: int = 20) -> Golden:
    request = request_of(candidates)
    score, routed = expected(request, None, 0.0)
    return Golden("g", request, None, score, routed, logits(request, (1.0, -0.5, 0.3)))


def test_the_golden_answer_itself_agrees() -> None:
    found = compare(golden(), golden().score, golden().routed)
    assert (found.max_abs_diff, found.order_agreement, found.top_overlap, found.routing_agreement, found.misrouted) == (0, 1, 1, 1, 0)


def test_no_candidates_agree() -> None:
    assert compare(golden(0), golden(0).score, golden(0).routed).max_abs_diff == 0


def test_a_real_misroute_is_told_from_a_tie_at_the_cut() -> None:
    light = np.array([3, 2, 2 + 1e-6, 1], np.float32)
    index = hard_select(light, 2)
    score, routed = merge(light, index, light[index])
    entry = Golden("g", request_of(4), 2, score, routed, light)
    other, other_routed = merge(light, np.array([0, 1]), light[[0, 1]])
    at_the_cut = compare(entry, other, other_routed)
    assert (at_the_cut.ties, at_the_cut.misrouted) == (2, 0)
    wrong, wrong_routed = merge(light, np.array([0, 3]), light[[0, 3]])
    assert compare(entry, wrong, wrong_routed).misrouted > 0


@pytest.mark.parametrize("spoil", ["nan", "short"])
def test_an_unusable_answer_is_infinitely_far(spoil: str) -> None:
    entry = golden()
    score = np.where(np.arange(20) == 3, np.nan, entry.score).astype(np.float32) if spoil == "nan" else entry.score[:-1]
    found = compare(entry, score, entry.routed)
    assert found.max_abs_diff == float("inf")
    assert found.misrouted == 20


def test_ties_are_told_where_a_logit_is_nan() -> None:
    light = np.array([3, np.nan, 1], np.float32)
    index = hard_select(light, 3)
    score, routed = merge(light, index, light[index])
    found = compare(Golden("g", request_of(3), 3, score, routed, light), score, routed)
    assert (found.max_abs_diff, found.misrouted) == (0, 0)


def test_the_summary_is_the_worst_of_all_requests_and_names_it() -> None:
    entries = [golden(), replace(golden(5), name="other")]
    off = [np.float32(0), np.float32(1)]
    found = summary([compare(entry, entry.score + more, entry.routed) for entry, more in zip(entries, off, strict=True)])
    assert (found["requests"], found["worst"]) == (2, "other")
    assert found["max_abs_diff"] == pytest.approx(1)


def test_a_request_that_routes_everything_is_asked_of_both_ensembles() -> None:
    entries = [golden(), golden(0), golden(1)]
    assert [ensemble for ensemble, _ in asked(entries)] == ["hap", "hap", "hap_all", "hap", "hap_all"]


@pytest.mark.parametrize(("change", "said"), [({"max_abs_diff": 0.5}, "differs by 0.5 from PyTorch"), ({"misrouted": 2}, "2 misrouted"),
                                              ({"max_abs_diff": float("nan")}, "differs by nan")])  # fmt: skip
def test_a_fault_names_the_figure_and_the_request(change: dict, said: str) -> None:
    entry = golden()
    found = summary([compare(entry, entry.score, entry.routed)])
    assert fault(found, "Triton", "PyTorch", 1e-4) is None
    told = fault({**found, **change}, "Triton", "PyTorch", 1e-4)
    assert told is not None and said in told and "(worst: g)" in told and "gate.max_parity allows 0.0001" in told
