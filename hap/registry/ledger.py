"""The ledger: an append-only, hash-chained table that says what served when, from what, why, and who asked.

A move of the champion writes two rows: `intended` before anything is touched, then its outcome.
    served   the new version answers; the last such row is the truth that pins and aliases follow
    pinned   checked and pinned for the next start of the server; `served` follows once it answers there
    undone   it did not work out, or was interrupted; the version that served before serves again
    failed   it did not work out, and bringing the former version back did not either
Freezes, and what a shadow came to, are single rows in the state `noted`. Alerts have their states in hap/registry/incidents.py.
"""

import contextlib
import datetime as dt
import getpass
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from hap.errors import Busy, HapError, Refused, UsageError
from hap.params import Params
from hap.registry.ledger_db import BUSY, TABLE, alone, begin_writing, connected, has_table, parse_url
from hap.workspace import Workspace

Action = Literal["promote", "rollback", "freeze", "unfreeze", "shadow", "alert", "ack", "snooze"]
State = Literal[
    "intended", "served", "undone", "pinned", "failed", "noted", "opened", "grew", "closed", "told", "untold", "settled"
]  # fmt: skip
MOVES = ("promote", "rollback")
GENESIS = "0" * 64  # prev_hash of the first row


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a row says, before it has its place in the chain. `at` is aware; evidence is JSON-able."""

    at: dt.datetime
    actor: str
    action: Action
    state: State
    from_version: int | None = None
    to_version: int | None = None
    reason: str = ""
    forced: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row(Entry):
    """One row of the chain: `hash` covers every other column and the hash of the row before."""

    id: int
    prev_hash: str
    hash: str

    def as_json(self) -> dict[str, Any]:
        """The row with its time as ISO 8601 in UTC."""
        return {column.name: getattr(self, column.name) for column in fields(self)} | {"at": _iso(self.at)}


class Overtaken(Busy):
    """Another move was written since the one that this row is about; it stands, and this row was not written."""


class Ledger:
    """The ledger at one SQLAlchemy URL, SQLite or PostgreSQL; the table is made by the first write.

    Args:
        root: what the relative path of a SQLite file counts from.

    Raises (every method):
        HapError: the database cannot be reached or read.
    """

    def __init__(self, url: str | sa.URL, root: Path = Path()) -> None:
        self._url = parse_url(url, root)

    def append(self, entry: Entry, after_move: int | None = None) -> Row:
        """Add one row at the end of the chain and return it; durable when this returns.

        Args:
            after_move: only where the last row of a promotion or rollback is this one (`last_move`).

        Raises:
            Overtaken: it is another one.
            Busy: another process wrote at the same moment, or holds the database for more than half a minute.
        """
        entry = replace(entry, actor=_utf8(entry.actor), reason=_utf8(entry.reason))
        if (database := self._sqlite_file()) is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
        try:
            with connected(self._url) as connection:
                begin_writing(connection)
                if after_move is not None:
                    self._refuse_overtaken(connection, after_move)
                last = connection.execute(sa.select(TABLE.c.id, TABLE.c.hash).order_by(TABLE.c.id.desc()).limit(1)).first()
                number, prev_hash = (last.id + 1, last.hash) if last else (1, GENESIS)
                values = _columns(entry, number)
                connection.execute(TABLE.insert().values(**values, prev_hash=prev_hash, hash=_chain(prev_hash, values)))
                connection.commit()
        except sa.exc.IntegrityError:
            raise Busy("another process wrote to the ledger at the same moment; run this again") from None
        except sa.exc.DBAPIError as error:
            if any(word in str(error.orig) for word in BUSY):
                raise Busy(f"another process holds the ledger at {self._where()}; run this again") from None
            raise self._unreachable(error) from None
        return Row(
            **{name: getattr(entry, name) for name in Entry.__dataclass_fields__},
            id=number,
            prev_hash=prev_hash,
            hash=_chain(prev_hash, values),
        )

    @contextlib.contextmanager
    def alone(self, purpose: str, now: dt.datetime) -> Iterator[None]:
        """Be the only one, of all who share this ledger, that changes what serves.

        Raises:
            Busy: somebody else is; the message says who.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(alone(self._url, purpose, now))
            except sa.exc.DBAPIError as error:
                raise self._unreachable(error) from None
            yield

    def rows(self) -> list[Row]:
        """Every row, oldest first."""
        stored = self._read()
        try:
            return [_row(values) for values in stored]
        except (ValueError, TypeError):
            raise HapError(f"the ledger at {self._where()} holds a row that hap did not write; `hapctl ledger` names it") from None

    def verify(self) -> int:
        """Check the chain and return the number of rows.

        Raises:
            HapError: a row was changed, removed or put in; the message names the first that does not fit.
        """
        prev_hash = GENESIS
        stored = self._read()
        for number, values in enumerate(stored, start=1):
            said = {name: value for name, value in values.items() if name not in ("prev_hash", "hash")}
            if values["id"] != number or values["prev_hash"] != prev_hash or values["hash"] != _chain(prev_hash, said):
                raise HapError(
                    f"the ledger at {self._where()} does not fit together from row {values['id']} on: "
                    "a row was changed or removed outside hap; restore the database from a copy"
                )
            prev_hash = values["hash"]
        return len(stored)

    def served(self) -> int | None:
        """The version that the last `served` row names; None before the first."""
        return served(self.rows())

    def previous_served(self) -> int | None:
        """The version that a rollback goes back to; None where nothing served before."""
        return previous_served(self.rows())

    def freeze(self, *, actor: str, now: dt.datetime, reason: str) -> Row:
        """Stop promotions until `unfreeze`.

        Raises:
            UsageError: no reason is given.
        """
        if not reason.strip():
            raise UsageError("freeze needs a reason; write `hapctl freeze --reason TEXT`")
        return self.append(Entry(at=now, actor=actor, action="freeze", state="noted", reason=reason))

    def unfreeze(self, *, actor: str, now: dt.datetime, reason: str = "") -> Row:
        """Allow promotions again."""
        return self.append(Entry(at=now, actor=actor, action="unfreeze", state="noted", reason=reason))

    def _read(self) -> list[dict[str, Any]]:
        """The stored columns of every row, by id; a ledger that nobody wrote to yet is empty."""
        database = self._sqlite_file()
        if database is not None and not database.exists():
            return []
        try:
            with connected(self._url) as connection:
                if not has_table(connection):
                    return []
                stored = connection.execute(sa.select(TABLE).order_by(TABLE.c.id))
                return [{str(name): value for name, value in row._mapping.items()} for row in stored]
        except sa.exc.DBAPIError as error:
            raise self._unreachable(error) from None

    def _refuse_overtaken(self, connection: sa.Connection, after_move: int) -> None:
        moves = sa.select(TABLE).where(TABLE.c.action.in_(MOVES)).order_by(TABLE.c.id.desc()).limit(1)
        last = connection.execute(moves).first()
        if (last.id if last else 0) != after_move:
            written = f"{last.action} of v{last.to_version} by {last.actor}, {last.state}" if last else "nothing"
            raise Overtaken(f"somebody else was here meanwhile: the ledger's last move is {written}{f' (row {last.id})' if last else ''}")

    def _sqlite_file(self) -> Path | None:
        return Path(str(self._url.database)) if self._url.get_backend_name() == "sqlite" else None

    def _where(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def _unreachable(self, error: sa.exc.DBAPIError) -> HapError:
        said = str(error.orig).strip() or type(error.orig).__name__
        return HapError(f"the ledger at {self._where()} cannot be used: {said.splitlines()[0]}; ledger.url in params.yaml names it")


def open_ledger(ws: Workspace, params: Params) -> Ledger:
    """The ledger that params.yaml names, else registry/ledger.db of the workspace."""
    own = sa.URL.create("sqlite", database=str(ws.registry / "ledger.db"))
    return Ledger(params.ledger.url or own, ws.root)


def default_actor() -> str:
    """The name of the user who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return "unknown"


def served(rows: Iterable[Row]) -> int | None:
    """The version that the last `served` row names."""
    stack = served_stack(rows)
    return stack[-1] if stack else None


def previous_served(rows: Iterable[Row]) -> int | None:
    """The version below the one that serves; a version that was rolled back does not count."""
    stack = served_stack(rows)
    return stack[-2] if len(stack) > 1 else None


def served_stack(rows: Iterable[Row]) -> list[int]:
    """What served, oldest first, the current last: a promotion puts its version on top, a rollback takes the top off.

    So a second rollback goes further back instead of returning to the version that was rolled back.
    """
    stack: list[int] = []
    for row in rows:
        if row.state != "served" or row.to_version is None:
            continue
        if row.action == "rollback" and row.to_version in stack:
            while stack[-1] != row.to_version:
                stack.pop()
        elif not stack or stack[-1] != row.to_version:
            stack.append(row.to_version)
    return stack


def open_move(rows: Iterable[Row]) -> Row | None:
    """The `intended` row that no outcome follows: a promotion that runs now, or was killed."""
    moves = [row for row in rows if row.action in MOVES]
    return moves[-1] if moves and moves[-1].state == "intended" else None


def last_move(rows: Iterable[Row]) -> int:
    """The id of the last row of a promotion or rollback; 0 before the first."""
    return max((row.id for row in rows if row.action in MOVES), default=0)


def pinned_for_next_start(rows: Iterable[Row]) -> Row | None:
    """The `pinned` row that still waits for a server to start with it.

    It goes on waiting behind a move of another version that came to nothing. One of its own version, such as its start, ends the wait.
    """
    waiting: Row | None = None
    for row in rows:
        if row.action not in MOVES or row.state == "intended":
            continue
        if row.state in ("pinned", "served"):
            waiting = row if row.state == "pinned" else None
        elif waiting is not None and row.to_version == waiting.to_version:
            waiting = None
    return waiting


def freeze_in_force(rows: Iterable[Row]) -> Row | None:
    """The freeze that no unfreeze followed."""
    noted = [row for row in rows if row.action in ("freeze", "unfreeze")]
    return noted[-1] if noted and noted[-1].action == "freeze" else None


@dataclass(frozen=True)
class Moment:
    """What the ledger says of one time: the row by which a version served then, the rollback's target, and the freeze in force."""

    at: dt.datetime
    by: Row | None
    previous: int | None
    frozen: Row | None

    def as_json(self) -> dict[str, Any]:
        """Versions as numbers, rows whole; null where nothing served, or nothing was frozen."""
        return {
            "at": _iso(self.at),
            "served": self.by.to_version if self.by else None,
            "previous": self.previous,
            "by": self.by.as_json() if self.by else None,
            "frozen": self.frozen.as_json() if self.frozen else None,
        }

    def __str__(self) -> str:
        when = f"at {_minute(self.at)}"
        if self.by is None:
            text = f"{when} no version served"
        else:
            how = f"{self.by.action} by {self.by.actor}{', forced' if self.by.forced else ''}, row {self.by.id}"
            how += f": {self.by.reason}" if self.by.reason else ""
            text = f"{when} v{self.by.to_version} served, since {_minute(self.by.at)} ({how})"
            text += f"; before it v{self.previous}" if self.previous is not None else ""
        return text + (f"; promotions were frozen by {self.frozen.actor}: {self.frozen.reason}" if self.frozen else "")


def moment_of(rows: Iterable[Row], moment: dt.datetime) -> Moment:
    """What served at a moment, by the rows written up to it."""
    then = [row for row in rows if row.at <= moment]
    moves = [row for row in then if row.state == "served"]
    return Moment(moment, moves[-1] if moves else None, previous_served(then), freeze_in_force(then))


def refuse_if_frozen(rows: Iterable[Row]) -> None:
    """Let a promotion pass only where no freeze is in force.

    Raises:
        Refused: a freeze is in force; the message says whose and why.
    """
    if frozen := freeze_in_force(rows):
        raise Refused(
            f"promotions are frozen since {_iso(frozen.at)} by {frozen.actor}: {frozen.reason}; `hapctl unfreeze` allows them again"
        )


def _utf8(text: str) -> str:
    """Text that any database and JSON can keep: what a terminal of another encoding made no UTF-8 of is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _columns(entry: Entry, number: int) -> dict[str, Any]:
    """The stored form of an entry, as the hash covers it."""
    return {
        "id": number,
        "at": _iso(entry.at),
        "actor": entry.actor,
        "action": entry.action,
        "state": entry.state,
        "from_version": entry.from_version,
        "to_version": entry.to_version,
        "reason": entry.reason,
        "forced": entry.forced,
        "evidence": orjson.dumps(dict(entry.evidence), option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode(),
    }


def _row(values: Mapping[str, Any]) -> Row:
    return Row(**{**values, "at": dt.datetime.fromisoformat(values["at"]), "evidence": orjson.loads(values["evidence"])})


def _chain(prev_hash: str, said: Mapping[str, Any]) -> str:
    """sha256 over the former hash and the row's columns as JSON with sorted keys."""
    return hashlib.sha256(prev_hash.encode() + orjson.dumps(dict(said), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _minute(at: dt.datetime) -> str:
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


def _iso(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="microseconds")
