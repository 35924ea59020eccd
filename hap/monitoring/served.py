"""What was served of a request beside what was logged of it, column by column, and its scores beside those of its version's bundle.

One defect shows in one column. Scores are computed again from what was served, not from the logs, so a wrong feature is no
wrong score, and by the route that was taken, so a wrong route is none either. The other columns of a history are compared
where both sides name the same items: a lost event is hist_item_id alone. Ages may differ by as much as the clocks of the two hosts do.

Legend: R rows served, C their candidates, K logged candidates, L history length.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hap.params import Feature, Features
from hap.serving.merge import merge
from hap.serving.request import RequestTensors
from hap.serving.served_log import served_tensors

EXAMPLES = 3
_AGE_ROUNDING_S = 1.0  # ages count whole seconds on both sides


@dataclass(frozen=True)
class Example:
    """One place where served and logged differ; `item` is None for what the request has as a whole."""

    request_id: int
    item: int | None
    served: str
    logged: str

    def __str__(self) -> str:
        where = f"request {self.request_id}" + ("" if self.item is None else f", item {self.item}")
        return f"{where}: {self.served} served, {self.logged} logged"


@dataclass
class Tally:
    """How much of a column was compared, and how much of that differs."""

    unit: Literal["requests", "candidates"]
    compared: int = 0
    differing: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of what was compared."""
        return self.differing / self.compared if self.compared else 0.0


class Scorer(Protocol):
    """A version's bundle in this process, as `hap.serving.session.BundleSession`."""

    def score(self, tensors: RequestTensors, k: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...
    def light(self, tensors: RequestTensors) -> NDArray[np.float32]: ...
    def expressive(self, tensors: RequestTensors) -> NDArray[np.float32]: ...


class Comparison:
    """Served rows beside logged ones, taken in a piece at a time; keeps counts and a few examples.

    Args:
        dense_tolerance: of a dense value, times the larger of it and 1.
        score_tolerance: of a score.
        complete: whether the logs hold every candidate; if not, served ones that they lack are none of our business.
    """

    def __init__(self, dense_tolerance: float, score_tolerance: float, complete: bool) -> None:
        self.dense_tolerance, self.score_tolerance, self.complete = dense_tolerance, score_tolerance, complete
        self.requests = 0  # compared with their logs
        self.columns: dict[str, Tally] = {}
        self.absent: dict[str, str] = {}  # columns that one side does not have at all, and why

    def add(self, served: pa.Table, logged: pa.Table, features: Features) -> None:
        """Compare rows of one version with the logs of their requests.

        Args:
            served: rows as `read_served` has them.
            logged: rows of samples with event_time, one for each request, sorted by request_id; a request that has none is
                taken to be logged without candidates.
            features: of the version that served.
        """
        ids, known = _ints(served["request_id"]), _ints(logged["request_id"])
        place = np.searchsorted(known, ids).clip(max=max(len(known) - 1, 0))
        found = known[place] == ids if len(known) else np.zeros(len(ids), bool)
        self.requests += len(ids)
        # A request that lacks its row is compared by its candidates alone, as if the logs had none of them.
        whole, beside = served.filter(pa.array(found)), logged.take(pa.array(place[found]))
        if found.any():
            apart_s = np.abs(_seconds(whole["served_at"]) - _seconds(beside["event_time"]))
            self._add_requests(whole, beside, features)
            self._add_history(whole, beside, features, apart_s)
            self._add_candidates(whole, beside, features, apart_s)
        if not found.all():
            self._add_candidates(served.filter(pa.array(~found)), None, features, np.zeros(0))

    def add_scores(self, served: pa.Table, features: Features, session: Scorer) -> None:
        """Score what was served again with the bundle of the version that answered, row by row."""
        item = [feature.name for feature in features.ids("item")].index("item_id")
        for row in range(served.num_rows):
            tensors = served_tensors(served, row, features)
            k, request = served["k"][row].as_py(), served["request_id"][row].as_py()
            answered = _floats(served["score"][row].values)
            took = np.asarray(served["routed"][row].values.to_numpy(zero_copy_only=False), bool)
            score, routed = session.score(tensors, k)
            strayed = took != routed
            if strayed.any():
                light = session.light(tensors)
                strayed &= ~_at_the_edge(light, routed, self.score_tolerance)
                score, _ = merge(light, np.flatnonzero(took), session.expressive(tensors)[took])  # by the route that was taken
            wrong = ~_same(answered, score, self.score_tolerance)
            items = tensors.cand_ids[:, item]
            self._tally("routed", "candidates", strayed, np.full(len(took), request), items, _route(took), _route(routed))
            self._tally("score", "candidates", wrong, np.full(len(took), request), items, answered, score)

    def _add_requests(self, served: pa.Table, logged: pa.Table, features: Features) -> None:
        ids = _ints(served["request_id"])
        for feature in (*features.user, *features.context):
            if self._both(feature.name, served, logged):
                ours, theirs = (_filled(table[feature.name].combine_chunks(), feature) for table in (served, logged))
                wrong = ~_equal(ours, theirs, feature, self.dense_tolerance)
                self._tally(feature.name, "requests", wrong, ids, None, ours, theirs)

    def _add_history(self, served: pa.Table, logged: pa.Table, features: Features, apart_s: NDArray[np.float64]) -> None:
        """Events from the latest one back; [R, L] each, 0 where there is none."""
        length = features.history_length
        sides = {}
        for feature in features.history:
            if self._both(f"hist_{feature.name}", served, logged):
                sides[feature.name] = [_latest(table[f"hist_{feature.name}"], feature, length) for table in (served, logged)]
        if "item_id" not in sides:
            return  # nothing tells an event from padding
        ids, (ours, theirs) = _ints(served["request_id"]), sides["item_id"]
        events = [(side > 0).sum(axis=1) for side in (ours, theirs)]
        uneven = events[0] != events[1]
        self._tally("history_length", "requests", uneven, ids, None, *events)
        same_items = (ours == theirs).all(axis=1)  # not event by event: a user may have clicked one item twice
        for feature in features.history:
            if feature.name not in sides:
                continue
            mine, yours = sides[feature.name]
            differs = ~_equal(mine, yours, feature, self.dense_tolerance, apart_s[:, None])
            judged = ~uneven if feature.name == "item_id" else same_items
            differs &= judged[:, None]
            wrong = np.asarray(differs.any(axis=1))
            first = np.argmax(differs[:, ::-1], axis=1)  # counted from the latest event
            at = (np.arange(len(ids)), length - 1 - first)
            compared = int(judged.sum())
            self._tally(
                f"hist_{feature.name}", "requests", wrong, ids, None, mine[at], yours[at], compared, "event {} from the latest", first + 1
            )

    def _add_candidates(self, served: pa.Table, logged: pa.Table | None, features: Features, apart_s: NDArray[np.float64]) -> None:
        """Candidates by item; C of all rows in one line. Without `logged` every candidate is on one side only."""
        ids, (row_C, item_C) = _ints(served["request_id"]), _flat(served["cand_item_id"])
        if logged is None:
            if self.complete:
                self._one_sided(ids[row_C], item_C, np.ones(len(item_C), bool), "served", len(item_C))
            return
        row_K, item_K = _flat(logged["cand_item_id"])
        key_C, key_K = _pairs(row_C, item_C, row_K, item_K)
        order = np.argsort(key_K, kind="stable")
        place = order[np.searchsorted(key_K[order], key_C).clip(max=len(order) - 1)] if len(order) else np.zeros(len(key_C), np.int64)
        hit = key_K[place] == key_C if len(order) else np.zeros(len(key_C), bool)
        unserved = ~np.isin(key_K, key_C)
        either = int(hit.sum() + unserved.sum() + (~hit).sum() * self.complete)
        self._one_sided(ids[row_K], item_K, unserved, "logged", either)
        if self.complete:
            self._one_sided(ids[row_C], item_C, ~hit, "served", 0)
        request, items = ids[row_C[hit]], item_C[hit]
        for feature in features.item:
            name = f"cand_{feature.name}"
            if feature.name == "item_id" or not self._both(name, served, logged):
                continue
            ours, theirs = _filled(_values(served[name]), feature)[hit], _filled(_values(logged[name]), feature)[place[hit]]
            wrong = ~_equal(ours, theirs, feature, self.dense_tolerance, apart_s[row_C[hit]])
            self._tally(name, "candidates", wrong, request, items, ours, theirs)

    def _one_sided(
        self,
        requests: NDArray[np.int64],
        items: NDArray[np.int64],
        hit: NDArray[np.bool_],
        side: Literal["served", "logged"],
        compared: int,
    ) -> None:
        """Candidates that one side alone has."""
        words = np.array(["a candidate" if side == "served" else "no candidate", "a candidate" if side == "logged" else "no candidate"])
        ours, theirs = np.full(len(items), words[0]), np.full(len(items), words[1])
        self._tally("cand_item_id", "candidates", hit, requests, items, ours, theirs, compared)

    def _both(self, column: str, served: pa.Table, logged: pa.Table) -> bool:
        """Whether both sides have a column that the version declares."""
        if column in served.column_names and column in logged.column_names:
            return True
        self.absent.setdefault(column, "the logs do not have it" if column in served.column_names else "what was served lacks it")
        return False

    def _tally(
        self, column: str, unit: Literal["requests", "candidates"], wrong: NDArray[np.bool_], requests: NDArray[np.int64],
        items: NDArray[np.int64] | None, served: NDArray[Any], logged: NDArray[Any],
        compared: int | None = None, where: str = "", places: NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        """Count what differs, and keep the first places of it."""
        tally = self.columns.setdefault(column, Tally(unit))
        tally.compared += len(wrong) if compared is None else compared
        tally.differing += int(wrong.sum())
        for at in np.flatnonzero(wrong)[: EXAMPLES - len(tally.examples)].tolist():
            said = f" ({where.format(int(places[at]))})" if places is not None else ""
            item = None if items is None else int(items[at])
            tally.examples.append(Example(int(requests[at]), item, f"{_shown(served[at])}{said}", _shown(logged[at])))


def _at_the_edge(light: NDArray[np.float32], routed: NDArray[np.bool_], tolerance: float) -> NDArray[np.bool_]:
    """Candidates that could be routed as well as not: the last one routed, the first one that is not, and they lie within the tolerance."""
    if routed.all() or not routed.any():
        return np.zeros(len(light), bool)
    last, first = float(light[routed].min()), float(light[~routed].max())
    return np.asarray((np.abs(light - last) <= tolerance) | (np.abs(light - first) <= tolerance)) & (abs(last - first) <= tolerance)


def _route(routed: NDArray[np.bool_]) -> NDArray[Any]:
    return np.where(routed, "routed", "light")


def _equal(
    ours: NDArray[Any], theirs: NDArray[Any], feature: Feature, tolerance: float, apart_s: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Ids and categories exactly, dense values within the tolerance, ages within what the clocks differ by, too."""
    if feature.type != "dense":
        return np.asarray(ours == theirs)
    slack_h = (apart_s + _AGE_ROUNDING_S) / 3600 if feature.name == "age_hours" and apart_s is not None else 0.0
    return _same(ours, theirs, tolerance, slack_h)


def _same(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float, slack: Any = 0.0) -> NDArray[np.bool_]:
    one, two = ours.astype(np.float64), theirs.astype(np.float64)
    most = tolerance * np.maximum(np.maximum(np.abs(one), np.abs(two)), 1.0) + slack
    with np.errstate(invalid="ignore"):  # infinities of one sign
        return (np.abs(one - two) <= most) | (one == two) | (np.isnan(one) & np.isnan(two))


def _latest(column: pa.ChunkedArray, feature: Feature, length: int) -> NDArray[Any]:
    """The last L values of each list [R, L], padded on the left with 0."""
    lists = column.combine_chunks()
    values = _filled(lists.flatten(), feature)
    ends = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)).astype(np.int64)
    begins = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    places = ends[:, None] - np.arange(length, 0, -1)[None, :]
    padded = np.concatenate([values, np.zeros(1, values.dtype)])
    return np.asarray(padded[np.where(places >= begins[:, None], places, len(values))])


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of each value of a list column, and the values."""
    lists = column.combine_chunks()
    return pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64), _ints(lists.flatten())


def _values(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().flatten()


def _filled(values: pa.Array, feature: Feature) -> NDArray[Any]:
    """Values as they reach the model: absent ids are 0, absent dense values the feature's `missing`, in float32."""
    if feature.type != "dense":
        return _ints(values)
    array = _floats(values).astype(np.float32)
    return np.where(np.isnan(array), np.float32(feature.missing), array)


def _ints(values: Any) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(values, 0).to_numpy(), np.int64) if len(values) else np.zeros(0, np.int64)


def _floats(values: Any) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False), np.float64)


def _seconds(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return _ints(column.cast(pa.int64())) / 1e6


def _pairs(*keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One key for each (row, item) of two sides; items are numbered first, since ids fill 64 bits."""
    row_C, item_C, row_K, item_K = keys
    items, number = np.unique(np.concatenate([item_C, item_K]), return_inverse=True)
    number_C, number_K = np.split(number.astype(np.int64), [len(item_C)])
    return row_C * len(items) + number_C, row_K * len(items) + number_K


def _shown(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, np.floating | float) else str(value)
