"""Age of what serves and of days without a verdict: values in, one finding for each cause out; then the same from a workspace."""

import datetime as dt
from pathlib import Path

import orjson
import pytest

from flows.looks import staleness as flow
from flows.looks.subject import Subject
from hap.days import day_range, default_as_of
from hap.monitoring.staleness import Champion, look_at_age, look_at_schedule, member_windows
from hap.params import Mlflow, Params
from hap.registry.ledger import Entry, open_ledger
from hap.registry.local import bundle_folder
from hap.serving.bundle import seal_bundle
from hap.workspace import Workspace
from tests.serving.handmade import make_bundle

DAY = dt.date(2026, 1, 20)
NIGHT = default_as_of(DAY, 2)


def before(days: int) -> dt.date:
    return DAY - dt.timedelta(days=days)


def age(light: int | None, expressive: int | None, limit: int | None = 7):
    newest = {"light": None if light is None else before(light), "expressive": None if expressive is None else before(expressive)}
    return look_at_age(DAY, Champion(4, newest, NIGHT - dt.timedelta(days=2)), limit, NIGHT)


@pytest.mark.parametrize(
    ("light", "expressive", "cause"),
    [
        (7, 7, None),  # at the limit
        (8, 8, "stale:data"),
        (9, 20, "stale:data"),  # both beyond it are one cause, not three
        (8, 7, "stale:light"),  # the order, too, but that is the same cause
        (1, 8, "stale:expressive"),
        (3, 2, "stale:order"),
        (2, 3, None),  # an expressive model that lags within the limit
    ],
)
def test_each_way_to_be_old_is_one_cause(light: int, expressive: int, cause: str | None) -> None:
    look = age(light, expressive)
    assert [finding.cause for finding in look.findings] == ([cause] if cause else [])
    assert not look.unjudged and not look.missing
    assert {figure.name: figure.value for figure in look.figures} == {
        "stale.light_days": light, "stale.expressive_days": expressive, "stale.served_days": 2.0,
    }  # fmt: skip


def test_a_finding_says_version_age_limit_and_what_to_type() -> None:
    (finding,) = age(8, 7).findings
    assert finding.said == (
        "the light model of v4 was trained on data of 8 days before 2026-01-20; its expressive model on data of 7 days before; "
        "7 are allowed"
    )
    assert (finding.value, finding.limit, finding.severity, finding.do) == (8, 7, "ticket", "hapctl retrain --day 2026-01-20")


def test_what_a_bundle_does_not_say_stays_unjudged_and_is_told() -> None:
    assert age(None, None).unjudged == {"stale:data", "stale:light", "stale:expressive", "stale:order"} and age(None, None).notes
    half = age(None, 9)
    assert [finding.cause for finding in half.findings] == ["stale:expressive"] and "stale:light" in half.unjudged
    assert "light" in half.notes[0]


def test_without_a_limit_only_the_order_is_judged() -> None:
    assert age(100, 100, None).findings == () and age(100, 100, None).notes
    assert [finding.cause for finding in age(100, 99, None).findings] == ["stale:order"]


def test_a_members_own_window_goes_before_the_versions() -> None:
    info = {"window": ["2026-01-17", "2026-01-18"], "members": {"light": ["2026-01-11", "2026-01-12"]}}
    assert member_windows(info) == {"light": dt.date(2026, 1, 12), "expressive": dt.date(2026, 1, 18)}
    assert member_windows({"day": "2026-01-04"}) == {"light": None, "expressive": None}


def test_a_day_is_missed_only_after_its_time_and_told_with_the_oldest() -> None:
    def missed(*days: dt.date, at: dt.datetime = NIGHT, hours: float | None = 36):
        return look_at_schedule(DAY, days, 2, hours, at)

    assert missed(DAY, before(1)).findings == ()  # ripe now, and since 24 hours
    (finding,) = missed(before(1), before(2), before(3)).findings
    assert finding.cause == "schedule:missed" and (finding.value, finding.limit) == (2, 1)
    assert finding.do == "hapctl retrain --day 2026-01-17" and "2026-01-17, 2026-01-18" in finding.said and "72 hours" in finding.said
    assert missed(before(2), at=NIGHT - dt.timedelta(hours=13)).findings == ()
    assert missed(before(9), hours=None).findings == missed().findings == ()


@pytest.fixture
def subject(tmp_path: Path, small_params: Params) -> Subject:
    """v1 serves since the 15th, trained on the 12th to 14th; logs from the 12th on, verdicts of the 15th to 17th; no MLflow."""
    ws = Workspace(tmp_path / "ws")
    away = small_params.mlflow.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    params = small_params.model_copy(update={"mlflow": away, "train": small_params.train.model_copy(update={"days": 3})})
    window = day_range(dt.date(2026, 1, 12), dt.date(2026, 1, 14))
    make_bundle(bundle_folder(ws, 1))
    seal_bundle(bundle_folder(ws, 1), {"window": [str(day) for day in window]})
    at = dt.datetime(2026, 1, 16, 2, tzinfo=dt.UTC)
    open_ledger(ws, params).append(Entry(at=at, actor="ann", action="promote", state="served", to_version=1))
    for day in day_range(window[0], DAY):
        for table in ("requests", "candidates", "items"):
            folder = Path(ws.logs(params)) / table / f"day={day}"
            folder.mkdir(parents=True)
            (folder / "_SUCCESS").touch()
    ws.verdicts.mkdir()
    for number in (1, 2, 3):
        (ws.verdicts / f"v{number}.json").write_bytes(orjson.dumps({"day": f"2026-01-{14 + number}"}))
    return Subject(ws, params, DAY, 1, tuple(window))


def test_a_workspace_is_looked_at_without_mlflow_and_without_a_clock(subject: Subject) -> None:
    look = flow.look(subject)
    assert [finding.cause for finding in look.findings] == ["schedule:missed"] and not look.unjudged and not look.notes
    assert "1 day has complete logs and no verdict: 2026-01-18" in look.findings[0].said  # the 19th has until the 21st, 14:00
    figures = {figure.name: figure.value for figure in look.figures}
    assert figures["stale.light_days"] == figures["stale.expressive_days"] == 6 and figures["stale.served_days"] == 5.0
    later = flow.look(subject, default_as_of(DAY, 2) + dt.timedelta(days=2))
    assert next(finding.value for finding in later.findings if finding.cause == "schedule:missed") == 3


def test_limits_come_from_staleness_or_else_from_the_gate(subject: Subject) -> None:
    def causes(**settings: int) -> list[str]:
        chosen = subject.params.staleness.model_copy(update=settings)
        gate = subject.params.gate.model_copy(update={"max_age_days": 5})
        params = subject.params.model_copy(update={"staleness": chosen, "gate": gate})
        return [finding.cause for finding in flow.look(Subject(subject.ws, params, DAY, 1, subject.window)).findings]

    assert "stale:data" in causes() and "stale:data" not in causes(max_age_days=6)


def test_a_champion_whose_bundle_is_nowhere_leaves_its_age_unjudged(subject: Subject) -> None:
    params = subject.params.model_copy(update={"mlflow": Mlflow()})  # its own registry, which is empty
    look = flow.look(Subject(subject.ws, params, DAY, 9, subject.window))
    assert "stale:data" in look.unjudged and look.notes and "\n" not in look.notes[0]
    assert [finding.cause for finding in look.findings] == ["schedule:missed"]  # what needs no bundle is judged
