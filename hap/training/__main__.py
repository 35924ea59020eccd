"""The reproducible stages that dvc.yaml names: `python -m hap.training train light|expressive` and `... evaluate`.

They run in the workspace's folder and take everything from run.yaml. A line that starts with `hap:progress` is for the
caller's progress bar, one that starts with `note:` for a person. Many processes: `train.processes` on one machine, or
torchrun on several that share the workspace,
    torchrun --nproc-per-node 2 --max-restarts 3 -m hap.training train light
once `hapctl train` has begun there and written run.yaml. DVC does not see such a training: without
    dvc commit --force train@light
the next `hapctl retrain` trains again.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A workspace holds a folder triton/, which torch would take for the module of that name.
if (Path.cwd() / "hap.toml").exists():
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != Path.cwd()]

# A spinning thread on a busy core costs more than it brings; read by OpenMP when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import orjson

from hap import durable
from hap.errors import HapError, UsageError
from hap.memory import resident_mb
from hap.params import MODELS
from hap.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from hap.training.ranks import Ranks
    from hap.training.run import Run

RESTARTS = 3  # of all processes, after one of them died
REFUSAL = "HAP_TRAINING_REFUSAL"  # names the file that a refusal is left in, where the processes were started here
CRASH = "HAP_TRAINING_CRASH"  # the same of what ended a process by surprise


def main(words: list[str]) -> int:
    """Run one stage; a refusal is one line on stderr."""
    try:
        return _stage(words)
    except HapError as error:
        if left_in := os.environ.get(REFUSAL):
            # To torchrun a process that ends with an error has died, and all would begin again only to be refused again.
            durable.write_json(Path(left_in), {"error": str(error), "exit_code": error.exit_code})
            return 0
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _stage(words: list[str]) -> int:
    from hap.training.run import read_run

    ws = find_workspace(None)
    run = read_run(ws)
    if words == ["evaluate"]:
        from hap.training.heldout import evaluate

        evaluate(ws, run)
        return 0
    if len(words) != 2 or words[0] != "train" or words[1] not in MODELS:
        raise UsageError(f"{' '.join(words)!r} is no stage; write `train light`, `train expressive` or `evaluate`")
    if run.params.train.processes > 1 and "WORLD_SIZE" not in os.environ:
        return _many(run.params.train.processes, words)
    _train(ws, run, words[1])
    return 0


def _many(processes: int, words: list[str]) -> int:
    """The same words in several processes; where one dies, all begin again at the latest checkpoint, but not after a refusal."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--max-restarts", str(RESTARTS)]
    command = [sys.executable, "-P", "-m", *torchrun, "-m", "hap.training", *words]
    with tempfile.TemporaryDirectory() as folder:
        refusal, crash = Path(folder) / "refusal.json", Path(folder) / "crash"
        left_in = {REFUSAL: str(refusal), CRASH: str(crash)}
        ended = subprocess.run(command, env={**os.environ, "PYTHONSAFEPATH": "1", **left_in}, check=False)
        if refusal.exists():
            said = orjson.loads(refusal.read_bytes())
        elif ended.returncode:
            cause = crash.read_text() if crash.exists() else "a kill from outside, such as for want of memory"
            died = f"the {processes} processes that train together died, with {RESTARTS} new starts allowed; the first of {cause}"
            said = {"error": f"{' '.join(words)}: {died}", "exit_code": 1}
        else:
            return 0
    print(f"error: {said['error']}", file=sys.stderr)
    return int(said["exit_code"])


@contextlib.contextmanager
def _crash_told() -> Iterator[None]:
    """Leave what ends this process, for the one that began it: torchrun's last lines name no cause.

    Of several processes the first one counts, before it lets go of the others: they end by having lost it.
    """
    try:
        yield
    except HapError:
        raise
    except Exception as error:
        if left_in := os.environ.get(CRASH):
            with contextlib.suppress(FileExistsError), open(left_in, "x", encoding="utf-8") as handle:
                handle.write(" ".join(f"{type(error).__name__}: {error}".split()))
        raise


def _train(ws: Workspace, run: "Run", name: str) -> None:
    from hap.models.build import save_model
    from hap.training.checkpoint import drop_checkpoints
    from hap.training.device import pick_device
    from hap.training.feed import window_files
    from hap.training.loop import Place, Progress, train
    from hap.training.ranks import open_ranks
    from hap.training.run import checkpoint_folder, checkpoint_key, teacher_folder, warm_weights

    def report(progress: Progress) -> None:
        if ranks.leads:
            print("hap:progress " + orjson.dumps(asdict(progress)).decode(), flush=True)

    place = Place(checkpoint_folder(ws, name), checkpoint_key(ws, name))
    begun = time.perf_counter()
    with open_ranks(pick_device(run.params.train.device)) as ranks, _crash_told():
        warm = warm_weights(ws, run.warm_start[name]) if run.warm_start else None
        teacher = teacher_folder(ws, run) if name == "light" and run.params.light.distill else None
        files = window_files(ws, run.window)
        if ranks.leads:
            _note_idle_processes(ranks.world, files)
        trained = train(name, run.params, files, report, ranks=ranks, place=place, warm=warm, teacher=teacher)
        spent = _spent(ranks, begun, trained.facts["device"]) | {"resumed": trained.resumed}
        if ranks.leads:
            facts = trained.facts | {"window": list(run.window), "seed": run.params.seed}
            durable.write_json(ws.models / name / "curves.json", {"steps": trained.curves, "conflict": trained.conflicts})
            save_model(trained.model, ws.models / name, facts)
            durable.write_json(ws.spent / f"{name}.json", spent)
            drop_checkpoints(place.folder)
        ranks.wait()


def _note_idle_processes(world: int, files: list[Path]) -> None:
    """A row group is read by one process: more processes than row groups cost their memory and bring nothing."""
    import pyarrow.parquet as pq

    groups = sum(pq.read_metadata(path).num_row_groups for path in files)
    if world > groups:
        idle = f"{world} processes train together and the window's samples have row groups for {groups}"
        print(f"note: {idle}: the others have nothing to read", flush=True)


def _spent(ranks: "Ranks", begun: float, device: str) -> dict[str, Any]:
    """What the training took: CPU seconds of all processes, peak memory of this one; since its last start, where it was resumed."""
    import torch

    cpu_s = ranks.sum(torch.tensor([time.process_time()], dtype=torch.float64, device=device))
    return {
        "wall_s": time.perf_counter() - begun,
        "cpu_s": float(cpu_s),
        "peak_mb": resident_mb(),
        "device_peak_mb": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None,
        "processes": ranks.world,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
