"""How often exposures were clicked, and when their feedback came: counted from samples and feedback logs in DuckDB.

Samples hold every exposure of a request that came in time, clicked (EP) or not (EN), with its position and the item's
categories. Feedback rows and their delays come from the logs, as far as a day was collected: what was ingested later counts
for nobody.
"""

import datetime as dt
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hap.days import feedback_days
from hap.errors import DataError
from hap.logs.columns import check_columns
from hap.logs.sql import file_errors, quoted, scan, text
from hap.logs.storage import unfinished_paths
from hap.monitoring.volumes import held, samples_scan, user_of
from hap.params import KINDS, Features, Params
from hap.samples import partitions
from hap.workspace import Workspace

if TYPE_CHECKING:
    import duckdb

EP, EN = KINDS.index("EP"), KINDS.index("EN")
LEVELS = 20  # values of a category that are shown, the most exposed ones; all others are one
OTHER = "other"
DELAY_STEPS = 50  # buckets of the logarithm of a delay: each is 2% wide


@dataclass(frozen=True)
class Rate:
    """Clicks (or feedback) over exposures, with users as the independent units.

    `cc`, `ce` and `ee` are sums over users of clicks squared, clicks times exposures, exposures squared.
    """

    exposures: float = 0.0
    clicks: float = 0.0
    cc: float = 0.0
    ce: float = 0.0
    ee: float = 0.0

    @property
    def rate(self) -> float:
        """Clicks per exposure; 0 where nothing was exposed."""
        return self.clicks / self.exposures if self.exposures else 0.0

    @property
    def variance(self) -> float:
        """Of the rate: a ratio of sums over users, linearized (Cochran, Sampling Techniques, 3rd ed., section 6.3).

        Never below that of independent clicks, which users of one exposure each have.
        """
        if not self.exposures:
            return 0.0
        spread = self.cc - 2 * self.rate * self.ce + self.rate**2 * self.ee
        return max(spread, self.clicks * (1 - min(self.rate, 1.0))) / self.exposures**2

    @property
    def crowding(self) -> float:
        """How much more a count of clicks varies than if clicks were independent; at least 1."""
        return max(self.variance * self.exposures**2 / self.clicks, 1.0) if self.clicks else 1.0


@dataclass(frozen=True)
class Side:
    """Exposures of one day, or of all reference days together.

    `feedback` counts feedback rows of whatever kind by the hour of their request, and `delays` clicks by `bucket_of` the
    seconds from request to ingestion: of the days whose feedback logs are still there, None where no day has them.
    """

    days: tuple[dt.date, ...]
    overall: Rate
    hours: Mapping[int, Rate]
    groups: Mapping[str, Mapping[str, Rate]]  # column of samples -> value -> rate; cand_position is among them
    feedback: Mapping[int, Rate] | None
    delays: Mapping[int, int] | None
    notes: tuple[str, ...] = ()  # which feedback could not be read, and why


def bucket_of(seconds: float) -> int:
    """The place of a delay in `Side.delays`."""
    return math.floor(DELAY_STEPS * math.log1p(max(seconds, 0.0)))


def seconds_of(bucket: int) -> float:
    """The middle of a bucket."""
    return math.expm1((bucket + 0.5) / DELAY_STEPS)


def measure(
    con: "duckdb.DuckDBPyConnection", ws: Workspace, params: Params, days: Sequence[dt.date], without_hours: Collection[int] = ()
) -> Side:
    """Count closed days together.

    Args:
        without_hours: UTC hours whose requests are left out; feedback is not read then.

    Raises:
        NotFound: a day was not collected.
    """
    files = partitions.parquet_files(ws, list(days))
    _requests(con, files, params.features, without_hours)
    overall = _rates(con, "SELECT 'all' AS value, who, e, c FROM requests")
    hours = _rates(con, "SELECT hour AS value, who, e, c FROM requests")
    read, notes = ([], []) if without_hours else _feedback(con, ws, params, days)
    feedback, delays = _feedback_of(con) if read else (None, None)
    return Side(
        days=tuple(days),
        overall=overall.get("all", Rate()),
        hours={int(hour): rate for hour, rate in hours.items()},
        groups=_groups(con, files, params.features, without_hours),
        feedback=feedback,
        delays=delays,
        notes=tuple(notes),
    )


def _requests(con: "duckdb.DuckDBPyConnection", files: Sequence[Path], features: Features, without_hours: Collection[int]) -> None:
    """The table `requests`, which spills where it is large: day, request_id, who, hour, at_us, e exposures, c clicks."""
    source = samples_scan(files)
    who = user_of(features) if user_of(features) in held(con, files) else "request_id"
    count = "CAST(len(list_filter(cand_kind, lambda k: k = {})) AS DOUBLE)"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE requests AS SELECT CAST(event_time AS DATE) AS day, request_id, {quoted(who)} AS who, "
        f"hour(event_time) AS hour, epoch_us(event_time) AS at_us, {count.format(EP)} AS c, {count.format(EP)} + {count.format(EN)} AS e "
        f"FROM {source} WHERE {_hours_left('event_time', without_hours)}"
    )


def _hours_left(time: str, without: Collection[int]) -> str:
    return f"hour({time}) NOT IN ({', '.join(map(str, sorted(without)))})" if without else "true"


def _rates(con: "duckdb.DuckDBPyConnection", rows: str) -> dict[str, Rate]:
    """Rates by value of rows (value, who, e, c)."""
    by_user = f"SELECT value, who, sum(e) AS e, sum(c) AS c FROM ({rows}) WHERE e > 0 GROUP BY value, who"
    sql = f"SELECT CAST(value AS VARCHAR), sum(e), sum(c), sum(c * c), sum(c * e), sum(e * e) FROM ({by_user}) GROUP BY value ORDER BY 1"
    return {value: Rate(*sums) for value, *sums in con.execute(sql).fetchall()}


def _groups(
    con: "duckdb.DuckDBPyConnection", files: Sequence[Path], features: Features, without_hours: Collection[int]
) -> dict[str, dict[str, Rate]]:
    """Rates by position, and by value of each declared category of items."""
    there = held(con, files)
    who = user_of(features) if user_of(features) in there else "request_id"
    named = ["cand_position", *(f"cand_{feature.name}" for feature in features.item if feature.type == "category")]
    found = {}
    for column in named:
        if column not in there:
            continue
        rows = (
            f"SELECT * FROM (SELECT {quoted(who)} AS who, unnest(cand_kind) AS kind, unnest({quoted(column)}) AS value "
            f"FROM {samples_scan(files)} WHERE {_hours_left('event_time', without_hours)}) WHERE kind IN ({EP}, {EN}) AND value IS NOT NULL"
        )
        found[column] = _rates(con, f"SELECT value, who, 1 AS e, CAST(kind = {EP} AS INT) AS c FROM ({rows})")
    return found


def _feedback_of(con: "duckdb.DuckDBPyConnection") -> tuple[dict[int, Rate], dict[int, int]]:
    """Feedback by hour, and clicks by bucket of their delay."""
    joined = (
        "(SELECT * FROM requests SEMI JOIN (SELECT DISTINCT day FROM feedback) USING (day)) r LEFT JOIN feedback f USING (day, request_id)"
    )
    hours = _rates(con, f"SELECT r.hour AS value, r.who AS who, r.e AS e, coalesce(f.rows, 0) AS c FROM {joined}")
    delays = con.execute(
        f"SELECT floor({DELAY_STEPS} * ln(1 + greatest(delay_us, 0) / 1e6)), count(*) FROM "
        "(SELECT unnest(clicked) - at_us AS delay_us FROM requests JOIN feedback USING (day, request_id)) GROUP BY 1"
    ).fetchall()
    return {int(hour): rate for hour, rate in hours.items()}, {int(bucket): int(count) for bucket, count in delays}


def _feedback_files(ws: Workspace, params: Params, day: dt.date) -> list[str]:
    """The feedback that can hold labels of the day; none where its own partition is gone."""
    root, (own, *later) = ws.logs(params), feedback_days(day, params.collect.label_delay_hours)
    first = unfinished_paths(root, "feedback", own)
    return [*first, *(path for one in later for path in unfinished_paths(root, "feedback", one))] if first else []


def _feedback(con: "duckdb.DuckDBPyConnection", ws: Workspace, params: Params, days: Sequence[dt.date]) -> tuple[list[dt.date], list[str]]:
    """Fill the table `feedback`: day, request_id, rows of feedback, and when each click was ingested (microseconds).

    Returns:
        The days that were read, and why others were not.
    """
    con.execute("CREATE OR REPLACE TEMP TABLE feedback (day DATE, request_id BIGINT, rows DOUBLE, clicked BIGINT[])")
    read, notes = [], []
    for day in days:
        as_of = dt.datetime.fromisoformat(partitions.load(ws, day).as_of)
        try:
            if not (paths := _feedback_files(ws, params, day)):
                continue
            check_columns("feedback", paths, params)
            with file_errors(paths[0]):
                con.execute(
                    f"INSERT INTO feedback SELECT DATE '{day}', f.request_id, count(*), "
                    f"list(epoch_us(f.ingest_time)) FILTER (WHERE f.{quoted(params.logs.positive)}) FROM {scan(paths)} f "
                    f"SEMI JOIN (SELECT request_id FROM requests WHERE day = DATE '{day}') r ON f.request_id = r.request_id "
                    f"WHERE f.ingest_time <= TIMESTAMPTZ {text(str(as_of))} GROUP BY f.request_id"
                )
        except DataError as error:
            notes.append(f"the feedback of {day} is passed over: {error}")
        else:
            read.append(day)
    return read, notes
