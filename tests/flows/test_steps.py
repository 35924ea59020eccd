"""Where a warm start begins, at the weights of the last version that served and was judged before the day; and what is told first."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flows import steps
from flows.daily import retrain_day
from flows.partly import train_models
from flows.stages import dvc
from hap import durable
from hap.errors import DataError
from hap.params import MODELS, Params
from hap.training.run import warm_weights
from hap.workspace import Workspace, commit, init_workspace
from tests.conftest import FIRST_DAY

SERVED = (1, 3, 2, 3)  # in the ledger's order: v3 served last
JUDGED = {1: "2026-01-03", 2: "2026-01-04", 3: "2026-01-05"}


@pytest.fixture(scope="module")
def revisions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[int, str]]:
    """A workspace that held the weights of v1, v2 and v3 one after another, and the revision of each."""
    ws = init_workspace(tmp_path_factory.mktemp("warm") / "ws")
    durable.write_text(ws.root / "dvc.yaml", "stages: {}\n")  # weights are tracked by hand here, and no stage's
    found = {}
    for number in JUDGED:
        for name in MODELS:
            durable.write_bytes(ws.models / name / "model.pt", f"{name} of v{number}".encode())
        dvc(ws, "add", "--quiet", *[f"models/{name}" for name in MODELS], name="add")
        found[number] = commit(ws, f"v{number}")
    return ws, found


@pytest.mark.long
@pytest.mark.parametrize(
    ("day", "begins_at"),
    [("2026-01-06", 3), ("2026-01-05", 2), ("2026-01-04", 1), ("2026-01-03", None)],
    ids=["after all", "its own version does not count", "a rerun of an old day", "nothing served before"],
)
def test_a_day_begins_from_what_served_and_was_judged_before_it(
    revisions: tuple[Workspace, dict[int, str]],
    default_params: Params,
    monkeypatch: pytest.MonkeyPatch,
    day: str,
    begins_at: int | None,
) -> None:
    ws, revision = revisions
    served = [SimpleNamespace(state="served", to_version=number) for number in SERVED]
    moves = [*served, SimpleNamespace(state="undone", to_version=2), SimpleNamespace(state="served", to_version=9)]
    monkeypatch.setattr(steps, "open_ledger", lambda *_: SimpleNamespace(rows=lambda: moves))
    known = [SimpleNamespace(number=number, day=judged, workspace_rev=revision[number]) for number, judged in JUDGED.items()]
    monkeypatch.setattr(steps.versions, "list_versions", lambda *_: known)
    monkeypatch.setattr(steps.versions, "get_whole", lambda ws, params, number: known[number - 1])
    kept = steps.warm_start(ws, default_params, dt.date.fromisoformat(day))
    found = kept and {name: Path(warm_weights(ws, digest)).read_text() for name, digest in kept.items()}
    assert found == (begins_at and {name: f"{name} of v{begins_at}" for name in MODELS})
    assert (ws.models / "light" / "model.pt").read_text() == "light of v3", "what stands in the workspace stays"


@pytest.mark.parametrize("begin", [retrain_day, lambda ws, day: train_models(ws, day, MODELS)], ids=["retrain", "train"])
@pytest.mark.parametrize(
    ("settings", "gpus", "said"),
    [
        ({"device": "cuda"}, 0, r"train\.device is cuda and no CUDA device is visible; set it to auto or cpu"),
        ({"device": "auto", "processes": 2}, 1, r"2 processes .* 1 CUDA device is visible.*; set train\.processes to 1"),
    ],
    ids=["no GPU", "one GPU for two processes"],
)
def test_a_device_that_is_not_there_is_told_before_anything_is_collected(
    logged_workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[Workspace, dt.date], object],
    settings: dict[str, object],
    gpus: int,
    said: str,
) -> None:
    params = logged_workspace.params()
    wanted = params.model_copy(update={"train": params.train.model_copy(update={**settings, "days": 1})})
    monkeypatch.setattr(Workspace, "params", lambda _: wanted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(steps, "collect", lambda *_: pytest.fail("it collected"))
    with pytest.raises(DataError, match=said):
        begin(logged_workspace, FIRST_DAY + dt.timedelta(days=1))
