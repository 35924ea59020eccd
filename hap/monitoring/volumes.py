"""How much came on a day, counted from its samples in DuckDB: requests by hour, late ones, candidates, missing values, unseen ids.

Samples hold each request that came in time, with few of its candidates; the manifest counts all of those. Late requests lie
beside the samples (hap/samples/late.py) and are counted by the hour that they were made in.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hap.logs.side import side_tables
from hap.logs.sql import quoted, text
from hap.logs.storage import day_folder
from hap.params import KINDS, Feature, Features
from hap.samples import partitions
from hap.workspace import Workspace

if TYPE_CHECKING:
    import duckdb

HOURS = 24
GN = KINDS.index("GN")


@dataclass(frozen=True)
class Volume:
    """What came on one day.

    `crowding` is the sum of squared requests by user over all requests: for how many requests one user's coming or staying
    away stands; 1 where nobody comes twice. `hour_crowding` is the same with each hour of a user on its own. `candidates` is
    their mean number in a request; None where nothing came.
    """

    day: dt.date
    hours: tuple[int, ...]  # requests that came in time, by UTC hour
    late: tuple[int, ...]  # requests that did not
    crowding: float
    hour_crowding: float
    candidates: float | None

    @property
    def requests(self) -> int:
        """In time and late."""
        return sum(self.hours) + sum(self.late)


def user_of(features: Features) -> str:
    """The column that names a request's user; the request itself where no feature does."""
    return next((feature.name for feature in features.user if feature.type == "id"), "request_id")


def samples_scan(files: Sequence[Path]) -> str:
    """A FROM item over sample files, which may have different columns."""
    return f"read_parquet([{', '.join(text(str(file)) for file in files)}], union_by_name = true, hive_partitioning = false)"


def held(con: "duckdb.DuckDBPyConnection", files: Sequence[Path]) -> set[str]:
    """The columns that any of the files has."""
    return {row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {samples_scan(files)}").fetchall()}


def volume_of(con: "duckdb.DuckDBPyConnection", ws: Workspace, day: dt.date, features: Features) -> Volume:
    """Count a closed day.

    Raises:
        NotFound: the day was not collected.
    """
    manifest, files = partitions.load(ws, day), partitions.parquet_files(ws, [day])
    source, user = samples_scan(files), user_of(features)
    user = user if user in held(con, files) else "request_id"
    hours = _by_hour(con, f"SELECT event_time FROM {source}")
    squares = [
        con.execute(f"SELECT coalesce(sum(n * n), 0) FROM (SELECT count(*) AS n FROM {source} GROUP BY {by})").fetchall()[0][0]
        for by in (quoted(user), f"{quoted(user)}, hour(event_time)")
    ]
    late = (0,) * HOURS
    if "requests" in side_tables(ws.late, day):
        aside = text(f"{day_folder(ws.late, 'requests', day)}/part-0.parquet")
        # A file that was written again after closing is late as a whole, also what was collected from it.
        late = _by_hour(con, f"SELECT event_time FROM read_parquet({aside}) ANTI JOIN (SELECT request_id FROM {source}) USING (request_id)")
    requests = sum(hours)
    logged = sum(manifest.logged.values())
    counted = manifest.requests + manifest.requests_torn + manifest.late.get("requests", 0)
    crowding, hour_crowding = (float(square) / max(requests, 1) for square in squares)
    return Volume(day, hours, late, crowding, hour_crowding, logged / counted if counted and logged else None)


def _by_hour(con: "duckdb.DuckDBPyConnection", sql: str) -> tuple[int, ...]:
    counts = dict(con.execute(f"SELECT hour(event_time), count(*) FROM ({sql}) GROUP BY 1").fetchall())
    return tuple(int(counts.get(hour, 0)) for hour in range(HOURS))


def null_shares(con: "duckdb.DuckDBPyConnection", files: Sequence[Path], features: Features) -> dict[str, float]:
    """Share of missing values of each declared column that the files have: of requests, or of candidates that were not drawn by us."""
    there, scan = held(con, files), samples_scan(files)
    requests = {f.name: f for f in (*features.user, *features.context) if f.name in there}
    candidates = {f"cand_{f.name}": f for f in features.item if f"cand_{f.name}" in there}
    lists = ", ".join(f"unnest({quoted(name)}) AS {quoted(name)}" for name in ("cand_kind", *candidates))
    found: dict[str, float] = {}
    for columns, source in ((requests, scan), (candidates, f"(SELECT * FROM (SELECT {lists} FROM {scan}) WHERE cand_kind <> {GN})")):
        if columns:
            counts = ", ".join(f"count_if({_is_null(quoted(name), feature)})" for name, feature in columns.items())
            rows, *nulls = con.execute(f"SELECT count(*), {counts} FROM {source}").fetchone() or (0,)
            found |= {name: int(count) / rows for name, count in zip(columns, nulls, strict=False) if rows}
    return found


def _is_null(column: str, feature: Feature) -> str:
    return f"{column} IS NULL OR isnan(CAST({column} AS DOUBLE))" if feature.type == "dense" else f"coalesce({column}, 0) = 0"


def unseen_shares(con: "duckdb.DuckDBPyConnection", files: Sequence[Path], earlier: Sequence[Path], features: Features) -> dict[str, float]:
    """Share of rows whose id stands nowhere in the earlier files, of each id column that both have."""
    if not earlier:
        return {}
    there, found = held(con, files) & held(con, earlier), {}
    columns = [(f.name, f) for f in (*features.user, *features.context)] + [(f"cand_{f.name}", f) for f in features.item]
    for name, feature in columns:
        if feature.type != "id" or name not in there:
            continue
        now, before = (_ids(name, samples_scan(side)) for side in (files, earlier))
        sql = f"SELECT count(*), count_if(s.id IS NULL) FROM ({now}) n LEFT JOIN (SELECT DISTINCT id FROM ({before})) s USING (id)"
        rows, unseen = con.execute(sql).fetchone() or (0, 0)
        if rows:
            found[name] = int(unseen) / int(rows)
    return found


def _ids(name: str, scan: str) -> str:
    if not name.startswith("cand_"):
        return f"SELECT {quoted(name)} AS id FROM {scan}"
    return f"SELECT id FROM (SELECT unnest(cand_kind) AS kind, unnest({quoted(name)}) AS id FROM {scan}) WHERE kind <> {GN}"
