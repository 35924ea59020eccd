import re
import shutil

import numpy as np
import pytest

from benchmarks import ablation
from benchmarks.proof import trials
from benchmarks.proof.trials import Place, find, run_all, run_trial, trial_key
from benchmarks.proof.variants import DISTILLED, HARD, LOSSES, OURS, VARIANTS, Trial, plan, variant_params
from benchmarks.proof.worlds import Simulated, World, load_world, make_world
from hap.errors import ConfigError, UsageError
from hap.params import KINDS

ASKED = Simulated("default", requests=120, days=1, complete=30)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A results folder with a small world and one finished trial of each model."""
    place = Place(tmp_path_factory.mktemp("ablation"))
    make_world(place.world("default"), ASKED)
    for model in ("light", "expressive"):
        run_trial(place, Trial("default", model, OURS, 1), 1)
    return place


def test_a_finished_trial_is_not_run_again(place, monkeypatch):
    def must_not_run(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(trials, "run_trial", must_not_run)
    said = []
    assert run_all(place, [Trial("default", "light", OURS, 1)], 1, 1, said.append) == []
    assert said == ["1 of 1 trials are finished, 0 to run"]


def test_a_trial_that_was_killed_while_it_was_written_counts_as_missing(place):
    trial = Trial("default", "light", "bce", 7)
    left = place.trial(trial).with_name(".seed-7.new")
    left.mkdir(parents=True)
    (left / "facts.json").write_text("{}")
    assert find(place, trial) is None


def test_a_trial_that_was_killed_while_it_trained_goes_on_and_ends_with_the_same_scores(place, monkeypatch):
    from hap.training import loop

    trial, begun = Trial("default", "light", "bce", 3), loop._Run.train_epoch

    def dies_in_the_second_epoch(run, *words):
        if run.epoch == 2:
            raise KeyboardInterrupt
        return begun(run, *words)

    run_trial(place, trial, 2)
    whole = find(place, trial)
    expected = whole.logits("complete")
    shutil.rmtree(whole.folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "train_epoch", dies_in_the_second_epoch)
        run_trial(place, trial, 2)
    assert find(place, trial) is None
    assert run_trial(place, trial, 2)["resumed"]
    np.testing.assert_array_equal(find(place, trial).logits("complete"), expected)
    assert not place.trial(trial, "checkpoints").exists()


def test_a_trial_of_other_epochs_or_parameters_is_refused_by_name(place):
    world, trial = load_world(place.world("default")), Trial("default", "light", OURS, 1)
    assert find(place, trial, trial_key(world, trial, 1)) is not None
    with pytest.raises(UsageError, match=r"seed-1 was made with other parameters"):
        find(place, trial, trial_key(world, trial, 2))


def test_a_trial_is_void_by_what_its_training_reads_and_by_nothing_else(default_params, tmp_path):
    def key(trial, manifests=("a",), **sections):
        changed = {name: getattr(default_params, name).model_copy(update=update) for name, update in sections.items()}
        return trial_key(World(tmp_path, {"manifests": list(manifests)}, default_params.model_copy(update=changed)), trial, 6)

    light, taught = (Trial("default", "light", variant, 1) for variant in (OURS, DISTILLED))
    usual = key(light)
    assert usual == key(light, drift={"page_from": 9.0}, schedule={"timezone": "Asia/Tokyo"}, gate={"margin": 0.3})
    assert usual == key(light, expressive={"size": 32}), "another model's size"
    assert key(taught) != key(taught, expressive={"size": 32}), "its teacher's size"
    others = [
        key(light, light={"size": 32}),
        key(light, train={"learning_rate": 0.1}),
        key(light, loss={"temperature": 2.0}),
        key(light, ("b",)),
    ]
    others += [key(Trial("default", "light", OURS, 2)), key(Trial("default", "light", "bce", 1))]
    assert len({usual, *others}) == 7


def test_a_light_model_learns_from_the_expressive_one_of_its_own_seed(place):
    said, pair = [], [Trial("default", "light", DISTILLED, 1), Trial("default", "expressive", OURS, 1)]
    assert run_all(place, pair, 1, 1, said.append) == [] and said[0] == "1 of 2 trials are finished, 1 to run"
    distilled, alone = (find(place, Trial("default", "light", variant, 1)) for variant in (DISTILLED, OURS))
    assert not np.array_equal(distilled.logits("complete"), alone.logits("complete"))


def test_a_light_model_without_its_teacher_is_refused_by_name(place):
    failed = run_all(place, [Trial("default", "light", DISTILLED, 9)], 1, 1, lambda line: None)
    assert len(failed) == 1 and "its teacher is missing: default expressive ghcl+bce seed 9" in failed[0]


def test_a_world_of_another_size_is_refused(place):
    with pytest.raises(UsageError, match="another world"):
        make_world(place.world("default"), Simulated("default", requests=121, days=1, complete=30))


def test_complete_requests_hold_every_candidate_and_a_click_each(place):
    world = load_world(place.world("default"))
    rows = world.rows("complete")
    counts = np.diff(rows.offsets)
    assert len(counts) == 30 and set(counts.tolist()) == {300}
    clicks = np.add.reduceat(rows.kind == KINDS.index("EP"), rows.offsets[:-1])
    assert clicks.min() >= 1 and (rows.kind != KINDS.index("GN")).all()


def test_judged_rows_and_logits_are_of_the_day_that_nobody_trained_on(place):
    world = load_world(place.world("default"))
    assert not set(world.facts["training_days"]) & set(world.facts["judging_days"])
    finished = find(place, Trial("default", "light", OURS, 1))
    assert len(finished.logits("sampled")) == len(world.rows("sampled").kind)
    assert finished.facts["epochs"] == len(finished.facts["heldout_gauc_by_epoch"]) == 1


def test_a_report_of_two_trials_answers_what_it_can_and_loads_nothing_from_elsewhere(place):
    from benchmarks.proof.report import lines, report

    planned = [Trial("default", model, loss, 1) for model in ("light", "expressive") for loss in (OURS, "bce")]
    results = report(place, planned, 1, lambda line: None)
    world = results["worlds"]["default"]
    assert world["trials"]["finished"] == 2 and world["trials"]["planned"] == 4
    assert set(results["gauc"]) == {"light", "expressive"} and set(results["gauc"]["light"][OURS]["EN"]) >= {"value", "lo", "hi"}
    assert [one["share"] for one in results["routing"]][-1] == 1.0
    assert results["routing"][-1]["relative_recall"] == pytest.approx(1.0)
    assert {"share", "recall_at_k", "relative_recall", "flops_ratio"} <= set(results["routing"][0])
    answers = {one["asked"]: one for one in world["targets"]}
    assert answers["light: ghcl+bce above bce on RN, PRN and GN"]["sentence"] == "the trials for it are not finished"
    page = (place.root / "index.html").read_text()
    assert "2 of 4 trials are finished" in page and "data:image/png;base64," in page
    assert not re.search(r"\b(src|href)=(?!\"data:)", page) and "http" not in page
    assert str(place.root) not in page and str(place.root) not in (place.root / "results.json").read_text()
    assert "open" in lines(results)


def test_an_earlier_run_s_worlds_are_shown_beside_without_their_trials(place, tmp_path):
    from benchmarks.proof.report import report

    planned = [Trial("default", model, OURS, 1) for model in ("light", "expressive")]
    alone = report(place, planned, 1, lambda line: None)
    shutil.copy(place.root / "results.json", tmp_path / "results.json")
    other = Place(tmp_path / "other")
    (other.root / "worlds").mkdir(parents=True)
    (other.root / "trials").mkdir()
    (other.root / "worlds" / "double-noise").symlink_to(place.world("default"))
    (other.root / "trials" / "double-noise").symlink_to(place.root / "trials" / "default")
    both = [Trial("double-noise", model, OURS, 1) for model in ("light", "expressive")]
    results = report(other, both, 1, lambda line: None, ablation.read_earlier(tmp_path / "results.json", 1, [1]))
    assert list(results["worlds"]) == ["default", "double-noise"]
    assert results["worlds"]["default"] == alone["worlds"]["default"] and results["routing"] == alone["routing"]
    assert list(results["gauc"]) == list(alone["gauc"]) == ["light", "expressive"]  # the file has its keys sorted
    asked = [one["asked"].split(":")[0] for one in results["worlds"]["double-noise"]["targets"]]
    assert asked == ["routing 30%", "routing 30%"], "of what no trial of the world was to answer nothing is said"
    page = (other.root / "index.html").read_text()
    assert "<h2>default</h2>" in page and "<h2>double-noise</h2>" in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no results.json of an ablation"),
        ("[]", "no results.json of an ablation"),
        ('{"facts": {"epochs": 6, "seeds": [1, 2]}, "worlds": {}}', "6 epochs and seeds [1, 2], here 6 and [1]; give the same ones"),
    ],
)
def test_an_earlier_run_that_does_not_fit_is_refused_before_anything_is_trained(text, said, tmp_path, capsys):
    if text is not None:
        (tmp_path / "earlier.json").write_text(text)
    words = ["--beside", str(tmp_path / "earlier.json"), "--seeds", "1", "--out", str(tmp_path / "out")]
    assert ablation.main(words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "worlds").exists()


def test_variants_change_what_they_name_and_every_trial_trains_as_long(default_params):
    for variant in VARIANTS:
        params = variant_params(default_params, variant, 3, 8)
        assert (params.seed, params.train.epochs, params.train.patience) == (3, 8, 8)
    hard = variant_params(default_params, HARD, 3, 8)
    assert hard.expressive.kinds() == ("EN", "RN") and hard.light.kinds() == KINDS[1:] and hard.loss.name == OURS


def test_a_variant_with_an_unknown_key_is_refused(default_params, monkeypatch):
    monkeypatch.setitem(VARIANTS, "typo", {"loss.temprature": 2.0})
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        variant_params(default_params, "typo", 1, 1)


def test_the_plan_is_seed_1_of_everything_first_and_every_loss_as_often():
    planned = plan(["default", "double-noise"], [1, 2])
    assert [trial.seed for trial in planned] == sorted(trial.seed for trial in planned)
    for loss in LOSSES:
        assert sum(trial.variant == loss for trial in planned) == 8  # two worlds, models and seeds
    assert len(set(planned)) == len(planned)


def test_root_without_a_day_is_a_usage_error(tmp_path, capsys):
    assert ablation.main(["--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "--root and --day belong together" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--processes", "0"], ["--requests", "-5"], ["--days", "two"], ["--epochs", "1.5"], ["--variants", "nope"]]
)
def test_words_that_make_no_run_are_refused_before_anything_is_made(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as refusal:
        ablation.main([*words, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err.splitlines()[-1]
    assert refusal.value.code == 2 and words[0] in said and words[1] in said
    assert not (tmp_path / "out").exists()


def test_a_variant_of_the_other_model_alone_is_refused_before_a_world_is_made(tmp_path, capsys):
    assert ablation.main(["--models", "light", "--variants", HARD, "--out", str(tmp_path / "out")]) == 2
    assert f"no variant of {HARD} is one of light" in capsys.readouterr().err
    assert not (tmp_path / "out" / "worlds").exists()
