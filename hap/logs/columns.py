"""The columns of log files compared with the contract, from the files' footers alone."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hap.errors import DataError
from hap.logs.schema import file_schema
from hap.logs.sql import unreadable
from hap.logs.storage import open_file
from hap.params import Params


def check_columns(table: str, paths: Sequence[str], params: Params) -> pa.Schema:
    """Compare names and types with the contract, file by file and between the files, from the footers alone.

    Raises:
        DataError: a file is unreadable, or its columns differ.
    """
    schemas = []
    for path in paths:
        try:
            with open_file(path) as file:
                schemas.append(pq.read_schema(file))
        except (pa.ArrowException, OSError) as error:
            raise unreadable(path, error) from None
    for path, found in zip(paths, schemas, strict=True):
        _check_schema(path, found, file_schema(table, params.features, found.names))
    for path, found in zip(paths, schemas, strict=True):
        if differs := sorted(set(found.names) ^ set(schemas[0].names)):
            here, there = (path, paths[0]) if differs[0] in found.names else (paths[0], path)
            raise DataError(
                f"{path}: files of one day with different schemas: {len(differs)} column(s) ({', '.join(differs)}) differ from {paths[0]}; "
                f"{differs[0]} stands in {Path(here).name} and not in {Path(there).name}; write all files of the day alike"
            )
    return file_schema(table, params.features, schemas[0].names)


def _check_schema(path: str, found: pa.Schema, schema: pa.Schema) -> None:
    if missing := [name for name in schema.names if name not in found.names]:
        raise DataError(
            f"{path}: missing column: {len(missing)} of {len(schema.names)} ({', '.join(missing)}); "
            f"found {', '.join(found.names)}; write the day with it, or change `features` in params.yaml"
        )
    if extra := [name for name in found.names if name not in schema.names]:
        raise DataError(
            f"{path}: extra column: {len(extra)} ({', '.join(extra)}) not declared in `features` of params.yaml; declare it or leave it out"
        )
    if twice := sorted({name for name in found.names if found.names.count(name) > 1}):
        raise DataError(f"{path}: repeated column: {len(twice)} ({', '.join(twice)}); write the day with each column once")
    wrong = [f"{f.name} is {found.field(f.name).type}, not {f.type}" for f in schema if _plain(found.field(f.name).type) != _plain(f.type)]
    if wrong:
        raise DataError(f"{path}: wrong dtype: {len(wrong)} column(s): {'; '.join(wrong)}; write the day with the contract's types")


def _plain(dtype: pa.DataType) -> str:
    """A type's name without what only says how it was stored (large offsets, dictionaries, names of list elements)."""
    if pa.types.is_dictionary(dtype):
        return _plain(dtype.value_type)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return f"list<{_plain(dtype.value_type)}>"
    return "string" if pa.types.is_large_string(dtype) else str(dtype)
