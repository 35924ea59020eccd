"""The version page: everything of a verdict is on it, nothing of it can run or load, and it can be looked at."""

import dataclasses
import datetime as dt
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from hap import durable
from hap.evaluation.auc import RequestAuc
from hap.evaluation.cascade import Cost, by_size, curve, describe, describe_requests, places
from hap.evaluation.detail import describe_scores
from hap.evaluation.evidence import MEMBERS, gather
from hap.evaluation.gate import decide
from hap.pages.version import Subject, render
from hap.params import KINDS, NEGATIVES, Gate
from hap.registry.versions import Version
from hap.serving.bundle import Bundle

RULES = Gate(bootstrap_draws=200, slice_min_positives=200)
KIND = np.array([0] + [1] * 6 + [2] * 8 + [3] * 8 + [4] * 2, np.int8)
BUCKET = np.array(["EP"] + ["EN"] * 6 + ["Rank-50"] * 4 + ["Rank-200"] * 4 + ["Prerank-200"] * 8 + ["GN"] * 2)
EVIL = "<script>document.title='evil'</script>"
COST = {
    "bytes": {"light.onnx": 4_000_000, "hard_select.onnx": 1_000, "expressive.onnx": 5_000_000, "expressive_all.onnx": 5_000_000},
    "in_process": {
        "candidates": 1000, "cpu_ms": {"hap": 4.5, "expressive_all": 7.0}, "p50_ms": {"hap": 4.5, "expressive_all": 7.0},
        "p99_ms": {"hap": 5.5, "expressive_all": 8.4}, "p50_ratio": 0.65,
    },
    "operations": {
        "light": {"per_request": 800_000, "per_candidate": 1_600}, "expressive": {"per_request": 800_000, "per_candidate": 290_000},
    },
}  # fmt: skip
CASE = {"max_abs_diff": 1.9e-6, "misrouted": 0, "routing_agreement": 1.0, "top_overlap": 1.0}
CASES = [{"name": name, "candidates": size, **CASE} for name, size in (("real 0", 30), ("real 1", 1200), ("N=0", 0), ("equal scores", 12))]
PARITY = {
    "by_request": CASES,
    "max_abs_diff": 1.9e-6,
    "misrouted": 0,
    "order_agreement": 1.0,
    "requests": 43,
    "routing_agreement": 1.0,
    "top_overlap": 1.0,
}


def scores(requests, seed, better=0.0):
    rng = np.random.default_rng(seed)
    kind = np.tile(KIND, requests)
    easiness = np.array([1.2 + better, 0.6, 0.4, 0.0, -0.4])[kind]
    return {member: easiness + rng.normal(0, 0.8, kind.size) for member in MEMBERS}


def whole():
    """A routing curve of made-up requests with all their candidates."""
    rng = np.random.default_rng(1)
    offsets = np.arange(0, 40 * 251, 250)
    clicked = rng.random(10_000) < 0.02
    light, expressive = clicked + rng.normal(0, 1, 10_000), 2 * clicked + rng.normal(0, 1, 10_000)
    requests = describe_requests(clicked, offsets, 1)
    served, on_all = places(light, requests), places(expressive, requests)
    points = [dataclasses.asdict(point) for point in curve(requests, light, expressive, 20, (Cost(8e5, 1.6e3), Cost(8e5, 2.9e5)))]
    groups = [dataclasses.asdict(group) for group in by_size(served, on_all, served < 75, requests, 20, [200])]
    return {
        "k": 20, "days": ["2026-01-04"], "requests": 40, "positives": int(clicked.sum()), "candidates": 250.0, "routed_share": 0.3,
        **dataclasses.asdict(describe(served, on_all, requests, 20)), "relative": 0.95,
        "expressive_on_all": dataclasses.asdict(describe(on_all, on_all, requests, 20)), "curve": points, "by_size": groups,
        "best": points[6], "enough": {"share": 0.4, "keeps": 0.995},
    }  # fmt: skip


def figure(requests, value):
    """A figure of whole requests: the challenger's a tenth higher than the champion's on every other request."""
    weight = np.ones(requests)
    return RequestAuc(value + 0.1 * (np.arange(requests) % 2), weight), RequestAuc(np.full(requests, value), weight)


def training_record(default_params):
    """The record of a training of three epochs."""
    gaucs = [dict.fromkeys(NEGATIVES, 0.6 + 0.05 * epoch) for epoch in range(3)]
    steps = [{"step": step, "bce": 0.5, **dict.fromkeys(NEGATIVES, 1.0 - step / 100)} for step in (20, 40, 60)]
    pairs = [f"{a}|{b}" for place, a in enumerate(NEGATIVES) for b in NEGATIVES[place + 1 :]]
    looks = [{"step": step, "norm": dict.fromkeys(NEGATIVES, 0.3), "cosine": dict.fromkeys(pairs, -0.4)} for step in (0, 50)]
    model = {
        "best_epoch": 2, "heldout_gauc_by_epoch": gaucs, "parameters": 1_058_657, "dense_parameters": 352_609,
        "samples_by_kind": dict.fromkeys(KINDS, 5_000), "torch": "2.13.0", "device": "cpu",
    }  # fmt: skip
    spent = {"wall_s": 40.0, "cpu_s": 39.0, "peak_mb": 900.0, "device_peak_mb": None, "processes": 1, "resumed": True}
    return {
        "window": [{"day": "2026-01-03", "manifest": "a935047951b1be39", "requests": 1500, "samples_hash": "62a68af516cf5889" * 4}],
        "params": default_params.model_dump(mode="json"),
        "warm_start": None,
        "models": {name: {"model": model, "curves": {"steps": steps, "conflict": looks}} for name in ("light", "expressive")},
        "spent": dict.fromkeys(("light", "expressive"), spent),
        "environment": {"machine": "x86_64", "system": "Linux", "cpus": 2, "python": "3.11.7", "packages": {}},
    }


@pytest.fixture(scope="module")
def subject(tmp_path_factory, default_params):
    """Of a version judged against a champion, with everything that a page can show."""
    tmp_path = tmp_path_factory.mktemp("bundle")

    def make(against=1, training=True, requests=500, better=0.1, **changes):
        kind, offsets = np.tile(KIND, requests), np.arange(requests + 1) * KIND.size
        ours = scores(requests, 1, better)
        theirs = scores(requests, 1) if against else None
        second = np.repeat(np.arange(requests) % 2 == 0, KIND.size)
        evidence = gather(
            **{
                "version": 2, "against": against, "days": ["2026-01-04"], "manifests": {"2026-01-04": "abc"}, "expressive_kinds": NEGATIVES,
                "kind": kind, "offsets": offsets, "challenger": ours, "champion": theirs, "whole": whole(),
                "slices": {EVIL: second, "item_id new": ~second, "history_length below 5": second & (np.arange(kind.size) < 2500)},
                "figures": {"recall": figure(requests, 0.6), "hit_rate": figure(requests, 0.7)} if against else {},
                "detail": describe_scores(kind, np.tile(BUCKET, requests), offsets, ours, theirs, RULES, 1),
                "parity_max_abs_diff": 1.9e-6, "cost": COST,
                "budgets": {"p99_ms": 5.5, "operations": 0.31, "light.age_days": 1.0, "expressive.age_days": 1.0},
                **changes,
            }
        )  # fmt: skip
        durable.write_json(tmp_path / "parity.json", PARITY)
        durable.write_json(tmp_path / "cost.json", COST)
        bundle = Bundle(tmp_path, default_params.features, default_params.route, "20fd79aa" * 8, {})
        created = dt.datetime(2026, 1, 5, 3, tzinfo=dt.UTC)
        registered = Version(2, "2026-01-04", ("2026-01-03",), "pass", created, "20fd" * 16, "a" * 40, "b" * 40, "run1", False, True)
        return Subject(registered, decide(evidence, RULES), bundle, training_record(default_params) if training else None)

    return make


@pytest.fixture(scope="module")
def shown(subject):
    """A subject whose expressive model is worth its cost, and its page."""
    one = subject(challenger=scores(500, 1) | {"cascade": scores(500, 2, 0.5)["cascade"]})
    return one, render(one)


def words(page):
    """The text of a page, as a person reads it."""
    text = re.sub(r"<style.*?</style>|<head>.*?</head>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_a_page_says_the_verdict_its_reasons_and_what_to_do_next(shown):
    one, page = shown[0], words(shown[1])
    assert one.verdict.verdict == "pass" and "v2: pass" in page and one.verdict.reasons[0] in page
    assert "Next: hapctl promote --model v2" in page and "compared with v1" in page


def test_an_undecided_version_is_judged_next_on_a_later_day_where_more_requests_would_decide(subject):
    """On the same ones it would get the same verdict; what is missing can be mended for the same day."""
    noisy = subject(challenger=scores(500, 3), slices={})
    page = words(render(noisy))
    assert noisy.verdict.verdict == "undecided" and "Next: hapctl gate run --model v2 --day 2026-01-05" in page
    assert f"{float(f'{noisy.verdict.needs_requests:.2g}'):,.0f} requests would decide" in page
    missing = subject(challenger=scores(500, 1), parity_max_abs_diff=None, slices={})
    assert missing.verdict.verdict == "undecided" and "Next: hapctl gate run --model v2 Quality" in words(render(missing))


def test_every_rule_of_the_verdict_is_on_the_page(shown):
    one, page = shown
    page = page.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'")
    assert [rule.name for rule in one.verdict.rules if rule.name not in page] == []


def test_every_change_against_the_champion_is_on_the_page_with_its_bounds(shown):
    one, page = shown[0].verdict, words(shown[1])
    assert {"light.all", "expressive.all", "cascade.history_length below 5", "cascade.recall", "cascade.hit_rate"} <= set(one.reported)
    changes = [*one.reported.values(), *[vars(rule) for rule in one.rules if rule.name.endswith(".regression")]]
    changes += [found["change"] for bucket in one.detail["buckets"].values() for found in bucket["members"].values()]
    for change in changes:
        value, lower, upper = (f"{change[part]:+.3f}".replace("0.", ".", 1) for part in ("value", "lower", "upper"))
        assert f"{value} {lower} to {upper}" in page
    assert page.count(" reported only") == 8  # light and expressive on all kinds, the small slice, and five figures of whole requests


def test_the_cascade_is_shown_by_size_with_every_figure(shown):
    (group,) = shown[0].verdict.whole["by_size"]
    figures = [f"{group[name]:.3f}".replace("0.", ".", 1) for name in ("recall", "hit_rate", "ndcg", "agreement", "rank_agreement")]
    assert f"200+ {group['requests']} 30% {' '.join(figures)}" in words(shown[1])


def test_calibration_of_the_champion_stands_beside_that_of_the_challenger(shown):
    one = shown[0].verdict.detail
    ours, theirs = (one[name]["light"]["EN"] for name in ("calibration", "champion_calibration"))
    line = f"light EN {ours['log_loss']:.3f} {ours['ece']:.3f} {ours['slope']:.2f} {ours['intercept']:.2f} {theirs['log_loss']:.3f}"
    assert re.sub(r"(?<![0-9])0\.", ".", line) in words(shown[1])


def test_each_judging_day_stands_with_its_own_manifest(subject):
    page = words(render(subject(days=["2026-01-03", "2026-01-04"])))
    assert "judged on 2026-01-03 2026-01-04 abc" in page


def test_a_page_has_every_figure_as_a_picture_that_cannot_run(shown):
    page = shown[1]
    pictures = re.findall(r'<img[^>]+src="(data:image/svg\+xml;base64,[^"]+)"', page)
    assert len(pictures) == 9 == page.count("<img")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "default-src 'none'" in page


def test_the_edges_of_parity_are_on_the_page_one_by_one_and_the_real_requests_together(shown):
    _, page = shown
    text = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "2 real requests 30 to 1,200 1.9e-06 1.0000 1.0000" in text and "equal scores 12 1.9e-06" in text
    assert "<code>hapctl parity --model v2</code>" in page


def test_equal_subjects_give_equal_bytes(shown):
    assert render(shown[0]) == shown[1]


def test_text_from_data_is_escaped(shown):
    page = shown[1]
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_first_version_has_nothing_to_compare_with(subject):
    page = render(subject(against=None))
    quality = page.split('<section id="quality">')[1].split("</section>")[0]
    assert "floors only" in words(page) and "change" not in words(quality)
    assert page.count("<img") == 7  # neither changes nor changes by slice


def test_a_version_without_a_record_of_its_training_says_so(subject):
    page = render(subject(training=False))
    assert "no record of this version" in words(page) and page.count("<img") == 6


def test_scores_that_are_not_finite_still_get_a_page(subject):
    broken = {member: np.full(500 * KIND.size, np.nan) for member in MEMBERS}
    one = subject(challenger=broken, detail={}, whole={}, slices={})
    page = words(render(one))
    assert one.verdict.verdict == "refuse" and "v2: refuse" in page and "NaN" in page


def test_costs_say_what_a_thousandth_of_gauc_takes(shown):
    one = shown[0]
    light, cascade = one.verdict.gauc["light"]["all"], one.verdict.gauc["cascade"]["all"]
    operations = (0.31 * 290.8e6 - 2.4e6) / (1000 * (cascade - light))
    assert f"per +.001 {operations / 1e3:.3g} k" in words(shown[1])


@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None and "CI" not in os.environ, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_draws_the_page_and_asks_the_network_for_nothing(shown, tmp_path, width):
    page, shot, log = tmp_path / "v2.html", tmp_path / "v2.png", tmp_path / "network.json"
    page.write_text(shown[1])
    browser = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    browser += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}"]
    browser += ["--enable-logging=stderr", f"--window-size={width},6000", f"--screenshot={shot}", page.as_uri()]
    said = subprocess.run(browser, capture_output=True, text=True, timeout=300, check=True)
    assert ":CONSOLE" not in said.stderr
    # What a page asks for carries its origin; the browser's own requests (all failing by the rule above) have none.
    assert set(re.findall(r'"initiator":"([^"]*)"', log.read_text())) <= {"not an origin"}
    from matplotlib.image import imread

    seen = imread(shot)[..., :3]
    assert seen.shape[:2] == (6000, width)
    coloured = (seen.max(axis=2) - seen.min(axis=2)) > 0.25
    assert coloured[: 6000 // 4].mean() > 0.001  # the verdict's colour and the figures, not an empty sheet
