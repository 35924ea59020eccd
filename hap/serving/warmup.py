"""The request that Triton sends each member when it loads it, so that the first caller after a start does not pay for first runs.

The `python` backend's runner warms each version by itself. For the onnxruntime backend it is written into the member's config.pbtxt,
of which one speaks for all loaded versions: where their columns differ there is no request that fits them all, and none is sent.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hap.errors import DataError
from hap.params import Features

CANDIDATES, ROUTED = 8, 4
Shapes = dict[str, tuple[int, ...]]  # by input


def common_shapes(schemas: Sequence[Mapping[str, Any]]) -> Shapes | None:
    """The shapes of a small request of all these versions (their `features` as stored); None where they have other columns."""
    first, *others = [_shapes(Features.model_validate(schema)) for schema in schemas]
    return first if all(shapes == first for shapes in others) else None


def check(path: Path, config: Any, wanted: Mapping[str, tuple[str, int]]) -> None:
    """Look through the samples of a member's parsed config: Triton does not load a member whose sample fails.

    Args:
        wanted: type and rank by input, optional ones left out.

    Raises:
        DataError: a sample has other inputs than the member, or leaves a size open.
    """
    for sample in config.model_warmup:
        types = sample.DESCRIPTOR.fields_by_name["inputs"].message_type.fields_by_name["value"].message_type.fields_by_name["data_type"]
        found = {name: (types.enum_type.values_by_number[given.data_type].name, len(given.dims)) for name, given in sample.inputs.items()}
        if found != dict(wanted):
            raise DataError(f"{path}: its warm-up sends {found}, the member takes {dict(wanted)}")
        if opened := [name for name, given in sample.inputs.items() if min(given.dims) < 0]:
            raise DataError(f"{path}: its warm-up leaves the size of {opened[0]} open")


def _shapes(features: Features) -> Shapes:
    def widths(group: Any) -> tuple[int, int]:
        return len(features.ids(group)), len(features.dense(group))

    (user_ids, user_dense), (hist_ids, hist_dense), (cand_ids, cand_dense) = widths("user"), widths("history"), widths("item")
    length = features.history_length
    return {
        "user_ids": (user_ids,),
        "user_dense": (user_dense,),
        "hist_ids": (length, hist_ids),
        "hist_dense": (length, hist_dense),
        "cand_ids": (CANDIDATES, cand_ids),
        "cand_dense": (CANDIDATES, cand_dense),
        "light_score": (CANDIDATES,),
        "hard_index": (ROUTED,),
    }
