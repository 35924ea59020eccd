"""The columns of the four log tables: what is fixed, and what params.yaml declares."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from hap.errors import ConfigError, UsageError
from hap.params import Feature, Features

TABLES = ("requests", "candidates", "feedback", "items")
STAGES = ("prerank", "rank", "rerank", "exposure")  # in the order a candidate passes them
KEYS = {
    "requests": ("request_id",),
    "candidates": ("request_id", "item_id"),
    "feedback": ("request_id", "item_id"),
    "items": ("item_id",),
}
TIME = pa.timestamp("us", tz="UTC")
OPTIONAL = {"candidates": tuple(pa.field(f"{stage}_score", pa.float64()) for stage in STAGES[:-1])}  # there or not in all files of a day


def table_schema(table: str, features: Features) -> pa.Schema:
    """The columns of one table in order; a field that is not nullable admits no null.

    Raises:
        UsageError: there is no such table.
    """
    head = [_required("event_time", TIME), _required("ingest_time", TIME)]
    if table == "requests":
        ids = [_required("request_id", pa.int64()), *head]
        history = [_required(f"hist_{f.name}", pa.list_(_feature_type(f))) for f in logged(features.history)]
        times = [_required("hist_event_time", pa.list_(TIME))]
        return pa.schema([*ids, *(_feature_field(f) for f in features.user + features.context), *times, *history])
    if table == "candidates":
        ids = [_required("request_id", pa.int64()), _required("item_id", pa.int64()), *head]
        positions = [pa.field(f"{stage}_position", pa.int32()) for stage in STAGES]
        return pa.schema([*ids, _required("stage", pa.string()), *positions])
    if table == "feedback":
        ids = [_required("request_id", pa.int64()), _required("item_id", pa.int64()), *head]
        signals = [_required(name, pa.bool_()) for name in ("click", "like", "share")]
        return pa.schema([*ids, signals[0], pa.field("dwell_ms", pa.int64()), *signals[1:]])
    if table == "items":
        ids = [_required("item_id", pa.int64()), *head, _required("published", TIME)]
        return pa.schema([*ids, *(_feature_field(f) for f in logged(features.item) if f.name != "item_id")])
    raise UsageError(f"{table!r} is not a log table; the tables are {', '.join(TABLES)}")


def logged(features: tuple[Feature, ...]) -> tuple[Feature, ...]:
    """The features that stand in the logs: ages are computed later, from the times that are logged."""
    return tuple(feature for feature in features if feature.name != "age_hours")


def check_declared(
    features: Features, request: Sequence[str], item: Sequence[str], history: Sequence[str], source: str, hint: str = ""
) -> None:
    """Refuse declared features that a source of logs does not have.

    Raises:
        ConfigError: the first one, with what the source has.
    """
    for group, declared, known in (
        ("user or context", features.user + features.context, request),
        ("item", features.item, item),
        ("history", features.history, history),
    ):
        if unknown := [feature.name for feature in logged(declared) if feature.name not in known]:
            said = f"params.yaml declares the {group} feature {unknown[0]!r}, which {source} does not have: it has {', '.join(known)}{hint}"
            raise ConfigError(said)


def file_schema(table: str, features: Features, found: Iterable[str]) -> pa.Schema:
    """`table_schema` and those of the table's optional columns that are among `found`."""
    names = set(found)
    schema = table_schema(table, features)
    for field in OPTIONAL.get(table, ()):
        if field.name in names:
            schema = schema.append(field)
    return schema


def _required(name: str, dtype: pa.DataType) -> pa.Field:
    return pa.field(name, dtype, nullable=False)


def _feature_type(feature: Feature) -> pa.DataType:
    return pa.float64() if feature.type == "dense" else pa.int64()


def _feature_field(feature: Feature) -> pa.Field:
    return pa.field(feature.name, _feature_type(feature), nullable=feature.type == "dense")
