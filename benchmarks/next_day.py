"""What a training is worth on the day after its window, epoch by epoch: for other held-out requests, and for other rates.

    OMP_NUM_THREADS=1 python benchmarks/next_day.py
    OMP_NUM_THREADS=1 python benchmarks/next_day.py --heldout users --rates 0.05 0.02 0.01 0.005

A model serves the day after its window, and training keeps the epoch that is best on the held-out requests. So a held-out rule
is as good as the epochs it picks are on the next day. The rules: `requests`, a tenth of all requests by hash; `users`, the last
day of a fifth of the users (hap.training.feed.Feed); `tail`, the latest tenth of the window. What is held out is not trained on:
that costs `tail` the freshest requests. Simulated days, paired seeds; GAUC is the mean over the four kinds of negatives and the seeds.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it alone

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.proof.estimates import mean_gauc
from benchmarks.proof.variants import OURS, variant_params
from benchmarks.proof.worlds import Simulated, World, make_world
from hap.evaluation.auc import request_aucs
from hap.params import MODELS, NEGATIVES, Params
from hap.samples.order_key import in_share
from hap.tables import table
from hap.training import loop
from hap.training.feed import Feed

RULES = ("requests", "users", "tail")
TENTH = 0.1


def heldout_ids(rule: str, world: World, seed: int) -> NDArray[np.int64]:
    """The requests of the window that a rule other than `users` holds out, sorted."""
    window = pa.concat_tables([pq.read_table(path, columns=["request_id", "event_time"]) for path in world.training])
    requests, times = window["request_id"].to_numpy(), window["event_time"].cast(pa.int64()).to_numpy()
    out = in_share(requests, f"{seed}|heldout", TENTH) if rule == "requests" else times >= np.quantile(times, 1 - TENTH)
    return np.sort(requests[out])


class OtherFeed(Feed):
    """The feed with other held-out requests."""

    ids: NDArray[np.int64]
    share = TENTH

    def _share(self, unit: int) -> float:
        return self.share if self.heldout else 1 - self.share

    def _belongs(self, rows: pa.Table, file: int) -> NDArray[np.bool_]:
        out = np.isin(rows["request_id"].to_numpy(), self.ids)
        return out if self.heldout else ~out


def next_day(model: str, params: Params, world: World, rule: str) -> dict[str, Any]:
    """Train once; GAUC by epoch on the held-out requests and on the day after, and by cluster for that of the chosen epoch."""
    pools, rows = world.pools("sampled"), world.rows("sampled")  # before the feed is another
    after: list[dict[str, Any]] = []
    closed = loop._Run.close_epoch

    def close_and_judge(run: loop._Run, trained: loop.Trained, gaucs: dict[str, float]) -> bool:
        scores, _, _ = loop.score_pools(run.model, pools, run.params, torch.device("cpu"))
        after.append(request_aucs(scores, rows.kind, rows.offsets))
        return closed(run, trained, gaucs)

    feed = Feed
    if rule != "users":
        feed = type("RuleFeed", (OtherFeed,), {"ids": heldout_ids(rule, world, params.seed)})
    loop._Run.close_epoch, loop.Feed = close_and_judge, feed
    try:
        trained = loop.train(model, params, world.training, lambda progress: None)
    finally:
        loop._Run.close_epoch, loop.Feed = closed, Feed
    mean = [float(np.mean([mean_gauc([one[kind]], rows.cluster).value_S[0] for kind in NEGATIVES])) for one in after]
    return {
        "chosen": trained.best_epoch,
        "heldout": [float(np.mean([one[kind] for kind in NEGATIVES])) for one in trained.gaucs],
        "next_day": mean,
        "by_kind": {kind: mean_gauc([after[trained.best_epoch - 1][kind]], rows.cluster) for kind in NEGATIVES},
    }


def measure(asked: argparse.Namespace, world: World) -> list[dict[str, Any]]:
    """Every model, rule and rate, over the seeds; the first rule and rate of a model is what its others are compared with."""
    found = []
    for model in asked.models:
        base = None
        for rule, rate in product(asked.heldout, asked.rates):
            runs = []
            for seed in asked.seeds:
                params = variant_params(world.params, OURS, seed, asked.epochs)
                params = params.model_copy(update={"train": params.train.model_copy(update={"embedding_learning_rate": rate})})
                runs.append(next_day(model, params, world, rule))
            stacked = {kind: _stack([run["by_kind"][kind] for run in runs]) for kind in NEGATIVES}
            base = base or stacked
            found.append(
                {
                    "model": model,
                    "heldout": rule,
                    "embedding_learning_rate": rate,
                    "chosen_epochs": [run["chosen"] for run in runs],
                    "gauc": {kind: float(one.value_S.mean()) for kind, one in stacked.items()},
                    "minus_first": {kind: _interval(one.minus(base[kind])) for kind, one in stacked.items()},
                    "next_day_by_epoch": np.mean([run["next_day"] for run in runs], axis=0).tolist(),
                    "heldout_by_epoch": np.mean([run["heldout"] for run in runs], axis=0).tolist(),
                }
            )
            if not asked.json:
                print(lines(found[-1:]), flush=True)
    return found


def _stack(measured: Sequence[Any]) -> Any:
    return type(measured[0])(np.concatenate([one.value_S for one in measured]), np.concatenate([one.influence_SC for one in measured]))


def _interval(measured: Any) -> list[float]:
    one = measured.estimate()
    return [one.value, one.lo, one.hi]


def lines(found: list[dict[str, Any]]) -> str:
    """One row of figures for each, and its course by epoch."""
    rows = [
        [
            one["model"], one["heldout"], one["embedding_learning_rate"], ", ".join(map(str, one["chosen_epochs"])),
            *[f"{one['gauc'][kind]:.4f} ({value:+.4f} [{lo:+.4f}, {hi:+.4f}])" for kind, (value, lo, hi) in one["minus_first"].items()],
        ]
        for one in found
    ]  # fmt: skip
    shown = table(["model", "held out", "embedding rate", "chosen epochs", *NEGATIVES], rows)
    for one in found:
        for what in ("heldout", "next_day"):
            shown += f"\n{what} by epoch: " + " ".join(f"{value:.4f}" for value in one[f"{what}_by_epoch"])
    return shown


def main() -> None:
    """Make a world, train in it and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--heldout", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.02], help="train.embedding_learning_rate")
    parser.add_argument("--requests", type=int, default=5000, help="of a day")
    parser.add_argument("--days", type=int, default=4, help="to train on; one more judges")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder), Simulated("default", asked.requests, asked.days, 10))
        found = measure(asked, world)
    if asked.json:
        print(orjson.dumps(found).decode())


if __name__ == "__main__":
    main()
