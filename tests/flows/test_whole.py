"""What whole requests tell finds its way to the judged requests."""

import numpy as np
import pytest

from flows.whole import figures_of
from hap.training.feed import Pool


def pool(request_ids, counts, kind):
    rows = sum(counts)
    empty = np.zeros((len(counts), 0))
    return Pool(
        request_id=np.array(request_ids, np.int64), user_ids=empty, user_dense=empty, hist_ids=empty, hist_dense=empty,
        cand_ids=np.zeros((rows, 0)), cand_dense=np.zeros((rows, 0)), kind=np.array(kind, np.int8),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )  # fmt: skip


def test_each_judged_request_gets_its_own_recall_and_one_that_is_not_whole_weighs_nothing():
    every = pool([30, 10], [3, 4], [0, 1, 2, 0, 0, 1, 1])
    cascade = np.array([3.0, 2.0, 1.0, 0.0, 9.0, 5.0, 4.0])
    found = figures_of({"cascade": cascade, "expressive": -cascade}, every, np.array([10, 20, 30]), k=2, seed=1)
    assert found["recall"].auc.tolist() == [0.5, 0.0, 1.0] and found["recall"].weight.tolist() == [2.0, 0.0, 1.0]
    assert found["hit_rate"].auc.tolist() == [1.0, 0.0, 1.0] and found["hit_rate"].weight.tolist() == [1.0, 0.0, 1.0]
    assert found["agreement"].auc.tolist() == [0.0, 0.0, 0.5]
    assert found["ndcg"].auc.tolist() == pytest.approx([1 / (1 + 1 / np.log2(3)), 0.0, 1.0])


def test_a_whole_request_that_was_not_judged_counts_for_nothing():
    every = pool([5, 99], [2, 2], [0, 1, 0, 1])
    scores = dict.fromkeys(("cascade", "expressive"), np.array([1.0, 0.0, 1.0, 0.0]))
    found = figures_of(scores, every, np.array([5, 7]), k=1, seed=1)["recall"]
    assert found.weight.tolist() == [1.0, 0.0] and found.auc[0] == 1.0


@pytest.mark.parametrize("judged", [[], [1]])
def test_no_whole_requests_weigh_nothing(judged):
    scores = dict.fromkeys(("cascade", "expressive"), np.zeros(0))
    found = figures_of(scores, pool([], [], []), np.array(judged, dtype=np.int64), k=3, seed=1)
    assert found["recall"].weight.tolist() == [0.0] * len(judged)
