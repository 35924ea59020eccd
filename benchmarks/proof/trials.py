"""One trial: train with hap's own loop, score the judging days, write both down; and many of them, each in a process of its own."""

import hashlib
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.proof.variants import TEACHERS, Trial, teacher, variant_params
from benchmarks.proof.worlds import World, load_world
from hap import durable
from hap.errors import HapError, UsageError
from hap.project import package_digest

Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """The results folder: worlds/NAME, trials/WORLD/MODEL/VARIANT/seed-N, and checkpoints/ of the same shape while they run."""

    root: Path

    def world(self, name: str) -> Path:
        return self.root / "worlds" / name

    def trial(self, trial: Trial, what: str = "trials") -> Path:
        return self.root / what / trial.world / trial.model / trial.variant / f"seed-{trial.seed}"


@dataclass(frozen=True)
class Finished:
    """A trial that was made: its logits are read when they are asked for."""

    folder: Path
    facts: dict[str, Any]

    def logits(self, part: str) -> NDArray[np.float64]:
        """The logits of every row of `World.rows(part)`."""
        with np.load(self.folder / "logits.npz") as stored:
            return np.asarray(stored[part], np.float64)


def find(place: Place, trial: Trial, key: str | None = None) -> Finished | None:
    """The finished trial, or None.

    Args:
        key: what it must have been made with.

    Raises:
        UsageError: it was made with something else: two kinds of results would lie in one table.
    """
    folder = place.trial(trial)
    if not (folder / "facts.json").exists():
        return None
    facts = orjson.loads((folder / "facts.json").read_bytes())
    if key is not None and facts["key"] != key:
        raise UsageError(f"{folder} was made with other parameters, epochs or samples; remove it, or give another --out")
    return Finished(folder, facts)


def trial_key(world: World, trial: Trial, epochs: int) -> str:
    """What the trial depends on: samples, the parameters that a training reads, its teacher.

    Not the rest of params.yaml, which grows with every watcher that hap learns: finished trials stay good. The code is in a
    trial's facts, and the report says where it differs.
    """
    params = variant_params(world.params, trial.variant, trial.seed, epochs).model_dump(mode="json")
    read = {section: params[section] for section in ("seed", "features", "train", "loss", trial.model)}
    taught_by = teacher(trial)
    taught = trial_key(world, taught_by, epochs) if taught_by else None
    return hashlib.sha256(orjson.dumps([world.facts["manifests"], read, taught], option=orjson.OPT_SORT_KEYS)).hexdigest()


def run_trial(place: Place, trial: Trial, epochs: int) -> dict[str, Any]:
    """Train, score and write; returns the facts. A training that was killed goes on at its latest checkpoint.

    The weights are those of the best epoch by GAUC on the held-out requests of the training days, over the kinds the model
    trains on: the rule of every retrain, the same for every loss. The judging days take no part in it.

    Raises:
        UsageError: the trial that it learns from is not finished.
    """
    import torch

    from hap.models.build import save_model
    from hap.models.describe import describe
    from hap.training import loop
    from hap.training.checkpoint import drop_checkpoints

    world = load_world(place.world(trial.world))
    params = variant_params(world.params, trial.variant, trial.seed, epochs)
    key = trial_key(world, trial, epochs)
    made_by = hashlib.sha256(f"{key} {package_digest()}".encode()).hexdigest()  # other code goes on at no checkpoint of this one
    kept = place.trial(trial, "checkpoints") / made_by[:16]
    taught_by = teacher(trial)
    if taught_by and find(place, taught_by, trial_key(world, taught_by, epochs)) is None:
        raise UsageError(f"its teacher is missing: {taught_by}; let that train, too")
    wall, cpu = time.perf_counter(), time.process_time()
    trained = loop.train(
        trial.model, params, world.training, lambda progress: None, place=loop.Place(kept, made_by),
        teacher=place.trial(taught_by) / "model" if taught_by else None,
    )  # fmt: skip
    train_cpu_s = time.process_time() - cpu
    logits: dict[str, NDArray[np.float32]] = {}
    for part in ("sampled", "complete"):
        scores, kinds, _ = loop.score_pools(trained.model, world.pools(part), params, torch.device("cpu"))
        if not np.array_equal(kinds, world.rows(part).kind):
            raise HapError(f"{world.folder}: its samples are not those that rows.npz was made from; remove the world and its trials")
        logits[part] = scores.astype(np.float32)
    facts = {
        **trained.facts,
        "trial": asdict(trial),
        "key": key,
        "epochs": epochs,
        "size": asdict(describe(trial.model, params)),
        "resumed": trained.resumed,  # then the seconds are those of the last part alone
        "train_cpu_s": train_cpu_s,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "hap_digest": package_digest(),
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(), "torch": version("torch")},
    }
    with durable.new_directory(place.trial(trial)) as building:
        with open(building / "logits.npz", "wb") as handle:
            np.savez(handle, **logits)
        if trial.model == "expressive" and trial.variant in TEACHERS.values():
            save_model(trained.model, building / "model", {"model": trial.model})
        durable.write_json(building / "facts.json", facts)
    drop_checkpoints(kept.parent)
    return facts


def run_all(place: Place, trials: Sequence[Trial], epochs: int, processes: int, say: Say) -> list[str]:
    """Run the trials that are not finished; returns what failed, one line each.

    A trial stands whole or not at all, so a run that was killed goes on at the trials it lacks, and in those at their checkpoints.
    """
    keys = {name: load_world(place.world(name)) for name in {trial.world for trial in trials}}
    missing = [trial for trial in trials if find(place, trial, trial_key(keys[trial.world], trial, epochs)) is None]
    say(f"{len(trials) - len(missing)} of {len(trials)} trials are finished, {len(missing)} to run")
    failed: list[str] = []
    took: dict[str, list[float]] = {}
    taught = [trial for trial in missing if teacher(trial)]  # after those that they learn from
    alone = [trial for trial in missing if not teacher(trial)]
    for trial, facts, error in chain(_each(place, alone, epochs, processes), _each(place, taught, epochs, processes)):
        if facts is None:
            failed.append(f"{trial}: {error}")
            say(failed[-1])
            continue
        if not facts["resumed"]:
            took.setdefault(trial.model, []).append(facts["wall_s"])
        left = [one for one in missing if find(place, one) is None]
        wait = f", about {_remaining_min(left, took, processes):,.0f} minutes" if took and left else ""
        heldout = facts["heldout_gauc_by_epoch"][facts["best_epoch"] - 1]
        shown = " ".join(f"{kind} {value:.3f}" for kind, value in heldout.items())
        say(f"{trial}: {facts['cpu_s']:.0f} CPU s, best epoch {facts['best_epoch']}, held out {shown}; left: {len(left)}{wait}")
    return failed


def _remaining_min(left: Sequence[Trial], took: dict[str, list[float]], processes: int) -> float:
    """Minutes by the clock, from the mean of each model's trials so far."""
    known = {model: sum(times) / len(times) for model, times in took.items()}
    usual = max(known.values())
    return sum(known.get(trial.model, usual) for trial in left) / processes / 60


def _each(
    place: Place, trials: Sequence[Trial], epochs: int, processes: int
) -> Iterator[tuple[Trial, dict[str, Any] | None, HapError | None]]:
    """The trials as they end, with their facts or the refusal that ended them."""
    if not trials:
        return
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # read by the children's libraries
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_die_with_parent) as pool:
        try:
            running: dict[Future[dict[str, Any]], Trial] = {pool.submit(run_trial, place, trial, epochs): trial for trial in trials}
            for future in as_completed(running):
                try:
                    yield running[future], future.result(), None
                except HapError as error:
                    yield running[future], None, error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with_parent() -> None:
    """A killed run leaves no training behind it."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def say(line: str) -> None:
    """Progress, which is no answer."""
    print(line, file=sys.stderr, flush=True)
