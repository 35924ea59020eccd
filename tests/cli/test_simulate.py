"""`hapctl simulate`: named worlds and faults, and one line for each mistake."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hap.cli.main import main


def simulate(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["hapctl", "simulate", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def prices(root: Path, day: str) -> list[float]:
    found: list[float] = pq.read_table(root / "logs" / "items" / f"day={day}" / "part-0.parquet", partitioning=None)["price"].to_pylist()
    return found


def logs_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in (root / "logs").rglob("*") if path.is_file()}


def test_faults_begin_on_the_last_day_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = ("--days", 2, "--requests-per-day", 20)
    fault = ("--fault", "shifted-prices", "--fault-size", 2, "--fault", "late-logs", "--fault-size", 0.5)
    asked = {"plain": (), "last": fault, "first": (*fault, "--fault-from", "2026-01-01"), "world": ("--setting", "double-noise")}
    for name, words in asked.items():
        assert simulate(monkeypatch, "--root", tmp_path / name, *size, *words) == 0
    one, two = "2026-01-01", "2026-01-02"
    plain = {day: prices(tmp_path / "plain", day) for day in (one, two)}
    assert prices(tmp_path / "last", one) == plain[one]
    assert prices(tmp_path / "last", two) == [2 * price for price in plain[two]]
    assert prices(tmp_path / "first", one) == [2 * price for price in plain[one]]
    candidates = [tmp_path / name / "logs" / "candidates" / f"day={one}" / "part-0.parquet" for name in ("plain", "world")]
    assert candidates[0].read_bytes() != candidates[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fault", "clickoutage"], "did you mean click-outage?"),
        (["--fault", "late-logs", "--fault-size", "0.1", "--fault-size", "0.2"], "2 --fault-size for 1 --fault"),
        (["--fault", "new-category", "--fault-size", "7"], "--fault-size 7 for new-category"),
        (["--fault", "late-logs", "--fault-from", "2026-02-01"], "not among the days simulated, 2026-01-01 to 2026-01-02"),
        (["--setting", "noise"], "choose one of default, single-interest"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_workspace(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert simulate(monkeypatch, "--root", tmp_path / "ws", "--days", 2, *words) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and "\n" not in err
    assert not (tmp_path / "ws").exists()


def test_a_killed_simulation_is_written_again_by_the_same_words_and_by_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--days", 2, "--requests-per-day", 20)
    assert simulate(monkeypatch, "--root", tmp_path / "whole", *words) == 0
    from hap.logs import simulator

    def killed(table: str, *_: object) -> object:
        if table == "items" and (tmp_path / "torn" / "logs" / "items" / "day=2026-01-01").exists():
            raise KeyboardInterrupt
        return distort(table, *_)

    distort = simulator.faults.distort
    with monkeypatch.context() as patched:
        patched.setattr(simulator.faults, "distort", killed)
        assert simulate(patched, "--root", tmp_path / "torn", *words) != 0
    assert not (tmp_path / "torn" / "logs" / "items" / "day=2026-01-02").exists()
    capsys.readouterr()
    assert simulate(monkeypatch, "--root", tmp_path / "torn", "--days", 2, "--requests-per-day", 21) == 2
    assert "holds candidates of 2026-01-01 already" in capsys.readouterr().err
    assert simulate(monkeypatch, "--root", tmp_path / "torn", *words) == 0
    assert logs_of(tmp_path / "torn") == logs_of(tmp_path / "whole")
    assert simulate(monkeypatch, "--root", tmp_path / "torn", *words) == 2


def test_a_simulation_never_writes_over_feedback_of_days_that_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def days(first: str) -> int:
        return simulate(monkeypatch, "--root", tmp_path / "ws", "--from", first, "--days", 2, "--requests-per-day", 200)

    assert days("2026-01-03") == 0
    before = logs_of(tmp_path / "ws")
    for first in ("2026-01-01", "2026-01-05"):  # the days before end in feedback of the 3rd, those after begin with that of the 5th
        assert days(first) == 2
        assert "holds feedback of 2026-01-0" in capsys.readouterr().err
    assert logs_of(tmp_path / "ws") == before
    assert days("2026-01-06") == 0
