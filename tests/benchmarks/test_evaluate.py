import json

import numpy as np
import pytest

from benchmarks import evaluate
from benchmarks.evaluate import differences, generate, largest_difference, main, parse, prepare, ratios, targets

TINY = ["--rows", "4000", "--draws", "30", "--rounds", "1", "--measured-draws", "2", "--measured-requests", "5"]


@pytest.fixture
def small(tmp_path):
    """Arguments and a folder with rows, draws and what hap makes of them."""
    args = parse(TINY)
    prepare(tmp_path, args)
    assert "failed" not in evaluate.measure("hap", tmp_path, 0, args)
    return args, tmp_path


def test_a_tiny_run_is_exact_and_says_what_was_measured(capsys):
    assert main([*TINY, "--systems", "hap,sklearn,by-hand", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["protocol"]["measured_draws"] == {"sklearn": 2, "by-hand": 30} and answer["protocol"]["quantities"] == 44
    assert set(answer["max_abs_diff"]["sklearn"]) == {"pooled", "pooled_draws", "request_auc"}
    assert set(answer["max_abs_diff"]["hap"]) == {"gauc", "gauc_draws"}
    assert max(value for parts in answer["max_abs_diff"].values() for value in parts.values()) <= 1e-12
    assert set(answer["ratios"]["sklearn/hap"]) == {"pooled", "gauc", "both"} and set(answer["ratios"]["by-hand/hap"]) == {"pooled"}
    assert answer["targets"]["differences at most 1e-12"] and answer["peak_over_input"]["hap"] > 0


@pytest.mark.parametrize("part", ["pooled", "pooled_draws", "request_auc"])
def test_a_rival_that_computed_something_else_is_seen(small, part):
    args, scratch = small
    assert "failed" not in evaluate.measure("by-hand", scratch, 0, args)
    ours = np.load(scratch / "hap" / f"{part}.npy")
    theirs = {"pooled": ours, "pooled_draws": ours, "request_auc": ours[[0, -1]]}[part].copy()
    theirs.flat[np.flatnonzero(~np.isnan(theirs))[0]] += 1e-9
    args.measured_requests = 2
    np.save(scratch / "by-hand" / f"{part}.npy", theirs)
    assert differences("by-hand", scratch, 0, args)[part] == pytest.approx(1e-9, rel=1e-3)


def test_gauc_of_a_draw_is_compared_with_weighted_means(small):
    args, scratch = small
    assert max(differences("hap", scratch, 0, args).values()) <= 1e-12
    drawn = np.load(scratch / "hap" / "gauc_draws.npy")
    np.save(scratch / "hap" / "gauc_draws.npy", drawn[:, ::-1])
    assert differences("hap", scratch, 0, args)["gauc_draws"] > 1e-3


def test_rows_are_of_whole_requests_and_some_tie():
    data = generate(5000, 3)
    assert data.offsets[0] == 0 and data.offsets[-1] == len(data.scores) == 5000
    lengths = np.diff(data.offsets)
    assert lengths[:-1].min() >= 30 and lengths.max() <= 300
    assert len(np.unique(data.scores)) < 5000 and set(data.kind.tolist()) == {0, 1, 2, 3, 4}
    assert data.slices.shape == (10, 5000) and data.slices.any(axis=1).all() and (data.slices.sum(axis=0) > 1).any()


def test_undefined_in_one_of_two_is_an_infinite_difference():
    assert largest_difference(np.array([np.nan, 1.0]), np.array([np.nan, 0.5])) == 0.5
    assert largest_difference(np.array([np.nan, 1.0]), np.array([0.0, 1.0])) == np.inf
    assert largest_difference(np.zeros(2), np.zeros(3)) == np.inf


def test_a_target_is_judged_by_the_least_ratio_and_the_largest_difference():
    found = ratios({"hap": {"pooled": 1.0, "gauc": 2.0}, "sklearn": {"pooled": 30.0, "gauc": 10.0}})
    assert found == {"sklearn/hap": {"pooled": 30.0, "gauc": 5.0}}
    judged = targets({"ratios": found, "peak_over_input": {"hap": 1.9}, "max_abs_diff": {"sklearn": {"pooled": 1e-16, "draws": 2e-12}}})
    assert list(judged.values()) == [False, True, False]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--systems", "hap,xgboost"], "'xgboost' is not one of"),
        (["--systems", "sklearn"], "begins with hap"),
        (["--draws", "2"], "more than"),
    ],
)
def test_what_cannot_be_run_is_a_usage_error(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and said in capsys.readouterr().err
