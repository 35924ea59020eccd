import dataclasses
import datetime as dt
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hap import durable
from hap.days import start_of
from hap.errors import DataError, NotFound
from hap.monitoring.causes import OF_CLICKS
from hap.monitoring.columns import Column, ColumnDrift, judged_columns
from hap.monitoring.drift import _noise, drift_report, report_drift
from hap.monitoring.frames import sample_frames
from hap.params import Drift, Features, resolve
from hap.samples import partitions
from hap.samples.collect import parameters
from hap.workspace import Workspace

DAYS = [dt.date(2026, 1, d) for d in (1, 2, 3, 4)]
FEATURES = {
    "user": [{"name": "user_id", "type": "id", "rows": 100}, {"name": "activity", "type": "dense"}],
    "context": [{"name": "hour", "type": "category", "rows": 64}],
    "item": [
        {"name": "item_id", "type": "id", "rows": 100},
        {"name": "price", "type": "dense"},
        {"name": "order", "type": "category", "rows": 16},  # a word of SQL as a name
    ],
    "history": [
        {"name": "item_id", "type": "id", "rows": 100},
        {"name": "order", "type": "category", "rows": 16},
        {"name": "age_hours", "type": "dense"},
    ],
}
PARAMS = resolve({"features": FEATURES}, "params.yaml")
KINDS = np.array([0, 1, 1, 1, 2, 2, 3, 3, 4, 4], dtype=np.int8)


def write_samples(ws, day, requests=300, seed=0, price=1.0, click=True, lost=(), drop=(), user=None, past=None):
    """A closed day in which `price` scales every price, `lost` columns are all null, and `past` changes lengths and events."""
    rng = np.random.default_rng([seed, day.day])
    count = requests * KINDS.size
    ends = np.arange(requests + 1) * KINDS.size
    users = rng.integers(1, 200, requests) if user is None else np.full(requests, user)
    items = rng.integers(1, 400, count) + 40 * day.day
    kinds = np.tile(KINDS, requests)
    flat = {
        "kind": kinds if click else np.where(kinds == 0, 1, kinds).astype(np.int8),
        "item_id": items,
        "price": (np.exp((items * 7919 % 1000) / 400) * price).astype(np.float32),
        "order": items % 5 + 1,
    }
    lengths = rng.integers(0, 20, requests)
    events = {
        "hist_age_hours": rng.random(lengths.sum()).astype(np.float32),
        "hist_item_id": rng.integers(1, 400, lengths.sum()),
        "hist_order": rng.integers(1, 6, lengths.sum()),
    }
    if past is not None:
        lengths, events = past(lengths, events)
    columns = {
        "request_id": np.arange(1, requests + 1) + day.day * 10**6,
        "user_id": users,
        "activity": (users * 31 % 97) / 97,
        "hour": rng.integers(1, 25, requests),
        **{name: pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)), pa.array(values)) for name, values in events.items()},
        **{f"cand_{name}": pa.ListArray.from_arrays(ends, pa.array(values)) for name, values in flat.items()},
    }
    for name in lost:
        empty = pa.nulls(count, pa.float32())
        columns[name] = pa.ListArray.from_arrays(ends, empty) if name.startswith("cand_") else pa.nulls(requests, pa.float64())
    folder = ws.samples / f"day={day}"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({name: values for name, values in columns.items() if name not in drop}), folder / "part-0.parquet")
    counted = {"requests": requests, "rows_by_kind": {}, "rows_by_bucket": {}, "items_unknown": 0, "samples_hash": ""}
    known = dict.fromkeys(("gn_shortfall", "requests_torn", "feedback_unmatched"), 0)
    known |= {"watermark": "", "labels": {}, "logged": {}, "sources": [], "quarantined": {}, "late": {}}
    manifest = partitions.Manifest.of(day, start_of(day), parameters(PARAMS), counted, known)
    durable.write_json(folder / partitions.MANIFEST, manifest.to_json())
    (folder / "_SUCCESS").touch()


def workspace(root, **last_day):
    ws = Workspace(root)
    for day in DAYS[:3]:
        write_samples(ws, day)
    write_samples(ws, DAYS[3], **last_day)
    return ws


def report(ws, params=PARAMS):
    return report_drift(ws, params, DAYS[:3], DAYS[3])


def compare(reference, current, settings=None):
    return drift_report(reference, current, Features.model_validate(FEATURES), settings or Drift(), day=DAYS[3], reference_days=DAYS[:3])


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return report(workspace(tmp_path_factory.mktemp("quiet")))


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    return report(workspace(tmp_path_factory.mktemp("shifted"), price=3.0))


def test_a_quiet_day_raises_no_alarm_and_measures_every_column(quiet):
    assert quiet.drifted == () and quiet.look.findings == () and not quiet.look.missing
    assert quiet.day == "2026-01-04" and quiet.reference_days == ("2026-01-01", "2026-01-02", "2026-01-03")
    figures = {figure.name: figure for figure in quiet.look.figures}
    assert figures.keys() == {f"inputs.{name}" for name in quiet.columns}
    price = quiet.columns["cand_price"]
    assert (figures["inputs.cand_price"].value, figures["inputs.cand_price"].most) == (price.value, price.threshold)


def test_columns_of_clicks_wait_for_labels_and_leave_their_causes_open(quiet, tmp_path):
    result = report_drift(workspace(tmp_path, click=False), PARAMS, DAYS[:3], DAYS[3], OF_CLICKS)
    assert result.drifted == () and result.look.findings == ()
    assert result.look.unjudged == {"labels:click_rate", "catalogue:GN"}
    assert result.columns["click_rate"].note == "waits for the day's labels"
    assert {name: one for name, one in result.columns.items() if name.startswith("cand_")} == {
        name: one for name, one in quiet.columns.items() if name.startswith("cand_")
    }


def test_distances_are_the_same_in_every_process(tmp_path):
    script = (
        "import sys; import pandas as pd; from tests.monitoring.test_drift import compare\n"
        "left, right = (pd.DataFrame({'hour': [str(n % k) for n in range(3000)]}) for k in (23, 29))\n"
        "print(compare(left, right).columns['hour'].value)"
    )
    seeds = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")  # with these the last digits of the sum are not the same
    ]
    assert len(set(seeds)) == 1


def test_a_shifted_price_alarms_by_name_and_nothing_else_does(shifted):
    assert shifted.drifted == ("cand_price",)
    assert [finding.figure for finding in shifted.look.findings] == ["inputs.cand_price"]
    assert [finding.cause for finding in shifted.look.findings] == ["input:cand_price"]
    said = shifted.look.findings[0].said
    assert said.startswith("cand_price: wasserstein ") and "its mean went from" in said


def test_the_page_names_no_outside_resource(shifted):
    page = shifted.html.decode()
    assert "cand_price" in page
    assert not re.findall(r"<(?:script|img|iframe)[^>]+src=|<link[^>]+href=", page)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None and "CI" not in os.environ, reason="no chromium here: apt-get install chromium")
def test_a_browser_draws_the_page_and_asks_the_network_for_nothing(shifted, tmp_path):
    log, page = tmp_path / "network.json", tmp_path / "page.html"
    page.write_bytes(shifted.html)
    words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}"]
    words += ["--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout
    body = re.sub(r"<script.*?</script>", "", shown, flags=re.DOTALL)
    assert "Data drift detected" in body and "cand_price" in body
    # What a page asks for carries its origin; the browser's own requests (all failing by the rule above) have none.
    assert set(re.findall(r'"initiator":"([^"]*)"', log.read_text())) <= {"not an origin"}


def test_a_click_outage_alarms(tmp_path):
    result = report(workspace(tmp_path, click=False))
    assert "click_rate" in result.drifted and not {name for name in result.drifted if name.startswith("share_")}
    assert result.columns["click_rate"].current_mean == 0.0


def test_a_column_that_is_null_all_day_is_a_finding(tmp_path):
    result = report(workspace(tmp_path, lost=["cand_price", "activity"]))
    assert {"cand_price", "activity"} <= set(result.drifted[:4])
    assert result.columns["activity"].note == "every value is missing on the day; the reference had values"
    assert "cand_price_present" in result.drifted


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("hist_order", lambda old: np.full(len(old), 3)),
        ("hist_order", lambda old: pa.nulls(len(old), pa.int64())),
        ("hist_age_hours", lambda old: old / 24),
        ("hist_age_hours", lambda old: pa.nulls(len(old), pa.float32())),
        ("hist_item_id", lambda old: np.full(len(old), 7)),
        ("hist_item_id", lambda old: old + 10**6),
    ],
)
def test_a_broken_feature_of_the_history_alarms_by_name_and_nothing_else_does(tmp_path, column, values):
    ws = workspace(tmp_path, past=lambda lengths, events: (lengths, events | {column: values(events[column])}))
    assert {finding.cause for finding in report(ws).look.findings} == {f"input:{column}"}


def test_histories_that_are_gone_are_told_by_their_length_alone(tmp_path):
    ws = workspace(tmp_path, past=lambda lengths, events: (lengths * 0, {name: values[:0] for name, values in events.items()}))
    result = report(ws)
    assert [(finding.cause, finding.severity) for finding in result.look.findings] == [("input:history_length", "page")]
    assert result.columns["hist_order"].note == "no request of the day has events; the reference had some"
    assert {"input:hist_order", "input:hist_age_hours"} <= result.look.unjudged


def test_a_column_that_is_gone_is_a_finding(tmp_path):
    result = report(workspace(tmp_path, drop=["cand_price"]))
    assert result.drifted[:1] == ("cand_price",) and result.columns["cand_price"].note == "the column is gone"
    assert [(finding.cause, finding.severity) for finding in result.look.findings] == [("input:cand_price", "page")]


def test_a_new_column_is_named_and_is_no_drift(tmp_path):
    ws = Workspace(tmp_path)
    for day in DAYS[:3]:
        write_samples(ws, day, drop=["activity"])
    write_samples(ws, DAYS[3])
    result = report(ws)
    assert result.columns["activity"].note == "the column is new, there is nothing to compare with"
    assert [(finding.cause, finding.severity) for finding in result.look.findings] == [("input:activity", "info")]
    assert "activity" not in result.drifted


def test_one_user_in_all_requests_alarms_by_concentration_not_by_value(tmp_path):
    result = report(workspace(tmp_path, user=7))
    assert "user_id_rank" in result.drifted and "user_id" not in result.columns


def test_a_user_never_seen_before_alarms(tmp_path):
    assert "user_id_seen" in report(workspace(tmp_path, user=10**12)).drifted


def test_a_catalogue_that_turns_over_every_day_is_no_drift(tmp_path):
    ws = workspace(tmp_path)
    reference, current = sample_frames(ws, PARAMS, DAYS[:3], DAYS[3])
    assert (reference["cand_item_id_seen"].dropna() == "new").any() and (current["cand_item_id_seen"].dropna() == "new").any()
    assert not report(ws).columns["cand_item_id_seen"].drifted


def test_one_reference_day_leaves_new_ids_unjudged(tmp_path):
    result = report_drift(workspace(tmp_path), PARAMS, [DAYS[2]], DAYS[3])
    assert result.columns["user_id_seen"].note == "no earlier day to look ids up in" and result.drifted == ()


def test_a_handful_of_requests_alarms_at_nothing_but_a_plain_change(tmp_path):
    ws = Workspace(tmp_path)
    for day in DAYS:
        write_samples(ws, day, requests=8)
    assert report(ws).drifted == ()


def test_one_request_is_enough_to_run(tmp_path):
    ws = Workspace(tmp_path)
    for day in DAYS:
        write_samples(ws, day, requests=1)
    result = report(ws)
    assert result.drifted == ()
    assert result.columns["activity"].note == "too few rows to compare: 3 in the reference, 1 on the day, 20 are needed"
    assert result.look.findings == () and "input:activity" in result.look.unjudged and result.look.missing


@pytest.mark.parametrize("few", ["the day", "the reference"])
def test_the_many_candidates_of_a_few_requests_say_nothing(tmp_path, few):
    ws = Workspace(tmp_path)
    for day in DAYS:
        write_samples(ws, day, requests=4 if (day == DAYS[3]) == (few == "the day") else 300)
    result = report(ws)
    assert min(result.columns["cand_item_id_rank"].current_rows, result.columns["cand_item_id_rank"].reference_rows) in (40, 120)
    assert result.look.missing and result.look.findings == ()


def test_a_day_none_of_whose_requests_came_in_time_is_not_one_finding_for_each_column(tmp_path):
    result = report(workspace(tmp_path, requests=0))
    assert result.look.missing and result.look.findings == ()


def test_sampling_is_bounded_and_repeats_itself(tmp_path):
    ws = workspace(tmp_path)
    params = PARAMS.model_copy(update={"drift": Drift(max_rows=100)})
    first, again = sample_frames(ws, params, DAYS[:3], DAYS[3]), sample_frames(ws, params, DAYS[:3], DAYS[3])
    for one, other in zip(first, again, strict=True):
        assert len(one) == 100
        pd.testing.assert_frame_equal(one, other)


def test_frames_hold_what_the_samples_hold(tmp_path):
    ws = workspace(tmp_path)
    _, current = sample_frames(ws, PARAMS, DAYS[:3], DAYS[3])
    table = pq.read_table(ws.samples / f"day={DAYS[3]}" / "part-0.parquet")
    assert current["activity"].mean() == pytest.approx(np.mean(table["activity"].to_numpy()))
    lengths = [len(row) for row in table["hist_age_hours"].to_pylist()]
    for row, ages in enumerate(sorted(table["hist_age_hours"].to_pylist(), key=len)[-5:]):
        assert set(np.float32(current["hist_age_hours"].dropna())) & set(np.float32(ages)), row  # one event of each
    assert current["hist_age_hours"].notna().sum() == current["hist_order"].notna().sum() == np.count_nonzero(lengths)
    assert current["history_length"].mean() == pytest.approx(np.mean(lengths))
    assert current["cand_price"].mean() == pytest.approx(np.mean(table["cand_price"].combine_chunks().flatten().to_numpy()))
    assert current["click_rate"].dropna().unique().tolist() == [0.25]
    assert current["share_RN"].dropna().unique().tolist() == [0.25]
    assert current["GN_per_EP"].dropna().unique().tolist() == [2.0]
    assert current["candidates"].dropna().unique().tolist() == [8.0]


def test_a_day_that_was_not_collected_is_named(tmp_path):
    with pytest.raises(NotFound, match="2026-01-05 has no samples"):
        report_drift(workspace(tmp_path), PARAMS, DAYS[:3], dt.date(2026, 1, 5))


@pytest.mark.parametrize("reference", [[], DAYS])
def test_a_reference_without_days_or_with_the_day_itself_is_refused(tmp_path, reference):
    with pytest.raises(DataError, match="needs reference days other than itself"):
        sample_frames(Workspace(tmp_path), PARAMS, reference, DAYS[3])


def test_constant_and_empty_columns_are_findings():
    fixed = pd.DataFrame({"activity": np.ones(500), "hour": ["3"] * 500, "click_rate": [np.nan] * 500})
    result = compare(fixed, fixed.copy())
    assert result.drifted == ()
    assert result.columns["activity"].note == "constant in the reference"
    assert result.columns["click_rate"].note == "every value is missing, in the reference too"
    moved = compare(fixed, fixed.assign(activity=2.0, hour="4"))
    assert set(moved.drifted) == {"activity", "hour"}


def test_infinite_values_and_other_types_do_not_crash():
    left = pd.DataFrame({"activity": [1.0, np.inf, 2.0] * 100, "hour": [1, 2, 3] * 100})
    right = pd.DataFrame({"activity": ["1", "x", "2"] * 100, "hour": ["1", "2", "3"] * 100})
    assert compare(left, right).drifted == ()


def test_frames_without_a_judged_column_give_an_empty_report():
    result = compare(pd.DataFrame({"other": [1]}), pd.DataFrame({"other": [2]}))
    assert result.columns == {} and result.drifted == () and b"No column could be compared" in result.html


def test_many_categories_are_compared_by_the_frequent_ones():
    rng = np.random.default_rng(1)
    left, right = (pd.DataFrame({"hour": rng.integers(1, 5000, 3000).astype(str)}) for _ in range(2))
    assert compare(left, right).drifted == ()
    assert compare(left, right.assign(hour="77")).drifted == ("hour",)


def test_a_category_that_moved_is_named_with_its_shares():
    left, right = (pd.DataFrame({"hour": ["9"] * nines + ["<b>"] * (400 - nines)}) for nines in (400, 300))
    assert compare(left, right).columns["hour"].moved == ("9", 1.0, 0.75), "of ties the first by name"
    (finding,) = compare(left, right.replace("9", "x" * 50)).look.findings
    assert finding.said.endswith("; '9' went from 100% to 0% of rows")
    (finding,) = compare(left.replace("9", "x" * 50), right.replace("9", "y" * 50)).look.findings
    assert finding.said.endswith(f"; '{'x' * 40}…' went from 100% to 0% of rows")
    assert compare(left, left).columns["hour"].moved is None


@pytest.mark.parametrize("settings", [Drift(numeric_method="psi", categorical_method="psi"), Drift(numeric_method="psi")])
def test_the_configured_method_and_threshold_are_used(settings):
    rng = np.random.default_rng(2)
    left, right = (pd.DataFrame({"activity": rng.normal(shift, 1, 4000)}) for shift in (0.0, 1.5))
    result = compare(left, right, settings)
    column = result.columns["activity"]
    assert isinstance(column, ColumnDrift) and column.method == "psi" and column.drifted
    assert compare(left, right, settings.model_copy(update={"numeric_threshold": 50.0})).drifted == ()


def test_names_of_judged_columns_are_unique():
    names = [column.name for column in judged_columns(PARAMS.features)]
    assert len(set(names)) == len(names)
    clash = {**FEATURES, "context": [{"name": "click_rate", "type": "dense"}]}
    names = [column.name for column in judged_columns(Features.model_validate(clash))]
    assert names.count("click_rate") == 1


def own_hours(days_users, requests, seed):
    """Requests of users who come at hours of their own."""
    rng = np.random.default_rng(seed)
    user, habits = rng.choice(days_users, requests), np.random.default_rng(5)
    hour, rate = habits.integers(0, 24, 1000)[user], habits.beta(1, 3, 1000)[user]
    return pd.DataFrame({"user_id": user, "hour": hour, "click_rate": rate})


def test_few_busy_users_with_habits_of_their_own_are_no_drift_of_a_context_column():
    """A thousand requests a side, of twenty-five users each: no more than twenty-five hours were drawn."""
    before, after = own_hours(range(25), 1000, 1), own_hours(range(500, 525), 1000, 2)
    assert compare(before, after).drifted == ()
    as_if_independent = [frame.drop(columns="user_id") for frame in (before, after)]
    assert {"hour", "click_rate"} <= set(compare(*as_if_independent).drifted)


def test_a_shift_of_context_and_figures_over_many_users_still_alarms():
    before, after = own_hours(range(400), 1000, 1), own_hours(range(400), 1000, 2)
    after["hour"], after["click_rate"] = np.minimum(after["hour"], 16), after["click_rate"] * 0.5
    assert set(compare(before, after).drifted) == {"hour", "click_rate"}


def test_measured_noise_is_one_over_n_of_independent_rows_and_that_of_clusters_where_all_share_a_value():
    rng = np.random.default_rng(0)
    column = Column("hour", "categorical", "request", "", "hour", "user_id", alike=True)
    shared = dataclasses.replace(column, alike=False)

    def noises(user, hour):
        before, after = (
            pd.DataFrame({"user_id": user[half], "hour": hour[half].astype(str)}) for half in (slice(0, 4000), slice(4000, None))
        )
        return [_noise(before, after, before["hour"], after["hour"], one) for one in (column, shared)]

    many = rng.integers(0, 100_000, 8000)
    measured, _ = noises(many, rng.integers(0, 8, 8000))
    assert measured == pytest.approx(2 / 4000, rel=0.15)
    few = np.concatenate([rng.integers(0, 200, 4000), rng.integers(200, 400, 4000)])
    measured, by_shares = noises(few, few * 7919 % 8)
    assert measured == pytest.approx(by_shares, rel=0.15) and measured > 15 * 2 / 4000
    both = rng.integers(0, 200, 8000)  # the same users on both sides, and so nearly the same hours
    assert noises(both, both * 7919 % 8)[0] == pytest.approx(2 / 4000, rel=0.3)


def test_rows_of_nobody_known_are_independent():
    column = Column("click_rate", "numeric", "request", "", "cand_kind", "user_id", alike=True)
    rng = np.random.default_rng(0)
    sides = [pd.DataFrame({"user_id": [None] * 1000, "click_rate": rng.random(1000)}) for _ in range(2)]
    assert _noise(*sides, sides[0]["click_rate"], sides[1]["click_rate"], column) == pytest.approx(2 / 1000, rel=0.2)
