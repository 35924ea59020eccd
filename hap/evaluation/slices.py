"""Slices: parts of the judged clicks that are looked at on their own, such as one content type, new items, short histories.

A slice is a set of candidates. Its GAUC counts the positives among them against all negatives of their requests, so that a
slice of items is judged as the user meets it: among everything else.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hap.params import Slice

REPORTED = 8  # values of a column that are looked at though their clicks are too few to judge: the most clicked ones
Mask = NDArray[np.bool_]


def slice_masks(
    slices: Sequence[Slice], columns: Mapping[str, ArrayLike], seen: Mapping[str, ArrayLike], positive: Mask, floor: int
) -> dict[str, Mask]:
    """The rows of each slice by name (`content_type=3`, `item_id new`, `history_length below 5`), [N] each.

    Args:
        columns: by name, [N] what each candidate has of it; a slice of a column that is absent is left out.
        seen: by name, the values that the training window had, for slices of new ones; absent where that is not known.
        positive: [N]; floor: each value of a column with so many positives is a slice, and `REPORTED` of those with fewer.
    """
    masks: dict[str, Mask] = {}
    for one in slices:
        if one.column not in columns:
            continue
        values = np.asarray(columns[one.column])
        if one.new:
            if one.column in seen:
                masks[f"{one.column} new"] = ~np.isin(values, np.asarray(seen[one.column]))
        elif one.below is not None:
            masks[f"{one.column} below {one.below}"] = values < one.below
        else:
            found, clicks = np.unique(values[positive], return_counts=True)
            often = np.argsort(-clicks, kind="stable")
            every = np.sort(found[often[: (clicks >= floor).sum() + REPORTED]])
            wanted = every if one.values is None else np.asarray(one.values)
            masks |= {f"{one.column}={value}": values == value for value in wanted.tolist()}
    return masks
