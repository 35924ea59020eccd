"""Volume beside the right days, late requests told apart from absent ones; and the same of simulated days."""

import datetime as dt
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from flows.looks import traffic as flow
from flows.looks.subject import Subject
from hap.days import day_range
from hap.logs.sql import connect
from hap.monitoring.findings import Look
from hap.monitoring.traffic import Columns, look_at_traffic
from hap.monitoring.volumes import Volume, null_shares, unseen_shares
from hap.params import Params, Traffic
from hap.samples import partitions
from hap.workspace import Workspace
from tests.monitoring.conftest import Spoil

SUNDAY = dt.date(2026, 1, 11)
NONE = Columns({}, {})


def volume(day: dt.date, requests: float = 24_000, late: float = 0, crowding: float = 2.0, candidates: float | None = 300.0) -> Volume:
    """The same in every hour."""
    return Volume(day, (round(requests / 24),) * 24, (round(late / 24),) * 24, crowding, 1.5, candidates)


def week(**changed: object) -> list[Volume]:
    """The days before that Sunday, its own weekday among them."""
    return [volume(day, **changed) for day in day_range(dt.date(2026, 1, 4), dt.date(2026, 1, 10))]


def looked(today: Volume, reference: list[Volume], **settings: object) -> Look:
    return look_at_traffic(today, reference, NONE, NONE, Traffic(**settings))


def causes(look: Look) -> list[str]:
    return [finding.cause for finding in look.findings]


def figure(look: Look, name: str):
    return next(figure for figure in look.figures if figure.name == name)


def test_a_day_like_the_others_is_quiet() -> None:
    look = looked(volume(SUNDAY, 26_000), week())
    assert look.findings == () and not look.unjudged and not look.notes
    requests = figure(look, "traffic.requests")
    assert (requests.value, requests.reference) == (
        pytest.approx(26_000, abs=24),
        24_000,
    ) and requests.least < 17_000 < 31_000 < requests.most


def test_a_day_is_compared_with_its_own_weekday_and_with_all_where_that_is_absent() -> None:
    reference = [replace(volume(SUNDAY - dt.timedelta(days=7)), hours=(500,) * 24), *week()[1:]]  # Sundays have half of it
    assert looked(volume(SUNDAY, 12_000), reference).findings == ()
    (finding,) = looked(volume(SUNDAY, 24_000), reference).findings
    assert finding.cause == "traffic:volume" and "1 Sunday of the reference (2026-01-04)" in finding.said
    look = looked(volume(SUNDAY, 12_000), reference[1:])
    assert causes(look) == ["traffic:volume"] and "all 6 reference days, none of which is a Sunday" in look.findings[0].said
    assert "none of which is a Sunday" in look.notes[0]


def test_a_fall_is_a_ticket_and_a_collapse_wakes_someone() -> None:
    fallen, collapsed = looked(volume(SUNDAY, 15_000), week()), looked(volume(SUNDAY, 240), week())
    assert fallen.findings[0].severity == "ticket" and "-38% of 24,000" in fallen.findings[0].said
    assert collapsed.findings[0].severity == "page" and causes(collapsed) == ["traffic:volume"]


def test_one_hour_without_requests_is_found_in_a_day_that_is_whole_otherwise() -> None:
    hours = list(volume(SUNDAY).hours)
    hours[14] = 0
    (finding,) = looked(replace(volume(SUNDAY), hours=tuple(hours)), week()).findings
    assert finding.cause == "traffic:volume" and "-100% from 14:00" in finding.said and finding.value == 1.0


def test_few_users_with_many_requests_widen_the_limit() -> None:
    assert causes(looked(volume(SUNDAY, 15_000), week())) == ["traffic:volume"]
    assert causes(looked(volume(SUNDAY, 15_000, crowding=600), week(crowding=600))) == []


def test_requests_that_come_too_late_are_late_and_not_absent() -> None:
    look = looked(volume(SUNDAY, 16_800, late=7_200), week())
    assert causes(look) == ["traffic:late"] and "7,200 of 24,000 requests (30.0%)" in look.findings[0].said
    assert look.findings[0].value == pytest.approx(0.3) and look.findings[0].severity == "ticket"
    assert causes(looked(volume(SUNDAY, 16_800), week())) == []  # while they are nowhere, 30% is within what volume may do
    assert causes(looked(volume(SUNDAY, 12_000, late=0), week(requests=16_800, late=7_200))) == ["traffic:volume"]
    assert causes(looked(volume(SUNDAY, 16_800, late=7_200), week(requests=16_800, late=7_200))) == []  # as ever


def test_longer_lists_have_the_cascades_cause() -> None:
    look = looked(volume(SUNDAY, candidates=200.0), week())
    assert causes(look) == ["cascade:candidates"] and "200.0 candidates, -33%" in look.findings[0].said
    assert looked(volume(SUNDAY, candidates=285.0), week()).findings == ()
    assert "cascade:candidates" in looked(volume(SUNDAY, candidates=None), week()).unjudged


def test_too_few_requests_to_compare_with_judge_nothing_and_say_so() -> None:
    look = looked(volume(SUNDAY), week(requests=72))
    assert (
        look.findings == ()
        and look.unjudged == {"traffic:volume", "traffic:late", "cascade:candidates"}
        and "traffic.min_requests" in look.notes[0]
    )
    alone = looked(volume(SUNDAY), [])
    assert alone.findings == () and alone.unjudged and figure(alone, "traffic.requests").value == 24_000


def test_columns_are_figures_on_whichever_side_they_are() -> None:
    now, before = Columns({"cand_price": 0.5, "new": 0.0}, {"user_id": 0.04}), Columns({"cand_price": 0.0, "gone": 0.1}, {})
    figures = {one.name: (one.value, one.reference) for one in look_at_traffic(volume(SUNDAY), week(), now, before, Traffic()).figures}
    assert figures["traffic.null_cand_price"] == (0.5, 0.0) and figures["traffic.null_new"] == (0.0, None)
    assert figures["traffic.null_gone"] == (None, 0.1) and figures["traffic.unseen_user_id"] == (0.04, None)


# Simulated days.


def test_a_quiet_day_raises_nothing(three_days: Subject) -> None:
    look = flow.look(three_days)
    assert look.findings == () and not look.unjudged and not look.missing
    assert figure(look, "traffic.requests").value == 400 and figure(look, "traffic.candidates").value == 300
    assert figure(look, "traffic.late").value == 0 and figure(look, "traffic.null_cand_quality").value == 0
    assert 0 < figure(look, "traffic.unseen_cand_item_id").value < 0.2


def test_late_logs_raise_that_alone(spoiled: Callable[[str], Subject]) -> None:
    subject = spoiled("late-logs")
    look = flow.look(subject)
    assert causes(look) == ["traffic:late"] and figure(look, "traffic.requests").value == 400
    assert 0.2 < figure(look, "traffic.late").value < 0.4


@pytest.mark.parametrize("fault", ["click-outage", "shifted-prices"])
def test_faults_of_others_raise_nothing_here(fault: str, spoiled: Callable[[str], Subject]) -> None:
    assert flow.look(spoiled(fault)).findings == ()


def test_a_column_that_is_null_in_half_of_its_rows_shows_in_its_figure(spoiled: Callable[[str], Subject]) -> None:
    look = flow.look(spoiled("broken-feature"))
    assert look.findings == () and 0.4 < figure(look, "traffic.null_cand_quality").value < 0.6


def test_one_request_and_a_day_without_samples(three_days: Subject, spoiled: Callable[[Spoil], Subject]) -> None:
    first = pq.read_table(partitions.parquet_files(three_days.ws, [three_days.day])[0], columns=["request_id"])["request_id"][0]

    def alone(table: str, rows: pa.Table) -> pa.Table:
        return rows if table == "items" else rows.filter(pc.equal(rows["request_id"], first))

    look = flow.look(spoiled(alone))
    assert causes(look) == ["traffic:volume"] and look.findings[0].value > 0.99
    absent = flow.look(replace(three_days, day=three_days.day + dt.timedelta(days=5)))
    assert absent.missing and "hapctl collect --day 2026-01-08" in absent.notes[0]


def test_constant_and_empty_columns_are_counted(tmp_path: Path, three_days: Subject, default_params: Params) -> None:
    file = partitions.parquet_files(three_days.ws, [three_days.day])[0]
    table = pq.read_table(file)
    empty = pa.nulls(table.num_rows, table["activity"].type)
    table = table.set_column(table.column_names.index("activity"), "activity", empty).drop_columns(["cand_price"])
    pq.write_table(table, tmp_path / "part-0.parquet")
    with connect(default_params) as con:
        shares = null_shares(con, [tmp_path / "part-0.parquet"], default_params.features)
        assert shares["activity"] == 1.0 and "cand_price" not in shares and shares["cand_item_id"] == 0.0
        assert unseen_shares(con, [file], [file], default_params.features) == {"user_id": 0.0, "cand_item_id": 0.0, "cand_author_id": 0.0}
        assert unseen_shares(con, [file], [], default_params.features) == {}


def test_samples_that_do_not_read_are_said_in_one_line(three_days: Subject, tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "ws")
    shutil.copytree(three_days.ws.samples, ws.samples)
    partitions.parquet_files(ws, [three_days.day])[0].write_bytes(b"PAR1 not a file PAR1")
    look = flow.look(replace(three_days, ws=ws))
    assert look.missing and "\n" not in look.notes[0] and "unreadable" in look.notes[0]
