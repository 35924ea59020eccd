"""Train one model on a window of samples: mini-batches of whole requests, the best epoch by held-out GAUC is kept."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hap.errors import DataError
from hap.evaluation.auc import gauc, request_aucs
from hap.models.build import build_model, dense_parameters
from hap.models.features import Columns, DenseScaler
from hap.params import NEGATIVES, Params
from hap.training.feed import Feed
from hap.training.losses import loss_parts

Report = Callable[["Epoch"], None]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the window gave."""

    number: int
    of: int
    loss: float
    parts: dict[str, float]
    gauc: dict[str, float]
    samples_per_s: float


@dataclass
class Trained:
    """The best weights and how they came about."""

    model: nn.Module
    best_epoch: int
    epochs: list[Epoch] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def train(name: str, params: Params, files: list[Path], report: Report) -> Trained:
    """Train the model `name` on the files' training part.

    The same seed, machine and thread count give the same weights, bit for bit.

    Raises:
        DataError: the window has no positive to learn from, or the loss stopped being finite.
    """
    settings = params.train
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    torch.sparse.check_sparse_tensor_invariants.disable()  # said out loud: Adagrad builds valid tensors, and torch warns otherwise
    torch.manual_seed(params.seed)
    device = pick_device(settings.device)
    kinds = getattr(params, name).kinds()
    model = build_model(name, params)
    feed = Feed(files, params, heldout=False, kinds=("EP", *kinds))
    heldout = list(Feed(files, params, heldout=True).pools())
    columns = next(module for module in model.modules() if isinstance(module, Columns))
    counts = _set_scales(columns, feed, params)
    if not counts["EP"]:
        raise DataError("no request of the training window has a positive; check the feedback logs and logs.positive in params.yaml")
    model.to(device)

    tables = [p for n, p in model.named_parameters() if ".tables." in n]
    dense = [p for n, p in model.named_parameters() if ".tables." not in n]
    # Sparse Adagrad touches only the rows of a batch and equals dense Adagrad exactly; Adam for the rest.
    sparse_step = torch.optim.Adagrad(tables, lr=settings.embedding_learning_rate)
    dense_step = torch.optim.Adam(dense, lr=settings.learning_rate)
    warmup = torch.optim.lr_scheduler.LambdaLR(dense_step, lambda step: min(1.0, (step + 1) / (settings.warmup_steps + 1)))

    trained = Trained(model, best_epoch=0)
    best, best_state = -np.inf, {}
    for number in range(1, settings.epochs + 1):
        begun, samples = time.perf_counter(), 0
        totals: dict[str, Tensor] = {}
        steps = 0
        model.train()
        for batch in feed.batches(params.seed, number):
            batch = _to(batch, device)
            parts = loss_parts(model(batch), batch.kind, batch.request, batch.requests, params.loss, kinds)
            loss = torch.stack(list(parts.values())).sum()
            sparse_step.zero_grad(set_to_none=True)
            dense_step.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(dense, settings.clip_norm)
            sparse_step.step()
            dense_step.step()
            warmup.step()
            for part, value in parts.items():  # summed on the device: reading a value here would stall each step
                totals[part] = totals.get(part, torch.zeros((), device=device)) + value.detach()
            steps += 1
            samples += len(batch.kind)
        means = {part: float(value) / max(steps, 1) for part, value in totals.items()}
        if not np.isfinite(sum(means.values())):
            raise DataError(
                f"{name}: the loss is not finite in epoch {number} ({means}); lower train.learning_rate or check the dense features"
            )
        gauc = heldout_gauc(model, heldout, params, device)
        epoch = Epoch(number, settings.epochs, sum(means.values()), means, gauc, samples / (time.perf_counter() - begun))
        trained.epochs.append(epoch)
        report(epoch)
        score = (
            float(np.nanmean([gauc[kind] for kind in kinds])) if any(np.isfinite(gauc[kind]) for kind in kinds) else -sum(means.values())
        )
        if score > best:
            best, trained.best_epoch = score, number
            best_state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        elif number - trained.best_epoch >= settings.patience:
            break
    model.load_state_dict(best_state)
    trained.model = model.to("cpu").eval()
    trained.facts = {
        "model": name,
        "best_epoch": trained.best_epoch,
        "kinds": list(kinds),
        "samples_by_kind": counts,
        "dense_parameters": dense_parameters(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss_by_epoch": [epoch.loss for epoch in trained.epochs],
        "heldout_gauc_by_epoch": [epoch.gauc for epoch in trained.epochs],
        "device": str(device),
        "torch": torch.__version__,
    }
    return trained


def pick_device(wanted: str) -> torch.device:
    """The device of train.device; `auto` takes a GPU where there is one.

    Raises:
        DataError: cuda was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DataError("train.device is cuda and no CUDA device is visible; set it to auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def heldout_gauc(model: nn.Module, pools: list[Any], params: Params, device: torch.device) -> dict[str, float]:
    """GAUC of each kind over the held-out requests."""
    scores, kinds, counts = score_pools(model, pools, params, device)
    grouped = request_aucs(scores, kinds, np.concatenate([[0], np.cumsum(counts)]))
    return {kind: gauc(values) for kind, values in grouped.items()}


def score_pools(model: nn.Module, pools: list[Any], params: Params, device: torch.device) -> tuple[Any, Any, Any]:
    """Logits f64[N], kinds i8[N] and candidates per request i64[R] of every request in the pools, in order."""
    model.eval()
    logits: list[Any] = []
    with torch.inference_mode():
        for pool in pools:
            for start in range(0, len(pool), params.train.batch_requests):
                batch = pool.batch(np.arange(start, min(start + params.train.batch_requests, len(pool))))
                logits.append(model(_to(batch, device)).cpu().numpy())
    kinds = np.concatenate([pool.kind for pool in pools]) if pools else np.zeros(0, np.int8)
    counts = np.concatenate([np.diff(pool.offsets) for pool in pools]) if pools else np.zeros(0, np.int64)
    return np.concatenate(logits).astype(np.float64) if logits else np.zeros(0), kinds, counts


def _set_scales(columns: Columns, feed: Feed, params: Params) -> dict[str, int]:
    """Normalisation figures and sample counts, from one pass over the training part."""
    sums: dict[str, list[Tensor]] = {}
    counts = np.zeros(5, np.int64)
    for pool in feed.pools():
        counts += np.bincount(pool.kind, minlength=5)
        present = pool.hist_ids[..., 0] > 0 if pool.hist_ids.shape[-1] else np.zeros(pool.hist_ids.shape[:2], bool)
        for group, values in (("user", pool.user_dense), ("item", pool.cand_dense), ("history", pool.hist_dense[present])):
            scaled = cast(DenseScaler, columns.scalers[group]).scaled(torch.from_numpy(values)).double()
            parts = [torch.tensor(float(len(scaled))), scaled.sum(0), (scaled**2).sum(0)]
            sums[group] = [a + b for a, b in zip(sums[group], parts, strict=True)] if group in sums else parts
    figures = {}
    for group, (rows, total, squares) in sums.items():
        mean = total / rows.clamp(min=1)
        figures[group] = (mean.float(), (squares / rows.clamp(min=1) - mean**2).clamp(min=0).sqrt().float())
    columns.set_scales(figures)
    return dict(zip(("EP", *NEGATIVES), counts.tolist(), strict=True))


def _to(batch: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return batch
    return type(batch)(*[getattr(batch, name).to(device, non_blocking=True) for name in batch.__dataclass_fields__])
