"""The processes that train one model together: started by torchrun, they hold equal weights and share each batch.

A step's gradients are summed over all of them: dense ones in one buffer, embedding ones as (row, gradient) pairs of
the rows that a batch touched, all tables in one exchange. Sums are made in the order of the ranks, so a rerun with as
many processes gives the same bits. One process alone exchanges nothing.
"""

import contextlib
import datetime as dt
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def by_rank(self, value: int, device: torch.device) -> list[int]:
        """The value of every process."""
        values = torch.zeros(self.world, dtype=torch.int64, device=device)
        values[self.rank] = value
        return [int(one) for one in self.sum(values).tolist()]

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()

    def share_dense(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the parameters' gradients over all processes; a missing gradient counts as zeros."""
        if self.world == 1:
            return
        whole = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        dist.all_reduce(whole)
        for parameter, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def share_rows(self, tables: Sequence[nn.Parameter]) -> None:
        """Sum sparse gradients of tables of one width over all processes, row by row that any of them touched."""
        if self.world == 1:
            return
        starts = [0]
        for table in tables:
            starts.append(starts[-1] + table.shape[0])
        rows, values = _touched(tables, starts)
        sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
        counts = [int(size) for size in sizes]
        longest = max(counts)
        all_rows = [rows.new_empty(longest) for _ in range(self.world)]
        all_values = [values.new_empty(longest, values.shape[1]) for _ in range(self.world)]
        dist.all_gather(all_rows, torch.cat([rows, rows.new_zeros(longest - len(rows))]))
        dist.all_gather(all_values, torch.cat([values, values.new_zeros(longest - len(rows), values.shape[1])]))
        gathered_rows = torch.cat([part[:count] for part, count in zip(all_rows, counts, strict=True)])
        gathered = torch.cat([part[:count] for part, count in zip(all_values, counts, strict=True)])
        whole = torch.sparse_coo_tensor(gathered_rows[None], gathered, (starts[-1], values.shape[1])).coalesce()
        indices, summed = whole.indices()[0], whole.values()
        bounds = torch.searchsorted(indices, torch.tensor(starts, device=indices.device)).tolist()
        for place, table in enumerate(tables):
            part = slice(bounds[place], bounds[place + 1])
            table.grad = torch.sparse_coo_tensor(
                indices[None, part] - starts[place], summed[part], table.shape, is_coalesced=True, check_invariants=False
            )


ALONE = Ranks()
PATIENCE = dt.timedelta(minutes=10)  # for a process that has not come; nothing of a step takes as long


def _touched(tables: Sequence[nn.Parameter], starts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows of all tables, numbered through, and their gradients [n, D]."""
    rows, values = [], []
    for table, start in zip(tables, starts[:-1], strict=True):
        if table.grad is not None:
            grad = table.grad.coalesce()
            rows.append(grad.indices()[0] + start)
            values.append(grad.values())
    if not rows:
        return torch.zeros(0, dtype=torch.int64, device=tables[0].device), tables[0].new_zeros(0, tables[0].shape[1])
    return torch.cat(rows), torch.cat(values)


def meet(store: dist.Store, rank: int, world: int) -> str:
    """A name that exactly the processes of this start have in common, and no earlier start had.

    torchrun keeps one store for all its starts. What a process wrote there before it was killed would be read for its
    successor's: its address, at which nobody listens any more. So rank 0 makes a name, the others answer to it with one of
    their own, and go on only where rank 0 repeats that: an earlier start's name is repeated to nobody.

    Raises:
        torch.distributed.DistStoreError: rank 0 waited for the others as long as the store waits.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("hap/start", mine)
        store.set(f"hap/{mine}/met", " ".join(store.get(f"hap/{mine}/{other}").decode() for other in range(1, world)))
        return mine
    while True:
        start = store.get("hap/start").decode()
        store.set(f"hap/{start}/{rank}", mine)
        with contextlib.suppress(dist.DistStoreError):  # not yet, or it is an earlier start's and never
            store.wait([f"hap/{start}/met"], dt.timedelta(seconds=1))
            if mine in store.get(f"hap/{start}/met").decode().split():
                return start
        time.sleep(0.02)


@contextlib.contextmanager
def open_ranks(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun started, joined for the block; one alone where there is no torchrun.

    nccl between GPUs, gloo between CPUs. A process that dies ends the others, and torchrun starts all of them again.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, world = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    ours = dist.PrefixStore(meet(store, rank, world), store)
    # nccl has to be told which GPU is this process's own: a barrier names none and would guess.
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, store=ours, rank=rank, world_size=world, timeout=PATIENCE, device_id=own)
    try:
        yield Ranks(rank, world)
    finally:
        dist.destroy_process_group()
