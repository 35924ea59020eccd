"""One training system in one process, timed: what benchmarks/train.py starts. Every one trains hap's own network.

`hap` and what is named hap-... read the samples as hap does. The others read flat rows: user and history repeated for
each sample. A batch is the same whole requests everywhere. The rivals' environment has torch, torch-rechub and FuxiCTR,
and of hap only what models need.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hap.models.batch import Batch
from hap.models.build import build_model
from hap.params import Params, resolve

COLUMNS = ("user_ids", "user_dense", "hist_ids", "hist_dense", "cand_ids", "cand_dense", "kind")
WARM_UP, LEAST = 2, 3  # steps before the clock starts, and steps that it at least counts
COMPILING = 40  # steps before it starts on a compiled model, which is compiled again for some of the first shapes


class Clock:
    """Counts samples and seconds of whatever takes batches from `over`: from one request for a batch to another."""

    def __init__(self, seconds: float, device: str, warm_up: int = WARM_UP) -> None:
        self.limit, self.device, self.warm_up = seconds, device, warm_up
        self.seconds, self.samples, self.steps = 0.0, 0, 0

    def now(self) -> float:
        """CPU seconds of this process; on a GPU seconds by the clock, with its queue emptied."""
        if self.device != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def over(self, batches: Iterator[Any], size: Callable[[Any], int]) -> Iterator[Any]:
        """The batches, until the time is up."""
        for place in itertools.count():
            now = self.now()
            if place == self.warm_up:
                begin = now
            if place >= self.warm_up + LEAST and now - begin >= self.limit:
                self.seconds = now - begin
                return
            batch = next(batches)
            if place >= self.warm_up:
                self.samples, self.steps = self.samples + size(batch), self.steps + 1
            yield batch


class Flat:
    """Rows of samples below `scratch`, and the places of each batch's rows among them."""

    def __init__(self, scratch: Path) -> None:
        with np.load(scratch / "flat.npz") as file:
            self.tensors = {name: torch.from_numpy(file[name]) for name in COLUMNS}
            self.batches = [torch.from_numpy(part) for part in np.split(file["places"], file["bounds"])]
        self.label = (self.tensors["kind"] == 0).float()

    def chosen(self) -> Iterator[list[int]]:
        """Each batch's places, over and over: what a DataLoader calls a batch sampler."""
        for places in itertools.cycle(self.batches):
            yield places.tolist()


def as_batch(columns: Sequence[Tensor]) -> Batch:
    """Flat columns as a batch in which every sample is a request of its own."""
    *features, kind = columns
    return Batch(*[*features, torch.arange(len(kind), device=kind.device), kind])


class Both:
    """The optimizers of all systems behind one: Adagrad for tables, Adam for the rest."""

    def __init__(self, model: nn.Module, params: Params) -> None:
        named = list(model.named_parameters())
        tables, dense = ([p for n, p in named if (".tables." in n) == wanted] for wanted in (True, False))
        self.parts = (
            torch.optim.Adagrad(tables, lr=params.train.embedding_learning_rate),
            torch.optim.Adam(dense, lr=params.train.learning_rate),
        )
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"param_groups": self.param_groups}


def network(name: str, params: Params, scratch: Path, *, sparse: bool) -> nn.Module:
    """The model, alike in every process: its first weights and its scales."""
    torch.manual_seed(params.seed)
    model = build_model(name, params)
    model.columns.set_scales(torch.load(scratch / "scales.pt", weights_only=True))  # type: ignore[operator,union-attr]
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = sparse
    return model


def plain(model: nn.Module, params: Params, device: str) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """A step as a tutorial writes it."""
    optimizer = Both(model, params)
    dense = [p for n, p in model.named_parameters() if ".tables." not in n]

    def step(columns: Sequence[Tensor], label: Tensor) -> Tensor:
        loss = binary_cross_entropy_with_logits(model(as_batch([column.to(device) for column in columns])), label.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(dense, params.train.clip_norm)
        optimizer.step()
        return loss.detach()

    return step


def naive(name: str, params: Params, scratch: Path, clock: Clock) -> float:
    """(a) TensorDataset and DataLoader over flat rows, dense gradients of the tables."""
    flat = Flat(scratch)
    step = plain(network(name, params, scratch, sparse=False).to(clock.device), params, clock.device)
    loader = DataLoader(TensorDataset(*flat.tensors.values(), flat.label), batch_sampler=flat.chosen())  # type: ignore[arg-type]
    losses = [float(step(rows[:-1], rows[-1])) for rows in clock.over(iter(loader), lambda rows: len(rows[-1]))]
    return losses[0]


def strong_flat(name: str, params: Params, scratch: Path, clock: Clock) -> float:
    """(b) A batch's rows taken from the flat arrays by one index each, sparse gradients of the tables."""
    flat = Flat(scratch)
    step = plain(network(name, params, scratch, sparse=True).to(clock.device), params, clock.device)
    batches = ([tensor[places] for tensor in [*flat.tensors.values(), flat.label]] for places in itertools.cycle(flat.batches))
    losses = [step(rows[:-1], rows[-1]) for rows in clock.over(batches, lambda rows: len(rows[-1]))]
    return float(losses[0])


class Probability(nn.Module):
    """The network as the libraries want it: a dict of columns in, a probability per sample out. Keeps the first loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        return torch.sigmoid(self.model(as_batch([columns[name] for name in COLUMNS])))


def rechub(name: str, params: Params, scratch: Path, clock: Clock) -> float:
    """(c) torch-rechub: its TorchDataset and CTRTrainer."""
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import TorchDataset

    flat = Flat(scratch)
    model = Probability(network(name, params, scratch, sparse=False))
    loader = DataLoader(TorchDataset(flat.tensors, flat.label), batch_sampler=flat.chosen())  # type: ignore[arg-type]
    trainer = CTRTrainer(model, optimizer_fn=lambda _, **__: Both(model, params), optimizer_params={}, n_epoch=1, device=clock.device)
    first = kept_first(trainer, "criterion")
    trainer.train_one_epoch(clock.over(iter(loader), lambda batch: len(batch[1])))
    return first[0]


class Rows(Dataset):  # type: ignore[type-arg]
    """Samples by name, as FuxiCTR's loaders hand them to a model."""

    def __init__(self, flat: Flat) -> None:
        self.columns = {**flat.tensors, "label": flat.label}

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {name: column[place] for name, column in self.columns.items()}


def fuxictr(name: str, params: Params, scratch: Path, clock: Clock) -> float:
    """(d) FuxiCTR: `fit` of its BaseModel."""
    from fuxictr.pytorch.models import BaseModel

    class Rival(BaseModel):
        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            columns = {key: value.to(self.device) for key, value in inputs.items()}
            return {"y_pred": self.network(columns)[:, None]}

        def load_weights(self, checkpoint: str) -> None:
            """Nothing was judged, so there is no better moment to go back to."""

    class Loader:
        def __init__(self) -> None:
            self.batches = clock.over(iter(DataLoader(Rows(flat), batch_sampler=flat.chosen())), lambda batch: len(batch["label"]))  # type: ignore[arg-type]

        def __len__(self) -> int:
            return sys.maxsize  # FuxiCTR evaluates after so many batches

        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            return self.batches

    flat = Flat(scratch)
    features = SimpleNamespace(dataset_id="flat", labels=["label"], features={}, group_id=None)
    with tempfile.TemporaryDirectory() as folder:
        model = Rival(features, gpu=0 if clock.device == "cuda" else -1, verbose=0, model_root=folder, metrics=["AUC"])
        model.network = Probability(network(name, params, scratch, sparse=False))
        model.compile("adam", "binary_crossentropy", params.train.learning_rate)
        model.model_to_device()
        model.optimizer = Both(model, params)  # on the device: Adagrad makes its sums where the tables lie
        first = kept_first(model, "loss_fn")
        model.fit(Loader(), max_gradient_norm=params.train.clip_norm)
    return first[0]


def kept_first(owner: Any, name: str) -> list[float]:
    """Have the loss function that `owner` keeps under `name` note its first value in the list."""
    inner, first = getattr(owner, name), []

    def noted(*args: Any, **more: Any) -> Tensor:
        loss = inner(*args, **more)
        if not first:
            first.append(float(loss))
        return loss

    setattr(owner, name, noted)
    return first


def hap(name: str, params: Params, scratch: Path, clock: Clock, variant: str = "") -> float:
    """hap's feed and step; or one of its three ideas taken away.

    Args:
        variant: `flat` repeats user and history for every sample, `loader` puts batches together sample by sample,
            `sparse` and `dense` use torch's Adagrad on sparse and dense gradients. `compiled` takes nothing away: torch.compile.
    """
    from hap.training import loop
    from hap.training.device import be_deterministic, to_device
    from hap.training.feed import Feed
    from hap.training.ranks import ALONE

    be_deterministic()
    params = params.model_copy(update={"train": params.train.model_copy(update={"compile": variant == "compiled"})})
    device = torch.device(clock.device)
    model = network(name, params, scratch, sparse=variant != "dense").to(device)
    feed = Feed(sample_files(scratch), params, heldout=False)
    run, trained = loop._Run(name, params, model, feed, ALONE, device), loop.Trained(model)
    if variant in ("sparse", "dense"):
        run.sparse_step = torch.optim.Adagrad(run.tables, lr=params.train.embedding_learning_rate)  # type: ignore[assignment]
    batches = epochs(feed, params)
    if variant == "flat":
        batches = (repeated(batch) for batch in batches)
    if variant == "loader":
        batches = one_by_one(feed, params)
    first = None
    run.model.train()
    for batch in clock.over(batches, lambda batch: len(batch.kind)):
        run._take(to_device(batch, device), trained)
        first = first if first is not None else sum(run.sums.values())
    return float(first)  # type: ignore[arg-type]


def epochs(feed: Any, params: Params) -> Iterator[Batch]:
    """Every epoch's batches, one epoch after another."""
    for epoch in itertools.count(1):
        yield from feed.batches(params.seed, epoch)


def repeated(batch: Batch) -> Batch:
    """The same samples, each a request of its own."""
    users = {name: getattr(batch, name)[batch.request] for name in ("user_ids", "user_dense", "hist_ids", "hist_dense")}
    return replace(batch, **users, request=torch.arange(len(batch.kind)))


class Samples(Dataset):  # type: ignore[type-arg]
    """The candidates of requests in memory, one by one; user and history by request."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.bounds = np.cumsum([0, *[len(batch.kind) for batch in batches]])

    def __getitem__(self, place: int) -> tuple[int, int, Tensor, Tensor, Tensor]:
        number = int(np.searchsorted(self.bounds, place, "right")) - 1
        batch, row = self.batches[number], place - int(self.bounds[number])
        return number, int(batch.request[row]), batch.cand_ids[row], batch.cand_dense[row], batch.kind[row]


def one_by_one(feed: Any, params: Params) -> Iterator[Batch]:
    """An epoch's batches put together by a DataLoader from single samples, users still once per request."""
    data = Samples(list(feed.batches(params.seed, 1)))
    ranges = (list(range(first, last)) for first, last in itertools.cycle(list(itertools.pairwise(data.bounds.tolist()))))
    for number, request, cand_ids, cand_dense, kind in DataLoader(data, batch_sampler=ranges):  # type: ignore[arg-type]
        whole = data.batches[int(number[0])]
        yield replace(whole, cand_ids=cand_ids, cand_dense=cand_dense, kind=kind, request=request)


def sample_files(scratch: Path) -> list[Path]:
    """The samples that benchmarks/train.py collected, oldest day first."""
    return sorted((scratch / "samples").glob("day=*/part-*.parquet"))


SYSTEMS: dict[str, Callable[[str, Params, Path, Clock], float]] = {
    "hap": hap,
    "naive": naive,
    "flat": strong_flat,
    "rechub": rechub,
    "fuxictr": fuxictr,
    "hap-flat": lambda *words: hap(*words, variant="flat"),
    "hap-loader": lambda *words: hap(*words, variant="loader"),
    "hap-sparse": lambda *words: hap(*words, variant="sparse"),
    "hap-dense": lambda *words: hap(*words, variant="dense"),
    "hap-compiled": lambda *words: hap(*words, variant="compiled"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("model", choices=("light", "expressive"))
    parser.add_argument("scratch", type=Path, help="what benchmarks/train.py prepared")
    parser.add_argument("params", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    params = resolve(json.loads(args.params.read_text()), str(args.params))
    clock = Clock(args.seconds, args.device, COMPILING if args.system == "hap-compiled" else WARM_UP)
    first = SYSTEMS[args.system](args.model, params, args.scratch, clock)
    found = {"samples_per_s": clock.samples / clock.seconds, "steps": clock.steps, "first_loss": first, "torch": torch.__version__}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
