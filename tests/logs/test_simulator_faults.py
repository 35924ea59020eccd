"""Faults change what is logged, by their size, from their day on, and nothing of the world."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from hap.errors import UsageError
from hap.logs import contract
from hap.logs.faults import FAULTS, Fault, parse
from hap.logs.simulator import DEFAULTS, Summary, simulate
from hap.params import Features, Params

FIRST = dt.date(2026, 1, 1)
SECOND = FIRST + dt.timedelta(days=1)
DAYS, REQUESTS, SEED = 2, 120, 7  # as in conftest's `simulated`, the same world without faults


def fault(text: str, params: Params, size: float | None = None) -> Fault:
    return parse(text, SECOND, size, SEED, params.features, DEFAULTS.content_types)


@pytest.fixture
def faulty(params: Params, tmp_path: Path):  # type: ignore[no-untyped-def]
    def run(*faults: str, size: float | None = None) -> Path:
        root = tmp_path / "-".join(faults).replace(":", "_")
        simulate(root, FIRST, DAYS, REQUESTS, SEED, params.features, wrong=[fault(text, params, size) for text in faults])
        return root

    return run


def rows(root: Path, table: str, day: dt.date) -> pa.Table:
    key = [("request_id", "ascending"), ("item_id", "ascending")]
    found = ds.dataset(root / table / f"day={day}" / "part-0.parquet").to_table()
    return found.sort_by([one for one in key if one[0] in found.column_names])


def changed(left: pa.Table, right: pa.Table) -> set[str]:
    return {name for name in left.column_names if not left[name].equals(right[name])}


@pytest.mark.parametrize("name", [*FAULTS, "broken-feature:zero", "broken-feature:constant"])
def test_faulty_logs_keep_the_contract_and_days_before_are_untouched(
    name: str,
    faulty,
    simulated: tuple[Path, Summary],
    params: Params,  # type: ignore[no-untyped-def]
) -> None:
    root = faulty(name)
    for table in contract.TABLES:
        assert contract.check_day(root, table, SECOND, params)
        assert rows(root, table, FIRST).equals(rows(simulated[0], table, FIRST))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("new-category", {"items": {"content_type"}, "requests": {"hist_content_type"}}),
        ("broken-feature", {"items": {"quality"}}),
        ("shifted-prices", {"items": {"price"}}),
        ("late-logs", {"requests": {"ingest_time"}, "candidates": {"ingest_time"}, "feedback": {"ingest_time"}}),
    ],
)
def test_a_fault_changes_its_columns_alone(
    name: str,
    wanted: dict[str, set[str]],
    faulty,
    simulated: tuple[Path, Summary],  # type: ignore[no-untyped-def]
) -> None:
    root = faulty(name)
    found = {table: changed(rows(simulated[0], table, SECOND), rows(root, table, SECOND)) for table in contract.TABLES}
    assert {table: columns for table, columns in found.items() if columns} == wanted


def test_interest_drift_is_of_the_world_from_its_day_on(faulty, simulated: tuple[Path, Summary]) -> None:  # type: ignore[no-untyped-def]
    root = faulty("interest-drift", size=1.0)
    assert rows(root, "items", SECOND).equals(rows(simulated[0], "items", SECOND)), "the catalogue stays"

    def share(logs: Path) -> float:
        first = rows(logs, "items", SECOND).filter(pc.equal(pc.field("content_type"), 1))["item_id"]
        return float(pc.mean(pc.is_in(rows(logs, "candidates", SECOND)["item_id"], first).cast(pa.int8())).as_py())

    assert share(root) > 1.3 * share(simulated[0])  # a fifth of them, on the first day


def test_new_category_hits_a_share_of_items_and_agrees_between_catalogue_and_histories(faulty) -> None:  # type: ignore[no-untyped-def]
    root = faulty("new-category", size=0.2)
    items = rows(root, "items", SECOND)
    unseen = np.asarray(items["content_type"]) == DEFAULTS.content_types + 1
    assert unseen.mean() == pytest.approx(0.2, abs=0.03)
    types = dict(zip(items["item_id"].to_pylist(), items["content_type"].to_pylist(), strict=True))
    seen = 0
    for request in rows(root, "requests", SECOND).to_pylist():
        for item, content_type in zip(request["hist_item_id"], request["hist_content_type"], strict=True):
            if item in types:
                assert content_type == types[item]
                seen += content_type > DEFAULTS.content_types
    assert seen


@pytest.mark.parametrize("how", ["null", "constant", "zero"])
def test_broken_feature_spoils_a_share_of_values_in_the_way_asked_for(how: str, faulty) -> None:  # type: ignore[no-untyped-def]
    quality = rows(faulty(f"broken-feature:{how}", size=0.4), "items", SECOND)["quality"]
    if how == "null":
        share = quality.null_count / len(quality)
    elif how == "zero":
        share = np.mean(np.asarray(quality) == 0)
    else:
        share = pc.value_counts(quality).field("counts").to_numpy().max() / len(quality)
    assert share == pytest.approx(0.4, abs=0.04)


def test_shifted_prices_are_multiplied(faulty, simulated: tuple[Path, Summary]) -> None:  # type: ignore[no-untyped-def]
    shifted, plain = (np.asarray(rows(root, "items", SECOND)["price"]) for root in (faulty("shifted-prices", size=3.0), simulated[0]))
    assert np.allclose(shifted, 3 * plain)


def test_late_requests_come_after_the_label_delay_with_all_that_is_theirs(faulty, params: Params) -> None:  # type: ignore[no-untyped-def]
    root = faulty("late-logs")
    closing = dt.datetime.combine(SECOND, dt.time(), dt.UTC) + dt.timedelta(days=1, hours=params.collect.label_delay_hours)
    late = {}
    for table in ("requests", "candidates", "feedback"):
        found = rows(root, table, SECOND)
        after = pc.greater(found["ingest_time"], pa.scalar(closing, contract.TIME))
        late[table] = set(found.filter(after)["request_id"].to_pylist())
        assert not late[table] & set(found.filter(pc.invert(after))["request_id"].to_pylist()) or table == "feedback"
    assert late["requests"] == late["candidates"] and late["requests"] <= late["feedback"] | late["requests"]
    assert len(late["requests"]) / REQUESTS == pytest.approx(0.3, abs=0.12)


def test_click_outage_loses_most_feedback_of_its_hours_and_none_else(faulty, simulated: tuple[Path, Summary]) -> None:  # type: ignore[no-untyped-def]
    lost, whole = (rows(root, "feedback", SECOND) for root in (faulty("click-outage"), simulated[0]))
    inside = [np.isin(np.asarray(pc.hour(table["event_time"])), range(12, 18)) for table in (lost, whole)]
    assert inside[0].sum() / inside[1].sum() == pytest.approx(0.2, abs=0.08)
    assert lost.filter(pa.array(~inside[0])).equals(whole.filter(pa.array(~inside[1])))


def test_faults_add_up(faulty, simulated: tuple[Path, Summary]) -> None:  # type: ignore[no-untyped-def]
    root = faulty("shifted-prices", "broken-feature")
    assert changed(rows(simulated[0], "items", SECOND), rows(root, "items", SECOND)) == {"price", "quality"}


@pytest.mark.parametrize(
    ("text", "size", "said"),
    [
        ("new-categories", None, "did you mean new-category?"),
        ("earthquake", None, "known: new-category"),
        ("late-logs:zero", None, "only broken-feature takes a detail"),
        ("broken-feature:upside-down", None, "one of null, constant, zero"),
        ("click-outage", 1.5, "above 0 and at most 1"),
        ("shifted-prices", 0.0, "it is factor, above 0"),
    ],
)
def test_a_wrong_fault_is_refused_in_one_line(text: str, size: float | None, said: str, params: Params) -> None:
    with pytest.raises(UsageError, match=said.replace("?", r"\?")) as refused:
        fault(text, params, size)
    assert "\n" not in str(refused.value)


def test_a_fault_of_a_feature_that_is_not_declared_is_refused(params: Params) -> None:
    few = Features(user=params.features.user[:1], item=params.features.item[:2], history=params.features.history[:1])
    for text, said in (("shifted-prices", "item feature price"), ("broken-feature", "needs a dense item feature")):
        with pytest.raises(UsageError, match=said):
            parse(text, SECOND, None, SEED, few, DEFAULTS.content_types)


@pytest.mark.parametrize("text", ["new-category", "broken-feature", "late-logs", "click-outage"])
def test_a_share_of_one_hits_every_id(text: str, params: Params) -> None:
    assert fault(text, params, 1.0).chosen(np.arange(1, 1000, dtype=np.int64)).all()
