"""Whatever is broken in a day's rows, what remains after setting aside keeps the contract, and no row is lost or doubled."""

import datetime as dt
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hap.logs import contract, quarantine
from hap.logs.side import read_side, side_tables
from hap.params import Params
from tests.logs.bad_files import DAY, part, put, read

AS_OF = dt.datetime(2026, 1, 2, 2, tzinfo=dt.UTC)
LONG_AGO, LATER = dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
VALUES: dict[str, dict[str, list[object]]] = {  # what a broken writer may put into a column
    "requests": {"request_id": [0], "user_id": [None], "activity": [float("nan")], "hist_item_id": [[-1]], "ingest_time": [LONG_AGO]},
    "candidates": {"request_id": [None, 5], "item_id": [0], "stage": ["recall"], "rank_position": [3], "prerank_position": [None]},
    "feedback": {"click": [None], "item_id": [10**9], "dwell_ms": [-1], "event_time": [None]},
    "items": {"item_id": [0], "price": [float("inf")], "published": [LATER]},
}


def break_rows(logs: Path, chance: random.Random) -> None:
    """Some rows of each table get a bad value, some stand twice, and the tables lie in several files."""
    for table, columns in VALUES.items():
        rows = read(logs, table)
        for column, values in columns.items():
            for value in values:
                rows = put(rows, column, chance.sample(range(rows.num_rows), 2), value)
        twice = rows.take(pa.array(chance.sample(range(rows.num_rows), 2)))
        cut = chance.randrange(1, rows.num_rows)
        pq.write_table(rows.slice(0, cut), part(logs, table))
        pq.write_table(pa.concat_tables([rows.slice(cut), twice]), part(logs, table).with_name("part-1.parquet"))


def together(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")  # some say that a column may be null, some do not


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_what_remains_keeps_the_contract_and_no_row_is_lost(
    simulated: tuple[Path, object], params: Params, tmp_path: Path, seed: int, complete: bool
) -> None:
    logs = Path(shutil.copytree(simulated[0], tmp_path / "logs"))
    break_rows(logs, random.Random(seed))
    lenient = params.model_copy(update={"logs": params.logs.model_copy(update={"complete": complete, "max_bad_share": 0.99})})
    day = contract.day_logs(str(logs), DAY, 2)
    with pytest.raises(contract.BrokenRows):
        contract.check_logs(day, lenient, AS_OF)
    (tmp_path / "scratch").mkdir()
    clean, counts = quarantine.set_aside(tmp_path / "aside", day, lenient, AS_OF, tmp_path / "scratch")
    contract.check_logs(clean, lenient, AS_OF)
    assert side_tables(tmp_path / "aside", DAY) == list(counts) == list(contract.TABLES)
    for table in contract.TABLES:
        before = together([pq.read_table(path, partitioning=None) for path in day.paths(table)])
        after = together([pq.read_table(path, partitioning=None) for path in clean.paths(table)])
        aside = read_side(tmp_path / "aside", table, DAY)
        assert aside.num_rows == sum(counts[table].values())
        whole = together([after, aside.select(before.column_names)])
        assert sorted(map(repr, whole.select(before.column_names).to_pylist())) == sorted(map(repr, before.to_pylist()))
