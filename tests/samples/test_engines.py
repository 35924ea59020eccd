"""One set of bytes, whatever the engine, its threads, its memory, the files and the order of rows; nothing is left behind."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hap.errors import ConfigError
from hap.logs import contract
from hap.params import Params
from hap.samples import engines
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.samples.handmade import awkward_day, changed, collected, write_day

WINDOW = {"below": 3, "count": 4, "edges": [3, 8, 20]}
SHARES = {"below": 0.1, "count": 6, "edges": [0.1, 0.29, 0.57]}


def digest(table: pa.Table) -> str:
    """Of the rows as Parquet, which leaves out what lies in memory beneath a null; one chunk, since chunks are no part of the answer."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def collected_by(params: Params, paths: dict[str, list[str]], scratch: Path) -> pa.Table:
    con = engines.connect(params, scratch)
    try:
        return collected(con, paths, params)
    finally:
        engines.disconnect(con)


def simulated(ws: Workspace) -> dict[str, list[str]]:
    return {name: contract.read_paths(ws.logs(ws.params()), name, FIRST_DAY) for name in contract.TABLES}


def test_threads_files_and_the_order_of_rows_change_nothing(default_params: Params, tmp_path: Path) -> None:
    params = changed(default_params, rank=WINDOW, prerank=SHARES)
    day, found = awkward_day(5, 25, params), set()
    for number, (threads, files, shuffle) in enumerate([(1, 1, None), (2, 1, None), (2, 4, 1), (1, 3, 2)]):
        paths = write_day(tmp_path / str(number), day, params, files=files, shuffle=shuffle)
        found.add(digest(collected_by(changed(params, threads=threads), paths, tmp_path)))
    assert len(found) == 1


def test_a_small_memory_limit_changes_nothing_and_leaves_nothing(logged_workspace: Workspace, tmp_path: Path) -> None:
    params, scratch = logged_workspace.params(), tmp_path / "scratch"
    ample = collected_by(params, simulated(logged_workspace), scratch)
    tight = collected_by(changed(params, memory_limit="40MB", threads=1), simulated(logged_workspace), scratch)
    assert tight.equals(ample) and ample.num_rows == 150
    assert not any(scratch.iterdir())


def test_a_day_too_large_to_keep_its_draws_in_memory_is_sorted_to_the_same_bytes(default_params: Params, tmp_path: Path) -> None:
    params = changed(default_params, rank=WINDOW, prerank=WINDOW)
    paths = write_day(tmp_path / "logs", awkward_day(6, 25, params), params)
    con = engines.connect(params, tmp_path / "scratch")
    kept = collected(con, paths, params)
    setting = "SELECT current_setting('disabled_optimizers')"
    assert con.con.sql(setting).fetchall() == [("",)]
    con.hap_memory_bytes = 1000
    sorted_instead = collected(con, paths, params)
    assert con.con.sql(setting).fetchall() == [("top_n_window_elimination",)]
    engines.disconnect(con)
    assert digest(sorted_instead) == digest(kept)


def test_what_a_killed_process_spilled_is_removed_and_a_running_one_keeps_its_own(default_params: Params, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for owner in (ended.pid, os.getpid()):
        (tmp_path / f"hap-spill-{owner}-abc").mkdir()
        (tmp_path / f"hap-spill-{owner}-abc" / "part.tmp").write_bytes(b"rows")
    con = engines.connect(default_params, tmp_path)
    kept = sorted(folder.name for folder in tmp_path.iterdir() if folder != con.hap_spill)
    engines.disconnect(con)
    assert kept == [f"hap-spill-{os.getpid()}-abc"]


@pytest.mark.long  # pyspark comes with `make test-long`
def test_spark_without_java_is_told_in_one_line(default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ConfigError, match=r"no Java.*PATH.*--engine duckdb") as refusal:
        engines.connect(changed(default_params, engine="spark"), tmp_path)
    assert "\n" not in str(refusal.value) and not any(tmp_path.iterdir())


def test_spark_without_pyspark_names_the_extra(default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(ConfigError, match=r"hap\[spark\]") as refusal:
        engines.connect(changed(default_params, engine="spark"), tmp_path)
    assert "\n" not in str(refusal.value) and not any(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:unclosed .socket:ResourceWarning")  # pyspark leaves those of its iterators to the garbage collector
def test_spark_on_two_threads_gives_what_duckdb_gives(default_params: Params, tmp_path: Path) -> None:
    cases: list[tuple[Params, dict[str, list[str]]]] = []
    for number, windows in enumerate([{"rank": WINDOW, "prerank": SHARES}, {"rank": SHARES, "prerank": WINDOW | {"count": None}}]):
        params = changed(default_params, **windows, requests_without_positive=["keep", "drop"][number])
        cases.append((params, write_day(tmp_path / str(number), awkward_day(number, 25, params), params, files=2)))
    spark: Any = engines.connect(changed(default_params, engine="spark", spark_master="local[2]"), tmp_path / "scratch")
    try:
        found = [collected(spark, paths, params) for params, paths in cases]
    finally:
        engines.disconnect(spark)
    for table, (params, paths) in zip(found, cases, strict=True):
        expected = collected_by(params, paths, tmp_path / "scratch")
        assert expected.num_rows > 3
        assert table.to_pylist() == expected.to_pylist()
        assert digest(table) == digest(expected)
    assert not any((tmp_path / "scratch").iterdir())


@pytest.mark.long
def test_the_command_writes_the_same_samples_with_either_engine(logged_workspace: Workspace, tmp_path: Path) -> None:
    root = tmp_path / "ws"
    root.mkdir()
    for name in ("hap.toml", "params.yaml"):
        (root / name).write_bytes((logged_workspace.root / name).read_bytes())
    (root / "logs").symlink_to(logged_workspace.root / "logs")
    found = {}
    for engine in ("duckdb", "spark"):
        words = ["collect", "--day", str(FIRST_DAY), "--engine", engine, "--reopen", "--json", "--root", str(root)]
        done = subprocess.run([sys.executable, "-m", "hap.cli", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        path = root / "samples" / f"day={FIRST_DAY}" / "part-0.parquet"
        found[engine] = (done.stdout, hashlib.sha256(path.read_bytes()).hexdigest())
        assert pq.read_metadata(path).num_rows == 150
    assert found["spark"] == found["duckdb"]
    assert "Exception" not in done.stderr and "WARN" not in done.stderr
