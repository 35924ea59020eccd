"""What served requests leave in the log: bounded, whole, off the caller's path."""

import datetime as dt
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hap.errors import ConfigError, DataError, HapError
from hap.params import Feature, Serving, resolve
from hap.samples.order_key import in_share
from hap.serving import served_log
from hap.serving.client import AsyncHapClient, HapClient, log_options
from hap.serving.request import TENSORS, RequestTensors
from hap.serving.served_log import SALT, Counts, Record, ServedLog, read_served, served_tensors
from hap.serving.session import BundleSession
from hap.serving.wire import Scored, ServedSchema
from tests.serving.conftest import Served
from tests.serving.fake_triton import fake_triton
from tests.serving.handmade import FEATURES, NOON, ROUTE, request_of

DAY = NOON.date()


class Clock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> dt.datetime:
        return self.now


def record(request_id: int, candidates: int = 10, at: dt.datetime = NOON, version: int = 1, k: int | None = None) -> Record:
    random = np.random.default_rng(request_id)
    schema = ServedSchema(version, f"d{version}", FEATURES, ROUTE)
    scored = Scored(random.normal(size=candidates).astype(np.float32), random.random(candidates) < 0.5, version)
    return Record(request_id, at, schema, request_of(candidates, seed=request_id), k, scored)


def same(one: RequestTensors, two: RequestTensors) -> bool:
    return all(
        getattr(one, name).tobytes() == getattr(two, name).tobytes() and getattr(one, name).shape == getattr(two, name).shape
        for name in TENSORS
    )


def finished(folder: Path, day: dt.date = DAY) -> list[Path]:
    return sorted((folder / f"day={day}").glob("served-*.parquet"))


def wait_until(condition: object, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_what_was_served_comes_back_bit_for_bit(tmp_path: Path) -> None:
    records = [record(n, candidates, k=k) for n, (candidates, k) in enumerate([(0, None), (1, 0), (300, 7), (2, None)], 1)]
    log = ServedLog(tmp_path, clock=Clock())
    assert all(log.offer(one) for one in records)
    log.close()
    assert log.counts() == Counts(4, 0, 0)
    table = read_served(tmp_path, DAY)
    own = ["request_id", "served_at", "version", "k", "score", "routed"]
    user, history = ["user_id", "hour", "activity"], ["hist_item_id", "hist_age_hours"]
    assert table.column_names == [*own, *user, *history, "cand_item_id", "cand_price", "cand_age_hours"]
    assert table["request_id"].to_pylist() == [1, 2, 3, 4]
    assert table["served_at"].to_pylist() == [NOON] * 4
    assert table["k"].to_pylist() == [None, 0, 7, None]
    for row, one in enumerate(records):
        assert same(served_tensors(table, row, FEATURES), one.tensors)
        assert table["score"][row].as_py() == one.scored.score.tolist()
        assert table["routed"][row].as_py() == one.scored.routed.tolist()


def test_a_day_without_requests_is_an_empty_table(tmp_path: Path) -> None:
    table = read_served(tmp_path / "nowhere", DAY)
    assert (table.num_rows, table.column_names) == (0, ["request_id", "served_at", "version", "k", "score", "routed"])


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes nothing until the event is set."""
    goes_on, add = threading.Event(), served_log._File.add

    def slow(self: served_log._File, one: Record, group_bytes: int) -> None:
        assert goes_on.wait(60)
        add(self, one, group_bytes)

    monkeypatch.setattr(served_log._File, "add", slow)
    yield goes_on
    goes_on.set()


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path: Path, stuck: threading.Event) -> None:
    size = record(1).nbytes
    log = ServedLog(tmp_path, queue_bytes=5 * size, clock=Clock())
    took = [log.offer(record(n)) for n in range(1, 101)]  # would hang here, if it waited
    # A record counts as waiting until it is in the file, so the one that the thread holds is of the five.
    assert took == [True] * 5 + [False] * 95
    assert log.counts() == Counts(0, 95, 0)
    stuck.set()
    log.close()
    assert log.counts() == Counts(5, 95, 0)
    assert read_served(tmp_path, DAY)["request_id"].to_pylist() == [1, 2, 3, 4, 5]
    assert not log.offer(record(6))
    log.close()


def test_files_are_rotated_by_size(tmp_path: Path) -> None:
    log = ServedLog(tmp_path, file_bytes=20_000, clock=Clock())
    for n in range(1, 201):
        log.offer(record(n, 100))
    log.close()
    files = finished(tmp_path)
    assert len(files) > 5
    assert max(path.stat().st_size for path in files) < 2 * 20_000 + 8_000  # one row group more than asked, and the footer
    assert sorted(read_served(tmp_path, DAY)["request_id"].to_pylist()) == list(range(1, 201))
    assert log.counts() == Counts(200, 0, 0)


def test_files_hold_one_day_of_serving_and_one_version(tmp_path: Path) -> None:
    night = dt.datetime(2026, 1, 4, 23, 59, 59, 999_999, tzinfo=dt.UTC)
    log = ServedLog(tmp_path, clock=lambda: night)
    for n, (at, version) in enumerate([(night, 1), (night, 2), (night + dt.timedelta(microseconds=1), 2)], 1):
        log.offer(record(n, at=at, version=version))
    log.close()
    assert [pq.read_table(path, partitioning=None)["version"].to_pylist() for path in finished(tmp_path)] in ([[1], [2]], [[2], [1]])
    assert read_served(tmp_path, DAY + dt.timedelta(days=1))["request_id"].to_pylist() == [3]


@pytest.mark.parametrize("passed", [dt.timedelta(seconds=61), dt.timedelta(hours=12, seconds=1)])
def test_an_open_file_is_finished_when_its_time_or_day_is_over(tmp_path: Path, passed: dt.timedelta) -> None:
    """Without another request that would push it."""
    clock = Clock()
    log = ServedLog(tmp_path, file_s=60.0 if passed < dt.timedelta(hours=1) else 10**6, clock=clock)
    log.offer(record(1))
    assert wait_until(lambda: log._waiting == 0) and finished(tmp_path) == []
    clock.now += passed
    assert wait_until(lambda: len(finished(tmp_path)) == 1)
    log.close()


_WRITER = """
import sys, time
from hap.serving import served_log
from tests.serving.test_served_log import record
served_log._ROW_GROUP_BYTES = 4000
log = served_log.ServedLog(sys.argv[1], file_bytes=30_000, clock=lambda: served_log.dt.datetime(2026, 1, 4, 12, tzinfo=served_log.dt.UTC))
n = 0
while sys.argv[2] == "for ever" or n < 50:
    n += 1
    log.offer(record(n, 50))
    time.sleep(0.001)
"""


def writer(folder: Path, how: str) -> subprocess.Popen[bytes]:
    """A process that logs and never closes the log."""
    return subprocess.Popen([sys.executable, "-c", _WRITER, str(folder), how], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)


def stopped_half_way(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Stop the writer that has finished files; it goes on again unless some of another, but not all, is on the disk now."""
    if len(list(folder.glob("served-*.parquet"))) < 2:
        return False
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    is_open = [path.stat().st_size > 100 and path.read_bytes()[-4:] != b"PAR1" for path in folder.glob(".served-*.tmp")]
    if is_open != [True]:
        process.send_signal(signal.SIGCONT)
    return is_open == [True]


def test_a_killed_writer_leaves_whole_files_and_one_that_nobody_reads(tmp_path: Path) -> None:
    killed = writer(tmp_path, "for ever")
    folder = tmp_path / f"day={DAY}"
    assert wait_until(lambda: stopped_half_way(killed, folder), 60)
    killed.kill()
    killed.communicate()
    ids = sorted(read_served(tmp_path, DAY)["request_id"].to_pylist())
    assert ids == list(range(1, len(ids) + 1)) and len(ids) > 10
    (left,) = folder.glob(".served-*.tmp")
    with pytest.raises(pa.ArrowInvalid):
        pq.ParquetFile(left)
    for age_s, still in ((60, True), (7200, False)):  # the next writer clears away what is surely nobody's
        os.utime(left, (time.time() - age_s,) * 2)
        log = ServedLog(tmp_path, clock=Clock())
        log.offer(record(10**6 + age_s))
        log.close()
        assert left.exists() == still
    assert read_served(tmp_path, DAY).num_rows == len(ids) + 2


def test_a_log_that_is_not_closed_is_written_at_exit(tmp_path: Path) -> None:
    ended = writer(tmp_path, "fifty")
    assert ended.communicate(timeout=60) == (None, b"") and ended.returncode == 0
    assert sorted(read_served(tmp_path, DAY)["request_id"].to_pylist()) == list(range(1, 51))


def test_a_disk_that_fails_costs_its_rows_and_not_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"day={DAY}").write_text("in the way")
    log = ServedLog(tmp_path, clock=Clock())
    log.offer(record(1))
    log.offer(record(2, version=2))
    assert wait_until(lambda: log.counts().failed == 1)
    assert "1 served requests could not be written" in caplog.text
    (tmp_path / f"day={DAY}").unlink()
    log.close()
    assert log.counts() == Counts(1, 0, 1)
    assert read_served(tmp_path, DAY)["request_id"].to_pylist() == [2]


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HapError, match="log_to"):
        ServedLog(tmp_path / "file" / "served")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    log = ServedLog(tmp_path, clock=Clock())
    log.offer(record(1))
    log.close()
    (path,) = finished(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=path.name):
        read_served(tmp_path, DAY)


def test_versions_with_other_features_are_put_together_by_name(tmp_path: Path) -> None:
    wider = FEATURES.model_copy(update={"user": (*FEATURES.user, Feature(name="mood", type="dense"))})
    two = record(2, version=2)
    two = replace(
        two,
        schema=replace(two.schema, features=wider),
        tensors=replace(two.tensors, user_dense=np.array([1.5, 2.5], np.float32)),
    )
    log = ServedLog(tmp_path, clock=Clock())
    log.offer(record(1))
    log.offer(two)
    log.close()
    table = read_served(tmp_path, DAY)
    by_id = dict(zip(table["request_id"].to_pylist(), table["mood"].to_pylist(), strict=True))
    assert by_id == {1: None, 2: 2.5}
    assert same(served_tensors(table, table["request_id"].to_pylist().index(2), wider), two.tensors)


def test_names_of_the_logs_own_columns_are_no_features() -> None:
    features = FEATURES.model_dump()
    features["user"] = [*features["user"], {"name": "routed", "type": "dense"}]
    with pytest.raises(ConfigError, match="routed"):
        resolve({"features": features}, "params.yaml")


def test_the_share_is_chosen_by_request_id_alone(tmp_path: Path) -> None:
    ids = range(1, 1201)
    with fake_triton() as (_, url):
        found = []
        for turn in range(2):
            with HapClient(url, log_to=tmp_path / str(turn), log_share=0.1) as client:
                for n in ids if turn else reversed(ids):
                    client.score(request_of(1), request_id=n)
                client.score(request_of(1))
                client.score(request_of(1), model="hap", request_id=3)
            day = dt.datetime.now(dt.UTC).date()
            tables = [read_served(tmp_path / str(turn), day - dt.timedelta(days=back)) for back in (0, 1)]  # midnight may pass
            found.append(sorted(itertools.chain(*[table["request_id"].to_pylist() for table in tables])))
    assert found[0] == found[1] == [n for n in ids if in_share(n, SALT, 0.1)]
    assert 80 < len(found[0]) < 160


def test_what_the_caller_changes_later_is_not_logged(tmp_path: Path, stuck: threading.Event) -> None:
    with fake_triton() as (_, url), HapClient(url, log_to=tmp_path, log_share=1.0) as client:
        assert client.log is not None
        client.log.clock = Clock()
        request = request_of(5)
        sent = request.copy()
        client.score(request, request_id=1)
        for name in TENSORS:
            getattr(request, name)[...] = 7
        stuck.set()
        client.close()
    assert same(served_tensors(read_served(tmp_path, DAY), 0, FEATURES), sent)


def test_params_say_where_and_how_much(tmp_path: Path) -> None:
    assert log_options(Serving(), tmp_path) == {}
    said = log_options(Serving(log_to="served", log_share=0.5, log_file_mb=1, log_queue_mb=2), tmp_path)
    assert said == {"log_to": tmp_path / "served", "log_share": 0.5, "log_file_mb": 1.0, "log_queue_mb": 2.0, "log_file_s": 600.0}
    assert log_options(Serving(log_to="/var/served"), tmp_path)["log_to"] == Path("/var/served")


@pytest.mark.triton
@pytest.mark.parametrize("shared_memory", [False, True])
def test_scores_recomputed_from_the_log_equal_those_served(served: Served, bundles: object, tmp_path: Path, shared_memory: bool) -> None:
    import asyncio

    options = {"log_to": tmp_path, "log_share": 1.0, "shared_memory": shared_memory}

    async def by_async() -> None:
        async with AsyncHapClient(served.client.url, **options) as client:  # type: ignore[arg-type]
            await asyncio.gather(*[client.score(request_of(n, seed=n), request_id=n) for n in range(21, 41)])

    before = dt.datetime.now(dt.UTC)
    with HapClient(served.client.url, **options) as client:  # type: ignore[arg-type]
        for n in range(1, 21):
            client.score(request_of(n, seed=n), k=n % 5 or None, request_id=n)
    asyncio.run(by_async())
    days = [read_served(tmp_path, before.date() + dt.timedelta(days=on)) for on in (0, 1)]  # midnight may pass
    table = pa.concat_tables(days, promote_options="default")
    assert sorted(table["request_id"].to_pylist()) == list(range(1, 41))
    session = BundleSession(bundles[1])  # type: ignore[index]
    for row in range(table.num_rows):
        tensors = served_tensors(table, row, FEATURES)
        n = table["request_id"][row].as_py()
        assert same(tensors, request_of(n, seed=n))
        score, routed = session.score(tensors, table["k"][row].as_py())
        np.testing.assert_allclose(table["score"][row].as_py(), score, rtol=1e-6)
        assert table["routed"][row].as_py() == routed.tolist()
        assert before <= table["served_at"][row].as_py() <= dt.datetime.now(dt.UTC)
