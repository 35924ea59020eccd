"""The benchmark of the watch: its sizes and tables, and (long) a whole small run."""

import datetime as dt
import subprocess
import sys

import orjson
import pytest

from benchmarks import drift_cost
from benchmarks.drift import NAMED, Tally, text_of
from benchmarks.drift_worlds import Case, sizes_of, watched_days
from hap.logs.faults import FAULTS


def answer(*words: str) -> dict:
    done = subprocess.run([sys.executable, "benchmarks/drift.py", "--json", *words], capture_output=True, text=True, check=True)
    return orjson.loads(done.stdout)


def test_every_fault_of_the_simulator_is_asked_for_and_has_a_cause_that_names_it() -> None:
    assert set(NAMED) == set(FAULTS)


def test_sizes_are_half_the_documented_one_and_double_but_no_share_above_all() -> None:
    assert sizes_of("late-logs") == (0.15, 0.3, 0.6) and sizes_of("click-outage") == (0.4, 0.8, 1.0)
    assert sizes_of("shifted-prices") == (1.25, 1.5, 2.0), "of a factor, what lies above 1"


def test_the_slow_fault_has_its_size_on_the_fifth_day_and_the_others_at_once() -> None:
    assert Case("interest-drift", 0.25).ramp == 4 and Case("late-logs", 0.3).ramp == 0
    assert watched_days(2) == [dt.date(2026, 1, 4), dt.date(2026, 1, 5)]


def test_alarms_are_scaled_to_a_month_and_unknown_without_quiet_days() -> None:
    assert Tally(alarms=1).to_json(10)["false_alarms_per_30_days"] == 3.0
    assert Tally().to_json(0)["false_alarms_per_30_days"] is None


def test_the_table_has_a_row_for_each_size_and_a_day_or_never_for_each_way() -> None:
    told = {"false_alarms_per_30_days": 0.0, "caught": {"late-logs": {"0.3": 0}}}
    lost = {"false_alarms_per_30_days": 0.0, "caught": {"late-logs": {"0.3": None}}}
    text = text_of({"environment": {"quiet_days": 10}, **told, "evidently": {**lost, "any_column": lost}, "cost": []})
    assert text.splitlines()[-1].split() == ["late-logs", "0.3", "0", "never", "never"] and "per 30 days: 0.0" in text


def test_what_was_not_asked_for_has_no_line() -> None:
    none = Tally().to_json(0)
    text = text_of({"environment": {"quiet_days": 0}, **none, "evidently": {**none, "any_column": none}, "cost": []})
    assert text == "quiet_days 0"


def test_the_cost_is_the_median_of_its_looks_with_the_least_and_the_most() -> None:
    looks = [{"columns": 30, "rows": 9, "import_cpu_s": 5.0, "cpu_s": spent, "peak_mib": 700} for spent in (15.0, 12.0, 13.0)]
    assert "13.0 CPU s (12.0 to 15.0), 5.0 of them imports" in drift_cost.text_of(drift_cost.summed_up(looks))


@pytest.mark.long
def test_the_cost_is_of_all_columns_and_rows_that_were_asked_for() -> None:
    found = answer("--parts", "cost", "--rows", "2000", "--looks", "1")
    assert found["cpu_s"] == found["cost"][0]["cpu_s"] > 0 and found["cost"][0]["peak_mib"] > 100
    assert [(one["columns"], one["rows"], one["drifted"]) for one in found["cost"]] == [(30, 2000, [])] * 2


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_small_run_catches_a_broken_feature_on_its_first_day_and_evidently_does_not_call_it_drift() -> None:
    words = ["--quick", "--requests", "250", "--days", "1", "--parts", "quiet", "faults", "--faults", "broken-feature"]
    found = answer(*words)
    assert found["caught"] == {"broken-feature": {"0.5": 0}} and found["evidently"]["caught"] == {"broken-feature": {"0.5": None}}
    assert found["evidently"]["any_column"]["caught"] == {"broken-feature": {"0.5": 0}}
    assert found["environment"]["quiet_days"] == 1 and len(found["days"]["quiet"]) == 1
