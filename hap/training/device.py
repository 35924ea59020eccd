"""Where a model runs, in what precision, and that it does so the same way every time."""

import os
from typing import Any

import torch

from hap.errors import DataError


def be_deterministic() -> None:
    """The same bits from every run on one machine; call it before the first product on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS has no deterministic products, and torch refuses them
    torch.use_deterministic_algorithms(True)
    # That also fills each new tensor before it is written, against reads of what was never written: a look for mistakes at the
    # price of hundreds of passes a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.sparse.check_sparse_tensor_invariants.disable()  # said out loud: lookups make valid tensors, and torch warns otherwise


def pick_device(wanted: str, processes: int = 1) -> torch.device:
    """The device of train.device; `auto` takes a GPU where there is one, of several processes each its own.

    Args:
        processes: that train together on this machine; torchrun's number where it started this one.

    Raises:
        DataError: cuda was asked for and there is none, or there are fewer GPUs than processes.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DataError("train.device is cuda and no CUDA device is visible; set it to auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Asked of all processes of the machine alike: one that refused alone would leave the others waiting for it.
    processes, found = int(os.environ.get("LOCAL_WORLD_SIZE", processes)), torch.cuda.device_count()
    if processes > found:
        raise DataError(
            f"{processes} processes train together and {found} CUDA device{'s are' if found != 1 else ' is'} visible, of which each "
            f"needs its own; set train.processes to {found}, or train.device to cpu"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The block that a forward pass runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and _has_bf16(device)))


def _has_bf16(device: torch.device) -> bool:
    """Whether the device is a GPU with bf16 in hardware: torch also says yes of those that emulate it, slower than fp32."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device."""
    if device.type == "cpu":
        return batch
    return type(batch)(*[getattr(batch, name).to(device, non_blocking=True) for name in batch.__dataclass_fields__])
