"""`hapctl parity --day D`: logged requests through PyTorch, too, where `models/` holds the weights of the version."""

import datetime as dt
import shutil
from pathlib import Path

import orjson
import pytest
import torch

from hap.models.build import build_model, save_model
from hap.params import Params
from hap.registry import versions
from hap.samples.replay import logged_requests
from hap.serving.export import export
from hap.serving.request import RequestTensors
from hap.training.run import write_run
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.words import typing


@pytest.mark.long
def test_the_days_requests_are_answered_by_pytorch_where_its_weights_are_at_hand(
    logged_workspace: Workspace, small_params: Params, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ws = Workspace(tmp_path / "ws")
    shutil.copytree(logged_workspace.root, ws.root, ignore=shutil.ignore_patterns(".git", ".dvc"))
    run = write_run(ws, small_params, FIRST_DAY + dt.timedelta(days=2), [FIRST_DAY], [FIRST_DAY])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        models = {name: build_model(name, run.params).eval() for name in ("light", "expressive")}
    for name, model in models.items():
        save_model(model, ws.models / name, {"model": name})
    raw = list(logged_requests(ws, run.params, FIRST_DAY, 3))
    requests = [RequestTensors.from_json(run.params.features, request) for request in raw]
    bundle = export(models, run.params, requests, ws.bundle, {"day": "2026-01-03"})
    assert versions.register(ws, run.params, bundle.path, day=FIRST_DAY, workspace_rev="a", code_rev="b") == 1

    typed = typing(monkeypatch, capsys)
    code, out, err = typed("parity", "--model", "v1", "--day", str(FIRST_DAY), "--limit", 4, "--json", "--root", ws.root)
    assert code == 0, err
    found = orjson.loads(out)
    daily = [one for one in found["requests"] if one["name"].startswith(f"{FIRST_DAY} request ")]
    assert len(daily) == 4 and all(one["ONNX Runtime / PyTorch"]["max_abs_diff"] < 1e-5 for one in daily)
    assert found["notes"] == ["Triton was not asked: no server runs; v1 was never promoted"]

    with torch.no_grad():
        next(models["light"].parameters()).add_(0.1)
    save_model(models["light"], ws.models / "light", {"model": "light"})
    code, out, err = typed("parity", "--model", "v1", "--day", str(FIRST_DAY), "--limit", 2, "--root", ws.root)
    assert code == 0, out + err
    assert f"PyTorch was not asked for the day's requests: {ws.models} holds other weights" in out
