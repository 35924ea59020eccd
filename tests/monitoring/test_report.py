"""The report of a day as it is kept: read as it was written, its state the worst of its findings, damage told from absence."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from hap import durable
from hap.errors import DataError
from hap.monitoring.findings import Figure, Finding
from hap.monitoring.report import Report, Seen, earlier_reports, read_report, report_file, report_text, reported_days, write_report

DAY = "2026-01-04"


def found(cause="input:cand_price", severity="ticket", value=0.2, limit=0.1) -> Finding:
    return Finding(cause=cause, severity=severity, said=f"{cause} moved", value=value, limit=limit, figure="inputs.cand_price")


def report(*findings: Finding, **changes) -> Report:
    figure = Figure(name="inputs.cand_price", title="cand_price", value=0.2, most=0.1)
    seen = Seen(watcher="inputs", title="Inputs", findings=findings, figures=(figure,), unjudged=("labels:click_rate",))
    looked = (Seen(watcher="logs", title="Logs"), seen, Seen(watcher="watch", title="The watchers"))
    return Report(**{"day": DAY, "labels": "matured", "champion": 2, "reference": ("2026-01-03",), "seen": looked} | changes)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = report(found(), found("labels:click_rate", "page", None, None))
    written = orjson.loads(write_report(tmp_path, whole).read_bytes())
    assert (written["schema"], written["day"], written["state"], written["labels"]) == (3, DAY, "page", "matured")
    assert written["looks"]["inputs"]["findings"][0]["kind"] == "input" and written["looks"]["inputs"]["unjudged"] == ["labels:click_rate"]
    again = read_report(tmp_path, DAY)
    assert again == replace(whole, seen=tuple(sorted(whole.seen, key=lambda one: one.watcher)))
    assert [look.watcher for look in whole.looks] == ["logs", "inputs", "watch"] and whole.looks[1].findings == whole.seen[1].findings


def test_numbers_that_are_not_finite_are_kept_as_absent() -> None:
    odd = report(found(value=float("nan"), limit=float("inf"))).as_kept()
    assert (odd.findings[0].value, odd.findings[0].limit) == (None, None)
    figure = Figure(name="x.y", title="y", value=np.float64(0.5), most=np.float32("inf"))
    kept = report(seen=(Seen(watcher="x", title="x", figures=(figure,)),)).as_kept().seen[0].figures[0]
    assert (kept.value, kept.most) == (0.5, None)


@pytest.mark.parametrize(
    ("findings", "state", "code"),
    [
        ((), "quiet", 0),
        ((found(severity="info"),), "quiet", 0),
        ((found(),), "ticket", 4),
        ((found(), found("labels:click_rate", "page")), "page", 4),
    ],
)
def test_the_state_is_the_worst_severity_and_what_is_worth_knowing_is_not_wrong(findings, state, code) -> None:
    assert (report(*findings).state, report(*findings).exit_code) == (state, code)


def test_a_day_that_no_watcher_could_judge_is_not_quiet() -> None:
    blind = report(seen=(Seen(watcher="logs", title="Logs"), Seen(watcher="inputs", title="Inputs", missing=True)))
    assert (blind.state, blind.exit_code) == ("unjudged", 0)


def test_absence_damage_and_another_schema_are_told_apart(tmp_path: Path) -> None:
    assert read_report(tmp_path, DAY) is None
    odd = orjson.dumps(report(found()).to_json()).decode().replace('"severity":"ticket"', '"severity":"dire"')
    damaged = {
        "{": "cannot be read",
        '{"schema": 2}': "schema 2 is not 3",
        "[]": "schema None",
        '{"schema": 3}': "no report",
        odd: "no report",
    }
    for text, said in damaged.items():
        durable.write_text(report_file(tmp_path, DAY), text)
        with pytest.raises(DataError, match=said):
            read_report(tmp_path, DAY)


def test_the_days_before_are_found_and_damaged_ones_passed_over(tmp_path: Path) -> None:
    for day in ("2026-01-01", "2026-01-02", "2026-01-03", DAY):
        write_report(tmp_path, report(day=day))
    durable.write_text(report_file(tmp_path, "2026-01-02"), "{")
    durable.write_text(tmp_path / "drift-soon.json", "{")
    assert [one.day for one in earlier_reports(tmp_path, dt.date(2026, 1, 4), 3)] == ["2026-01-01", "2026-01-03"]
    assert [one.day for one in earlier_reports(tmp_path, dt.date(2026, 1, 4), 2)] == ["2026-01-03"]
    assert [str(day) for day in reported_days(tmp_path)] == ["2026-01-01", "2026-01-02", "2026-01-03", DAY]


def test_in_words_it_is_a_line_and_a_table() -> None:
    lines = report_text(report(found(), found("labels:outage", "page", None, None))).splitlines()
    assert lines[0] == "2026-01-04: broken; v2, trained on 2026-01-03; labels matured"
    assert lines[2].split()[:2] == ["page", "labels:outage"] and "0.2, limit 0.1" in lines[3]
    assert "days that are gone" in report_text(report(reference=()))
