"""`hapctl shadow`: a share of the requests that callers were answered, asked of a challenger, too.

It follows the log of served requests (hap/serving/served_log.py): callers are done when it begins, so none waits for it, and none has
to be changed. The challenger is loaded beside what serves under names that no caller asks for, with processes of its own; what it
shares with the champion is the machine. It ends after its time or by a signal, and takes the challenger out again.
"""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hap.errors import Busy, DataError, HapError, ServingError, UsageError
from hap.monitoring.shadow import Compared, Tally
from hap.params import Features, Params
from hap.registry import ledger as journal
from hap.registry.beside import drop_beside, load_beside, settled_rows
from hap.registry.ledger import Entry
from hap.registry.local import fetched, require_room
from hap.registry.switch import ask, end_stage, require_parity
from hap.registry.turns import promotion_lock
from hap.registry.versions import label
from hap.samples.order_key import in_share
from hap.serving import agreement, repository, staging
from hap.serving.agreement import PYTORCH, TRITON, Answers
from hap.serving.bundle import GRAPHS, Bundle
from hap.serving.client import HapClient
from hap.serving.following import Follower
from hap.serving.merge import routed_count
from hap.serving.served_log import SALT, served_tensors
from hap.serving.staging import SHADOW
from hap.serving.wire import StubDied
from hap.tables import table
from hap.workspace import Workspace, exclusive

LOOK_S = 1.0  # between two looks for finished files
LEAVE_S = 60.0  # that the end waits for a promotion that runs

Say = Callable[[str], None]
Stats = dict[int, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Shadowed:
    """What a shadow saw.

    skipped: requests that the challenger itself had answered, or that lack one of its columns.
    server_ms: mean time of a request inside Triton while the shadow ran, by Triton's own count: callers' on the champion, the
        shadow's on the challenger; None where it cannot be told (a restart, or another champion by then).
    """

    version: int
    champion: int
    share: float
    seconds: float
    compared: Compared | None
    skipped: int
    failed: int
    why: str
    server_ms: dict[str, float | None]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields, versions as labels."""
        return {
            "version": label(self.version),
            "champion": label(self.champion),
            "share": self.share,
            "seconds": round(self.seconds, 1),
            "skipped": self.skipped,
            "failed": self.failed,
            "why": self.why,
            "server_ms": self.server_ms,
            "notes": list(self.notes),
            "compared": self.compared.as_json() if self.compared else None,
        }

    def __str__(self) -> str:
        found = self.compared
        failed = f"{self.failed} failed ({self.why})" if self.failed else "none failed"
        head = f"{label(self.version)} beside {label(self.champion)} for {self.seconds:,.0f} s"
        if found is None:
            return "\n".join([f"{head}: no request with candidates came; {self.skipped} skipped, {failed}", *self.notes])
        beside = ", ".join(f"{name} {count:,}" for name, count in found.champions.items())
        rows: list[list[Any]] = [
            ["mean click probability", f"{found.ctr['champion']:.4f}", f"{found.ctr['challenger']:.4f}"],
            ["ms in the server, mean", *(_ms(self.server_ms[side]) for side in ("champion", "challenger"))],
        ]
        return "\n".join(
            [
                f"{head}: {found.requests:,} requests of {found.candidates:,} candidates ({beside}), {self.skipped} skipped, {failed}",
                table(["", label(self.champion), label(self.version)], rows),
                f"click probability changes by {found.ctr_change_mean:.4f} on average, by {found.ctr_change_p99:.3f} at p99",
                f"PSI of the scores {found.psi:.3f} (below .1: no shift, above .25: a large one)",
                f"routed alike {found.routing_agreement:.4f}, first 20 shared {found.top_overlap:.4f}",
                f"{label(self.version)} answered the shadow in {found.wall_ms['p50']:.1f} ms (p50), {found.wall_ms['p99']:.1f} ms (p99)",
                *self.notes,
            ]
        )


def shadow(
    ws: Workspace,
    params: Params,
    version: int,
    *,
    server: HapClient,
    share: float,
    log: Path,
    seconds: float | None,
    ended: threading.Event,
    actor: str,
    now: dt.datetime,
    say: Say = lambda line: None,
) -> Shadowed:
    """Ask a challenger for a share of the served requests until the time is over or the event is set; the ledger keeps what it came to.

    Args:
        share: of all request ids, by the hash that the log draws with: at most what the log holds.
        log: the folder of served requests.
        seconds: None goes on until the event.

    Raises:
        UsageError: the version serves already.
        DataError: it wants columns that served requests do not hold, or fails parity.
        Busy: a promotion runs, or another shadow.
        ServingError: no server, or it refused the version; what serves serves on.
    """
    rows = journal.open_ledger(ws, params).rows()
    champion = journal.served(rows)
    if champion is None or version == champion:
        what = f"{label(version)} serves already" if champion else "no version serves, so there is nothing to shadow"
        raise UsageError(f"{what}; give --model a challenger, see `hapctl models`")
    begun = time.monotonic()
    with exclusive(ws, SHADOW, "runs a shadow here", f"shadow of {label(version)}", now):
        bundle = fetched(ws, params, version)
        _require_columns(bundle.features, server.schema().features, version, champion)
        follower = Follower(log, now)
        notes: list[str] = []
        with _staged(ws, params, bundle, version, server, now, notes) as names:
            say(f"{label(version)} is loaded beside {label(champion)}; served requests are read below {log} as their files are finished")
            before = {name: _spent(server, name) for name in (*names, *names.values())}
            until = time.monotonic() + (float("inf") if seconds is None else seconds)

            def over(wait_s: float = 0.0) -> bool:
                return ended.wait(max(min(wait_s, until - time.monotonic()), 0.0)) or time.monotonic() >= until

            def revive() -> None:
                with promotion_lock(ws, journal.open_ledger(ws, params), f"shadow of {label(version)}", now):
                    repository.touch(ws.triton, version)
                    for model in (*GRAPHS, *names.values()):
                        server.load(model)

            shade = _Shade(server, bundle, version, names, share, over, revive)
            while not over(LOOK_S):
                shade.follow(follower)
            after = {name: _spent(server, name) for name in before}
        server_ms = {
            "champion": _mean_ms(before, after, names, champion),
            "challenger": _mean_ms(before, after, names.values(), version),
        }
        found = Shadowed(
            version=version, champion=champion, share=share, seconds=time.monotonic() - begun, compared=shade.tally.compared(),
            skipped=shade.skipped, failed=shade.failed, why=shade.why, server_ms=server_ms, notes=tuple(notes),
        )  # fmt: skip
        entry = Entry(
            at=now + dt.timedelta(seconds=found.seconds), actor=actor, action="shadow", state="noted", from_version=champion,
            to_version=version, evidence=found.as_json(),
        )  # fmt: skip
        journal.open_ledger(ws, params).append(entry)
        return found


class _Shade:
    """Asks the challenger, and adds up; one request at a time, and idle for as long again, so that it takes half a core at most.

    Args:
        over: waits for so many seconds, and says whether the shadow is to end.
        revive: loads the challenger anew where one of its processes died.
    """

    def __init__(
        self,
        server: HapClient,
        bundle: Bundle,
        version: int,
        names: dict[str, str],
        share: float,
        over: Callable[[float], bool],
        revive: Callable[[], None],
    ) -> None:
        self.server, self.bundle, self.version, self.names, self.share = server, bundle, version, names, share
        self.over, self.revive = over, revive
        self.tally, self.skipped, self.failed, self.why = Tally(), 0, 0, ""

    def follow(self, follower: Follower) -> None:
        """Everything that was finished since the last time."""
        try:
            for _, served in follower.read():
                self._file(served)
        except DataError as error:
            self._fault(error)

    def _file(self, served: pa.Table) -> None:
        ids, of, asked_k = (served[name].to_pylist() for name in ("request_id", "version", "k"))
        lacking = {name for name in _columns(self.bundle.features) if name not in served.column_names}
        for row in range(served.num_rows):
            if not in_share(ids[row], SALT, self.share):
                continue
            if of[row] == self.version or lacking:
                self.skipped += 1
                continue
            if self.over(self._request(served, row, asked_k[row], label(of[row]))):
                return

    def _request(self, served: pa.Table, row: int, k: int | None, champion: str) -> float:
        """Ask for one row; the seconds that it took."""
        tensors = served_tensors(served, row, self.bundle.features)
        every = routed_count(self.bundle.route, tensors.candidates, k) == tensors.candidates
        started = time.perf_counter()
        try:
            scored = self.server.score(tensors, k, model=self.names["hap_all" if every else "hap"])
        except ServingError as error:
            self._fault(error)
            return time.perf_counter() - started
        wall_s = time.perf_counter() - started
        told = [np.asarray(served[name][row].values.to_numpy(zero_copy_only=False)) for name in ("score", "routed")]
        self.tally.add(champion, (told[0], told[1].astype(bool)), (scored.score, scored.routed), wall_s * 1e3)
        return wall_s

    def _fault(self, error: HapError) -> None:
        self.failed += 1
        self.why = str(error)
        with contextlib.suppress(HapError):  # what does not work now is tried again at the next fault
            if isinstance(error, StubDied):
                self.revive()
            for name in self.names.values():  # a server that was restarted has the members, and these no more
                if not self.server.ready(name):
                    self.server.load(name)


@contextlib.contextmanager
def _staged(
    ws: Workspace, params: Params, bundle: Bundle, version: int, server: HapClient, now: dt.datetime, notes: list[str]
) -> Iterator[dict[str, str]]:
    """Have the challenger loaded under the shadow's names; it is out again afterwards, or `notes` say why not."""
    ledger, purpose = journal.open_ledger(ws, params), f"shadow of {label(version)}"
    with promotion_lock(ws, ledger, purpose, now):
        rows = settled_rows(ws, ledger)
        require_room(ws, version, 0, purpose)
        try:
            load_beside(ws, params, bundle, version, server, rows)
            names = staging.stage(ws.triton, SHADOW, version)
            for name in names.values():
                server.load(name)
            golden = bundle.golden()
            answers: Answers = {PYTORCH: agreement.golden_answers(golden), TRITON: ask(server, golden, names, version)}
            require_parity(agreement.beside(golden, answers, params.gate.max_parity), version)
        except BaseException:
            _leave(ws, params, server)
            raise
    try:
        yield names
    finally:
        until = time.monotonic() + LEAVE_S
        while True:
            try:
                with promotion_lock(ws, ledger, f"end of the {purpose}", now):
                    _leave(ws, params, server)
                break
            except Busy as busy:
                if time.monotonic() > until:
                    notes.append(f"{label(version)} is loaded still, the next promotion takes it out: {busy}")
                    break
                time.sleep(LOOK_S)
            except HapError as error:  # what was measured stands
                notes.append(f"{label(version)} could not be taken out, the next promotion does it: {error}")
                break


def _leave(ws: Workspace, params: Params, server: HapClient) -> None:
    live = server if server.live() else None
    end_stage(live, ws.triton, SHADOW)
    rows = journal.open_ledger(ws, params).rows()
    if journal.open_move(rows) is None and journal.pinned_for_next_start(rows) is None:  # else the next command has more to do
        drop_beside(ws, live, rows)


def _columns(features: Features) -> list[str]:
    """The columns of served requests that a version of these features reads."""
    groups = (("", "user"), ("hist_", "history"), ("cand_", "item"))
    return [prefix + feature.name for prefix, group in groups for feature in (*features.ids(group), *features.dense(group))]  # type: ignore[arg-type]


def _require_columns(wanted: Features, held: Features, version: int, champion: int) -> None:
    """Raises DataError: served requests lack a column that the challenger reads, or its histories have another length."""
    if lacking := [name for name in _columns(wanted) if name not in set(_columns(held))]:
        raise DataError(f"{label(version)} reads {lacking[0]!r}, which requests served by {label(champion)} lack: it cannot be shadowed")
    if wanted.history_length != held.history_length:
        raise DataError(
            f"{label(version)} reads histories of {wanted.history_length} events, requests served by {label(champion)} hold "
            f"{held.history_length}: it cannot be shadowed"
        )


def _spent(server: HapClient, name: str) -> Stats:
    """Nothing where the server is away: the shadow goes on without its times."""
    try:
        return server.spent(name)
    except ServingError:
        return {}


def _mean_ms(before: dict[str, Stats], after: dict[str, Stats], names: Any, version: int) -> float | None:
    """Milliseconds of a request in the server between two looks, over the ensembles of `names`."""
    count = spent = 0
    for name in names:
        (first, first_ns), (last, last_ns) = before[name].get(version, (0, 0)), after[name].get(version, (0, 0))
        if not before[name] or last < first:  # a server that was restarted begins anew
            return None
        count, spent = count + last - first, spent + last_ns - first_ns
    return spent / count / 1e6 if count else None


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
