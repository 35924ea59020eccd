"""The rules of the log contract that one row can break, as SQL conditions."""

import datetime as dt
from dataclasses import dataclass

import pyarrow as pa

from hap.days import start_of
from hap.logs.schema import STAGES, logged
from hap.logs.sql import quoted
from hap.params import Features, Params

_LARGEST = "3.4028234663852886e38"  # of float32, as samples hold values: what is larger is infinite there


@dataclass(frozen=True)
class Rule:
    """`broken` is a SQL condition that holds on a bad row; `shows` are the columns worth printing beside the key."""

    name: str
    broken: str
    shows: tuple[str, ...]


def row_rules(table: str, schema: pa.Schema, day: dt.date, params: Params) -> list[Rule]:
    """The rules of one table's partition; a row that breaks several is counted under the first."""
    first = f"TIMESTAMPTZ '{start_of(day)}'"
    end = f"TIMESTAMPTZ '{start_of(day + dt.timedelta(days=1))}'"
    rules = [rule for field in schema for rule in _column_rules(field)]
    rules += [
        Rule(f"event_time outside its day {day}", f"event_time < {first} OR event_time >= {end}", ("event_time",)),
        Rule("ingest_time before event_time", "ingest_time < event_time", ("event_time", "ingest_time")),
    ]
    rules += _category_rules(table, params.features)
    if table == "requests":
        lists = [name for name in schema.names if name.startswith("hist_") and pa.types.is_list(schema.field(name).type)]
        rules += [
            Rule(f"{name} not as long as hist_event_time", f"len({quoted(name)}) <> len(hist_event_time)", (name,))
            for name in lists
            if name != "hist_event_time"
        ]
        rules += [
            Rule("history after the request", "list_max(hist_event_time) > event_time", ("event_time", "hist_event_time")),
            Rule("history not most recent last", "hist_event_time <> list_sort(hist_event_time)", ("hist_event_time",)),
        ]
    if table == "candidates":
        rules += _stage_rules(params.logs.complete)
    if table == "items":
        rules.append(Rule(f"published after the day {day}", f"published >= {end}", ("published",)))
    return rules


def _column_rules(field: pa.Field) -> list[Rule]:
    name, column, shows = field.name, quoted(field.name), (field.name,)
    rules = [] if field.nullable else [Rule(f"null in {name}", f"{column} IS NULL", ())]
    values = field.type.value_type if pa.types.is_list(field.type) else field.type
    if pa.types.is_list(field.type):
        rules.append(Rule(f"null inside {name}", f"list_count({column}) <> len({column})", shows))
        low, size, total = f"list_min({column})", f"greatest(-list_min({column}), list_max({column}))", f"list_sum({column})"
    else:
        low, size, total = column, f"abs({column})", column
    if pa.types.is_floating(values):
        rules.append(Rule(f"NaN or infinite value in {name}", f"NOT (isfinite({total}) AND {size} <= {_LARGEST})", shows))
    elif pa.types.is_int64(values) and name != "dwell_ms":
        rules.append(Rule(f"id 0 or negative in {name}", f"{low} <= 0", shows))
    elif name == "dwell_ms":
        rules.append(Rule("negative dwell_ms", f"{column} < 0", shows))
    return rules


def _category_rules(table: str, features: Features) -> list[Rule]:
    """Values beyond what a category's `known` admits; those below 1 break another rule."""
    if table == "requests":
        declared = [(f, f.name, quoted(f.name)) for f in features.user + features.context]
        declared += [(f, f"hist_{f.name}", f"list_max({quoted(f'hist_{f.name}')})") for f in logged(features.history)]
    elif table == "items":
        declared = [(f, f.name, quoted(f.name)) for f in logged(features.item)]
    else:
        declared = []
    return [
        Rule(f"unknown category in {name} (known: 1 to {feature.known})", f"{value} > {feature.known}", (name,))
        for feature, name, value in declared
        if feature.known is not None
    ]


def _stage_rules(complete: bool) -> list[Rule]:
    listed = ", ".join(f"'{stage}'" for stage in STAGES)
    rules = [Rule(f"stage not one of {', '.join(STAGES)}", f"stage NOT IN ({listed})", ("stage",))]
    for place, stage in enumerate(STAGES):
        name, reached = f"{stage}_position", ", ".join(f"'{s}'" for s in STAGES[place:])
        rules.append(Rule(f"{name} below 1", f"{name} < 1", ("stage", name)))
        rules.append(Rule(f"{name} in a stage not reached", f"{name} IS NOT NULL AND stage NOT IN ({reached})", ("stage", name)))
        if complete:
            rules.append(Rule(f"{name} missing in a stage reached", f"{name} IS NULL AND stage IN ({reached})", ("stage", name)))
    return rules
