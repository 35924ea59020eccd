"""The ledger in a real PostgreSQL server: the same chain, the same guards, one writer at a time across processes."""

import datetime as dt
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from hap.errors import Busy, HapError
from hap.registry import ledger_db
from hap.registry.ledger import GENESIS, Entry, Ledger, freeze_in_force
from tests.registry import postgres

NOW = dt.datetime(2026, 1, 5, 3, 0, tzinfo=dt.UTC)
pytestmark = pytest.mark.skipif(postgres.missing() is not None and "CI" not in os.environ, reason=str(postgres.missing()))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """A database of the test's own, whose transactions are serializable unless somebody says otherwise."""
    name = request.node.name.split("[")[0][-40:]
    engine = sa.create_engine(sa.make_url(server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
        connection.exec_driver_sql(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
    engine.dispose()
    return server.rpartition("/")[0] + f"/{name}"


def entry(action="promote", state="served", to_version=None, **rest) -> Entry:
    return Entry(at=NOW, actor="ann", action=action, state=state, to_version=to_version, **rest)


def execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    try:
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def test_rows_come_back_as_they_were_written_and_chain(url: str) -> None:
    ledger = Ledger(url)
    assert ledger.rows() == [] and ledger.served() is None and ledger.verify() == 0
    first = ledger.append(entry(state="intended", to_version=1, reason="därum", evidence={"verdict": "pass", "parity": 1e-7}))
    second = ledger.append(entry(to_version=1, forced=True))
    assert ledger.rows() == [first, second]
    assert (first.id, first.prev_hash, second.id, second.prev_hash) == (1, GENESIS, 2, first.hash)
    assert (ledger.verify(), ledger.served()) == (2, 1)
    ledger.freeze(actor="bo", now=NOW, reason="holiday")
    assert (freeze_in_force(ledger.rows()) or first).reason == "holiday"


@pytest.mark.parametrize("statement", ["UPDATE ledger SET reason = 'other'", "DELETE FROM ledger", "TRUNCATE ledger"])
def test_the_database_refuses_to_change_or_delete_a_row(server: str, statement: str) -> None:
    ledger = Ledger(server)
    ledger.append(entry(to_version=1))
    before = ledger.rows()
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        execute(server, statement)
    assert ledger.rows() == before and ledger.verify() == len(before)


def test_verify_names_the_first_row_that_was_tampered_with(url: str) -> None:
    ledger = Ledger(url)
    for number in (1, 2, 3):
        ledger.append(entry(to_version=number))
    execute(url, "DROP TRIGGER ledger_no_change ON ledger", "UPDATE ledger SET reason = 'because' WHERE id = 2")
    with pytest.raises(HapError, match="from row 2 on"):
        ledger.verify()


def test_writers_in_several_processes_make_one_chain_from_the_first_row_on(url: str) -> None:
    program = (
        "import datetime as dt, sys; from hap.registry.ledger import *; ledger = Ledger(sys.argv[1])\n"
        "for n in range(15): ledger.append(Entry(at=dt.datetime.now(dt.UTC), actor=sys.argv[2], action='freeze', state='noted'))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, url, name]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    ledger = Ledger(url)
    assert ledger.verify() == 30
    assert {row.actor for row in ledger.rows()} == {"a", "b"}


def test_a_second_writer_waits_for_the_first_and_is_told_when_it_waits_too_long(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(url)
    ledger.append(entry(to_version=1))
    holding, finish = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger_db.connected(ledger_db.parse_url(url)) as connection:
            ledger_db.begin_writing(connection)
            holding.set()
            finish.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert holding.wait(30)
        monkeypatch.setattr(ledger_db, "WAIT_S", 1)
        with pytest.raises(Busy, match="another process holds the ledger at postgresql"):
            ledger.append(entry(to_version=2))
        assert len(ledger.rows()) == 1, "readers are not kept waiting"
    finally:
        finish.set()
        holder.join()
    assert ledger.append(entry(to_version=2)).id == 2


def test_the_lock_of_promotions_is_free_once_its_block_has_ended(url: str) -> None:
    """Not only when the server has noticed the end of the connection: the next command of a script may come before that."""
    ledger = Ledger(url)
    ledger.append(entry(to_version=1))
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    held = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    with engine.connect() as watching:
        for _ in range(20):
            with ledger.alone("promote v1", NOW):
                assert watching.execute(held).scalar() == 1
            assert watching.execute(held).scalar() == 0
    engine.dispose()


def test_a_server_that_is_away_is_one_line_without_the_password() -> None:
    with pytest.raises(HapError, match=r"the ledger at .*ann:\*\*\*@127.0.0.1:9/hap cannot be used: .*ledger\.url in params") as caught:
        Ledger("postgresql://ann:secret@127.0.0.1:9/hap").rows()
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
