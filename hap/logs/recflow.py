"""RecFlow (Kuaishou's full-funnel data set, github RecFlow-ICLR/RecFlow) into the log contract, a day at a time.

What is read: `all_stage/DAY.feather` and `realshow/DAY.feather` (rows, merged by request and video),
`seq_effective_50_dict/DAY.pkl` (histories) and `others/realshow_video_info_daily/DAY.feather` (videos exposed
so far). `request_id_dict` and `ubm_seq_request_id_dict` hold the same rows once more, by request;
`others/realshow_video_info.feather` spans the whole period, so it would show the future to an early day.

Differences from its README and how they are met: ids and categories begin at 0 and become 1-based; request
times are ms and upload times s; positions of 0 mean "not in this stage" and become null. A row is put into
the partition of its own UTC day, whatever the name of its file: a UTC day is written once a file begins after it,
so files that hold local days come out right too.

items(D) are the videos seen before the end of D: candidates of any stage, and what the daily lists say was exposed.
"""

import collections
import contextlib
import datetime as dt
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy._core import multiarray, numeric  # where pickled arrays are put together; np.load has no reader for RecFlow's dicts

from hap.days import parse_day, start_of
from hap.errors import DataError, NotFound
from hap.logs import contract
from hap.params import Features, Params
from hap.workspace import Workspace

if TYPE_CHECKING:
    import duckdb

RECFLOW_PARAMS = """\
# Parameters of a workspace that holds RecFlow. People edit this file; no command does, once it exists.
# What is not named here has its default in hap/params.py; an unknown key is refused.
seed: 1

# RecFlow's own columns under their own names (video_id is item_id), each id and category one higher than there.
# `hour` and `weekday` are those of the request in UTC.
features:
  user:
    - {name: user_id, type: id, rows: 50000}
    - {name: device_id, type: id, rows: 50000}
    - {name: age, type: category, rows: 256}
    - {name: gender, type: category, rows: 16}
    - {name: province, type: category, rows: 256}
  context:
    - {name: hour, type: category, rows: 64}
    - {name: weekday, type: category, rows: 32}
  item:
    - {name: item_id, type: id, rows: 100000}      # the whole data set has millions of videos: raise it there
    - {name: author_id, type: id, rows: 50000}
    - {name: category_level_one, type: category, rows: 64}
    - {name: category_level_two, type: category, rows: 512}
    - {name: upload_type, type: category, rows: 128}
    - {name: duration_ms, type: dense, scale: log}
    - {name: age_hours, type: dense, scale: log}
  history:
    - {name: item_id, type: id, rows: 100000}
    - {name: author_id, type: id, rows: 50000}
    - {name: category_level_one, type: category, rows: 64}
    - {name: category_level_two, type: category, rows: 512}
    - {name: upload_type, type: category, rows: 128}
    - {name: duration_ms, type: dense, scale: log}
    - {name: age_hours, type: dense, scale: log}
  history_length: 50    # what seq_effective_50_dict keeps

logs:
  path: logs
  complete: false       # RecFlow keeps a sample of every stage, and no pre-ranking position
  positive: click       # its effective_view: at least 30% of the video was watched

collect:
  label_delay_hours: 2
  rank: {below: 0, count: null, edges: [50]}         # the log is itself a sample: take all of it
  prerank: {below: 0, count: null, edges: [200]}
  global_per_positive: 2

train:
  days: 35              # all days before the judging one, as in RecFlow's own experiments
  epochs: 8

route: {share: 0.3}
"""

_STAGE_FLAGS = {  # which of RecFlow's flags say that a video came to a stage, furthest stage first
    "exposure": ("realshow",),
    "rerank": ("rerank_pos", "rerank_neg"),
    "rank": ("rank_pos", "rank_neg"),
    "prerank": ("coarse_neg", "prerank_neg"),
}
_REQUEST_COLUMNS = ("user_id", "device_id", "age", "gender", "province")
_VIDEO_COLUMNS = ("author_id", "category_level_one", "category_level_two", "upload_type")
_COLUMNS = (
    "request_id", "request_timestamp", *_REQUEST_COLUMNS, "video_id", *_VIDEO_COLUMNS, "upload_timestamp", "duration",
    *(flag for flags in _STAGE_FLAGS.values() for flag in flags),
    "rank_index", "rerank_index", "playing_time", "effective_view", "like", "forward",
)  # fmt: skip
_SEQUENCE = {  # column of a sequence row -> feature; 5 is the upload time, 8 the playing time, 9 the old request
    "item_id": 0, "author_id": 1, "category_level_two": 2, "category_level_one": 3, "upload_type": 4, "duration_ms": 6,
}  # fmt: skip
_EVENT_MS = 7
_ITEM_FEATURES = ("item_id", *_VIDEO_COLUMNS, "duration_ms")
_LAYOUT = "all_stage/, realshow/, seq_effective_50_dict/ and others/realshow_video_info_daily/, each with a file per day"


def _default_tuples() -> dict[Any, Any]:
    return collections.defaultdict(tuple)


def _default_strings() -> dict[Any, Any]:
    return collections.defaultdict(str)


# All that a pickle may name. numpy's modules were renamed in 2.0; RecFlow's loaders define the two default dicts in
# utils.py, and its exports may name them there or in the script that wrote them.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "defaultdict"): collections.defaultdict,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (dict, list, tuple, set, str, int, float, bool)},
    **{(f"numpy.{core}.multiarray", name): getattr(multiarray, name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): numeric._frombuffer for core in ("core", "_core")},  # type: ignore[attr-defined]
    **{(module, "defaultdict_tuple"): _default_tuples for module in ("utils", "__main__")},
    **{(module, "defaultdict_str"): _default_strings for module in ("utils", "__main__")},
}


class _Restricted(pickle.Unpickler):
    """Builds NumPy arrays, builtin containers and RecFlow's default dicts, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is refused: only NumPy arrays, builtin containers and default dicts are read")
        return _ADMITTED[module, name]


def read_pickle(path: Path) -> Any:
    """One of RecFlow's pickles, without running what a hostile file would name.

    Raises:
        DataError: the file is broken, or names anything but NumPy arrays, builtin containers and default dicts.
    """
    try:
        with open(path, "rb") as handle:
            return _Restricted(handle).load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; a RecFlow folder has {_LAYOUT}") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError, ImportError) as error:
        raise DataError(
            f"{path}: unreadable pickle: {' '.join(str(error).split()) or type(error).__name__}; fetch the file again"
        ) from None


def import_recflow(src: Path, ws: Workspace, progress: Callable[[int, int], None] | None = None) -> list[dt.date]:
    """Turn every day of a RecFlow folder into the workspace's logs and return the days written.

    Args:
        progress: called with (files done, files in all) after each file.

    Raises:
        NotFound: `src` has not RecFlow's folders.
        DataError: a file is unreadable, lacks a column, or its days are not in order.
        ConfigError: the workspace's params.yaml declares features that RecFlow does not have.
    """
    files = source_files(src)
    params = ws.params()
    root = ws.logs(params)
    hint = "; import into a fresh --root: it is given RecFlow's own params.yaml"
    contract.check_declared(params.features, (*_REQUEST_COLUMNS, "hour", "weekday"), _ITEM_FEATURES, _ITEM_FEATURES, "RecFlow", hint)
    scratch = ws.state / "recflow"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    written: list[dt.date] = []
    histories: dict[int, np.ndarray] = {}
    with _connect(scratch, params) as con:
        for done, path in enumerate(files, start=1):
            begins = _load(con, path, src / "realshow" / path.name)
            if written and begins <= written[-1]:
                raise DataError(
                    f"{path}: it holds rows of {begins} (UTC), a day that earlier files had ended; files must be in order of time"
                )
            _remember_videos(con, src / "others" / "realshow_video_info_daily" / path.name, parse_day(path.stem))
            histories |= read_pickle(src / "seq_effective_50_dict" / f"{path.stem}.pkl")
            for day in _days(con):
                if day < begins or done == len(files):
                    _write_day(con, root, day, params.features, histories)
                    written.append(day)
            if progress:
                progress(done, len(files))
    shutil.rmtree(scratch, ignore_errors=True)
    return written


def source_files(src: Path) -> list[Path]:
    """`all_stage/DAY.feather` of every day, oldest first.

    Raises:
        NotFound: `src` has not RecFlow's folders.
    """
    for folder in ("all_stage", "realshow", "seq_effective_50_dict", "others/realshow_video_info_daily"):
        if not (src / folder).is_dir():
            raise NotFound(f"{src} is not a RecFlow folder: {folder}/ is missing; it has {_LAYOUT}")
    files = sorted((src / "all_stage").glob("????-??-??.feather"))  # named by day, so in order of time
    if not files:
        raise NotFound(f"{src / 'all_stage'} has no DAY.feather; a RecFlow folder has {_LAYOUT}")
    return files


@contextlib.contextmanager
def _connect(scratch: Path, params: Params) -> "Iterator[duckdb.DuckDBPyConnection]":
    """A DuckDB in a scratch file, so that the videos seen so far need no memory of their own."""
    import duckdb

    with duckdb.connect(str(scratch / "import.duckdb")) as con:
        con.execute(f"SET memory_limit = '{params.collect.memory_limit}'; SET threads = {params.collect.threads}")
        con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false; SET preserve_insertion_order = false")
        features = ", ".join(f"{name} BIGINT" for name in _VIDEO_COLUMNS)
        con.execute(
            f"CREATE TABLE videos (item_id BIGINT PRIMARY KEY, {features}, duration_ms DOUBLE, published TIMESTAMPTZ, seen TIMESTAMPTZ)"
        )
        con.execute(
            f"CREATE TABLE stages (request_id BIGINT, item_id BIGINT, event_time TIMESTAMPTZ, stage VARCHAR, "
            f"{', '.join(f'{name} BIGINT' for name in (*_REQUEST_COLUMNS, *_VIDEO_COLUMNS))}, duration_ms DOUBLE, published TIMESTAMPTZ, "
            'rank_position INTEGER, rerank_position INTEGER, click BOOLEAN, dwell_ms BIGINT, "like" BOOLEAN, share BOOLEAN)'
        )
        yield con


def _load(con: "duckdb.DuckDBPyConnection", all_stage: Path, realshow: Path) -> dt.date:
    """Append to `stages` a row per (request, video), at the furthest stage that any of its rows names; return the first UTC day."""
    for name, path in (("all_stage", all_stage), ("realshow_rows", realshow)):
        con.register(name, _open(path, _COLUMNS))
    cases = " ".join(f"WHEN {' + '.join(f'max({flag})' for flag in flags)} > 0 THEN '{stage}'" for stage, flags in _STAGE_FLAGS.items())
    shifted = ", ".join(f"any_value({name}) + 1 AS {name}" for name in (*_REQUEST_COLUMNS, *_VIDEO_COLUMNS))
    columns = ", ".join(f'"{name}"' for name in _COLUMNS)
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE loaded AS
        SELECT request_id + 1 AS request_id, video_id + 1 AS item_id,
            epoch_ms(any_value(request_timestamp)) AT TIME ZONE 'UTC' AS event_time,
            CASE {cases} END AS stage, {shifted},
            any_value(duration)::DOUBLE AS duration_ms, to_timestamp(any_value(upload_timestamp)) AS published,
            nullif(max(rank_index), 0)::INTEGER AS rank_position, nullif(max(rerank_index), 0)::INTEGER AS rerank_position,
            max(effective_view) > 0 AS click, max(playing_time) AS dwell_ms, max("like") > 0 AS "like", max(forward) > 0 AS share
        FROM (SELECT {columns} FROM all_stage UNION ALL SELECT {columns} FROM realshow_rows) GROUP BY request_id, video_id
    """)
    con.unregister("all_stage")
    con.unregister("realshow_rows")
    unplaced = con.execute("SELECT count(*), min(request_id) - 1, min(item_id) - 1 FROM loaded WHERE stage IS NULL").fetchall()[0]
    if unplaced[0]:
        raise DataError(
            f"{all_stage}: {unplaced[0]} rows belong to no stage (all of realshow ... prerank_neg are 0), "
            f"for example request_id {unplaced[1]}, video_id {unplaced[2]}; fetch the file again"
        )
    con.execute("INSERT INTO stages SELECT * FROM loaded")
    begins: dt.date | None = con.execute("SELECT min(event_time)::DATE FROM loaded").fetchall()[0][0]
    if begins is None:
        raise DataError(f"{all_stage}: empty day: 0 rows; fetch the file again")
    return begins


def _remember_videos(con: "duckdb.DuckDBPyConnection", daily: Path, day: dt.date) -> None:
    """Add the file's videos to those seen so far: candidates of any stage, and what RecFlow lists as exposed by then."""
    # An upload time after the first appearance is an error of the source; the appearance stands in for it.
    con.execute(f"""
        INSERT OR IGNORE INTO videos
        SELECT item_id, {", ".join(f"any_value({name})" for name in (*_VIDEO_COLUMNS, "duration_ms"))},
            least(any_value(published), min(event_time)) AS published, min(event_time) AS seen
        FROM loaded GROUP BY item_id
    """)
    con.register("daily", _open(daily, ("video_id", *_VIDEO_COLUMNS, "upload_timestamp", "duration")))
    con.execute(f"""
        INSERT OR IGNORE INTO videos
        SELECT video_id + 1, {", ".join(f"{name} + 1" for name in _VIDEO_COLUMNS)}, duration::DOUBLE, to_timestamp(upload_timestamp),
            TIMESTAMPTZ '{start_of(day)}'
        FROM daily
    """)
    con.unregister("daily")


def _days(con: "duckdb.DuckDBPyConnection") -> list[dt.date]:
    """UTC days that wait to be written."""
    return [row[0] for row in con.execute("SELECT DISTINCT event_time::DATE FROM stages ORDER BY 1").fetchall()]


def _write_day(con: "duckdb.DuckDBPyConnection", root: str, day: dt.date, features: Features, histories: dict[int, np.ndarray]) -> None:
    """The four tables of one day; the source logs no ingestion, so a row counts as ingested when it happened."""
    today = f"event_time::DATE = DATE '{day}'"
    end = f"TIMESTAMPTZ '{start_of(day + dt.timedelta(days=1))}'"
    tables = {
        "items": f"""
            SELECT *, greatest(published, TIMESTAMPTZ '{start_of(day)}') AS event_time, event_time AS ingest_time
            FROM videos WHERE published < {end} AND seen < {end} ORDER BY item_id""",
        "candidates": f"""
            SELECT *, event_time AS ingest_time, NULL::INTEGER AS prerank_position, NULL::INTEGER AS exposure_position
            FROM stages WHERE {today} ORDER BY request_id, item_id""",
        "feedback": f"""
            SELECT *, event_time AS ingest_time FROM stages
            WHERE {today} AND stage = 'exposure' ORDER BY request_id, item_id""",
    }
    for table, sql in tables.items():
        schema = contract.table_schema(table, features)
        columns = ", ".join(f'"{name}"' for name in schema.names)
        reader = con.sql(f"SELECT {columns} FROM ({sql})").to_arrow_reader(contract.ROW_GROUP_ROWS)
        with contract.day_writer(root, table, day, schema) as append:
            for batch in reader:
                append(pa.Table.from_batches([batch]))
    requests = con.sql(f"""
        SELECT request_id, any_value(event_time) AS event_time, any_value(event_time) AS ingest_time,
            {", ".join(f"any_value({name}) AS {name}" for name in _REQUEST_COLUMNS)},
            hour(any_value(event_time)) + 1 AS hour, isodow(any_value(event_time)) AS weekday
        FROM stages WHERE {today} GROUP BY request_id ORDER BY request_id
    """).to_arrow_table()
    schema = contract.table_schema("requests", features)
    contract.write_day(root, "requests", day, _with_history(requests, histories, features).select(schema.names).cast(schema))
    for request_id in requests["request_id"].to_pylist():
        del histories[request_id - 1]
    con.execute(f"DELETE FROM stages WHERE {today}")


def _with_history(requests: pa.Table, histories: dict[int, np.ndarray], features: Features) -> pa.Table:
    """Add the history lists: int[50, 10] of each request, left-padded, without what lies at or after the request."""
    at_ms = requests["event_time"].cast(pa.int64()).to_numpy() // 1000
    events, lengths = [], [0]
    for request_id, now_ms in zip(requests["request_id"].to_pylist(), at_ms, strict=True):
        sequence = histories.get(request_id - 1)
        if sequence is None:
            raise DataError(
                f"seq_effective_50_dict lacks request_id {request_id - 1} of {requests['event_time'][0].as_py():%Y-%m-%d}; fetch it again"
            )
        real = sequence[(sequence[:, _EVENT_MS] > 0) & (sequence[:, _EVENT_MS] < now_ms)]
        events.append(real[np.argsort(real[:, _EVENT_MS], kind="stable")])
        lengths.append(len(real))
    flat = np.concatenate(events).astype(np.int64)
    offsets = pa.array(np.cumsum(lengths).astype(np.int32))
    times = pa.array(flat[:, _EVENT_MS] * 1000).cast(contract.TIME)
    requests = requests.append_column("hist_event_time", pa.ListArray.from_arrays(offsets, times))
    for feature in contract.logged(features.history):
        column = flat[:, _SEQUENCE[feature.name]]
        values = column.astype(np.float64) if feature.type == "dense" else column + 1
        requests = requests.append_column(f"hist_{feature.name}", pa.ListArray.from_arrays(offsets, pa.array(values)))
    return requests


def _open(path: Path, columns: tuple[str, ...]) -> Any:
    """A feather file as a lazily read Arrow dataset that has the columns.

    Raises:
        DataError: missing, unreadable, or without one of the columns.
    """
    import pyarrow.dataset as ds

    try:
        source = ds.dataset(path, format="feather")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; a RecFlow folder has {_LAYOUT}") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: unreadable or truncated file: {str(error).splitlines()[0]}; fetch it again") from None
    if missing := [name for name in columns if name not in source.schema.names]:
        raise DataError(f"{path}: missing column: {', '.join(missing)}; found {', '.join(source.schema.names)}")
    return source
