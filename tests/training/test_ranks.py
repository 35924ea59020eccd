"""Several processes train as one, and a training that was killed ends as if nothing had happened."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import psutil
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from hap import durable
from hap.errors import DataError
from hap.params import Params
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.training import ranks
from hap.training.ranks import meet, open_ranks
from hap.training.run import keep_warm_weights, write_run
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.training import held

ALONE = ("-m", "hap.training")
HELD = ("-m", held.__name__)
TOP = Path(__file__).parents[2]


def torchrun(processes: int, what: tuple[str, ...] = ALONE) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--max-restarts", "2", *what)


TORCHRUN = torchrun(2)


@pytest.fixture
def workspace(logged_workspace: Workspace, small_params: Params, tmp_path: Path) -> Workspace:
    """A workspace that stands ready to train on one day, in steps of sixteen requests.

    Its samples lie in eight row groups, so that each process has some: in row groups of the usual size a small day is a single one.
    """
    collect_day(logged_workspace, small_params, FIRST_DAY)
    ws = Workspace(tmp_path / "ws")
    shutil.copytree(logged_workspace.samples, ws.samples)
    regroup(ws, 20)
    durable.write_text(ws.root / "hap.toml", "")
    ready(ws, small_params)
    return ws


def regroup(ws: Workspace, requests: int) -> None:
    """Lay the day's 150 requests in row groups of so many."""
    (path,) = partitions.parquet_files(ws, [FIRST_DAY])
    pq.write_table(pq.read_table(path), path, row_group_size=requests)


def ready(
    ws: Workspace, params: Params, loss: dict[str, object] | None = None, warm: dict[str, str] | None = None, **train: object
) -> None:
    """run.yaml and window.json, with other settings of `train` and `loss` where given, and the weights to begin from."""
    params = params.model_copy(update={"loss": params.loss.model_copy(update=loss or {})})
    settings = {"batch_requests": 16, "epochs": 12, "patience": 12, "checkpoint_steps": 4, "log_steps": 5, "conflict_steps": 0, **train}
    params = params.model_copy(update={"train": params.train.model_copy(update=settings)})
    durable.write_json(ws.window_file, {"days": [partitions.load(ws, FIRST_DAY).id]})
    write_run(ws, params, FIRST_DAY + dt.timedelta(days=1), [FIRST_DAY], [], warm)


def start(ws: Workspace, how: tuple[str, ...], name: str = "light") -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])])  # tests.training.held is not installed
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *how, "train", name]
    return subprocess.Popen(
        command, cwd=ws.root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """What it said, once it has ended well."""
    try:
        said, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends those that it started
        pytest.fail(f"not ended in 300 s, having said:\n{process.communicate()[0]}")
    assert process.returncode == 0, said
    return said


def outcome(ws: Workspace, name: str = "light") -> tuple[dict[str, torch.Tensor], dict]:
    """The weights, and every figure that was written down."""
    folder = ws.models / name
    figures = orjson.loads((folder / "model.json").read_bytes()) | orjson.loads((folder / "curves.json").read_bytes())
    return torch.load(folder / "model.pt", weights_only=True), figures


def start_to_be_killed(ws: Workspace, step: int, how: tuple[str, ...] = HELD) -> "subprocess.Popen[str]":
    """A training that has written a checkpoint at this step or a later one, and stays there until `let_go`."""
    durable.write_text(ws.root / held.HOLD, str(step))
    process = start(ws, how)
    folder = ws.state / "checkpoints" / "light"
    while process.poll() is None and not any(int(path.stem.split("-")[1]) >= step for path in folder.glob("step-*.pt")):
        time.sleep(0.005)
    assert process.poll() is None, f"it ended by itself, having said:\n{process.communicate()[0]}"
    return process


def let_go(ws: Workspace) -> None:
    (ws.root / held.HOLD).unlink()


def same(one: tuple[dict[str, torch.Tensor], dict], other: tuple[dict[str, torch.Tensor], dict]) -> bool:
    return one[1] == other[1] and all(torch.equal(value, other[0][key]) for key, value in one[0].items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "processes", "requests"),
    [("light", 2, 20), ("expressive", 2, 20), ("light", 3, 20), ("expressive", 2, 150)],
    ids=["light", "expressive", "three share eight row groups", "the second has none"],
)
def test_several_processes_reach_the_loss_of_one(
    workspace: Workspace, small_params: Params, name: str, processes: int, requests: int
) -> None:
    regroup(workspace, requests)
    ready(workspace, small_params, epochs=3)
    finish(start(workspace, ALONE, name))
    weights, figures = outcome(workspace, name)
    said = finish(start(workspace, torchrun(processes), name))
    assert ("row groups for 1: the others have nothing to read" in said) == (requests == 150)
    shared_weights, shared = outcome(workspace, name)
    assert (figures["processes"], shared["processes"]) == (1, processes)
    assert shared["loss_by_epoch"] == pytest.approx(figures["loss_by_epoch"], abs=1e-3)
    for key, value in weights.items():
        assert torch.allclose(value, shared_weights[key], atol=1e-3), key


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "loss"),
    [({"surgery": "pcgrad"}, {}), ({"surgery": "gradvac"}, {"name": "infonce+bce"}), ({}, {"weighting": "uncertainty"})],
)
def test_surgery_and_learned_weights_and_what_is_seen_of_the_conflict_do_not_depend_on_the_number_of_processes(
    workspace: Workspace, small_params: Params, settings: dict, loss: dict
) -> None:
    ready(workspace, small_params, loss, epochs=2, conflict_steps=3, **settings)
    finish(start(workspace, ALONE))
    weights, figures = outcome(workspace)
    finish(start(workspace, TORCHRUN))
    shared_weights, shared = outcome(workspace)
    assert shared["loss_by_epoch"] == pytest.approx(figures["loss_by_epoch"], abs=1e-3)
    assert shared["learned_weights"] == (pytest.approx(figures["learned_weights"], abs=1e-3) if figures["learned_weights"] else None)
    for key, value in weights.items():
        assert torch.allclose(value, shared_weights[key], atol=1e-3), key
    assert len(figures["conflict"]) > 3
    for one, other in zip(figures["conflict"], shared["conflict"], strict=True):
        for figure in ("norm", "pull", "cosine"):
            assert other[figure] == pytest.approx(one[figure], abs=0.02, rel=0.02), one["step"]


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"sampling": "conflict", "surgery": "gradvac", "conflict_steps": 3, "learning_rate": 0.02}])
def test_a_killed_process_is_made_up_for_and_the_weights_are_those_of_an_undisturbed_run(
    workspace: Workspace, small_params: Params, settings: dict
) -> None:
    ready(workspace, small_params, **settings)
    finish(start(workspace, TORCHRUN))
    undisturbed = outcome(workspace)
    shutil.rmtree(workspace.models)
    process = start_to_be_killed(workspace, 12, torchrun(2, HELD))
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if held.__name__ in child.cmdline()]
    workers[-1].send_signal(signal.SIGKILL)
    let_go(workspace)
    finish(process)
    assert same(outcome(workspace), undisturbed)


@pytest.mark.parametrize("first", range(3), ids=lambda rank: f"rank {rank} comes first")
def test_processes_meet_in_a_store_that_remembers_earlier_starts(first: int) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def come(rank: int, delay_s: float = 0.0) -> str:
        time.sleep(delay_s)
        return meet(dist.TCPStore("127.0.0.1", server.port, timeout=dt.timedelta(seconds=30)), rank, 3)

    names = set()
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            come_in_turn = [pool.submit(come, rank, 0.1 * ((rank - first) % 3)) for rank in range(3)]
            assert len({one.result() for one in come_in_turn}) == 1
            names.add(come_in_turn[0].result())
    assert len(names) == 3


def test_a_start_that_lacked_a_process_keeps_the_next_one_from_nothing() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def come(rank: int, patience_s: float = 30.0) -> str:
        store = dist.TCPStore("127.0.0.1", server.port, timeout=dt.timedelta(seconds=30))
        store.set_timeout(dt.timedelta(seconds=patience_s))  # for the others alone: connecting takes a busy machine longer
        return meet(store, rank, 2)

    with pytest.raises(dist.DistStoreError):
        come(0, patience_s=0.5)
    with ThreadPoolExecutor(1) as pool:
        follows = pool.submit(come, 1)
        time.sleep(0.3)
        assert come(0) == follows.result()


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", ("nccl", torch.device("cuda:1"))), ("cpu", ("gloo", None))])
def test_nccl_is_told_which_gpu_is_this_processs_own(device: str, expected: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(ranks, "meet", lambda *_: "start")
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: told.update(more, backend=backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with open_ranks(torch.device(device)) as joined:
        assert (joined.rank, joined.world) == (1, 2)
    assert (told["backend"], told["device_id"]) == expected


@pytest.mark.parametrize("steps", [(28,), pytest.param((8, 28, 60), marks=pytest.mark.long)])
def test_a_training_that_was_killed_goes_on_and_ends_with_the_same_weights(workspace: Workspace, steps: tuple[int, ...]) -> None:
    finish(start(workspace, ALONE))
    undisturbed = outcome(workspace)
    shutil.rmtree(workspace.models)
    for step in steps:
        process = start_to_be_killed(workspace, step)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (workspace.models / "light" / "model.json").exists()
    process = start(workspace, ALONE)
    finish(process)
    assert same(outcome(workspace), undisturbed)
    assert not (workspace.state / "checkpoints" / "light").exists(), "a finished training leaves no checkpoints"


@pytest.mark.long
def test_a_warm_start_and_a_teacher_are_found_again_after_a_kill(workspace: Workspace, small_params: Params) -> None:
    ready(workspace, small_params, epochs=1)
    for name in ("light", "expressive"):
        finish(start(workspace, ALONE, name))
    taught = small_params.model_copy(update={"light": small_params.light.model_copy(update={"distill": 1.0})})
    ready(workspace, taught, warm={"light": keep_warm_weights(workspace, workspace.models / "light" / "model.pt")})
    finish(start(workspace, ALONE))
    undisturbed = outcome(workspace)
    shutil.rmtree(workspace.models / "light")
    process = start_to_be_killed(workspace, 28)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(workspace, ALONE))
    assert orjson.loads((workspace.spent / "light.json").read_bytes())["resumed"] is True
    assert undisturbed[1]["warm_parameters"] > 0 and "distill" in undisturbed[1]["steps"][0]
    assert same(outcome(workspace), undisturbed)


def test_checkpoints_of_other_parameters_are_not_taken_up(workspace: Workspace, small_params: Params) -> None:
    process = start_to_be_killed(workspace, 8)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    ready(workspace, small_params, epochs=1, learning_rate=0.01)
    finish(start(workspace, ALONE))
    changed = outcome(workspace)
    shutil.rmtree(workspace.models)
    shutil.rmtree(workspace.state, ignore_errors=True)
    finish(start(workspace, ALONE))
    assert same(outcome(workspace), changed)


def test_only_a_training_that_went_on_at_a_checkpoint_says_so(workspace: Workspace, small_params: Params) -> None:
    """Its CPU seconds are those since then, and the version's page marks them."""
    ready(workspace, small_params, epochs=1)
    (workspace.state / "checkpoints" / "light").mkdir(parents=True)  # what a kill before the first checkpoint leaves
    finish(start(workspace, ALONE))
    assert orjson.loads((workspace.spent / "light.json").read_bytes())["resumed"] is False


@pytest.mark.long
def test_the_stage_starts_its_processes_by_itself(workspace: Workspace, small_params: Params) -> None:
    ready(workspace, small_params, epochs=1, processes=2)
    finish(start(workspace, ALONE))
    assert outcome(workspace)[1]["processes"] == 2


@pytest.mark.long
def test_a_refusal_of_several_processes_is_one_line_and_nothing_begins_again(workspace: Workspace, small_params: Params) -> None:
    ready(workspace, small_params, processes=2, learning_rate=1e30, warmup_steps=0, log_steps=2)
    process = start(workspace, ALONE)
    said = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == DataError.exit_code
    errors = [line for line in said if not line.startswith("hap:progress")]
    assert len(errors) == 1 and errors[0].startswith("error: light: the loss is not finite in epoch 1"), errors
    assert not (workspace.models / "light").exists()


@pytest.mark.long
def test_what_ends_several_processes_by_surprise_is_told_in_one_line(workspace: Workspace, small_params: Params) -> None:
    """Samples whose pages the disk lost, found by whichever process reads them first; torchrun's own last line is a row of `=`."""
    ready(workspace, small_params, processes=2)
    (path,) = partitions.parquet_files(workspace, [FIRST_DAY])
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)  # the footer stands
    path.write_bytes(content)
    process = start(workspace, ALONE)
    said = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 1
    errors = [line for line in said if line.startswith("error: ")]
    died = "error: train light: the 2 processes that train together died, with 3 new starts allowed; the first of OSError: "
    assert len(errors) == 1 and errors[0].startswith(died), errors
