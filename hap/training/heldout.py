"""The evaluate stage: both trained models on the held-out requests of their window."""

from typing import Any

import numpy as np
import torch

from hap import durable
from hap.evaluation.auc import gauc, global_auc, request_aucs
from hap.models.build import load_model
from hap.params import MODELS
from hap.training.feed import Feed, window_files
from hap.training.loop import score_pools
from hap.training.run import Run
from hap.workspace import Workspace


def evaluate(ws: Workspace, run: Run) -> dict[str, Any]:
    """GAUC and AUC by kind of light and expressive; written to metrics.json and returned."""
    torch.set_num_threads(run.params.train.threads)
    feed = Feed(window_files(ws, run.window), run.params, heldout=True)
    pools = list(feed.pools())
    metrics: dict[str, Any] = {"window": list(run.window), "requests": sum(len(pool) for pool in pools)}
    for name in MODELS:
        model = load_model(ws.models / name, run.params)
        scores, kinds, counts = score_pools(model, pools, run.params, torch.device("cpu"))
        grouped = request_aucs(scores, kinds, np.concatenate([[0], np.cumsum(counts)]))
        metrics[name] = {"gauc": {kind: gauc(values) for kind, values in grouped.items()}, "auc": global_auc(scores, kinds)}
    durable.write_json(ws.root / "metrics.json", metrics)
    return metrics
