"""A look at a day: what fails is a finding, what is missing is a finding, twice is once, and no early look closes a day."""

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import yaml

import flows.drift
import flows.due
import flows.looks.logs
from flows.drift import look_at_day
from flows.due import champion_of_day, due_days
from flows.looks.subject import Subject, Watch
from flows.looks.watchers import WATCHERS
from hap import durable
from hap.errors import Busy, DataError, HapError, NotFound
from hap.monitoring.evidently_ui import kept_runs, workspace_folder
from hap.monitoring.findings import Figure, Finding, Look
from hap.monitoring.report import Report, report_file
from hap.registry.incidents import incidents
from hap.registry.ledger import Entry, open_ledger
from hap.samples import partitions
from hap.workspace import Workspace, init_workspace, workspace_lock
from tests.conftest import FIRST_DAY
from tests.monitoring.receivers import webhook
from tests.monitoring.test_drift import DAYS, FEATURES, write_samples
from tests.monitoring.test_runbook import CAUSE
from tests.words import typing

D = DAYS[3]
NOW = dt.datetime(2026, 1, 5, 2, 30, tzinfo=dt.UTC)
Looks = Callable[[Subject], Look]


def serve(ws: Workspace, version: int, at: dt.datetime = NOW, action="promote") -> None:
    open_ledger(ws, ws.params()).append(Entry(at=at, actor="ann", action=action, state="served", to_version=version))


def trained_on(monkeypatch: pytest.MonkeyPatch, *windows: list[dt.date]) -> None:
    """The windows of v1, v2, ..."""

    def bundle(ws: Workspace, params: object, version: int) -> SimpleNamespace:
        if version > len(windows):
            raise NotFound(f"v{version} is gone")
        return SimpleNamespace(info={"window": [str(day) for day in windows[version - 1]]})

    monkeypatch.setattr(flows.looks.logs, "bundle_of", bundle)
    monkeypatch.setattr(flows.due, "bundle_of", bundle)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Four collected days without logs, and a champion."""
    ws = init_workspace(tmp_path_factory.mktemp("drift") / "ws", yaml.safe_dump({"features": FEATURES}))
    for day in DAYS:
        write_samples(ws, day, requests=30)
    serve(ws, 1)
    return ws


@pytest.fixture
def ws(prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of it, whose champion was trained on the first three days."""
    ws = Workspace(tmp_path / "ws")
    shutil.copytree(prepared.root, ws.root)
    trained_on(monkeypatch, DAYS[:3])
    return ws


def watch_with(monkeypatch: pytest.MonkeyPatch, *watches: Watch) -> None:
    monkeypatch.setattr(flows.drift, "WATCHERS", watches)


def saw(name: str, *causes: str, severity="ticket", needs_labels=False) -> Watch:
    """A watcher that finds the causes, and has a figure."""

    def look(subject: Subject) -> Look:
        found = tuple(Finding(cause=cause, severity=severity, said=f"{cause} moved", value=0.2, limit=0.1) for cause in causes)
        return Look(watcher=name, day=str(subject.day), findings=found, figures=(Figure(name=f"{name}.x", title="x", value=0.2, most=0.1),))

    return Watch(name, name.title(), look, needs_labels)


def fails(name: str, error: Exception) -> Watch:
    def look(subject: Subject) -> Look:
        raise error

    return Watch(name, name.title(), look)


def open_causes(ws: Workspace) -> list[str]:
    return [one.cause for one in incidents(open_ledger(ws, ws.params()).rows()).open]


def causes(report: Report) -> list[str]:
    return [finding.cause for finding in report.findings]


def test_a_watcher_that_fails_is_a_finding_in_its_words_and_the_others_look(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fails("skew", ZeroDivisionError("no rows\nat all"))
    watch_with(monkeypatch, broken, fails("traffic", DataError("the served log is torn; mend it")), saw("funnel", "funnel:share_EN"))
    looked = look_at_day(ws, D, NOW)
    assert causes(looked.report) == ["funnel:share_EN", "watch:skew", "watch:traffic"] and looked.report.exit_code == 4
    said = {finding.cause: finding.said for finding in looked.report.findings}
    assert said["watch:traffic"] == "traffic could not look: the served log is torn; mend it"
    kept = ws.state / "watch" / "skew.txt"
    assert said["watch:skew"] == f"skew could not look: ZeroDivisionError: no rows at all; its traceback is in {kept}"
    assert "Traceback" in kept.read_text() and "Traceback" not in looked.html.read_text()
    assert open_causes(ws) == ["funnel:share_EN", "watch:skew", "watch:traffic"]
    assert all(finding.severity == "ticket" for finding in looked.report.findings)

    watch_with(monkeypatch, saw("skew"), saw("traffic"), saw("funnel"))
    assert sorted(one.cause for one in look_at_day(ws, D, NOW).told.changes.closed) == ["funnel:share_EN", "watch:skew", "watch:traffic"]
    assert open_causes(ws) == []


def test_a_watcher_that_fails_leaves_open_what_it_had_opened(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_with(monkeypatch, saw("funnel", "funnel:share_EN"))
    look_at_day(ws, D, NOW)
    watch_with(monkeypatch, fails("funnel", KeyError("share_EN")))
    look_at_day(ws, D, NOW)
    assert open_causes(ws) == ["funnel:share_EN", "watch:funnel"]


def test_the_same_day_twice_gives_the_same_files_and_writes_nothing(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_with(monkeypatch, saw("funnel", "funnel:share_EN"), fails("skew", ValueError("x")))
    first = look_at_day(ws, D, NOW)
    before = (first.html.read_bytes(), first.json.read_bytes(), len(open_ledger(ws, ws.params()).rows()))
    second = look_at_day(ws, D, NOW + dt.timedelta(hours=1))
    assert (second.html.read_bytes(), second.json.read_bytes(), len(open_ledger(ws, ws.params()).rows())) == before
    assert not second.told.changes
    kept = orjson.loads(first.json.read_bytes())
    assert (kept["schema"], kept["champion"], kept["reference"], kept["labels"]) == (3, 1, [str(day) for day in DAYS[:3]], "matured")


def test_the_pages_of_the_real_watchers_say_what_drifted(ws: Workspace) -> None:
    shutil.rmtree(partitions.folder(ws, D))
    write_samples(ws, D, requests=300, price=3.0)
    looked = look_at_day(ws, D, NOW)
    assert "input:cand_price" in causes(looked.report) and looked.report.state == "page" and looked.report.exit_code == 4
    detail = orjson.loads(looked.json.read_bytes())["looks"]["inputs"]["detail"]
    assert set(detail["columns"]["cand_price"]) >= {"method", "value", "threshold", "drifted", "reference_mean", "current_mean"}
    assert detail["page"] == "drift-2026-01-04-columns.html" and (ws.pages / detail["page"]).stat().st_size > 100_000
    page = looked.html.read_text()
    assert 'href="drift-2026-01-04-columns.html"' in page and "input:cand_price since <span" in page and len(page) < 200_000
    assert sorted(path.name for path in ws.pages.iterdir()) == [
        "drift-2026-01-04-columns.html", "drift-2026-01-04.html", "drift-2026-01-04.json",
    ]  # fmt: skip


def test_every_watcher_has_a_name_of_its_own_that_a_cause_can_hold() -> None:
    names = [watch.name for watch in WATCHERS]
    assert len(set(names)) == len(names) and not {"logs", "watch"} & set(names)
    assert all(CAUSE.fullmatch(f"watch:{name}") for name in names)


def test_a_day_without_logs_is_a_finding_and_leaves_open_what_was(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_with(monkeypatch, saw("staleness"), Watch("inputs", "Inputs", WATCHERS[0].look))
    open_ledger(ws, ws.params())
    late = DAYS[3] + dt.timedelta(days=1)
    looked = look_at_day(ws, late, NOW + dt.timedelta(days=1))
    assert causes(looked.report) == ["logs:missing"] and looked.report.state == "page"
    assert looked.report.findings[0].said.startswith("no finished logs of 2026-01-05: requests, candidates, items")
    seen = {one.watcher: one for one in looked.report.seen}
    assert not seen["staleness"].missing and seen["inputs"].missing and "2026-01-05 has no samples" in (seen["inputs"].note or "")
    write_samples(ws, late, requests=30)  # they have come
    assert [one.cause for one in look_at_day(ws, late, NOW + dt.timedelta(days=1)).told.changes.closed] == ["logs:missing"]


def test_logs_that_break_their_contract_are_a_finding_in_the_contracts_words(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_with(monkeypatch, saw("staleness"))
    late = DAYS[3] + dt.timedelta(days=1)
    for table in ("requests", "candidates", "items", "feedback"):
        folder = ws.root / "logs" / table / f"day={late}"
        durable.write_text(folder / "part-0.parquet", "no Parquet")
        (folder / "_SUCCESS").touch()
    looked = look_at_day(ws, late, NOW + dt.timedelta(days=1))
    assert causes(looked.report) == ["logs:refused"] and "part-0.parquet" in looked.report.findings[0].said


def test_a_reference_that_is_gone_is_a_finding_and_what_is_left_of_it_is_compared_with(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects: list[Subject] = []

    def look(subject: Subject) -> Look:
        subjects.append(subject)
        if not subject.window:
            raise IndexError("no day")
        return Look(watcher="funnel", day=str(subject.day), findings=())

    watch_with(monkeypatch, Watch("funnel", "Funnel", look))
    shutil.rmtree(partitions.folder(ws, DAYS[0]))
    looked = look_at_day(ws, D, NOW)
    assert causes(looked.report) == ["reference:gone"] and looked.report.state == "quiet" and subjects[-1].window == tuple(DAYS[1:3])
    assert "samples and logs of 2026-01-01, which v1 was trained on, are gone" in looked.report.findings[0].said
    watch_with(monkeypatch, Watch("funnel", "Funnel", look), fails("skew", ValueError("x")))
    assert causes(look_at_day(ws, D, NOW).report) == ["watch:skew", "reference:gone"], "with a part of it a failure is a failure"
    watch_with(monkeypatch, Watch("funnel", "Funnel", look))
    for day in DAYS[1:3]:
        shutil.rmtree(partitions.folder(ws, day))
    looked = look_at_day(ws, D, NOW)
    assert causes(looked.report) == ["reference:gone"] and looked.report.state == "ticket" and subjects[-1].window == ()
    trained_on(monkeypatch)  # MLflow has lost the bundle
    looked = look_at_day(ws, D, NOW)
    assert looked.report.findings[0].said.endswith("cannot be read: v1 is gone") and looked.report.exit_code == 4


def test_a_day_that_the_champion_was_trained_on_is_refused_in_one_line(ws: Workspace) -> None:
    with pytest.raises(DataError, match=r"v1 was trained on 2026-01-02, .*; give a day after 2026-01-03"):
        look_at_day(ws, DAYS[1], NOW)


def test_the_days_of_a_range_before_one_that_is_refused_are_answered(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch_with(monkeypatch, saw("funnel", "funnel:share_EN"))
    after = D + dt.timedelta(days=1)
    trained_on(monkeypatch, [*DAYS[:3], after])
    mark(ws, after)
    code, out, err = typing(monkeypatch, capsys)("drift", "--root", ws.root, "--from", D, "--to", after, "--json")
    assert code == 1 and f"v1 was trained on {after}" in err
    (answered,) = orjson.loads(out)
    assert answered["day"] == str(D) and "funnel:share_EN" in answered["alerts"]["opened"]


def test_a_day_that_cannot_have_logs_is_refused_before_it_outranks_every_real_one(ws: Workspace) -> None:
    mark(ws, *DAYS)
    for day, said in ((dt.date(2027, 1, 4), "is not over at 2026-01-05 02:30 UTC"), (dt.date(2025, 1, 4), "before the first logged day")):
        with pytest.raises(DataError, match=said):
            look_at_day(ws, day, NOW)
    with pytest.raises(DataError, match="2026-01-05 is not over"):
        look_at_day(ws, NOW.date(), NOW)
    assert incidents(open_ledger(ws, ws.params()).rows()).settled == {}


def test_a_damaged_manifest_is_a_finding_of_its_day_and_a_loss_of_the_reference(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_with(monkeypatch, saw("funnel"))
    (partitions.folder(ws, DAYS[0]) / partitions.MANIFEST).write_text("{")
    assert causes(look_at_day(ws, D, NOW).report) == ["reference:gone"]
    mark(ws, D)
    (partitions.folder(ws, D) / partitions.MANIFEST).write_text("{")
    looked = look_at_day(ws, D, NOW)
    assert causes(looked.report) == ["logs:refused", "reference:gone"] and "manifest.json is damaged" in looked.report.findings[0].said


def test_what_a_killed_early_look_left_goes_with_the_next(ws: Workspace, logged_workspace: Workspace, tmp_path: Path) -> None:
    copy = logged(tmp_path, logged_workspace)
    for pid in ("999999999", "1"):  # nobody, and somebody who runs
        (copy.state / f"early-{pid}" / "samples").mkdir(parents=True)
    early = flows.looks.logs.Early(copy.root)
    flows.looks.logs._link(copy, early, [])
    assert sorted(path.name for path in copy.state.glob("early-*")) == sorted(["early-1", early.apart.name])


def test_pages_that_cannot_be_written_are_one_line_after_the_incidents_are_told(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_with(monkeypatch, saw("funnel", "funnel:share_EN", severity="page"))
    shutil.rmtree(ws.pages)
    ws.pages.write_text("no folder")
    with pytest.raises(HapError, match=r"cannot be written into .*pages: .*; 1 finding, in `hapctl alerts`; mend the folder, then"):
        look_at_day(ws, D, NOW)
    assert open_causes(ws) == ["funnel:share_EN"]


def test_a_page_that_cannot_be_rendered_keeps_nobody_from_being_told(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_with(monkeypatch, saw("funnel", "funnel:share_EN", severity="page"))
    ws.params_file.write_text(ws.params_file.read_text() + "\nalerts: {page: [HAP_ALERTS_PAGE], deadline_s: 60}\n")

    def defect(*_: object) -> str:
        raise KeyError("said")

    monkeypatch.setattr(flows.drift, "page_of", defect)
    with webhook() as hook:
        monkeypatch.setenv("HAP_ALERTS_PAGE", hook.url)
        with pytest.raises(KeyError):
            look_at_day(ws, D, NOW)
    assert hook.titles == ["[page] funnel:share_EN"]


def test_evidentlys_page_that_cannot_be_written_costs_no_look(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (ws.pages / "drift-2026-01-04-columns.html").mkdir()
    looked = look_at_day(ws, D, NOW)
    assert looked.report.seen[1].detail["page"] is None and "cannot be written" in looked.html.read_text()
    assert "watch:inputs" not in causes(looked.report)


def test_where_it_is_asked_for_evidentlys_workspace_is_filled_and_costs_no_look_where_it_cannot_be(ws: Workspace) -> None:
    (ws.root / "params.yaml").write_text(yaml.safe_dump({"features": FEATURES, "drift": {"evidently_ui": True}}))
    looked = look_at_day(ws, D, NOW)
    assert kept_runs(ws.pages).keys() == {D} and "watch:inputs" not in causes(looked.report)
    assert looked.report.seen[1].detail["problem"] is None
    shutil.rmtree(workspace_folder(ws.pages))
    workspace_folder(ws.pages).write_text("no folder")
    looked = look_at_day(ws, D, NOW)
    assert looked.report.seen[1].detail["page"] == "drift-2026-01-04-columns.html"
    assert f"{workspace_folder(ws.pages)} cannot be written" in looked.html.read_text()


def logged(tmp_path: Path, source: Workspace) -> Workspace:
    """A copy of a workspace with two simulated days, the first of which v1 was trained on."""
    ws = Workspace(tmp_path / "logged")
    shutil.copytree(source.root, ws.root)
    serve(ws, 1)
    return ws


def test_an_early_look_closes_no_day_and_the_second_one_judges_what_needs_labels(
    tmp_path: Path, logged_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, day = logged(tmp_path, logged_workspace), FIRST_DAY + dt.timedelta(days=1)
    trained_on(monkeypatch, [FIRST_DAY])
    seen: list[tuple[str, int, bool]] = []

    def look(subject: Subject) -> Look:
        rows = partitions.load(subject.ws, subject.day).requests
        seen.append((subject.labels, rows, partitions.find(subject.ws, FIRST_DAY) is not None))
        return Look(watcher="funnel", day=str(subject.day), findings=())

    watch_with(monkeypatch, Watch("funnel", "Funnel", look), saw("estimate", "estimate:gauc", needs_labels=True))
    night = dt.datetime(2026, 1, 3, 1, 30, tzinfo=dt.UTC)  # labels mature at two
    early = look_at_day(ws, day, night)
    assert (early.report.labels, causes(early.report), early.report.exit_code) == ("open", [], 0)
    assert {one.watcher: one.note for one in early.report.seen}["estimate"] == "waits for the day's labels, until 2026-01-03 02:00 UTC"
    assert partitions.find(ws, day) is None and not list(ws.state.glob("early*")), "nothing trains on a day without its labels"
    assert partitions.find(ws, FIRST_DAY) is not None, "the reference is closed as ever"

    later = look_at_day(ws, day, night + dt.timedelta(hours=1))
    assert (later.report.labels, causes(later.report), later.report.exit_code) == ("matured", ["estimate:gauc"], 4)
    assert partitions.find(ws, day) is not None
    assert seen == [("open", 150, True), ("matured", 150, True)]


def test_a_look_waits_for_the_workspace_only_where_something_is_to_be_collected(
    tmp_path: Path, logged_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, day = logged(tmp_path, logged_workspace), FIRST_DAY + dt.timedelta(days=1)
    trained_on(monkeypatch, [FIRST_DAY])
    watch_with(monkeypatch, saw("funnel"))
    with workspace_lock(ws, "retrain", NOW):
        with pytest.raises(Busy, match="retrain"):
            look_at_day(ws, day, NOW)
        assert look_at_day(ws, day, NOW, locked=True).report.state == "quiet"  # by whoever holds it
        assert look_at_day(ws, day, NOW).report.state == "quiet"  # all is there: beside it


def test_the_champion_of_a_day_is_what_served_when_it_ended(ws: Workspace) -> None:
    rows = open_ledger(ws, ws.params()).rows()
    with pytest.raises(NotFound, match=r"no champion yet.*hapctl promote"):
        champion_of_day([], D)
    assert champion_of_day(rows, D) == 1  # nothing served by then: what serves now
    serve(ws, 2, NOW + dt.timedelta(days=1))
    serve(ws, 1, NOW + dt.timedelta(days=2), action="rollback")
    rows = open_ledger(ws, ws.params()).rows()
    day = NOW.date()
    assert [champion_of_day(rows, day + dt.timedelta(days=n)) for n in range(3)] == [1, 2, 1]


def mark(ws: Workspace, *days: dt.date) -> None:
    """Make days look logged."""
    for day in days:
        for table in ("requests", "candidates", "items"):
            durable.write_text(ws.root / "logs" / table / f"day={day}" / "_SUCCESS", "")


def test_due_are_the_newest_whole_day_days_that_were_missed_and_days_whose_labels_matured(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [dt.date(2026, 1, n) for n in range(1, 9)]
    now = dt.datetime(2026, 1, 9, 1, 30, tzinfo=dt.UTC)  # the 8th is over, its labels are open
    watch_with(monkeypatch, saw("funnel"))
    mark(ws, *days[:7])
    assert due_days(ws, ws.params(), now) == days[3:8], "the first three were trained on; the 8th is due though it has no logs"
    for day in days[3:7]:
        write_samples(ws, day, requests=5) if day != D else None
        look_at_day(ws, day, now)
    assert due_days(ws, ws.params(), now) == [days[7]]
    look_at_day(ws, days[7], now)
    assert due_days(ws, ws.params(), now) == [], "once a night, though its logs are missing"
    mark(ws, days[7])
    assert due_days(ws, ws.params(), now) == [days[7]], "its logs have come"
    write_samples(ws, days[7], requests=5)
    look_at_day(ws, days[7], now)
    assert due_days(ws, ws.params(), now) == []
    assert due_days(ws, ws.params(), now + dt.timedelta(hours=1)) == [days[7]], "its labels have matured"
    look_at_day(ws, days[7], now + dt.timedelta(hours=1))
    assert due_days(ws, ws.params(), now + dt.timedelta(hours=1)) == []
    durable.write_text(report_file(ws.pages, days[5]), "{")
    assert due_days(ws, ws.params(), now + dt.timedelta(hours=1)) == [days[5]], "a damaged report is written again"
    trained_on(monkeypatch)
    durable.write_text(report_file(ws.pages, days[5]), "{")
    assert days[5] in due_days(ws, ws.params(), now), "a bundle that is lost keeps no day from being looked at"


def test_a_gap_in_the_logs_is_due_once_and_days_before_them_never(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_on(monkeypatch, [dt.date(2025, 12, 1)])
    mark(ws, dt.date(2026, 1, 2), dt.date(2026, 1, 4))
    now = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)
    assert due_days(ws, ws.params(), now) == [dt.date(2026, 1, n) for n in (2, 3, 4)]
    assert due_days(ws, ws.params(), now + dt.timedelta(days=40)) == [dt.date(2026, 2, 13)], "of an old workspace the newest day alone"
