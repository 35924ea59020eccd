import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest

from hap.evaluation import cascade as routing
from hap.models.describe import Description
from hap.params import Route
from hap.serving.merge import hard_select, merge, routed_count

SHARES = (0.0, 0.1, 0.3, 0.5, 0.77, 1.0)


def jagged(seed, requests=40, most=30):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most, requests)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    clicked = rng.random(offsets[-1]) < 0.15
    return rng, routing.describe_requests(clicked, offsets, seed)


def slow_final(request_rows, selector, light, expressive, chance, share):
    """Rows of one request in final order, by sorting lists."""

    def best_first(rows, score):
        return sorted(rows, key=lambda row: (-score[row], chance[row]))

    count = math.ceil(share * len(request_rows) - 1e-9)
    routed = best_first(request_rows, selector)[:count]
    return best_first(routed, expressive) + best_first([row for row in request_rows if row not in routed], light)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("ties", [False, True])
def test_places_recall_and_agreement_are_those_of_sorted_lists(share, ties):
    rng, requests = jagged(1)
    selector, light, expressive = (rng.normal(size=len(requests.clicked)) for _ in range(3))
    if ties:
        selector, light, expressive = np.round(selector), np.round(light), np.round(expressive)
    final = routing.select(requests, selector, light, expressive).final_places(share)
    on_all = routing.places(expressive, requests)
    for request, (first, end) in enumerate(zip(requests.offsets[:-1], requests.offsets[1:], strict=True)):
        rows = list(range(first, end))
        order = slow_final(rows, selector, light, expressive, requests.chance, share)
        assert [int(final[row]) for row in order] == list(range(len(rows)))
        whole = slow_final(rows, expressive, light, expressive, requests.chance, 1.0)
        assert routing.hits(final, requests, 5)[request] == sum(requests.clicked[row] for row in order[:5])
        assert routing.findable(requests, 5)[request] == min(5, requests.clicked[rows].sum())
        same = len(set(order[:5]) & set(whole[:5])) / min(5, len(rows))
        assert routing.agreement(final, on_all, requests, 5)[request] == pytest.approx(same)


@pytest.mark.parametrize("share", [0.07, 0.3, 0.7, 1.0])
def test_the_order_is_the_one_that_is_served(share):
    rng, requests = jagged(2)
    light, expressive = (rng.normal(size=len(requests.clicked)).astype(np.float32) for _ in range(2))
    final = routing.select(requests, light, light, expressive).final_places(share)
    for first, end in zip(requests.offsets[:-1], requests.offsets[1:], strict=True):
        chosen = hard_select(light[first:end], routed_count(Route(share=share), int(end - first)))
        score, _ = merge(light[first:end], chosen, expressive[first:end][chosen])
        np.testing.assert_array_equal(np.argsort(final[first:end]), np.argsort(-score, kind="stable"))


def test_a_model_that_says_nothing_finds_clicks_by_chance_although_they_lie_first():
    counts = np.full(300, 50)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    clicked = np.tile(np.arange(50) < 2, 300)
    requests = routing.describe_requests(clicked, offsets, 3)
    flat = np.zeros(len(clicked))
    found = routing.hits(routing.places(flat, requests), requests, 10).sum() / clicked.sum()
    assert found == pytest.approx(0.2, abs=0.05)


def test_an_oracle_routes_the_clicked_ones_first():
    _, requests = jagged(4)
    place = routing.places(routing.oracle(requests), requests)
    clicks = np.bincount(requests.owner[requests.clicked], minlength=len(requests.counts))
    assert (place[requests.clicked] < clicks[requests.owner[requests.clicked]]).all()


@pytest.mark.parametrize("share", SHARES)
def test_cost_is_the_sum_over_requests(share):
    _, requests = jagged(5)
    light, expressive = (Description(name, 8, 0, 0, 0, fixed, each) for name, fixed, each in (("light", 100, 3), ("expressive", 700, 40)))
    cascade = whole = 0
    for count in requests.counts.tolist():
        routed = routed_count(Route(share=share), count) if share else 0
        cascade += light.flops(count) + (expressive.flops(routed) if routed else 0)
        whole += expressive.flops(count)
    assert routing.cost_ratio(light.cost, expressive.cost, requests.counts, share) == pytest.approx(cascade / whole)


def test_ndcg_is_that_of_scikit_learn():
    from sklearn.metrics import ndcg_score

    rng, requests = jagged(6)
    score = rng.normal(size=len(requests.clicked))
    found = routing.ndcg(routing.places(score, requests), requests, 5)
    for request, (first, end) in enumerate(pairwise(requests.offsets.tolist())):
        clicked = requests.clicked[first:end]
        if not clicked.any():
            assert np.isnan(found[request])
        elif end - first > 1:
            assert found[request] == pytest.approx(ndcg_score([clicked.astype(int)], [score[first:end]], k=5), abs=1e-12)


def test_a_curve_ends_at_expressive_on_all_and_its_points_are_means_over_clicked_requests():
    rng, requests = jagged(7, requests=200)
    light, expressive = rng.normal(size=(2, len(requests.clicked)))
    costs = (routing.Cost(10, 1), routing.Cost(100, 20))
    points = routing.curve(requests, light, expressive, 5, costs, shares=(0.0, 0.4, 1.0))
    assert [point.share for point in points] == [0.0, 0.4, 1.0]
    assert (points[-1].relative, points[-1].agreement) == (1.0, 1.0) and points[-1].cost > 1 > points[0].cost
    final = routing.select(requests, light, light, expressive).final_places(0.4)
    shares, hits, weights = [], [], []
    for first, end in pairwise(requests.offsets.tolist()):
        clicked = requests.clicked[first:end]
        if clicked.any():
            top = clicked[final[first:end] < 5]
            shares.append(top.sum())
            weights.append(min(5, clicked.sum()))
            hits.append(top.any())
    assert points[1].recall == pytest.approx(sum(shares) / sum(weights)) and points[1].hit_rate == pytest.approx(np.mean(hits))
    assert routing.curve(requests, light, expressive, 5)[0].cost is None


def test_the_best_share_is_the_one_that_finds_most_within_the_budget():
    def point(share, recall, cost):
        nothing = dict.fromkeys(("hit_rate", "ndcg", "agreement", "rank_agreement"), 0.0)
        return routing.Point(share=share, recall=recall, relative=recall, cost=cost, **nothing)

    points = [point(0.0, 0.2, 0.1), point(0.3, 0.5, 0.4), point(0.5, 0.5, 0.6), point(0.6, 0.4, 0.7), point(1.0, 0.6, 1.1)]
    assert routing.best_share(points, 0.4).share == 0.3
    assert routing.best_share(points, 0.9).share == 0.3  # as much for less
    assert routing.best_share(points, 2.0).share == 1.0
    assert routing.best_share(points, 0.05) is None


def test_a_share_is_enough_when_its_lower_bound_and_those_of_all_larger_ones_keep_the_recall():
    rng, requests = jagged(11, requests=400)
    expressive = requests.clicked + rng.normal(size=len(requests.clicked))
    exact = routing.enough_share(requests, expressive, expressive, 3, 0.05, 200, 1)
    noisy = routing.enough_share(requests, expressive + rng.normal(size=len(expressive)), expressive, 3, 0.05, 200, 1)
    blind = routing.enough_share(requests, rng.normal(size=len(expressive)), expressive, 3, 0.05, 200, 1)
    assert exact == 0.0 < noisy < blind <= 1.0
    lost = routing.Requests(requests.offsets, np.zeros_like(requests.clicked), requests.chance)
    assert routing.enough_share(lost, expressive, expressive, 3, 0.05, 200, 1) is None


def test_figures_by_size_are_those_of_the_requests_of_that_size():
    rng, requests = jagged(12, requests=60)
    light, expressive = rng.normal(size=(2, len(requests.clicked)))
    final = routing.select(requests, light, light, expressive).final_places(0.4)
    on_all = routing.places(expressive, requests)
    routed = routing.places(light, requests) < routing.routed_counts(requests.counts, 0.4)[requests.owner]
    edge = int(np.median(requests.counts))
    small, large = routing.by_size(final, on_all, routed, requests, 3, [edge])
    assert (small.name, large.name) == (f"0-{edge - 1}", f"{edge}+")
    clicks = np.bincount(requests.owner, weights=requests.clicked, minlength=len(requests.counts))
    for group, inside in ((small, requests.counts < edge), (large, requests.counts >= edge)):
        inside &= clicks > 0
        alone = routing.describe(final, on_all, requests, 3, inside)
        assert group.requests == inside.sum()
        assert dataclasses.asdict(group).items() >= dataclasses.asdict(alone).items()
        assert group.routed_share == pytest.approx(routed[inside[requests.owner]].mean())
        assert alone.recall == pytest.approx(routing.hits(final, requests, 3)[inside].sum() / routing.findable(requests, 3)[inside].sum())
    assert small.hit_rate > large.hit_rate and small.agreement > large.agreement  # three of fewer candidates


def test_rank_agreement_is_spearmans_correlation():
    from scipy.stats import spearmanr

    rng, requests = jagged(13)
    one, other = (routing.places(score, requests) for score in rng.normal(size=(2, len(requests.clicked))))
    found = routing.rank_agreement(one, other, requests)
    for request, (first, end) in enumerate(pairwise(requests.offsets.tolist())):
        if end - first < 2:
            assert np.isnan(found[request])
        else:
            assert found[request] == pytest.approx(spearmanr(one[first:end], other[first:end]).statistic, abs=1e-12)
    assert routing.describe(one, one, requests, 5).rank_agreement == 1


@pytest.mark.parametrize("offsets", [[0], [0, 0], [0, 3]])
def test_requests_without_candidates_or_clicks_give_no_figure_and_no_error(offsets):
    rows = offsets[-1]
    requests = routing.describe_requests(np.zeros(rows, bool), np.array(offsets), 1)
    for point in routing.curve(requests, np.zeros(rows), np.zeros(rows), 5):
        assert np.isnan(point.recall) and np.isnan(point.hit_rate)
