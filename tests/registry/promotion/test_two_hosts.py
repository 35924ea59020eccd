"""Two hosts, each with a folder and a Triton of its own, share a ledger in PostgreSQL: one changes what serves at a time."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from hap.errors import Busy, HapError
from hap.params import Params
from hap.registry import promotion
from hap.registry.ledger import Ledger, open_ledger
from hap.registry.turns import promotion_lock
from hap.serving import repository
from hap.serving import server as triton
from hap.workspace import Workspace
from tests.registry import postgres
from tests.registry.conftest import NOW, judged_against_champion
from tests.registry.file_triton import FileTriton
from tests.registry.promotion.conftest import story

pytestmark = pytest.mark.skipif(postgres.missing() is not None and "CI" not in os.environ, reason=str(postgres.missing()))


@dataclass(frozen=True)
class Host:
    """A workspace folder with its server; the ledger is elsewhere."""

    ws: Workspace
    params: Params
    server: FileTriton

    @property
    def ledger(self) -> Ledger:
        return open_ledger(self.ws, self.params)

    def promote(self, version: int, **words) -> promotion.Promotion:
        judged_against_champion(self.ws, self.params, version)
        return promotion.promote(self.ws, self.params, version, **{"server": self.server, "actor": self.ws.root.name, "now": NOW, **words})

    def repair(self) -> list[str]:
        notes = promotion.repair(self.ws, self.params, now=NOW, server=self.server)
        return [note for note in notes if "alias" not in note]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture
def url(database: str, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = f"hosts_{abs(hash(request.node.name)) % 10**8}"
    execute(database, f'CREATE DATABASE "{name}"')
    return database.rpartition("/")[0] + f"/{name}"


def execute(url: str, statement: str) -> list[tuple]:
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


@pytest.fixture
def hosts(registry: Path, params: Params, url: str, tmp_path: Path) -> tuple[Host, Host]:
    """Both know v1, v2 and v3 from one MLflow; v1 serves on both."""
    shared = params.model_copy(update={"ledger": params.ledger.model_copy(update={"url": url})})

    def host(name: str) -> Host:
        ws = Workspace(tmp_path / name)
        shutil.copytree(registry / "verdicts", ws.verdicts)
        ws.registry.mkdir()
        shutil.copy(registry / "registry" / "mlflow.db", ws.registry / "mlflow.db")
        return Host(ws, shared, FileTriton(ws.triton, tmp_path / f"{name}.json"))

    ann, bo = host("ann"), host("bo")
    ann.promote(1)
    assert bo.repair() == ["v1 is what the ledger says, and was not what the server or its pins said: repaired"]
    assert ann.server.serves() == bo.server.serves() == 1
    return ann, bo


def when_switching(host: Host, meanwhile: Callable[[], None]) -> None:
    """Do something at the moment at which the host's server is told to load `hap` anew; once."""
    load, done = host.server.load, []

    def loading(model: str) -> None:
        if model == "hap" and not done:
            done.append(model)
            meanwhile()
        load(model)

    host.server.load = loading  # type: ignore[method-assign]


def test_while_one_promotes_the_other_is_told_who_and_undoes_nothing(hosts: tuple[Host, Host]) -> None:
    ann, bo = hosts
    told: list[str] = []

    def meanwhile() -> None:
        for attempt in (lambda: bo.promote(3), lambda: bo.promote(3, take_over=True), lambda: bo.promote(3, dry_run=True)):
            with pytest.raises(
                Busy, match=rf"hap promote v2, pid {os.getpid()} on .* is changing what serves by the ledger at postgresql"
            ) as busy:
                attempt()
            assert "\n" not in str(busy.value)
        told.extend(bo.repair())

    when_switching(ann, meanwhile)
    assert ann.promote(2).outcome == "served"
    assert len(told) == 1 and "is changing what serves" in told[0]
    assert ann.server.serves() == ann.ledger.served() == 2 and bo.server.serves() == 1
    assert story(ann.ledger)[2:] == [("promote", "intended", 1, 2), ("promote", "served", 1, 2)]
    again = bo.promote(2)
    assert again.outcome == "unchanged" and "v2 is what the ledger says" in again.notes[0] and bo.server.serves() == 2
    assert bo.promote(3).outcome == "served" and bo.server.serves() == 3
    assert ann.ledger.verify() == 6


KILLED = """
import datetime as dt, os, signal, sys
from pathlib import Path
from hap.params import Params
from hap.registry import promotion
from hap.workspace import Workspace
from tests.registry.file_triton import FileTriton

ws, params = Workspace(Path(sys.argv[1])), Params.model_validate_json(sys.argv[2])
server = FileTriton(ws.triton, Path(sys.argv[3]))
load = server.load
def killed(model):
    load(model)
    if model == "hap_all":
        os.kill(os.getpid(), signal.SIGKILL)
server.load = killed
promotion.promote(ws, params, 2, server=server, actor="ann", now=dt.datetime(2026, 1, 5, tzinfo=dt.UTC))
"""


def wait_for_the_end_of(host: Host, session: str) -> None:
    """PostgreSQL sees a moment later that the process behind a session is gone, and keeps its lock until then."""
    own = host.params.ledger.url or ""
    alive = f"SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, '{session}')"
    assert triton.wait_for(lambda: execute(own, alive) == [], 30)


def killed_after_the_switch(host: Host) -> None:
    """A promotion of v2 there, in a process of its own, whose server serves v2 while no row says so."""
    judged_against_champion(host.ws, host.params, 2)
    words = [sys.executable, "-c", KILLED, str(host.ws.root), host.params.model_dump_json(), str(host.server.state)]
    done = subprocess.run(words, capture_output=True, check=False, timeout=240)
    assert done.returncode == -9, done.stderr
    wait_for_the_end_of(host, "hap promote v2")
    assert host.server.serves() == 2 and host.ledger.rows()[-1].state == "intended"


def test_what_a_killed_one_left_is_settled_in_its_own_folder_alone(hosts: tuple[Host, Host]) -> None:
    ann, bo = hosts
    killed_after_the_switch(ann)
    with pytest.raises(
        Busy, match=r"promote of v2 by ann \(pid .*, in .*/ann, row 3\) was interrupted: .* there settles it. .*--take-over"
    ) as busy:
        bo.promote(3)
    assert "\n" not in str(busy.value) and bo.repair() == [str(busy.value)]
    assert len(bo.ledger.rows()) == 3 and bo.server.serves() == 1
    assert ann.repair() == ["promote of v2 by ann was interrupted and answers its golden requests: v2 serves"]
    assert ann.server.serves() == ann.ledger.served() == 2
    bo.repair()
    assert bo.server.serves() == 2


def test_a_host_that_is_gone_is_taken_over_and_follows_when_it_is_back(hosts: tuple[Host, Host]) -> None:
    ann, bo = hosts
    killed_after_the_switch(ann)
    done = bo.promote(3, take_over=True)
    assert done.outcome == "served" and "taken over by bo: undone, v1 serves as before" in done.notes[0]
    assert bo.server.serves() == bo.ledger.served() == 3
    assert story(bo.ledger)[2:] == [
        ("promote", "intended", 1, 2),
        ("promote", "undone", 1, 2),
        ("promote", "intended", 1, 3),
        ("promote", "served", 1, 3),
    ]
    assert ann.repair() == ["v3 is what the ledger says, and was not what the server or its pins said: repaired"]
    assert ann.server.serves() == repository.pinned(ann.ws.triton) == 3


def test_one_that_lost_its_connection_and_was_taken_over_changes_the_ledger_no_more(hosts: tuple[Host, Host], url: str) -> None:
    ann, bo = hosts

    def cut_off() -> None:
        execute(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, 'hap promote v2')")
        wait_for_the_end_of(ann, "hap promote v2")
        assert bo.promote(3, take_over=True).outcome == "served"

    when_switching(ann, cut_off)
    with pytest.raises(
        HapError, match=r"promote of v2 failed: somebody else was here meanwhile: .* promote of v3 by bo, served \(row 6\); v3 serves"
    ):
        ann.promote(2)
    assert [row.to_version for row in ann.ledger.rows() if row.state == "served"] == [1, 3] and len(ann.ledger.rows()) == 6
    assert ann.server.serves() == bo.server.serves() == ann.ledger.served() == 3
    assert ann.repair() == bo.repair() == []


def test_the_lock_dies_with_its_holder(hosts: tuple[Host, Host]) -> None:
    ann, bo = hosts
    program = (
        "import datetime as dt, os, signal, sys; from hap.registry.ledger import Ledger\n"
        "with Ledger(sys.argv[1]).alone('rollback', dt.datetime.now(dt.UTC)):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, ann.params.ledger.url or ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(Busy, match=rf"hap rollback, pid {holder.pid} on "), promotion_lock(bo.ws, bo.ledger, "gc", NOW):
        pass
    holder.kill()
    holder.communicate()
    wait_for_the_end_of(bo, "hap rollback")
    with promotion_lock(bo.ws, bo.ledger, "gc", NOW):
        pass


def test_two_folders_with_one_sqlite_file_take_turns_too(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    shared = hosts[0].params.ledger.model_copy(update={"url": f"sqlite:///{tmp_path}/shared/ledger.db"})
    ann, bo = (dataclasses.replace(host, params=host.params.model_copy(update={"ledger": shared})) for host in hosts)
    held = promotion_lock(ann.ws, ann.ledger, "promote v2", NOW)
    wanted = promotion_lock(bo.ws, bo.ledger, "gc", NOW)
    with held, pytest.raises(Busy, match=rf"promote v2 \(pid {os.getpid()} on .* is changing what serves"), wanted:
        pass
    with promotion_lock(bo.ws, bo.ledger, "gc", NOW):
        pass


def test_a_ledger_that_is_away_is_one_line(hosts: tuple[Host, Host]) -> None:
    away = hosts[0].params.model_copy(
        update={"ledger": hosts[0].params.ledger.model_copy(update={"url": "postgresql://ann:secret@127.0.0.1:9/hap"})}
    )
    with pytest.raises(HapError, match=r"the ledger at .* cannot be used") as refused:
        promotion.promote(hosts[0].ws, away, 2, server=hosts[0].server, actor="ann", now=NOW)
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)
