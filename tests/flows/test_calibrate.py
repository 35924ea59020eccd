"""`hapctl gate calibrate` trains, judges pairs, and does not train again what it has."""

import datetime as dt
import subprocess

import numpy as np
import orjson
import pytest
import yaml

from flows.calibrate import calibrate_gate, scores_key
from hap.errors import DataError
from hap.evaluation.evidence import MEMBERS
from hap.logs.simulator import simulate
from hap.params import Params, load_params
from hap.project import project_file
from hap.training.feed import Pool
from hap.workspace import Workspace, init_workspace
from tests.conftest import FIRST_DAY
from tests.words import Run, hapctl, typing

DAY = FIRST_DAY + dt.timedelta(days=1)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    raw = yaml.safe_load(project_file("params.yaml").read_text())
    raw["train"] = {"days": 1, "epochs": 1, "batch_requests": 32}
    raw["light"] = {"size": 16, "embedding_dim": 4, "distill": 1.0}
    raw["expressive"] = {"size": 16, "embedding_dim": 4}
    raw["gate"] = {"margin": 0.05, "min_requests": 50, "min_positives": 50}
    ws = init_workspace(tmp_path_factory.mktemp("calibrate") / "ws", yaml.safe_dump(raw))
    simulate(ws.logs(ws.params()), FIRST_DAY, 2, 200, 5, ws.params().features)
    return ws


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return init_workspace(tmp_path_factory.mktemp("empty") / "ws", project_file("params.yaml").read_text())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return typing(monkeypatch, capsys)


def calibrate(ws: Workspace, *words: object) -> "subprocess.CompletedProcess[str]":
    return hapctl("gate", "calibrate", "--day", DAY, "--root", ws.root, "--seeds", 2, "--pairs", 20, "--sizes", "100,200", *words)


@pytest.mark.long
def test_rates_come_by_size_and_truth_and_models_are_kept(ws: Workspace) -> None:
    first = calibrate(ws, "--json")
    assert first.returncode == 0, first.stderr
    found = orjson.loads(first.stdout)
    assert set(found["rates"]) == set(found["threshold"]) == {"100", "200"}
    for by_delta in found["rates"].values():
        assert set(by_delta) == {"minus_margin", "zero", "plus_margin"}
        assert all(sum(outcomes.values()) == pytest.approx(1) for outcomes in by_delta.values())
    assert 0.8 < found["coverage"]["mean"] <= 1 and found["requests"] == 200
    kept = {path: path.stat().st_mtime_ns for path in (ws.state / "calibrate").glob("*/scores.npz")}
    assert len(kept) == 2
    again = calibrate(ws, "--json")
    assert orjson.loads(again.stdout) == found
    assert {path: path.stat().st_mtime_ns for path in (ws.state / "calibrate").glob("*/scores.npz")} == kept


@pytest.mark.long
def test_models_that_give_no_numbers_are_told_by_their_seed(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(ws: Workspace, params: Params, files: object, manifests: object, pools: list[Pool]) -> dict[str, np.ndarray]:
        return {member: np.full(sum(len(pool.kind) for pool in pools), np.nan if params.seed == 2 else 0.5) for member in MEMBERS}

    monkeypatch.setattr("flows.calibrate._scores", diverged)
    with pytest.raises(DataError, match=r"^models of seed 2 cannot be paired with others: light: ([0-9,]+) of \1 scores of v2 are NaN"):
        calibrate_gate(ws, DAY, 2, [100], 20, 20, None)


def test_kept_models_outlive_a_change_of_the_rules_and_no_change_of_what_made_them() -> None:
    params = load_params(project_file("params.yaml"))
    key = scores_key(params, ["a"])
    gate, train = params.gate.model_copy(update={"margin": 0.003}), params.train.model_copy(update={"epochs": 3})
    assert scores_key(params.model_copy(update={"gate": gate}), ["a"]) == key
    assert key not in (scores_key(params.model_copy(update=made), ["a"]) for made in ({"seed": 7}, {"train": train}))
    assert scores_key(params, ["b"]) != key


@pytest.mark.parametrize(
    ("words", "said"), [(("--sizes", "many"), "--sizes 'many' is no list"), (("--seeds", 1), "greater than or equal to 2")]
)
def test_wrong_words_get_one_line(empty: Workspace, here: Run, words: tuple[object, ...], said: str) -> None:
    code, _, err = here("gate", "calibrate", "--day", DAY, "--root", empty.root, *words)
    assert code == 2 and said in err


def test_a_dry_run_changes_nothing(empty: Workspace, here: Run) -> None:
    code, out, _ = here("gate", "calibrate", "--day", DAY, "--root", empty.root, "--dry-run")
    assert code == 0 and "would train 4 pairs of models for" in out
    assert not (empty.state / "calibrate").exists()
