"""One at a time: who may change what serves, across processes, folders and hosts that share a ledger.

Two locks, both freed by the death of their holder: the folder's, and the ledger's (hap/registry/ledger_db.py). A row says which
folder its move was made in, since only there it can be seen what became of it.
"""

import contextlib
import datetime as dt
import os
import secrets
import socket
from collections.abc import Iterator
from typing import Any

from hap import durable
from hap.registry.ledger import Ledger, Row
from hap.registry.versions import label
from hap.workspace import Workspace, exclusive

_PLACE = "place"  # a file of .hap/: the folder's own name among those that share a ledger


@contextlib.contextmanager
def promotion_lock(ws: Workspace, ledger: Ledger, purpose: str, now: dt.datetime) -> Iterator[None]:
    """Hold the promotions of this folder and of everybody else with this ledger.

    Raises:
        Busy: a promotion, rollback, repair or gc runs, here or on another host; the message says whose.
    """
    with exclusive(ws, "promotion", "is changing what serves", purpose, now), ledger.alone(purpose, now):
        yield


def whereabouts(ws: Workspace) -> dict[str, Any]:
    """Which process makes a move, and in which folder: evidence of its `intended` row."""
    return {"process": f"pid {os.getpid()} on {socket.gethostname()}", "folder": str(ws.root), "place": _place(ws)}


def is_here(ws: Workspace, row: Row) -> bool:
    """Whether the row's move was made in this folder, so that this folder's pins and server show what it came to."""
    return row.evidence.get("place") in (None, _place(ws))


def open_elsewhere(row: Row) -> str:
    """What to do about a killed move of another folder, in words."""
    moving = f"{row.action} of {label(row.to_version or 0)} by {row.actor}"
    return (
        f"{moving} ({row.evidence.get('process')}, in {row.evidence.get('folder')}, row {row.id}) was interrupted: the next "
        "`hapctl promote` or `hapctl rollback` there settles it. Where that folder is gone for good, say --take-over here"
    )


def _place(ws: Workspace) -> str:
    file = ws.state / _PLACE
    if not file.exists():
        durable.write_text(file, f"{secrets.token_hex(8)}\n")
    return file.read_text().strip()
