"""Faults, switched on from a day. Of logging: the world goes on as ever, what the logs show of it goes wrong.

Each of these is a function of one table of the log contract. Which rows it hits follows from a hash of their ids, so a fault
is the same in every table and on every run. One fault is of the world, interest-drift: the logs are right, people want
something else (hap.logs.world.Turn). docs/simulator.md gives sizes and what each one breaks downstream.
"""

import datetime as dt
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hap.days import start_of
from hap.errors import UsageError
from hap.logs import contract
from hap.logs.world import Turn
from hap.params import Feature, Features

LATE_HOURS = (3.0, 9.0)  # after the midnight that ends the row's day: past the default label delay of 2 hours
OUTAGE_HOURS = (12, 18)  # of every day
BREAKS = ("null", "constant", "zero")


@dataclass(frozen=True)
class Fault:
    """One fault as asked for. `detail`: COLUMN:HOW of broken-feature, the unseen content type of new-category."""

    name: str
    from_day: dt.date
    size: float
    detail: str | None
    seed: int

    def chosen(self, ids: np.ndarray) -> np.ndarray:
        """Which ids are hit: BOOL[n], the same for an id wherever it stands."""
        # splitmix64: neighbouring ids give unrelated values.
        with np.errstate(over="ignore"):
            stream = 1 + self.seed * len(FAULTS) + FAULTS.index(self.name)
            x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15 * stream % 2**64)
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        hit: np.ndarray = (x ^ (x >> np.uint64(31))) < np.uint64(min(int(self.size * 2.0**64), 2**64 - 1))
        return hit


@dataclass(frozen=True)
class Kind:
    """A fault that can be asked for: its default size, what the size is, and what it does to a table."""

    size: float
    meaning: str
    distort: Callable[[str, pa.Table, Fault], pa.Table]
    needs: str | None = None  # an item feature that params.yaml must declare


def parse(text: str, from_day: dt.date, size: float | None, seed: int, features: Features, content_types: int) -> Fault:
    """The fault named `text`, such as new-category or broken-feature:zero, of its default size where none is given.

    Args:
        content_types: how many the world has; the next one is the unseen one.

    Raises:
        UsageError: no such fault or detail, a size out of range, or params.yaml declares nothing that it could hit.
    """
    name, detail, size = asked(text, size)
    kind = _KINDS[name]
    if kind.needs and kind.needs not in {feature.name for feature in features.item}:
        raise UsageError(f"--fault {text} shows in the item feature {kind.needs}, which `features` in params.yaml does not declare")
    if name == "broken-feature":
        detail = f"{broken_column(features).name}:{detail or BREAKS[0]}"
    elif name == "new-category":
        detail = str(content_types + 1)
    return Fault(name, from_day, size, detail or None, seed)


def asked(text: str, size: float | None) -> tuple[str, str, float]:
    """Name, detail ("" if none) and size of a fault as asked for; needs no workspace.

    Raises:
        UsageError: there is no such fault or detail, or the size is out of range.
    """
    name, _, detail = text.partition(":")
    if name not in _KINDS:
        near = difflib.get_close_matches(name, _KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_KINDS)}"
        raise UsageError(f"--fault {text}: there is no such fault; {hint}")
    if (detail and name != "broken-feature") or (detail and detail not in BREAKS):
        raise UsageError(f"--fault {text}: only broken-feature takes a detail, one of {', '.join(BREAKS)}, as in broken-feature:zero")
    kind = _KINDS[name]
    size = kind.size if size is None else size
    limit = 100.0 if name == "shifted-prices" else 1.0
    if not 0 < size <= limit:
        raise UsageError(f"--fault-size {size:g} for {name}: it is {kind.meaning}, above 0 and at most {limit:g}")
    return name, detail, size


def broken_column(features: Features) -> Feature:
    """The dense feature that broken-feature breaks: the last one that items log.

    Raises:
        UsageError: items log none.
    """
    dense = [feature for feature in contract.logged(features.item) if feature.type == "dense"]
    if not dense:
        raise UsageError("--fault broken-feature needs a dense item feature; `features` in params.yaml declares none")
    return dense[-1]


def distort(table: str, rows: pa.Table, faults: Sequence[Fault]) -> pa.Table:
    """Rows of one of the contract's tables as a logging system with these faults writes them."""
    for fault in faults:
        rows = _KINDS[fault.name].distort(table, rows, fault)
    return rows


def turn_of(faults: Sequence[Fault], first_day: dt.date) -> Turn | None:
    """What the faults do to the world whose first day is `first_day`; None where they are of logging alone."""
    turns = [fault for fault in faults if fault.name in WORLD]
    return Turn((turns[-1].from_day - first_day).days, turns[-1].size) if turns else None


def _as_it_is(table: str, rows: pa.Table, fault: Fault) -> pa.Table:
    """Nothing is logged wrongly."""
    return rows


def _new_category(table: str, rows: pa.Table, fault: Fault) -> pa.Table:
    """Some items carry a content type that nobody has seen: one above the largest known."""
    unseen = int(fault.detail or 0)
    if table == "items":
        hit = _active(rows, fault) & fault.chosen(_numpy(rows["item_id"]))
        return _set(rows, "content_type", np.where(hit, unseen, _numpy(rows["content_type"])))
    if table == "requests" and "hist_content_type" in rows.column_names:
        items, types = (rows[name].combine_chunks() for name in ("hist_item_id", "hist_content_type"))
        on = np.repeat(_active(rows, fault), _numpy(pc.list_value_length(items)))
        hit = on & fault.chosen(_numpy(items.flatten()))
        values = pa.array(np.where(hit, unseen, _numpy(types.flatten())))
        offsets = np.concatenate([[0], np.cumsum(_numpy(pc.list_value_length(types)))])
        return _set(rows, "hist_content_type", pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values))
    return rows


def _broken_feature(table: str, rows: pa.Table, fault: Fault) -> pa.Table:
    """Some values of a dense item feature are null, or all the same, or 0; which ones changes from day to day."""
    column, how = str(fault.detail).split(":")
    if table != "items":
        return rows
    days = _numpy(rows["event_time"].cast(pa.int64())) // 86_400_000_000
    hit = _active(rows, fault) & fault.chosen(_numpy(rows["item_id"]) * 100_003 + days)
    values = _numpy(rows[column])
    if how == "null":
        return _set(rows, column, pa.array(values, mask=hit))
    filler = 0.0 if how == "zero" else float(np.round(np.median(values), 4))
    return _set(rows, column, np.where(hit, filler, values))


def _shifted_prices(table: str, rows: pa.Table, fault: Fault) -> pa.Table:
    """Every price is multiplied, as by a wrong currency or a tax counted twice."""
    if table != "items":
        return rows
    price = _numpy(rows["price"])
    return _set(rows, "price", np.where(_active(rows, fault), price * fault.size, price))


def _late_logs(table: str, rows: pa.Table, fault: Fault) -> pa.Table:
    """Some requests are ingested the next morning, with their candidates and feedback."""
    if table == "items":
        return rows
    ids = _numpy(rows["request_id"])
    event, ingest = (_numpy(rows[name].cast(pa.int64())) for name in ("event_time", "ingest_time"))
    midnight = (event // 86_400_000_000 + 1) * 86_400_000_000
    low, high = LATE_HOURS
    spread = ids * 7_919 % 10_007 / 10_007  # each request comes at a time of its own
    late = midnight + ((low + (high - low) * spread) * 3.6e9).astype(np.int64)
    hit = _active(rows, fault) & fault.chosen(ids)
    return _set(rows, "ingest_time", pa.array(np.where(hit, np.maximum(late, ingest), ingest)).cast(contract.TIME))


def _click_outage(table: str, rows: pa.Table, fault: Fault) -> pa.Table:
    """Some feedback of six hours of the day is lost."""
    if table != "feedback":
        return rows
    hour = _numpy(rows["event_time"].cast(pa.int64())) // 3_600_000_000 % 24
    ids = _numpy(rows["request_id"]) * 1_009 + _numpy(rows["item_id"])
    lost = _active(rows, fault) & (hour >= OUTAGE_HOURS[0]) & (hour < OUTAGE_HOURS[1]) & fault.chosen(ids)
    return rows.filter(pa.array(~lost))


_KINDS = {
    "new-category": Kind(0.1, "share of items", _new_category, "content_type"),
    "broken-feature": Kind(0.5, "share of values", _broken_feature),
    "shifted-prices": Kind(1.5, "factor", _shifted_prices, "price"),
    "late-logs": Kind(0.3, "share of requests", _late_logs),
    "click-outage": Kind(0.8, "share of feedback, 12:00 to 18:00 UTC", _click_outage),
    "interest-drift": Kind(0.25, "share of interests", _as_it_is, "content_type"),
}
FAULTS = tuple(_KINDS)
WORLD = ("interest-drift",)  # of the world, and not of its logs


def _active(rows: pa.Table, fault: Fault) -> np.ndarray:
    start = int(start_of(fault.from_day).timestamp()) * 1_000_000
    active: np.ndarray = _numpy(rows["event_time"].cast(pa.int64())) >= start
    return active


def _numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    array: np.ndarray = column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    return array


def _set(rows: pa.Table, name: str, values: np.ndarray | pa.Array) -> pa.Table:
    place = rows.column_names.index(name)
    return rows.set_column(place, rows.schema.field(name), pa.array(values) if isinstance(values, np.ndarray) else values)
