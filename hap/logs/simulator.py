"""The embedded source of logs: days of a simulated world, written by the log contract.

hap/logs/world.py holds the people and the catalogue, cascade.py the four stages and the clicks, logged.py what the logs
show of them, faults.py what they show wrongly. Equations, defaults and what they lead to: docs/simulator.md.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from hap.days import day_range
from hap.errors import UsageError
from hap.logs import contract, faults
from hap.logs.cascade import begin, day_chunks
from hap.logs.logged import HISTORY_COLUMNS, ITEM_COLUMNS, REQUEST_COLUMNS, catalogue, chunk_tables
from hap.logs.world import SimulatorSettings
from hap.params import Features

DEFAULTS = SimulatorSettings()
SETTINGS = {
    "default": DEFAULTS,
    "single-interest": replace(DEFAULTS, interests=1),  # no mood to read off the history
    "double-noise": replace(
        DEFAULTS,
        retrieval_noise=2 * DEFAULTS.retrieval_noise,
        prerank_noise=2 * DEFAULTS.prerank_noise,
        rank_noise=2 * DEFAULTS.rank_noise,
        rerank_noise=2 * DEFAULTS.rerank_noise,
    ),  # stages that hardly agree with the clicks
    "fast-drift": replace(
        DEFAULTS, drift_per_day=3 * DEFAULTS.drift_per_day, switch_per_day=3 * DEFAULTS.switch_per_day
    ),  # tastes that leave a model behind, at an even pace
}


@dataclass(frozen=True)
class Summary:
    """What a simulation wrote: rows of each table over all days, and clicks."""

    days: tuple[dt.date, ...]
    rows: dict[str, int]
    clicks: int


def settings_digest(settings: SimulatorSettings = DEFAULTS) -> str:
    """sha256 of the settings' values."""
    return hashlib.sha256(orjson.dumps(asdict(settings), option=orjson.OPT_SORT_KEYS)).hexdigest()


def simulate(
    logs_root: str | Path,
    first_day: dt.date,
    days: int,
    requests_per_day: int,
    seed: int,
    features: Features,
    *,
    settings: SimulatorSettings = DEFAULTS,
    wrong: Sequence[faults.Fault] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write `days` days of logs from `first_day` on, and the feedback that arrives the day after the last.

    Args:
        wrong: faults; with and without those of the logs the world is the same.
        progress: called with (requests done, requests in all) after every chunk.

    Raises:
        UsageError: no days or no requests are asked for.
        ConfigError: params.yaml declares a feature that the simulator does not make.
    """
    if days < 1 or requests_per_day < 1:
        raise UsageError(f"{days} days of {requests_per_day} requests: both must be at least 1")
    contract.check_declared(features, REQUEST_COLUMNS, ITEM_COLUMNS, HISTORY_COLUMNS, "the simulator")
    schemas = {table: contract.table_schema(table, features) for table in contract.TABLES}
    world = begin(settings, seed, first_day, requests_per_day, faults.turn_of(wrong, first_day))
    calendar = day_range(first_day, first_day + dt.timedelta(days=days - 1))
    rows = dict.fromkeys(contract.TABLES, 0)
    clicks = done = 0
    late: list[pa.Table] = []  # feedback whose own day is the next one
    for number, day in enumerate(calendar):
        feedback, late = late, []
        midnight = world.day_start_us(number + 1)
        with ExitStack() as stack:
            write = {t: stack.enter_context(contract.day_writer(logs_root, t, day, schemas[t])) for t in contract.TABLES}
            for chunk in day_chunks(world, number):
                tables = chunk_tables(world, day, chunk, features)
                tables = {table: faults.distort(table, true, wrong) for table, true in tables.items()}
                today = pc.less(tables["feedback"]["event_time"], pa.scalar(midnight, contract.TIME))
                feedback.append(tables["feedback"].filter(today))
                late.append(tables["feedback"].filter(pc.invert(today)))
                for table in ("requests", "candidates"):
                    write[table](tables[table])
                    rows[table] += tables[table].num_rows
                clicks += int(chunk.click_RE.sum())
                done += len(chunk.user_R)
                if progress:
                    progress(done, days * requests_per_day)
            items = faults.distort("items", catalogue(world, number), wrong)
            for table, whole in (("feedback", pa.concat_tables(feedback)), ("items", items)):
                write[table](whole)
                rows[table] += whole.num_rows
    last = pa.concat_tables(late)
    if last.num_rows:
        with contract.day_writer(logs_root, "feedback", calendar[-1] + dt.timedelta(days=1), schemas["feedback"]) as append:
            append(last)
        rows["feedback"] += last.num_rows
    return Summary(tuple(calendar), rows, clicks)
