"""One request as the tensors that the served graphs take.

Legend: U user ids, u user dense (context included), L history length, H history ids, h history dense,
N candidates, I item ids, d item dense.
"""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hap.errors import DataError
from hap.params import Feature, Features
from hap.samples.ages import age_hours

TENSORS = ("user_ids", "user_dense", "hist_ids", "hist_dense", "cand_ids", "cand_dense")
_NOT_RAW = {"request_id", "event_time", "history", "candidates", "k"}
_INT64 = 2**63
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class RequestTensors:
    """user_ids I64[U], user_dense F32[u], hist_ids I64[L,H], hist_dense F32[L,h], cand_ids I64[N,I], cand_dense F32[N,d]."""

    user_ids: NDArray[np.int64]
    user_dense: NDArray[np.float32]
    hist_ids: NDArray[np.int64]
    hist_dense: NDArray[np.float32]
    cand_ids: NDArray[np.int64]
    cand_dense: NDArray[np.float32]

    @property
    def candidates(self) -> int:
        """N."""
        return self.cand_ids.shape[0] if self.cand_ids.ndim else 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The six tensors by name, C-contiguous, in the served dtypes.

        Raises:
            DataError: a tensor's own dtype does not fit into the served one, as floats that stand for ids.
        """
        for name, dtype in _DTYPES.items():
            found = getattr(self, name).dtype
            if found.kind == "b" or not np.can_cast(found, dtype, "safe" if dtype is np.int64 else "same_kind"):
                raise DataError(f"{name} has the dtype {found}; it must be one that fits into {np.dtype(dtype)}")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which `check` refuses by name
            return {field.name: np.ascontiguousarray(getattr(self, field.name), _DTYPES[field.name]) for field in fields(self)}

    def copy(self) -> "RequestTensors":
        """The same values in memory of their own."""
        return RequestTensors(**{field.name: getattr(self, field.name).copy() for field in fields(self)})

    @classmethod
    def from_json(cls, features: Features, obj: Mapping[str, Any]) -> "RequestTensors":
        """The tensors of one request written with raw features by name (one line of a score file).

        History is cut to its last `history_length` events and padded on the left with id 0. A null dense value becomes the
        feature's `missing`, a null id 0.

        Raises:
            DataError: a feature is missing, unknown, NaN or of another type, or a candidate's id is not above 0; it is named.
        """
        if not isinstance(obj, Mapping):
            raise DataError(f"a request is a JSON object, found {type(obj).__name__}")
        request_level = (*features.user, *features.context)
        at = _time(obj.get("event_time"), "event_time")
        _refuse_unknown(obj, {feature.name for feature in request_level} | _NOT_RAW, "request")
        history, candidates = _objects(obj, "history"), _objects(obj, "candidates")
        length = features.history_length
        user_ids, user_dense = _columns(features.ids("user"), features.dense("user"), [obj], "request", None, at)
        hist_ids, hist_dense = _columns(
            features.ids("history"), features.dense("history"), history[max(0, len(history) - length) :], "history event", "event_time", at
        )
        cand_ids, cand_dense = _columns(features.ids("item"), features.dense("item"), candidates, "candidate", "published", at)
        item = [feature.name for feature in features.ids("item")].index("item_id")
        if (cand_ids[:, item] <= 0).any():
            row = int(np.flatnonzero(cand_ids[:, item] <= 0)[0])
            raise DataError(f"candidate {row} has item_id {cand_ids[row, item]}; ids are above 0")
        pad = length - len(hist_ids)
        return cls(
            user_ids[0],
            user_dense[0],
            np.pad(hist_ids, ((pad, 0), (0, 0))),
            np.pad(hist_dense, ((pad, 0), (0, 0))),
            cand_ids,
            cand_dense,
        )

    def check(self, features: Features) -> None:
        """Refuse tensors that do not fit the schema, and by column name NaN, infinite values and ids below 0.

        Raises:
            DataError: a dtype or shape differs from the schema's, candidate counts differ, a dense value is NaN or infinite,
                or an id is below 0.
        """
        arrays = self.arrays()
        length = features.history_length
        expected: dict[str, tuple[int | None, ...]] = {
            "user_ids": (len(features.ids("user")),),
            "user_dense": (len(features.dense("user")),),
            "hist_ids": (length, len(features.ids("history"))),
            "hist_dense": (length, len(features.dense("history"))),
            "cand_ids": (None, len(features.ids("item"))),
            "cand_dense": (self.candidates, len(features.dense("item"))),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
                wanted = ", ".join("N" if size is None else str(size) for size in shape)
                raise DataError(f"{name} has the shape {list(found)}, the schema of this version wants [{wanted}]")
        groups: tuple[tuple[str, Literal["user", "item", "history"]], ...] = (("user", "user"), ("hist", "history"), ("cand", "item"))
        for tensor, group in groups:
            dense, ids = arrays[f"{tensor}_dense"], arrays[f"{tensor}_ids"]
            if not np.isfinite(dense).all():
                column = int(np.argwhere(~np.isfinite(dense))[0][-1])
                values = dense[..., column]
                what = "NaN" if np.isnan(values).any() else "infinite"
                raise DataError(
                    f"feature {features.dense(group)[column].name!r} ({group}) is {what} in {int((~np.isfinite(values)).sum())} places; "
                    "leave a missing value out as null and its declared stand-in is used"
                )
            if (ids < 0).any():
                column = int(np.argwhere(ids < 0)[0][-1])
                lowest = int(ids[..., column].min())
                raise DataError(f"feature {features.ids(group)[column].name!r} ({group}) is {lowest}; ids are above 0, or 0 where missing")

    def repeated(self, candidates: int) -> "RequestTensors":
        """The same request with exactly `candidates` candidates: its own, repeated in turn. N must be above 0, or `candidates` 0."""
        rows = np.resize(np.arange(self.candidates), candidates)
        return self.with_candidates(self.cand_ids[rows], self.cand_dense[rows])

    def with_candidates(self, cand_ids: NDArray[np.int64], cand_dense: NDArray[np.float32]) -> "RequestTensors":
        """The same user with other candidates."""
        return RequestTensors(self.user_ids, self.user_dense, self.hist_ids, self.hist_dense, cand_ids, cand_dense)


_DTYPES: dict[str, type[np.generic]] = {name: np.int64 if name.endswith("_ids") else np.float32 for name in TENSORS}


def requested_k(obj: Mapping[str, Any]) -> int | None:
    """The request's own `k`, or None.

    Raises:
        DataError: it is not a whole number from 0 up.
    """
    return check_k(obj.get("k"))


def check_k(k: Any) -> int | None:
    """A number of candidates to route, or None for the version's own route.

    Raises:
        DataError: it is not a whole number from 0 up.
    """
    if k is None:
        return None
    if isinstance(k, bool | np.bool_) or not isinstance(k, int | np.integer) or not 0 <= k < _INT64:
        raise DataError(f"k is {k!r}; it must be a whole number from 0 up")
    return int(k)


def check_request_id(request_id: Any) -> int | None:
    """The id of a request in the logs, or None.

    Raises:
        DataError: it is not a whole number above 0.
    """
    if request_id is None:
        return None
    if isinstance(request_id, bool | np.bool_) or not isinstance(request_id, int | np.integer) or not 0 < request_id < _INT64:
        raise DataError(f"request_id is {request_id!r}; it must be a whole number above 0")
    return int(request_id)


def _refuse_unknown(obj: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(set(obj) - known):
        raise DataError(f"unknown feature {unknown[0]!r} in a {what}; known: {', '.join(sorted(known))}")


def _objects(obj: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    value = obj.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise DataError(f"{name!r} must be a list of JSON objects, found {str(value)[:40]!r}")
    return value


def _columns(
    ids: Sequence[Feature],
    dense: Sequence[Feature],
    rows: Sequence[Mapping[str, Any]],
    what: str,
    since: str | None,
    at: dt.datetime | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids I64[R, len(ids)] and dense F32[R, len(dense)] of rows; `since` names the time from which age_hours counts."""
    known = {feature.name for feature in (*ids, *dense)} | ({since} if since else set())
    id_array, dense_array = np.zeros((len(rows), len(ids)), np.int64), np.zeros((len(rows), len(dense)), np.float32)
    for row, obj in enumerate(rows):
        if since:
            _refuse_unknown(obj, known, what)
        for column, feature in enumerate(ids):
            id_array[row, column] = _whole(obj, feature, what)
        for column, feature in enumerate(dense):
            if since and feature.name == "age_hours" and feature.name not in obj:
                dense_array[row, column] = _age_hours(obj, feature, since, at, what)
            else:
                dense_array[row, column] = _number(obj, feature, what)
    return id_array, dense_array


def _whole(obj: Mapping[str, Any], feature: Feature, what: str) -> int:
    if feature.name not in obj:
        raise DataError(f"feature {feature.name!r} is missing in a {what}")
    value = obj[feature.name]
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _INT64:
        raise DataError(f"feature {feature.name!r} of a {what} is {value!r}; an {feature.type} is a whole number above 0, or null")
    return value


def _number(obj: Mapping[str, Any], feature: Feature, what: str) -> float:
    if feature.name not in obj:
        raise DataError(f"feature {feature.name!r} is missing in a {what}")
    value = obj[feature.name]
    if value is None:
        return feature.missing
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _FLOAT32_MAX:  # NaN is below nothing
        raise DataError(f"feature {feature.name!r} of a {what} is {value!r}; it must be a finite number, or null where it is missing")
    return float(value)


def _age_hours(obj: Mapping[str, Any], feature: Feature, since: str, at: dt.datetime | None, what: str) -> float:
    if since not in obj or at is None:
        raise DataError(f"a {what} needs age_hours, or {since!r} here and event_time in the request")
    begun = _time(obj[since], since)
    return feature.missing if begun is None else float(age_hours(math.floor(at.timestamp()), math.floor(begun.timestamp())))


def _time(value: Any, name: str) -> dt.datetime | None:
    if value is None:
        return None
    try:
        found = dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise DataError(f"{name} is {value!r}; write a UTC time such as 2026-01-31T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)
