"""`hapctl gate calibrate`: train the day's models with several seeds, judge them, and count the gate's errors on such pairs."""

import datetime as dt
import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from flows import steps
from flows.scratch import MADE_OF, calibration_folder
from flows.stages import end_orphans
from flows.talk import current
from hap import durable
from hap.days import judging_days
from hap.errors import DataError
from hap.evaluation.calibrate import Population, calibrate
from hap.evaluation.evidence import MEMBERS, gather
from hap.params import MODELS, Params
from hap.project import package_digest
from hap.samples import partitions
from hap.serving.merge import hard_select, merge, routed_count
from hap.training.feed import Pool, read_pool, sample_columns
from hap.workspace import Workspace, workspace_lock

MADE_BY = {"seed", "features", "train", "loss", "light", "expressive", "route"}  # collect's are in the manifests


def calibrate_gate(
    ws: Workspace, day: dt.date, seeds: int, sizes: list[int], pairs: int, coverage_pairs: int, margin: float | None
) -> dict[str, Any]:
    """The gate's error rates on the day's data; what was trained for it is kept, so a second call is quick.

    Raises:
        NotFound: a day of the window has no logs.
        UsageError: fewer than two seeds.
        DataError: a model's scores are NaN or infinite.
    """
    params = ws.params()
    window = steps.window_of(ws, params, day)
    with workspace_lock(ws, f"gate calibrate --day {day}", dt.datetime.now(dt.UTC)):
        end_orphans(ws)
        with current().step("collect"):
            steps.collect(ws, params, window)
        judging = judging_days(day, params.gate.days)
        files = partitions.parquet_files(ws, list(window.training))
        ids = {str(one): partitions.load(ws, one).id for one in [*window.training, *judging]}
        manifests = list(ids.values())
        pools = _pools(ws, params, judging)
        kind = np.concatenate([pool.kind for pool in pools])
        offsets = _offsets(pools)
        tables = []
        for seed in range(params.seed, params.seed + seeds):
            own = params.model_copy(update={"seed": seed})
            with current().step(f"models of seed {seed}"):
                scores = _scores(ws, own, files, manifests, pools)
            evidence = gather(
                version=seed, against=None, days=list(map(str, judging)), manifests={str(one): ids[str(one)] for one in judging},
                expressive_kinds=params.expressive.kinds(), kind=kind, offsets=offsets, challenger=scores,
            )  # fmt: skip
            if evidence.findings:
                raise DataError(f"models of seed {seed} cannot be paired with others: {evidence.findings[0].text}")
            tables.append(evidence.challenger)
        with current().step("pairs"):
            population = Population(tables, params.expressive.kinds())
            rules = params.gate if margin is None else params.gate.model_copy(update={"margin": margin})

            def told(done: int, of: int) -> None:
                current().bar("pairs", done / of, f"{done:,} of {of:,}")

            found = calibrate(population, rules, sizes, pairs, coverage_pairs, params.seed, told)
    return {"day": day.isoformat(), **found}


def _pools(ws: Workspace, params: Params, days: list[dt.date]) -> list[Pool]:
    import pyarrow.parquet as pq

    columns = sample_columns(params.features)
    return [read_pool(pq.read_table(path, columns=columns), params.features) for path in partitions.parquet_files(ws, days)]


def _offsets(pools: list[Pool]) -> np.ndarray:
    """Where each request of all pools begins and ends, I64[R + 1]."""
    return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(pool.offsets) for pool in pools]))])


def _scores(ws: Workspace, params: Params, files: list[Path], manifests: list[str], pools: list[Pool]) -> dict[str, np.ndarray]:
    """Each member's scores on the judging days, of models trained with the params' own seed, or as they were kept."""
    kept = calibration_folder(ws) / scores_key(params, manifests)
    if not (kept / "scores.npz").exists():
        with durable.new_directory(kept) as building:
            _train(params, files, pools, building)
            durable.write_json(building / MADE_OF, {"manifests": manifests, "hap_digest": package_digest()})
    with np.load(kept / "scores.npz") as stored:
        return {member: np.asarray(stored[member], np.float64) for member in MEMBERS}


def scores_key(params: Params, manifests: list[str]) -> str:
    """What kept scores belong to: the samples, the code, and the parameters that models and routing are made by."""
    described = [params.model_dump(mode="json", include=MADE_BY), manifests, package_digest()]
    return hashlib.sha256(orjson.dumps(described, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _train(params: Params, files: list[Path], pools: list[Pool], folder: Path) -> None:
    import torch

    from hap.models.build import save_model
    from hap.training.loop import Progress, score_pools, train

    logits: dict[str, np.ndarray] = {}
    for name in (name for group in steps.training_order(params, MODELS) for name in group):

        def told(progress: Progress, name: str = name) -> None:
            share = (progress.epoch - 1 + progress.step / progress.steps) / progress.of
            current().bar(f"models of seed {params.seed}", share, f"{name}, epoch {progress.epoch} of {progress.of}")

        taught = name == "light" and params.light.distill > 0
        trained = train(name, params, files, told, teacher=folder / "expressive" if taught else None)
        save_model(trained.model, folder / name, trained.facts)
        logits[name] = score_pools(trained.model, pools, params, torch.device("cpu"))[0].astype(np.float32)
    offsets = _offsets(pools)
    merged = np.empty(int(offsets[-1]), np.float32)
    for start, end in pairwise(offsets.tolist()):
        light, expressive = logits["light"][start:end], logits["expressive"][start:end]
        chosen = hard_select(light, routed_count(params.route, end - start))
        merged[start:end] = merge(light, chosen, expressive[chosen])[0]
    with open(folder / "scores.npz", "wb") as handle:
        np.savez(handle, light=logits["light"], expressive=logits["expressive"], cascade=merged)
