"""The ledger: its chain, its one writer at a time, and what it says is served."""

import datetime as dt
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hap.errors import HapError, Refused, UsageError
from hap.params import load_params
from hap.project import project_file
from hap.registry.ledger import (
    GENESIS,
    Entry,
    Ledger,
    Overtaken,
    freeze_in_force,
    last_move,
    moment_of,
    open_ledger,
    open_move,
    pinned_for_next_start,
    refuse_if_frozen,
)
from hap.workspace import Workspace

NOW = dt.datetime(2026, 1, 5, 3, 0, tzinfo=dt.UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/deep/ledger.db")


def entry(action="promote", state="served", from_version=None, to_version=None, **rest) -> Entry:
    return Entry(at=NOW, actor="ann", action=action, state=state, from_version=from_version, to_version=to_version, **rest)


def test_a_ledger_that_nobody_wrote_to_is_empty_and_makes_no_file(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.rows() == [] and ledger.served() is None and ledger.previous_served() is None and ledger.verify() == 0
    assert not (tmp_path / "deep").exists()


def test_rows_come_back_as_they_were_written_and_chain(ledger: Ledger) -> None:
    first = ledger.append(entry(state="intended", to_version=1, reason="first", evidence={"verdict": "pass", "parity": 1e-7}))
    second = ledger.append(entry(to_version=1, forced=True))
    assert ledger.rows() == [first, second]
    assert (first.id, first.prev_hash, second.id, second.prev_hash) == (1, GENESIS, 2, first.hash)
    assert ledger.verify() == 2
    assert first.as_json()["at"] == "2026-01-05T03:00:00.000000+00:00"


def test_the_database_refuses_to_change_or_delete_a_row(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append(entry(to_version=1))
    connection = sqlite3.connect(tmp_path / "deep" / "ledger.db")
    try:
        for statement in ("UPDATE ledger SET reason = 'other'", "DELETE FROM ledger"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    finally:
        connection.close()
    assert ledger.verify() == 1


def without_guard(database: Path, statement: str) -> None:
    connection = sqlite3.connect(database)
    try:
        connection.executescript(f"DROP TRIGGER ledger_no_update; DROP TRIGGER ledger_no_delete; {statement};")
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE ledger SET reason = 'because' WHERE id = 2", 2),
        ("UPDATE ledger SET at = '2026-01-05T04:00:00.000000+00:00' WHERE id = 1", 1),
        ("UPDATE ledger SET forced = 0 WHERE id = 3", 3),
        ("DELETE FROM ledger WHERE id = 2", 3),
        ("UPDATE ledger SET evidence = '{}' WHERE id = 1", 1),
    ],
)
def test_verify_names_the_first_row_that_was_tampered_with(ledger: Ledger, tmp_path: Path, statement: str, row: int) -> None:
    for number in (1, 2, 3):
        ledger.append(entry(to_version=number, forced=True, evidence={"n": number}))
    without_guard(tmp_path / "deep" / "ledger.db", statement)
    with pytest.raises(HapError, match=f"from row {row} on"):
        ledger.verify()


def test_a_row_that_does_not_read_is_one_line_that_says_who_names_it(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append(entry(to_version=1))
    with sqlite3.connect(tmp_path / "deep/ledger.db") as database:
        database.execute("DROP TRIGGER ledger_no_update")
        database.execute("UPDATE ledger SET evidence = '{torn'")
    database.close()
    with pytest.raises(HapError, match=r"holds a row that hap did not write; `hapctl ledger` names it"):
        ledger.rows()
    with pytest.raises(HapError, match="from row 1 on"):
        ledger.verify()


def test_writers_in_several_processes_make_one_chain(ledger: Ledger, tmp_path: Path) -> None:
    program = (
        "import datetime as dt, sys; from hap.registry.ledger import *; ledger = Ledger(sys.argv[1])\n"
        "for n in range(15): ledger.append(Entry(at=dt.datetime.now(dt.UTC), actor=sys.argv[2], action='freeze', state='noted'))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, f"sqlite:///{tmp_path}/deep/ledger.db", name]) for name in "abc"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert ledger.verify() == 45


def test_a_reader_is_told_when_the_file_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, but long enough to have a header" * 10)
    with pytest.raises(HapError, match=r"not a database; ledger\.url"):
        Ledger(f"sqlite:///{tmp_path}/ledger.db").rows()


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(HapError, match="'ledger' is not a SQLAlchemy URL"):
        Ledger("ledger")


def test_served_follows_promotions_and_ignores_what_was_undone(ledger: Ledger) -> None:
    for version in (1, 2):
        ledger.append(entry(state="intended", to_version=version))
        ledger.append(entry(to_version=version))
    ledger.append(entry(state="intended", from_version=2, to_version=3))
    ledger.append(entry(state="undone", from_version=2, to_version=3))
    ledger.append(entry(state="pinned", from_version=2, to_version=4))
    assert (ledger.served(), ledger.previous_served()) == (2, 1)


def test_a_second_rollback_goes_further_back_not_to_the_version_rolled_back(ledger: Ledger) -> None:
    for version in (1, 2, 3):
        ledger.append(entry(to_version=version))
    ledger.append(entry(action="rollback", from_version=3, to_version=2))
    assert (ledger.served(), ledger.previous_served()) == (2, 1)
    ledger.append(entry(action="rollback", from_version=2, to_version=1))
    assert (ledger.served(), ledger.previous_served()) == (1, None)


def test_an_intended_row_stays_open_until_an_outcome_follows(ledger: Ledger) -> None:
    assert open_move(ledger.rows()) is None
    intended = ledger.append(entry(state="intended", to_version=1))
    ledger.freeze(actor="bo", now=NOW, reason="holiday")
    assert open_move(ledger.rows()) == intended
    ledger.append(entry(state="undone", to_version=1))
    assert open_move(ledger.rows()) is None


def test_a_pin_waits_until_it_is_served_replaced_or_tried(ledger: Ledger) -> None:
    def waits() -> int | None:
        row = pinned_for_next_start(ledger.rows())
        return row.to_version if row else None

    for after, version, waiting in (
        ("pinned", 2, 2), ("intended", 3, 2), ("undone", 3, 2), ("failed", 3, 2), ("undone", 2, None),
        ("pinned", 3, 3), ("pinned", 4, 4), ("served", 5, None),
    ):  # fmt: skip
        ledger.append(entry(state=after, to_version=version))
        assert waits() == waiting, after


def test_a_freeze_holds_until_unfreeze_and_says_who_and_why(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="needs a reason"):
        ledger.freeze(actor="bo", now=NOW, reason=" ")
    ledger.freeze(actor="bo", now=NOW, reason="holiday")
    with pytest.raises(Refused, match=r"frozen since 2026-01-05T03.* by bo: holiday; `hapctl unfreeze`"):
        refuse_if_frozen(ledger.rows())
    ledger.unfreeze(actor="bo", now=NOW)
    assert freeze_in_force(ledger.rows()) is None


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(["promote", "rollback"]), st.sampled_from(["served", "undone", "pinned"]), st.integers(1, 4)), max_size=8
    )
)
def test_any_sequence_keeps_the_chain_and_the_last_served_row_is_the_truth(tmp_path_factory: pytest.TempPathFactory, moves) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db")
    for action, state, version in moves:
        ledger.append(entry(action=action, state=state, to_version=version))
    assert ledger.verify() == len(moves)
    expected = [version for _, state, version in moves if state == "served"]
    assert ledger.served() == (expected[-1] if expected else None)
    assert ledger.previous_served() != ledger.served() or ledger.served() is None


def at(hour: int) -> dt.datetime:
    return dt.datetime(2026, 1, 5, hour, 0, tzinfo=dt.UTC)


def test_any_moment_is_answered_with_what_served_then(ledger: Ledger) -> None:
    for hour, words in enumerate(
        [
            {"to_version": 1},
            {"state": "intended", "from_version": 1, "to_version": 2},
            {"to_version": 2, "reason": "better on RN", "forced": True},
            {"action": "freeze", "state": "noted", "reason": "holiday"},
            {"action": "rollback", "from_version": 2, "to_version": 1},
        ],
        start=1,
    ):
        ledger.append(Entry(**{"at": at(hour), "actor": "ann", "action": "promote", "state": "served", **words}))
    rows = ledger.rows()
    served = [moment_of(rows, at(hour) - dt.timedelta(seconds=1)).as_json()["served"] for hour in range(1, 7)]
    assert served == [None, 1, 1, 2, 2, 1]
    assert str(moment_of(rows, at(0))) == "at 2026-01-05 00:00 UTC no version served"
    assert str(moment_of(rows, at(4))) == (
        "at 2026-01-05 04:00 UTC v2 served, since 2026-01-05 03:00 UTC (promote by ann, forced, row 3: better on RN); before it v1; "
        "promotions were frozen by ann: holiday"
    )
    assert (moment_of(rows, at(5)).previous, moment_of(rows, at(3)).frozen) == (None, None)


def test_another_database_is_refused_by_name_and_without_its_password() -> None:
    with pytest.raises(UsageError, match=r"'mysql://ann:\*\*\*@host/hap' names mysql; the ledger guards its rows in sqlite and postgresql"):
        Ledger("mysql://ann:secret@host/hap")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:ledger.db?uri=true"])
def test_a_database_that_is_no_file_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="names no file, and a ledger has to last"):
        Ledger(url)


def test_a_relative_path_counts_from_the_workspace_wherever_the_command_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(project_file("params.yaml"))
    named = params.model_copy(update={"ledger": params.ledger.model_copy(update={"url": "sqlite:///moves.db"})})
    for place, typed_in in enumerate((tmp_path, tmp_path / "ws" / "registry"), start=1):
        typed_in.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(typed_in)
        open_ledger(Workspace(tmp_path / "ws"), named).append(entry(to_version=place))
    assert Ledger(f"sqlite:///{tmp_path}/ws/moves.db").served() == 2


def test_a_workspace_may_have_any_name(tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "what? 100%41 #1")
    open_ledger(ws, load_params(project_file("params.yaml"))).append(entry(to_version=1))
    assert (ws.registry / "ledger.db").exists()


def test_words_that_are_no_utf8_are_kept_escaped(ledger: Ledger) -> None:
    row = ledger.append(Entry(at=NOW, actor="ann", action="freeze", state="noted", reason="caf\udce9 is closed"))
    assert row.reason == "caf\\udce9 is closed" and ledger.rows() == [row] and ledger.verify() == 1


def test_postgresql_without_its_driver_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    ledger = Ledger("postgresql://ann@host/hap")
    for use in (ledger.rows, lambda: ledger.append(entry(to_version=1)), lambda: ledger.alone("promote v1", NOW).__enter__()):
        with pytest.raises(HapError, match=r"needs psycopg; install it with `pip install 'hap\[postgres\]'`"):
            use()


def test_a_row_that_another_move_has_overtaken_is_not_written(ledger: Ledger) -> None:
    assert last_move(ledger.rows()) == 0
    first = ledger.append(entry(state="intended", to_version=1), after_move=0)
    ledger.freeze(actor="bo", now=NOW, reason="no move of what serves")
    assert last_move(ledger.rows()) == first.id
    second = ledger.append(entry(state="undone", to_version=1), after_move=first.id)
    for late in (first.id, 0):
        with pytest.raises(Overtaken, match=rf"the ledger's last move is promote of v1 by ann, undone \(row {second.id}\)"):
            ledger.append(entry(state="served", to_version=1), after_move=late)
    assert len(ledger.rows()) == ledger.verify() == 3
