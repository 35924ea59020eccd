"""gc: what rollback, promotion and restore of kept versions need stays, the rest goes, and a killed gc is finished by the next."""

import contextlib
import datetime as dt
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from flows import free as gc
from flows.scratch import MADE_OF, calibration_folder, gate_copy
from hap import durable
from hap.errors import Busy, HapError, NotFound
from hap.monitoring.evidently_ui import run_file
from hap.monitoring.report import columns_file, page_file, report_file
from hap.params import Keep, Params
from hap.project import package_digest
from hap.registry import mlflow_store, promotion, versions
from hap.registry.ledger import Entry, open_ledger
from hap.registry.local import bundle_folder
from hap.registry.turns import promotion_lock
from hap.registry.versions import label
from hap.serving import repository
from hap.workspace import Workspace, workspace_lock
from tests.registry.file_triton import FileTriton
from tests.serving.handmade import make_bundle

SERVED = (1, 2, 3, 4)  # v5 is the newest and challenger, v6 was never promoted
NOW = dt.datetime.now(dt.UTC) + dt.timedelta(days=60)  # MLflow stamps versions by its own clock
FEW = Keep(versions=2, days=30)


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, default_params: Params) -> Workspace:
    """Six versions, four of which served one after another, with everything that they leave."""
    ws = Workspace(tmp_path_factory.mktemp("free") / "ws")
    for folder in (ws.registry, ws.verdicts, ws.state):
        folder.mkdir(parents=True)
    with mlflow_store.connect(ws, default_params):
        pass
    ledger = open_ledger(ws, default_params)
    for number in range(1, 7):
        bundle = make_bundle(bundle_folder(ws, number), shift=number / 8)
        registered = versions.register(ws, default_params, bundle.path, day=dt.date(2026, 1, number), workspace_rev="a", code_rev="b")
        assert registered == number
        versions.set_verdict(ws, default_params, number, {"version": number, "verdict": "pass", "against": None, "reasons": []})
        repository.render(bundle, number, ws.triton)
        shutil.copytree(bundle.path, gate_copy(ws, number))
        if number in SERVED:
            ledger.append(Entry(at=NOW, actor="ann", action="promote", state="served", to_version=number))
    repository.pin(ws.triton, 4, [3, 4])
    versions.set_alias(ws, default_params, "champion", 4)
    versions.set_alias(ws, default_params, "challenger", 5)
    (ws.state / "warm").mkdir()
    (ws.state / "warm" / "aa.pt").write_bytes(b"w" * 100)
    for name, made_of in (("dead", "another"), ("live", package_digest())):
        (calibration_folder(ws) / name).mkdir(parents=True)
        (calibration_folder(ws) / name / MADE_OF).write_bytes(orjson.dumps({"hap_digest": made_of, "manifests": []}))
        os.utime(calibration_folder(ws) / name, (NOW.timestamp(), NOW.timestamp()))
    return ws


@pytest.fixture
def reset(made: Workspace, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Put the workspace back as it was made, in its place: MLflow stores absolute paths, and keeps its database open."""
    saved, database = tmp_path / "saved", Path("registry") / "mlflow.db"
    shutil.copytree(made.root, saved)

    def back() -> None:
        for path in sorted(made.root.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif not path.is_dir() and path != made.root / database:
                path.unlink()
        shutil.copytree(saved, made.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db"))
        with contextlib.closing(sqlite3.connect(saved / database)) as old, contextlib.closing(sqlite3.connect(made.root / database)) as now:
            old.backup(now)

    yield back
    back()


@pytest.fixture
def ws(made: Workspace, reset) -> Workspace:
    return made


@pytest.fixture
def few(default_params: Params) -> Params:
    return default_params.model_copy(update={"keep": FEW})


@pytest.fixture
def run(ws: Workspace, few: Params) -> Callable[..., gc.Freed]:
    def call(**words) -> gc.Freed:
        return gc.free(ws, few, **{"server": None, "actor": "ann", "now": NOW, **words})

    return call


def lies(ws: Workspace, params: Params) -> dict[str, list[int]]:
    """Which versions have which files."""
    known = versions.list_versions(ws, params)
    return {
        "rendered": repository.rendered(ws.triton),
        "local": [one.number for one in known if bundle_folder(ws, one.number).is_dir()],
        "copies": [one.number for one in known if gate_copy(ws, one.number).is_dir()],
        "stored": [one.number for one in known if versions.stored_bundle(ws, params, one)],
        "freed": [one.number for one in known if one.freed],
    }


EVERY = [1, 2, 3, 4, 5, 6]
WHOLE = {"rendered": EVERY, "local": EVERY, "copies": EVERY, "stored": EVERY, "freed": []}
RIGHT = {"rendered": [3, 4], "local": [3, 4], "copies": [3, 4, 5], "stored": [3, 4, 5, 6], "freed": [1, 2]}


def test_what_rollback_and_the_newest_need_stays_and_the_rest_goes(ws, few, run) -> None:
    before = sum(path.stat().st_size for path in ws.root.rglob("*") if path.is_file())
    planned = run(dry_run=True)
    assert lies(ws, few) == WHOLE and not (ws.registry / gc.RECORD).exists(), "a dry run changes nothing"
    done = run()
    assert lies(ws, few) == RIGHT
    assert done.pieces == planned.pieces and str(planned).splitlines()[-1].startswith("would free ")
    assert done.kept == {4: "serves", 3: "a rollback returns to it", 5: "challenger", 6: "of the newest 2"}
    assert done.marked == (1, 2)
    freed = before - sum(path.stat().st_size for path in ws.root.rglob("*") if path.is_file())
    assert abs(freed - done.bytes) < 20_000, "what it said is what it freed, but for its own record and marks"
    assert [entry.name for entry in calibration_folder(ws).iterdir()] == ["live"] and not list((ws.state / "warm").iterdir())
    begun, ended = map(orjson.loads, (ws.registry / gc.RECORD).read_bytes().splitlines())
    assert (begun["state"], ended["state"], begun["versions"], len(begun["pieces"])) == ("begun", "done", ["v1", "v2"], len(done.pieces))
    again = run()
    assert (again.pieces, again.marked, str(again).splitlines()[-1]) == ((), (), "nothing to free")


def test_evidentlys_reports_of_old_days_go_and_the_pages_of_the_days_stay(ws, run) -> None:
    days = [(NOW - dt.timedelta(days=age)).date() for age in (0, FEW.days, FEW.days + 1, 400)]
    for day in days:
        for path in (columns_file(ws.pages, day), page_file(ws.pages, day), report_file(ws.pages, day)):
            durable.write_text(path, "x" * 1000)
    durable.write_text(ws.pages / "drift-soon-columns.html", "not ours")
    for day in days:
        durable.write_text(run_file(ws.pages, day), "x" * 10)
    planned = [piece for piece in run(dry_run=True).pieces if piece.what.startswith("Evidently")]
    assert [(piece.where, piece.bytes) for piece in planned] == [
        *((str(columns_file(ws.pages, day)), 1000) for day in sorted(days[2:])),
        *((str(run_file(ws.pages, day)), 10) for day in sorted(days[2:])),
    ]
    run()
    assert [day for day in days if run_file(ws.pages, day).exists()] == days[:2]
    assert {path.name for path in ws.pages.glob("*-columns.html")} == {
        *(columns_file(ws.pages, day).name for day in days[:2]), "drift-soon-columns.html",
    }  # fmt: skip
    assert all(page_file(ws.pages, day).exists() and report_file(ws.pages, day).exists() for day in days)


def test_a_rollback_works_after_it_and_a_freed_version_is_one_clear_line(ws, few, run, tmp_path) -> None:
    from flows.bundles import bundle_of
    from hap.registry.restore import restore

    run()
    server = FileTriton(ws.triton, tmp_path / "triton.json")
    for model in (*repository.GRAPHS, *repository.ENSEMBLES):
        server.load(model)
    words = {"server": server, "actor": "bo", "now": NOW}
    for call in (
        lambda: promotion.promote(ws, few, 1, **words, force=True, reason="why not"),
        lambda: restore(ws, few, 1, tmp_path / "back"),
        lambda: bundle_of(ws, few, 1),
    ):
        with pytest.raises(NotFound, match=r"bundle and data of v1 were freed by `hapctl gc` on 20\d\d-.*--day 2026-01-01`"):
            call()
    rows = len(open_ledger(ws, few).rows())
    assert promotion.rollback(ws, few, **words).version == 3 == server.serves()
    with pytest.raises(NotFound, match=r"the bundle of v2 is not on this host \(keep.versions says how many stay\)"):
        promotion.rollback(ws, few, **words)
    assert len(open_ledger(ws, few).rows()) == rows + 2 and server.serves() == 3


def test_what_is_young_loaded_pinned_or_left_open_stays(ws, few, run) -> None:
    assert run(now=dt.datetime.now(dt.UTC), dry_run=True).kept[1] == "registered in the last 30 days"
    repository.pin(ws.triton, 4, [1, 4])

    class Live:
        def live(self) -> bool:
            return True

        def versions(self, model: str) -> list[int]:
            return [2] if model == "light" else []

    assert {number: run(server=Live(), dry_run=True).kept.get(number) for number in (1, 2)} == {1: "loaded", 2: "loaded"}
    repository.pin(ws.triton, 4, [3, 4])
    ledger = open_ledger(ws, few)
    ledger.append(Entry(at=NOW, actor="ann", action="promote", state="intended", from_version=4, to_version=1))
    assert run(dry_run=True).kept[1] == "a killed promotion left it open"
    ledger.append(Entry(at=NOW, actor="ann", action="promote", state="undone", from_version=4, to_version=1))
    repository.pin(ws.triton, 2, [2, 4])
    assert run(dry_run=True).kept[2] == "pinned for the next start"


def test_a_freed_version_that_is_made_again_byte_for_byte_is_whole_again(ws, few, run, tmp_path) -> None:
    run()
    bundle = make_bundle(tmp_path / "again", shift=1 / 8)
    assert versions.register(ws, few, bundle.path, day=dt.date(2026, 1, 1), workspace_rev="c", code_rev="d") == 1
    found = versions.get_whole(ws, few, 1)
    assert (found.freed, found.workspace_rev) == (None, "c")
    versions.fetch_bundle(ws, few, 1, tmp_path / "fetched")


def test_it_waits_for_nobody_and_lets_nobody_in(ws, few, run, monkeypatch) -> None:
    with workspace_lock(ws, "retrain --day 2026-01-06", NOW), pytest.raises(Busy, match="retrain --day 2026-01-06"):
        run()
    with promotion_lock(ws, open_ledger(ws, few), "promote v5", NOW), pytest.raises(Busy, match="promote v5"):
        run()
    told = []

    def meanwhile(*_: object) -> None:
        with pytest.raises(Busy, match=r"gc \(pid .*\) is changing what serves") as caught:
            promotion.promote(ws, few, 5, server=None, actor="bo", now=NOW, offline=True)
        told.append(caught.value)

    monkeypatch.setattr(versions, "mark_freed", meanwhile)
    run()
    assert len(told) == 2


def test_another_registry_than_the_ledgers_frees_nothing(ws, few, run) -> None:
    open_ledger(ws, few).append(Entry(at=NOW, actor="ann", action="promote", state="served", to_version=9))
    with pytest.raises(HapError, match=r"v9 served or was judged here and MLflow does not know it.*Nothing was freed"):
        run()
    assert lies(ws, few) == WHOLE


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
def test_killed_at_any_step_the_next_gc_finishes_and_until_then_nothing_is_half_kept(ws, few, run, reset, every: int) -> None:
    steps = count_steps(run, None)
    assert {"_remove_copy", "mark_freed", "free_bundle", "rmtree", "_record"} == set(steps)
    for step in range(0, len(steps), every):
        reset()
        with pytest.raises(Killed):
            count_steps(run, step)
        left = lies(ws, few)
        killed = f"killed before step {step}, {steps[step]}"
        for place in ("rendered", "local", "copies", "stored"):
            assert set(RIGHT[place]) <= set(left[place]), killed
        whole = [one.number for one in versions.list_versions(ws, few) if not one.freed]
        assert set(whole) <= set(left["stored"]), f"{killed}: what is not marked as freed is there"
        done = run()
        assert lies(ws, few) == RIGHT, killed
        records = [orjson.loads(line)["state"] for line in (ws.registry / gc.RECORD).read_bytes().splitlines()]
        assert records[-1] == "done", killed
        assert ("was interrupted; this finishes it" in str(done)) == (records[:2] == ["begun", "begun"]), killed
        assert str(run()).splitlines()[-1] == "nothing to free", killed


def count_steps(run: Callable, die_at: int | None) -> list[str]:
    """Run gc, counting every change that it makes; the process ends before the one of that number, a folder's half removed."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:

        def counted(owner, name: str) -> None:
            real = getattr(owner, name)

            def call(*positional, **named):
                if len(done) == die_at:
                    if name == "rmtree" and (files := [path for path in Path(positional[0]).rglob("*") if path.is_file()]):
                        files[0].unlink()
                    raise Killed
                done.append(name)
                return real(*positional, **named)

            patch.setattr(owner, name, call)

        for owner, name in (
            (gc, "_remove_copy"),
            (gc, "_record"),
            (versions, "mark_freed"),
            (versions, "free_bundle"),
            (shutil, "rmtree"),
        ):
            counted(owner, name)
        run()
    return done


def test_marks_and_labels_read_well(ws, few, run) -> None:
    said = run().as_json()
    assert said["freed_versions"] == [label(1), label(2)] and said["kept"]["v4"] == "serves" and said["done"]
    assert {piece["kind"] for piece in said["pieces"]} == {"copy", "stored"}
