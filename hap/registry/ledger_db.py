"""Where the ledger's rows lie: one table in SQLite or PostgreSQL that only grows, and one writer at a time across processes and hosts."""

import contextlib
import datetime as dt
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hap.errors import Busy, HapError, UsageError
from hap.workspace import exclusive_in

WAIT_S = 30  # for another writer, before it is told that the ledger is busy
BUSY = ("locked", "lock timeout")  # how SQLite and PostgreSQL say that the wait is over
_POSTGRES = ("postgresql", "postgres")
_WRITERS = 7_237_409_108  # PostgreSQL's name for our lock: any number that nothing else in the database takes
_PROMOTIONS = _WRITERS + 1  # and for the lock of whoever changes what serves
# A host that lost its power says no goodbye: the server asks, and frees its locks after about 25 s.
_KEEPALIVES = {"tcp_keepalives_idle": 10, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3, "idle_session_timeout": 0}

_METADATA = sa.MetaData()
TABLE = sa.Table(
    "ledger",
    _METADATA,
    sa.Column(
        "id", sa.Integer, primary_key=True, autoincrement=False
    ),  # last + 1, so that two writers collide instead of forking the chain
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("action", sa.String(20), nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("from_version", sa.Integer),
    sa.Column("to_version", sa.Integer),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("forced", sa.Boolean, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("prev_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
_REFUSAL = "the ledger is append-only"
_GUARDS = {
    "sqlite": [
        f"CREATE TRIGGER IF NOT EXISTS ledger_no_{change.lower()} BEFORE {change} ON ledger BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        for change in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        f"CREATE FUNCTION ledger_refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$",
        "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE ON ledger FOR EACH ROW EXECUTE FUNCTION ledger_refuses()",
        "CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuses()",
    ],
}
for _dialect, _statements in _GUARDS.items():
    for _statement in _statements:
        sa.event.listen(TABLE, "after_create", sa.DDL(_statement).execute_if(dialect=_dialect))


def parse_url(given: str | sa.URL, root: Path = Path()) -> sa.URL:
    """A SQLAlchemy URL of SQLite or PostgreSQL; the latter speaks through psycopg where no driver is named.

    Args:
        root: what a relative path of a SQLite file counts from. By the folder that a command is typed in there would be many ledgers.

    Raises:
        HapError: the text is no URL.
        UsageError: it names another database, or a SQLite one that is no file.
    """
    try:
        url = sa.make_url(given)
    except sa.exc.ArgumentError:
        raise HapError(f"ledger.url {given!r} is not a SQLAlchemy URL; write for example sqlite:////srv/hap/ledger.db") from None
    kind, shown = url.get_backend_name(), url.render_as_string(hide_password=True)
    if kind not in ("sqlite", *_POSTGRES):
        raise UsageError(f"ledger.url {shown!r} names {kind}; the ledger guards its rows in sqlite and postgresql only")
    if kind == "sqlite":
        if url.database in (None, "", ":memory:") or str(url.database).startswith("file:"):
            raise UsageError(
                f"ledger.url {shown!r} names no file, and a ledger has to last; write for example sqlite:////srv/hap/ledger.db"
            )
        return url.set(database=str(root / str(url.database)))
    return url.set(drivername="postgresql+psycopg") if url.drivername in _POSTGRES else url


@contextlib.contextmanager
def connected(url: sa.URL) -> Iterator[sa.Connection]:
    """A connection that lives for one use, so that none stays open between commands.

    Raises:
        HapError: the database's driver is not installed.
    """
    settings: dict[str, Any] = {"connect_args": {"timeout": WAIT_S}} if _is_sqlite(url) else {"isolation_level": "READ COMMITTED"}
    engine = _engine(url, **settings)
    if _is_sqlite(url):
        sa.event.listen(engine, "connect", _sqlite_settings)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextlib.contextmanager
def alone(url: sa.URL, purpose: str, now: dt.datetime) -> Iterator[None]:
    """Hold the lock of whoever changes what serves, across all processes, folders and hosts with this database.

    It is freed by the holder's death. SQLite: a lock beside the file. PostgreSQL: an advisory lock of a connection that stays open for
    as long (which a pooler that hands out connections by transaction cannot give); whoever loses the connection loses the lock, and
    `Ledger.append(after_move=...)` is what keeps such a one from writing over others.

    Raises:
        Busy: somebody holds it; the message says who.
        HapError: the database's driver is not installed.
    """
    doing = "is changing what serves"
    if _is_sqlite(url):
        file = Path(str(url.database))
        with exclusive_in(file.parent, f".{file.name}.promotion", doing, purpose, now):
            yield
        return
    name = f"hap {purpose}, pid {os.getpid()} on {socket.gethostname()}"[:63]  # what PostgreSQL keeps of it
    engine = _engine(url, isolation_level="AUTOCOMMIT", connect_args={"application_name": name})
    try:
        with engine.connect() as connection:
            for setting, value in _KEEPALIVES.items():  # as far as this server's version knows them
                asked = sa.text("SELECT set_config(name, :value, false) FROM pg_settings WHERE name = :name")
                connection.execute(asked, {"name": setting, "value": str(value)})
            if not connection.execute(sa.text(f"SELECT pg_try_advisory_lock({_PROMOTIONS})")).scalar():
                shown = url.render_as_string(hide_password=True)
                raise Busy(f"{_holder(connection)} {doing} by the ledger at {shown}; wait for it to end, then run this again")
            try:
                yield
            finally:  # the server sees the end of the connection a moment later, and the next command may be quicker
                with contextlib.suppress(sa.exc.DBAPIError):
                    connection.execute(sa.text(f"SELECT pg_advisory_unlock({_PROMOTIONS})"))
    finally:
        engine.dispose()


def _holder(connection: sa.Connection) -> str:
    """Who holds the lock of promotions, as that session calls itself; PostgreSQL tells it to the same user and to superusers."""
    found = connection.execute(
        sa.text(
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            f"AND l.classid = {_PROMOTIONS >> 32} AND l.objid = {_PROMOTIONS & 0xFFFFFFFF}"
        )
    ).scalar()
    return found or "another hapctl"


def begin_writing(connection: sa.Connection) -> None:
    """Be the one writer until the transaction ends, and make the table and its guards where they are absent.

    From here the chain's end cannot move: SQLite locks its file, PostgreSQL an advisory lock that every writer asks for, which
    covers the table's making, too. READ COMMITTED sees what the writer before has committed, whatever the server's default is.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
    _METADATA.create_all(connection)


def has_table(connection: sa.Connection) -> bool:
    """Whether anybody has written yet."""
    return sa.inspect(connection).has_table(TABLE.name)


def _engine(url: sa.URL, **settings: Any) -> sa.Engine:
    try:
        return sa.create_engine(url, poolclass=sa.NullPool, **settings)
    except ModuleNotFoundError as error:
        shown = url.render_as_string(hide_password=True)
        raise HapError(f"the ledger at {shown} needs {error.name}; install it with `pip install 'hap[postgres]'`") from None


def _is_sqlite(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _sqlite_settings(connection: Any, _record: object) -> None:
    """BEGIN is ours to send (the driver's own is deferred, so two writers could read one chain's end); a commit is on disk."""
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")
