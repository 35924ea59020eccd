"""Train one model on a window of samples: mini-batches of whole requests, the best epoch by held-out GAUC is kept.

Several processes may train together (hap.training.ranks); each batch is then shared among them and every figure that a
loss is averaged by is counted over all. A training that was killed goes on at the step of its latest checkpoint and
ends with the weights it would have had.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hap.errors import ConfigError, DataError
from hap.evaluation.auc import gauc_sums, request_aucs
from hap.models.batch import Batch
from hap.models.build import build_model, dense_parameters
from hap.models.features import Columns, DenseScaler
from hap.params import KINDS, NEGATIVES, Params
from hap.training.checkpoint import drop_checkpoints, load_checkpoint, save_checkpoint
from hap.training.conflict import measure_conflict
from hap.training.device import autocast, be_deterministic, pick_device, to_device
from hap.training.distill import distill_term, load_teacher
from hap.training.feed import Feed, Pool
from hap.training.kinds import keep_compiled_graphs, kind_gradients, kind_pulls
from hap.training.losses import Term, loss_terms
from hap.training.ranks import ALONE, Ranks
from hap.training.row_adagrad import RowAdagrad
from hap.training.sampling import ConflictSampling
from hap.training.surgery import Surgery
from hap.training.weighting import LEARNING_RATE, Uncertainty, curriculum

Report = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """How far a training is; `gauc` once an epoch is over."""

    epoch: int
    of: int
    step: int
    steps: int  # of this epoch
    loss: dict[str, float]
    samples_per_s: float
    eta_s: float  # to the end of the last epoch, should none stop it early
    gauc: dict[str, float] | None = None


@dataclass(frozen=True)
class Place:
    """Where the checkpoints of one training lie, and what it trains on what."""

    folder: Path
    key: str


@dataclass
class Trained:
    """The best weights and how they came about."""

    model: nn.Module
    best_epoch: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)  # by epoch: the mean of each term
    gaucs: list[dict[str, float]] = field(default_factory=list)  # by epoch, on the held-out requests
    curves: list[dict[str, float]] = field(default_factory=list)  # by log interval: step and the mean of each term
    conflicts: list[dict[str, Any]] = field(default_factory=list)  # by conflict interval: see hap.training.conflict
    facts: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False  # from a checkpoint: what it took was counted since then


def train(
    name: str,
    params: Params,
    files: list[Path],
    report: Report,
    *,
    ranks: Ranks = ALONE,
    place: Place | None = None,
    warm: Path | None = None,
    teacher: Path | None = None,
) -> Trained:
    """Train the model `name` on the files' training part.

    The same seed, machine, thread and process count give the same weights on a CPU, bit for bit, killed or not.

    Args:
        place: where to keep checkpoints; None keeps none.
        warm: weights to begin from (model.pt); tables and layers whose shape changed since begin fresh.
        teacher: folder of the trained expressive model, where the light one learns from it (light.distill).

    Raises:
        DataError: the window has no positive to learn from, a loss stopped being finite, or processes see other checkpoints.
        ConfigError: light.distill without a teacher, or a teacher without it; more processes than a batch has row groups.
    """
    taught = name == "light" and params.light.distill > 0
    if taught != (teacher is not None):
        raise ConfigError(
            f"{name}, light.distill {params.light.distill:g}: " + ("no teacher was named" if taught else "a teacher has no use")
        )
    settings = params.train
    if ranks.world > settings.pool_row_groups:
        raise ConfigError(
            f"{ranks.world} processes train together and a batch mixes train.pool_row_groups: {settings.pool_row_groups} row groups,"
            f" so some would have nothing to read; set it to {ranks.world} or more, or take fewer processes"
        )
    torch.set_num_threads(settings.threads)
    be_deterministic()
    torch.manual_seed(params.seed)
    device = pick_device(settings.device)
    kinds = getattr(params, name).kinds()
    model = build_model(name, params)
    taken = warm_start(model, warm) if warm else 0
    feed = Feed(files, params, heldout=False, kinds=("EP", *kinds))
    heldout = Feed(files, params, heldout=True)
    columns = next(module for module in model.modules() if isinstance(module, Columns))
    counts = set_scales(columns, feed, ranks, device)
    if not counts["EP"]:
        raise DataError("no request of the training window has a positive; check the feedback logs and logs.positive in params.yaml")
    model.to(device)
    run = _Run(name, params, model, feed, ranks, device)
    run.teacher = load_teacher(teacher, params, device) if teacher else None
    trained = Trained(model)
    state = load_checkpoint(place.folder, place.key) if place else None
    if place:
        _require_one_step(ranks.by_rank(state["step"] if state else 0, device), place.folder)
    if state:
        run.resume(state, trained)
        trained.resumed = True
    elif place and ranks.leads:
        drop_checkpoints(place.folder)  # of another training: where it had come further, its files would push ours out
    while run.epoch <= settings.epochs:
        over = run.train_epoch(trained, report, place)
        gaucs = heldout_gauc(model, heldout, params, device, ranks)
        report(replace(over, gauc=gaucs))
        if run.close_epoch(trained, gaucs):
            break
        if place:
            run.save(trained, place)
    model.load_state_dict(run.best_state)
    trained.model = model.to("cpu").eval()
    trained.facts = {
        "model": name,
        "best_epoch": trained.best_epoch,
        "kinds": list(kinds),
        "samples_by_kind": counts,
        "dense_parameters": dense_parameters(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss_by_epoch": [sum(parts.values()) for parts in trained.losses],
        "heldout_gauc_by_epoch": trained.gaucs,
        "warm_parameters": taken,
        "learned_weights": run.learned.learned() if run.learned else None,
        "drawn_shares": run.sampling.shares() if run.sampling else None,
        "processes": ranks.world,
        "device": device.type,
        "torch": torch.__version__,
    }
    return trained


class _Run:
    """What a training carries from step to step."""

    def __init__(self, name: str, params: Params, model: nn.Module, feed: Feed, ranks: Ranks, device: torch.device) -> None:
        settings = params.train
        self.name, self.params, self.model, self.feed, self.ranks, self.device = name, params, model, feed, ranks, device
        self.kinds = getattr(params, name).kinds()
        if settings.compile:
            keep_compiled_graphs()
        self.forward: Callable[[Batch], Tensor] = torch.compile(model, dynamic=True) if settings.compile else model
        self.tables = [p for n, p in model.named_parameters() if ".tables." in n]
        self.dense = [p for n, p in model.named_parameters() if ".tables." not in n]
        # Adagrad of touched rows equals dense Adagrad exactly; Adam, in one pass over all parameters, for the rest.
        self.sparse_step = RowAdagrad(self.tables, lr=settings.embedding_learning_rate)
        self.dense_step = torch.optim.Adam(self.dense, lr=settings.learning_rate, fused=True)
        self.learned = Uncertainty(self.kinds).to(device) if params.loss.weighting == "uncertainty" else None
        self.others = list(self.learned.parameters()) if self.learned else []  # of the loss, not of the model
        if self.others:
            self.dense_step.add_param_group({"params": self.others, "lr": LEARNING_RATE})
        self.surgery = (
            Surgery(settings.surgery, len(self.kinds), settings.gradvac_beta, params.seed) if settings.surgery != "none" else None
        )
        self.sampling = ConflictSampling(self.kinds, params.seed, ranks.rank) if settings.sampling == "conflict" else None
        self.teacher: nn.Module | None = None
        self.warmup = torch.optim.lr_scheduler.LambdaLR(self.dense_step, lambda step: min(1.0, (step + 1) / (settings.warmup_steps + 1)))
        self.epoch, self.step, self.done = 1, 0, 0  # the epoch, the next step in it, steps done in all
        self.sums: dict[str, Tensor] = {}  # of each term's means: over the epoch, and since the last point of the curves
        self.recent: dict[str, Tensor] = {}
        self.recent_steps = 0
        self.best = -np.inf
        self.best_state: dict[str, Tensor] = {}

    def train_epoch(self, trained: Trained, report: Report, place: Place | None) -> Progress:
        """The steps of the epoch that are left; returns how it went.

        Raises:
            DataError: a loss stopped being finite.
        """
        settings, steps = self.params.train, self.feed.steps(self.params.seed, self.epoch)
        begun, first, samples = time.perf_counter(), self.step, 0
        self.model.train()
        for batch in self.feed.batches(self.params.seed, self.epoch, self.step, self.ranks.rank, self.ranks.world):
            self._take(to_device(batch, self.device), trained)
            self.step, self.done, samples = self.step + 1, self.done + 1, samples + len(batch.kind)
            if self.done % settings.log_steps == 0:
                self._log(trained)
                report(self._progress(trained.curves[-1], steps, samples, self.step - first, time.perf_counter() - begun))
            if place and self.done % settings.checkpoint_steps == 0 and self.step < steps:
                self.save(trained, place)
        means = {term: float(value) / max(self.step, 1) for term, value in self.sums.items()}
        _require_finite(means, self.name, self.epoch)
        trained.losses.append(means)
        return self._progress(means, steps, samples, self.step - first, time.perf_counter() - begun)

    def close_epoch(self, trained: Trained, gaucs: dict[str, float]) -> bool:
        """Keep the weights where they are the best so far; returns whether to stop."""
        trained.gaucs.append(gaucs)
        own = [gaucs[kind] for kind in self.kinds]
        score = float(np.nanmean(own)) if np.isfinite(own).any() else -sum(trained.losses[-1].values())
        if score > self.best:
            self.best, trained.best_epoch = score, self.epoch
            self.best_state = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        stop = self.epoch - trained.best_epoch >= self.params.train.patience
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        return stop

    def save(self, trained: Trained, place: Place) -> None:
        """A checkpoint of this moment, by the leading process."""
        if not self.ranks.leads:
            return
        state = {
            "model": self.model.state_dict(), "sparse": self.sparse_step.state_dict(), "dense": self.dense_step.state_dict(),
            "warmup": self.warmup.state_dict(), "epoch": self.epoch, "epoch_step": self.step, "sums": self.sums,
            "recent": self.recent, "recent_steps": self.recent_steps, "best": float(self.best), "best_state": self.best_state,
            "best_epoch": trained.best_epoch, "losses": trained.losses, "gaucs": trained.gaucs,
            "curves": trained.curves, "conflicts": trained.conflicts,
            "learned": self.learned.state_dict() if self.learned else {}, "surgery": self.surgery.state_dict() if self.surgery else {},
            "sampling": self.sampling.state_dict() if self.sampling else {},
        }  # fmt: skip
        save_checkpoint(place.folder, place.key, self.done, state, self.params.train.keep_checkpoints)

    def resume(self, state: dict[str, Any], trained: Trained) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.sparse_step.load_state_dict(state["sparse"])
        self.dense_step.load_state_dict(state["dense"])
        self.warmup.load_state_dict(state["warmup"])
        self.epoch, self.step, self.done = state["epoch"], state["epoch_step"], state["step"]
        self.sums, self.recent = ({term: value.to(self.device) for term, value in state[name].items()} for name in ("sums", "recent"))
        self.recent_steps, self.best, self.best_state = state["recent_steps"], state["best"], state["best_state"]
        trained.best_epoch, trained.losses, trained.gaucs = state["best_epoch"], state["losses"], state["gaucs"]
        trained.curves, trained.conflicts = state["curves"], state["conflicts"]
        if self.learned:
            self.learned.load_state_dict(state["learned"])
        if self.surgery:
            self.surgery.load_state_dict(state["surgery"])
        if self.sampling:
            self.sampling.load_state_dict(state["sampling"])

    def _take(self, batch: Batch, trained: Trained) -> None:
        """One step: forward, backward, gradients shared, weights moved. Of the losses nothing is looked at here: see `_log`."""
        settings = self.params.train
        with autocast(settings.precision, self.device):
            # A process whose share of a batch is empty still takes part in every exchange.
            logits = self.forward(batch) if len(batch.kind) else torch.zeros(0, device=self.device)
        terms = self._terms(logits, batch)
        counts = self.ranks.sum(torch.stack([term.count for term in terms.values()]).double())
        means = {name: term.mean(count) for (name, term), count in zip(terms.items(), counts, strict=True)}
        loss = torch.stack(list(means.values())).sum()
        looks = settings.conflict_steps > 0 and self.done % settings.conflict_steps == 0
        if looks or self.surgery:
            pulls = kind_pulls(means.values(), logits, batch.kind, batch.request, batch.requests, self.kinds)
            gradients = kind_gradients(logits, pulls, self.dense, self.ranks)
        if looks:
            seen = measure_conflict(gradients, pulls, batch.kind, self.kinds, self.ranks)
            trained.conflicts.append({"step": self.done, **seen})
            if self.sampling:
                self.sampling.learn(seen["cosine"])
        self.sparse_step.zero_grad(set_to_none=True)
        self.dense_step.zero_grad(set_to_none=True)
        if self.surgery:
            self.surgery.set_gradients(gradients, self.dense, self.done)
            if logits.requires_grad:
                loss.backward(inputs=self.tables)
        else:
            if loss.requires_grad:
                loss.backward()
            self.ranks.share_dense([*self.dense, *self.others])
        self.ranks.share_rows(self.tables)
        nn.utils.clip_grad_norm_(self.dense, settings.clip_norm)
        self.sparse_step.step()
        self.dense_step.step()
        self.warmup.step()
        shared = self.ranks.sum(torch.stack([value.detach() for value in means.values()]))
        for term, value in zip(means, shared, strict=True):
            self.sums[term] = self.sums[term] + value if term in self.sums else value
            self.recent[term] = self.recent[term] + value if term in self.recent else value
        self.recent_steps += 1

    def _terms(self, logits: Tensor, batch: Batch) -> dict[str, Term]:
        """The loss of this step: its kinds sampled and weighed, and what the teacher adds."""
        loss = self.params.loss
        if loss.weighting == "curriculum":
            loss = curriculum(loss, self.kinds, self.epoch)
        judged, kind, request = logits, batch.kind, batch.request
        if self.sampling:
            drawn = self.sampling.drawn(kind, self.done)
            judged, kind, request = logits[drawn], kind[drawn], request[drawn]
        terms = loss_terms(judged, kind, request, batch.requests, loss, self.kinds)
        if self.learned:
            terms = self.learned(terms)
        if self.teacher:
            terms["distill"] = distill_term(logits, batch, self.teacher, self.params.light.distill)
        return terms

    def _log(self, trained: Trained) -> None:
        """One point of the curves, and the check that the losses are finite."""
        means = {term: float(value) / self.recent_steps for term, value in self.recent.items()}
        _require_finite(means, self.name, self.epoch)
        trained.curves.append({"step": self.done, **means})
        self.recent, self.recent_steps = {}, 0

    def _progress(self, losses: dict[str, float], steps: int, samples: int, made: int, took_s: float) -> Progress:
        settings = self.params.train
        left = (steps - self.step) + (settings.epochs - self.epoch) * steps
        rate = samples * self.ranks.world / took_s  # the others have as many, give or take a request
        terms = {term: value for term, value in losses.items() if term != "step"}
        return Progress(self.epoch, settings.epochs, self.step, steps, terms, rate, left * took_s / max(made, 1))


def warm_start(model: nn.Module, weights: Path) -> int:
    """Take over weights of equal name and shape; returns how many parameters that were."""
    old = torch.load(weights, map_location="cpu", weights_only=True)
    new = model.state_dict()
    fitting = {name: value for name, value in old.items() if name in new and new[name].shape == value.shape}
    model.load_state_dict({**new, **fitting})
    return sum(value.numel() for value in fitting.values())


def _require_one_step(step_by_rank: list[int], folder: Path) -> None:
    """Processes that begin at different steps would add up gradients of different weights, and nothing would tell."""
    if len(set(step_by_rank)) > 1:
        raise DataError(
            f"the processes that train together see checkpoints of steps {', '.join(map(str, step_by_rank))} (0: none) in {folder}; "
            "let all hosts share the workspace's disk, or remove that folder on each of them to begin anew"
        )


def _require_finite(means: dict[str, float], name: str, epoch: int) -> None:
    if not np.isfinite(sum(means.values())):
        raise DataError(f"{name}: the loss is not finite in epoch {epoch} ({means}); lower train.learning_rate or check the dense features")


def heldout_gauc(model: nn.Module, heldout: Feed, params: Params, device: torch.device, ranks: Ranks = ALONE) -> dict[str, float]:
    """GAUC of each kind over the held-out requests; each process scores its part of them, and all get the same figures.

    Raises:
        DataError: weights that left the finite numbers in the epoch's last step, which no loss shows; in every process alike.
    """
    scores, kinds, counts = score_pools(model, heldout.pools(ranks.rank, ranks.world), params, device)
    if lost := sum(ranks.by_rank(int(np.isnan(scores).sum()), device)):
        raise DataError(f"{lost} scores of held-out requests are no numbers; lower train.learning_rate or check the dense features")
    grouped = request_aucs(scores, kinds, np.concatenate([[0], np.cumsum(counts)]))
    sums = ranks.sum(torch.tensor([gauc_sums(grouped[kind]) for kind in NEGATIVES], dtype=torch.float64, device=device))
    return {kind: found / weight if weight else float("nan") for kind, (found, weight) in zip(NEGATIVES, sums.tolist(), strict=True)}


def score_pools(model: nn.Module, pools: Iterable[Pool], params: Params, device: torch.device) -> tuple[Any, Any, Any]:
    """Logits f64[N], kinds i8[N] and candidates per request i64[R] of every request in the pools, in order, one pool at a time."""
    model.eval()
    logits, kinds, counts = [np.zeros(0, np.float32)], [np.zeros(0, np.int8)], [np.zeros(0, np.int64)]
    with torch.inference_mode():
        for pool in pools:
            kinds.append(pool.kind)
            counts.append(np.diff(pool.offsets))
            for start in range(0, len(pool), params.train.batch_requests):
                batch = pool.batch(np.arange(start, min(start + params.train.batch_requests, len(pool))))
                logits.append(model(to_device(batch, device)).float().cpu().numpy())
    return np.concatenate(logits).astype(np.float64), np.concatenate(kinds), np.concatenate(counts)


def set_scales(columns: Columns, feed: Feed, ranks: Ranks = ALONE, device: torch.device | None = None) -> dict[str, int]:
    """Normalisation figures and sample counts, from one pass over the training part, of which each process reads its own.

    Args:
        device: where the processes exchange; the CPU where none is named.
    """
    scalers = {group: cast(DenseScaler, scaler) for group, scaler in columns.scalers.items()}
    sums = {group: torch.zeros(3, len(scaler.mean), dtype=torch.float64) for group, scaler in scalers.items()}  # rows, sum, squares
    counts = torch.zeros(len(KINDS), dtype=torch.float64)
    for pool in feed.pools(ranks.rank, ranks.world):
        counts += torch.from_numpy(np.bincount(pool.kind, minlength=len(KINDS)))
        present = pool.hist_ids[..., 0] > 0 if pool.hist_ids.shape[-1] else np.zeros(pool.hist_ids.shape[:2], bool)
        for group, values in {"user": pool.user_dense, "item": pool.cand_dense, "history": pool.hist_dense[present]}.items():
            scaled = scalers[group].scaled(torch.from_numpy(values)).double()
            sums[group] += torch.stack([torch.full(scaled.shape[1:], len(scaled)), scaled.sum(0), (scaled**2).sum(0)])
    whole = ranks.sum(torch.cat([counts, *[total.reshape(-1) for total in sums.values()]]).to(device)).cpu()
    kinds, *parts = whole.split([len(KINDS), *[total.numel() for total in sums.values()]])
    figures = {}
    for group, part in zip(sums, parts, strict=True):
        rows, total, squares = part.reshape(3, -1)
        mean = total / rows.clamp(min=1)
        figures[group] = (mean.float(), (squares / rows.clamp(min=1) - mean**2).clamp(min=0).sqrt().float())
    columns.set_scales(figures)
    return dict(zip(KINDS, kinds.long().tolist(), strict=True))
