"""What is dead in .hap: nothing that a killed retrain would take up again."""

import datetime as dt
import os
from pathlib import Path

import orjson

from flows.scratch import MADE_OF, calibration_folder, dead_scratch, scored_folder
from hap.params import Params
from hap.project import package_digest
from hap.training.checkpoint import save_checkpoint
from hap.training.run import checkpoint_folder, checkpoint_key, keep_warm_weights, write_run
from hap.workspace import Workspace

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
DAY = dt.date(2026, 1, 9)


def test_checkpoints_and_weights_of_the_run_that_stands_stay(tmp_path: Path, default_params: Params) -> None:
    ws = Workspace(tmp_path)
    ws.window_file.write_text("{}")
    (tmp_path / "weights").write_bytes(b"of the champion")
    live = keep_warm_weights(ws, tmp_path / "weights")
    (tmp_path / "weights").write_bytes(b"of an older one")
    dead = keep_warm_weights(ws, tmp_path / "weights")
    write_run(ws, default_params, DAY, [DAY - dt.timedelta(days=1)], [DAY], {"light": live, "expressive": live})
    folder = checkpoint_folder(ws, "light")
    save_checkpoint(folder, checkpoint_key(ws, "light"), 20, {}, keep=9)
    other = save_checkpoint(folder, "another", 10, {}, keep=9)
    (folder / "step-000000005.pt").write_bytes(b"torn")
    found = {path for _, path, _ in dead_scratch(ws, (), 30, NOW)}
    assert found == {other, folder / "step-000000005.pt", ws.state / "warm" / f"{dead}.pt"}


def test_calibrations_of_other_code_or_samples_or_long_ago_are_dead(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    for name, code, manifests, days in (
        ("live", package_digest(), [], 1),
        ("code", "another", [], 1),
        ("samples", package_digest(), ["gone"], 1),
        ("old", package_digest(), [], 31),
    ):
        folder = calibration_folder(ws) / name
        folder.mkdir(parents=True)
        (folder / MADE_OF).write_bytes(orjson.dumps({"hap_digest": code, "manifests": manifests}))
        then = (NOW - dt.timedelta(days=days)).timestamp()
        os.utime(folder, (then, then))
    (calibration_folder(ws) / "unsaid").mkdir()
    found = {path.name for _, path, _ in dead_scratch(ws, (), 30, NOW)}
    assert found == {"code", "samples", "old", "unsaid"}


def test_scores_of_other_versions_and_of_long_ago_are_dead(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    for version, name, days in ((2, "live", 1), (2, "old", 31), (1, "former", 1)):
        path = scored_folder(ws, version) / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"scores")
        then = (NOW - dt.timedelta(days=days)).timestamp()
        os.utime(path, (then, then))
    assert {path.stem for _, path, _ in dead_scratch(ws, (2,), 30, NOW)} == {"old", "former"}
