"""Requests looked up in the logs by their ids: when they were made, and all that was logged of them, as samples have it.

Whether a row came in time is not asked, and the contract is not checked: what serving saw is compared with what lies there.
"""

import datetime as dt
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hap.errors import DataError
from hap.logs import contract
from hap.logs.sql import connect, file_errors, scan, unreadable
from hap.params import Feature, Features, Params
from hap.samples import engines
from hap.samples.expression import logged_table
from hap.workspace import Workspace

_NEEDED = {
    "requests": ("request_id", "event_time", "hist_event_time"),
    "candidates": ("request_id", "item_id"),
    "items": ("item_id", "published"),
}


def request_times(ws: Workspace, params: Params, days: Sequence[dt.date], ids: NDArray[np.int64]) -> pa.Table:
    """day, request_id and event_time of those requests that are logged on one of the days, by request_id.

    Days without logs are passed over.

    Raises:
        DataError: a file of theirs cannot be read, or lacks these columns.
    """
    found = [pa.schema([("day", pa.date32()), ("request_id", pa.int64()), ("event_time", contract.TIME)]).empty_table()]
    root = ws.logs(params)
    with connect(params) as con:
        con.register("wanted", pa.table({"request_id": ids}))
        for day in days:
            if not contract.has_day(root, "requests", day):
                continue
            paths = contract.read_paths(root, "requests", day)
            _present(params.features, _schemas({"requests": paths}))
            columns = f"DATE '{day}' AS day, request_id, event_time"
            sql = f"SELECT {columns} FROM {scan(paths)} SEMI JOIN wanted USING (request_id) ORDER BY request_id"
            with file_errors(paths[0]):
                found.append(con.sql(sql).to_arrow_table().cast(found[0].schema))
    return pa.concat_tables(found)


def write_logged(ws: Workspace, params: Params, day: dt.date, ids: NDArray[np.int64], path: Path) -> dict[str, str]:
    """Write those requests of the day that have candidates, with all of them and with features as samples have them.

    Beside `path`, a scratch folder is made and removed. Rows are sorted by request_id, in small row groups.

    Returns:
        Declared columns that the day's logs do not have, or have as another type, by their names in samples, with why.

    Raises:
        DataError: no logs for the day, a file that cannot be read, or one without the columns that every table has.
    """
    paths = {name: contract.read_paths(ws.logs(params), name, day) for name in _NEEDED}
    features, gone = _present(params.features, _schemas(paths))
    readable = params.model_copy(
        update={"features": features, "collect": params.collect.model_copy(update={"engine": "duckdb"})},
    )
    scratch = path.with_name(f".{path.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    pq.write_table(pa.table({"request_id": ids}), scratch / "wanted.parquet")
    con = engines.connect(readable, scratch)
    try:
        with file_errors(paths["candidates"][0]):
            tables = {name: engines.read_parquet(con, files, name) for name, files in paths.items()}
            wanted = engines.read_parquet(con, [str(scratch / "wanted.parquet")], "wanted")
            of_them = {name: tables[name].semi_join(wanted, "request_id") for name in ("requests", "candidates")}
            rows = params.collect.row_group_requests
            reader = engines.batches(con, logged_table(of_them["requests"], of_them["candidates"], tables["items"], readable), rows)
            with pq.ParquetWriter(path, reader.schema, compression="lz4") as writer:
                for batch in reader:
                    writer.write_batch(batch, row_group_size=rows)
    except ibis.common.exceptions.IbisError as error:
        raise DataError(f"the logs of {day} cannot be put together: {str(error).splitlines()[0]}") from None
    finally:
        engines.disconnect(con)
        shutil.rmtree(scratch, ignore_errors=True)
    return gone


def _schemas(paths: Mapping[str, Sequence[str]]) -> dict[str, list[pa.Schema]]:
    found: dict[str, list[pa.Schema]] = {}
    for name, files in paths.items():
        for path in files:
            try:
                with contract.open_file(path) as handle:
                    schema = pq.read_schema(handle)
            except (pa.ArrowException, OSError) as error:
                raise unreadable(path, error) from None
            if lacking := [column for column in _NEEDED[name] if column not in schema.names]:
                raise DataError(f"{path}: missing column: {', '.join(lacking)}; write the day with the contract's columns")
            found.setdefault(name, []).append(schema)
    return found


def _present(features: Features, schemas: Mapping[str, Sequence[pa.Schema]]) -> tuple[Features, dict[str, str]]:
    """The features whose columns every file has in their type, and why the others are none of them."""
    gone: dict[str, str] = {}

    def keep(declared: tuple[Feature, ...], table: str, stored: str, shown: str) -> tuple[Feature, ...]:
        kept = []
        for feature in declared:
            fixed = feature.name == "age_hours" or (table == "items" and feature.name == "item_id")
            why = None if fixed else _why_not(feature, f"{stored}{feature.name}", schemas.get(table, ()), table)
            if why:
                gone[f"{shown}{feature.name}"] = why
            else:
                kept.append(feature)
        return tuple(kept)

    changed = {
        "user": keep(features.user, "requests", "", ""),
        "context": keep(features.context, "requests", "", ""),
        "history": keep(features.history, "requests", "hist_", "hist_"),
        "item": keep(features.item, "items", "", "cand_"),
    }
    return features.model_copy(update=changed), gone


def _why_not(feature: Feature, column: str, schemas: Sequence[pa.Schema], table: str) -> str | None:
    for schema in schemas:
        if column not in schema.names:
            return f"the table {table} has no such column"
        found = schema.field(column).type
        if pa.types.is_list(found) or pa.types.is_large_list(found):
            found = found.value_type
        fits = pa.types.is_floating if feature.type == "dense" else pa.types.is_integer
        if not fits(found):
            return f"the table {table} has it as {found}, and it is declared as {feature.type}"
    return None
