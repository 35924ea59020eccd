"""Lost feedback told apart from falling interest, as values and on simulated days; and who of two watchers rings."""

import datetime as dt
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flows.looks import labels as flow
from flows.looks.subject import Subject
from hap.logs import contract
from hap.monitoring.findings import Finding, Look
from hap.monitoring.labels import CAUSES, find_outage, look_at_labels, quantile, yielded
from hap.monitoring.rates import Rate, Side, bucket_of, seconds_of
from hap.params import Labels
from tests.monitoring.conftest import DAYS, Spoil

DAY = "2026-01-11"
RATE = 0.2


def rate(exposures: float, share: float, per_user: float = 8.0) -> Rate:
    """Users of `per_user` exposures each, all with the same share of clicks."""
    clicks = exposures * share
    return Rate(exposures, clicks, clicks * share * per_user, clicks * per_user, exposures * per_user)


def side(
    exposures: float = 2_000, share: float = RATE, by_hour: Mapping[int, float] | None = None, rows: Mapping[int, float] | None = None,
    by_type: Mapping[str, float] | None = None, delay_s: float = 60.0, feedback: bool = True,
) -> Side:  # fmt: skip
    """Exposures in each hour; `by_hour` and `by_type` multiply the clicks there, `rows` the rows of feedback (one an exposure)."""
    factors = {hour: (by_hour or {}).get(hour, 1.0) for hour in range(24)}
    types = {str(number): (by_type or {}).get(str(number), 1.0) for number in range(1, 5)}
    mean_h, mean_t = sum(factors.values()) / 24, sum(types.values()) / 4
    whole = rate(24 * exposures, share * mean_h * mean_t)
    spread = np.random.default_rng(1).lognormal(math.log(delay_s), 1.0, max(int(whole.clicks), 1))
    delays: dict[int, int] = {}
    for seconds in spread.tolist():
        delays[bucket_of(seconds)] = delays.get(bucket_of(seconds), 0) + 1
    return Side(
        days=(dt.date(2026, 1, 11),),
        overall=whole,
        hours={hour: rate(exposures, share * factor * mean_t) for hour, factor in factors.items()},
        groups={
            "cand_position": {str(place): rate(6 * exposures, share * mean_h * mean_t) for place in range(1, 5)},
            "cand_content_type": {value: rate(6 * exposures, share * mean_h * factor) for value, factor in types.items()},
        },
        feedback={hour: rate(exposures, (rows or {}).get(hour, 1.0)) for hour in range(24)} if feedback else None,
        delays=delays if feedback and whole.clicks else None if not feedback else {},
    )


def looked(today: Side, reference: Side | None = None, **settings: object) -> Look:
    """The look as the flow puts it together; what is left without silent hours is made by leaving them out of sums."""
    chosen, before = Labels(**settings), reference or side()
    outage = find_outage(today, before, chosen)
    rest = tuple(_without(one, outage.hours) for one in (today, before)) if outage.hours else (today, before)
    return look_at_labels(DAY, today, before, outage, rest, chosen)  # type: ignore[arg-type]


def _without(one: Side, hours: tuple[int, ...]) -> Side:
    left = {hour: found for hour, found in one.hours.items() if hour not in hours}
    exposures, clicks = (sum(getattr(found, name) for found in left.values()) for name in ("exposures", "clicks"))
    whole = rate(exposures, clicks / exposures if exposures else 0.0)
    share = whole.rate / one.overall.rate if one.overall.rate else 1.0
    groups = {c: {v: rate(r.exposures * len(left) / 24, r.rate * share) for v, r in values.items()} for c, values in one.groups.items()}
    return replace(one, hours=left, overall=whole, groups=groups)


def causes(look: Look) -> list[str]:
    return [finding.cause for finding in look.findings]


def only(hours: range, factor: float) -> dict[int, float]:
    return dict.fromkeys(hours, factor)


def test_a_day_like_the_others_is_quiet_and_its_figures_have_bounds() -> None:
    look = looked(side(share=0.21))
    assert look.findings == () and not look.unjudged and not look.notes
    figure = look.figures[0]
    assert figure.name == "labels.click_rate" and figure.reference == pytest.approx(RATE)
    assert figure.least < figure.lower < 0.21 < figure.upper < figure.most
    names = {one.name for one in look.figures}
    assert {"labels.click_rate_cand_position_1", "labels.click_rate_cand_content_type_4", "labels.delay_median_s"} <= names


@pytest.mark.parametrize("left", [0.0, 0.25, 0.6])
def test_hours_without_feedback_are_an_outage_and_no_loss_of_interest(left: float) -> None:
    gone = only(range(12, 18), left)
    look = looked(side(by_hour=gone, rows=gone))
    assert causes(look) == ["labels:outage"]
    (finding,) = look.findings
    assert "rows of feedback fell away in 6 hours (12:00 to 18:00 UTC)" in finding.said and finding.severity == "page"
    assert finding.value == pytest.approx((1 - left) * 6 / 24, rel=0.02)


@pytest.mark.parametrize("feedback", [True, False])
def test_an_even_fall_is_interest_whether_rows_tell_it_or_clicks(feedback: bool) -> None:
    look = looked(side(share=RATE * 0.4, feedback=feedback), side(feedback=feedback))
    assert causes(look) == ["labels:interest"]
    assert "-60%" in look.findings[0].said and "100% of hours, 100% of cand_content_type" in look.findings[0].said


def test_an_even_loss_of_rows_is_an_outage_and_no_loss_of_interest() -> None:
    """As of one collector in three: every exposure has a row, so a row that is missing was lost."""
    look = looked(side(share=RATE * 0.67, rows=only(range(24), 0.67)))
    assert causes(look) == ["labels:outage"] and look.findings[0].value == pytest.approx(0.33, rel=0.02)
    assert {"labels:interest", "labels:click_rate"} <= look.unjudged
    assert causes(looked(side(share=RATE * 0.9, rows=only(range(24), 0.9)))) == []


def test_rows_of_some_exposures_only_are_measured_against_the_days_better_hours() -> None:
    """As where clicks alone are logged: then rows fall with interest."""
    few = side(rows=only(range(24), RATE))
    assert causes(looked(side(share=RATE * 0.67, rows=only(range(24), RATE * 0.67)), few)) == ["labels:interest"]
    gone = only(range(12, 18), 0.25)
    assert causes(looked(side(by_hour=gone, rows=dict.fromkeys(range(24), RATE) | only(range(12, 18), RATE / 4)), few)) == ["labels:outage"]


def test_an_outage_is_told_by_clicks_where_feedback_logs_are_gone() -> None:
    look = looked(side(by_hour=only(range(20, 24), 0.1), feedback=False), side())
    assert causes(look) == ["labels:outage"] and "and clicks fell away in 4 hours (20:00 to 24:00 UTC)" in look.findings[0].said
    assert look.unjudged == {"labels:delay"} and "no feedback logs" in look.notes[0]


def test_an_outage_and_a_fall_of_interest_are_two_causes() -> None:
    gone = only(range(6, 10), 0.0)
    look = looked(side(share=RATE * 0.5, by_hour=gone, rows=gone))
    assert sorted(causes(look)) == ["labels:interest", "labels:outage"]
    assert "outside of 06:00 to 10:00 UTC" in next(one.said for one in look.findings if one.cause == "labels:interest")


def test_a_day_without_a_click_is_an_outage_of_rows_or_of_what_marks_a_click() -> None:
    silent = looked(side(share=0.0, rows=only(range(24), 0.0)))
    assert causes(silent) == ["labels:outage"] and "(00:00 to 24:00 UTC): 100%" in silent.findings[0].said
    unmarked = looked(side(share=0.0))
    assert causes(unmarked) == ["labels:outage"] and "what marks a click is broken" in unmarked.findings[0].said
    assert {"labels:interest", "labels:click_rate"} <= unmarked.unjudged


def test_a_fall_in_one_category_only_is_named_and_is_no_loss_of_interest() -> None:
    look = looked(side(by_type={"3": 0.2}))
    (finding,) = look.findings
    assert finding.cause == "labels:click_rate" and "cand_content_type 3" in finding.said
    assert causes(looked(side(share=RATE * 1.5))) == ["labels:click_rate"]  # a rise is none either
    slight = looked(side(by_type={"3": 0.4}), click_rate=0.5)  # too little for the whole day, enough for the place
    assert causes(slight) == ["labels:click_rate"] and slight.findings[0].said.startswith(
        "clicks per exposure moved in places: cand_content_type 3"
    )


def test_few_hours_of_few_exposures_are_no_outage() -> None:
    assert causes(looked(side(exposures=20, by_hour=only(range(2, 4), 0.0), rows=only(range(2, 4), 0.0)))) == []


def test_users_who_click_together_widen_the_limit() -> None:
    """The same rates of a few users: each of them clicks on everything or on nothing."""

    def few(one: Rate) -> Rate:
        per_user = 2_000.0
        return Rate(one.exposures, one.clicks, one.clicks * per_user, one.clicks * per_user, one.exposures * per_user)

    def crowded(one: Side) -> Side:
        return replace(one, overall=few(one.overall), hours={hour: few(found) for hour, found in one.hours.items()}, groups={})

    assert causes(looked(side(share=RATE * 0.75))) == ["labels:interest"]
    assert causes(looked(crowded(side(share=RATE * 0.75)), crowded(side()))) == []


def test_clicks_that_come_later_are_told_by_median_or_p95_and_earlier_ones_are_not() -> None:
    look = looked(side(delay_s=200.0))
    assert causes(look) == ["labels:delay"] and look.findings[0].severity == "ticket"
    assert "collect.label_delay_hours" in look.findings[0].said and look.findings[0].value > 3
    assert looked(side(delay_s=20.0)).findings == ()


def test_too_few_clicks_judge_nothing_and_say_so() -> None:
    for today, reference in ((side(exposures=1), side()), (side(), side(exposures=1)), (side(), side(share=0.0, feedback=False))):
        look = looked(today, reference)
        assert look.findings == () and look.unjudged == CAUSES and "labels.min_clicks" in look.notes[0]


def test_a_category_that_one_side_lacks_moves_nothing() -> None:
    today = side()
    bare = replace(side(), groups={})
    assert looked(today, bare).findings == () and looked(bare, today).findings == ()


def test_quantiles_of_counted_delays_are_within_a_bucket() -> None:
    seconds = np.sort(np.random.default_rng(3).exponential(600, 2_001))
    counts: dict[int, int] = {}
    for one in seconds.tolist():
        counts[bucket_of(one)] = counts.get(bucket_of(one), 0) + 1
    for share in (0.5, 0.95):
        assert quantile(counts, share) == pytest.approx(np.quantile(seconds, share), rel=0.03)
    assert quantile(counts, 0.5, -3.3) < quantile(counts, 0.5) < quantile(counts, 0.5, 3.3)  # type: ignore[operator]
    assert quantile({}, 0.5) is None and seconds_of(bucket_of(0.0)) < 0.02


def test_a_rate_varies_as_its_users_do() -> None:
    """Against a bootstrap of users, and never less than independent clicks."""
    rng = np.random.default_rng(5)
    exposures = rng.integers(1, 30, 500)
    clicks = rng.binomial(exposures, rng.beta(1, 4, 500))
    one = Rate(exposures.sum(), clicks.sum(), (clicks**2).sum(), (clicks * exposures).sum(), (exposures**2).sum())
    draws = rng.integers(0, 500, (2_000, 500))
    bootstrap = clicks[draws].sum(axis=1) / exposures[draws].sum(axis=1)
    assert math.sqrt(one.variance) == pytest.approx(bootstrap.std(), rel=0.1)
    single = Rate(1000, 200, 200, 200, 1000)
    assert single.variance == pytest.approx(0.2 * 0.8 / 1000) and single.crowding == pytest.approx(0.8, abs=0.21)


# Two watchers, one cause.


def finding(cause: str, value: float | None = 0.3) -> Finding:
    return Finding(cause=cause, severity="ticket", said=cause, value=value, limit=0.1)


def drift(*found: Finding) -> Look:
    return Look(watcher="drift", day=DAY, findings=found)


def test_drift_leaves_clicks_to_whoever_looked_closer() -> None:
    said = drift(finding("labels:click_rate"), finding("input:cand_price"))
    outage = Look(watcher="labels", day=DAY, findings=(finding("labels:outage"),), unjudged=frozenset({"labels:interest"}))
    assert causes(yielded(said, outage)) == ["input:cand_price"] and yielded(said, outage).unjudged == {"labels:click_rate"}
    quiet = Look(watcher="labels", day=DAY, findings=())
    assert causes(yielded(said, quiet)) == ["input:cand_price"] and not yielded(said, quiet).unjudged
    delayed = Look(watcher="labels", day=DAY, findings=(finding("labels:delay"),))
    assert causes(yielded(said, delayed)) == ["input:cand_price"] and not yielded(said, delayed).unjudged


def test_drift_keeps_its_word_where_nobody_looked_closer() -> None:
    said = drift(finding("labels:click_rate"))
    for silent in (
        Look(watcher="labels", day=DAY, findings=(), missing=True),
        Look(watcher="labels", day=DAY, findings=(), unjudged=CAUSES),
        Look(watcher="labels", day="2026-01-10", findings=(finding("labels:outage"),)),
    ):
        assert yielded(said, silent) == said


def test_without_clicks_there_are_no_negatives_drawn_for_them_and_the_catalogue_is_not_blamed() -> None:
    outage = Look(watcher="labels", day=DAY, findings=(finding("labels:outage"),))
    lost, moved = drift(finding("catalogue:GN", None)), drift(finding("catalogue:GN"))
    assert causes(yielded(lost, outage)) == [] and "catalogue:GN" in yielded(lost, outage).unjudged
    assert causes(yielded(moved, outage)) == ["catalogue:GN"]


# Simulated days.


def test_a_quiet_day_raises_nothing(three_days: Subject) -> None:
    look = flow.look(three_days)
    assert look.findings == () and not look.unjudged and not look.notes and not look.missing
    figures = {figure.name: figure for figure in look.figures}
    assert 0.1 < figures["labels.click_rate"].value < 0.4 and figures["labels.lost"].value == 0
    assert figures["labels.click_rate_cand_position_1"].value > figures["labels.click_rate_cand_position_8"].value
    assert 30 < figures["labels.delay_median_s"].value < 200


@pytest.mark.parametrize(("fault", "hours"), [("click-outage", "12:00 to 18:00 UTC"), ("click-outage=0.4", "12:00 to 17:00 UTC")])
def test_a_click_outage_raises_that_alone(fault: str, hours: str, spoiled: Callable[[str], Subject]) -> None:
    """Feedback is lost by its own time: some of what the last hour's requests show is fed back after it."""
    look = flow.look(spoiled(fault))
    assert causes(look) == ["labels:outage"] and hours in look.findings[0].said


@pytest.mark.parametrize("fault", ["late-logs", "new-category", "broken-feature:zero"])
def test_faults_of_others_raise_nothing_here(fault: str, spoiled: Callable[[str], Subject]) -> None:
    assert flow.look(spoiled(fault)).findings == ()


def test_clicks_that_fewer_people_want_raise_interest_alone(spoiled: Callable[[Spoil], Subject]) -> None:
    def unwanted(table: str, rows: pa.Table) -> pa.Table:
        if table != "feedback":
            return rows
        kept = pa.array(np.random.default_rng(7).random(rows.num_rows) < 0.4)
        return rows.set_column(rows.column_names.index("click"), rows.schema.field("click"), pc.and_(rows["click"], kept))

    assert causes(flow.look(spoiled(unwanted))) == ["labels:interest"]


def test_a_collector_that_loses_its_share_all_day_is_an_outage_and_no_loss_of_interest(spoiled: Callable[[Spoil], Subject]) -> None:
    def thinned(table: str, rows: pa.Table) -> pa.Table:
        return rows.filter(pa.array(np.random.default_rng(7).random(rows.num_rows) < 0.67)) if table == "feedback" else rows

    look = flow.look(spoiled(thinned))
    (found,) = look.findings
    assert found.cause == "labels:outage" and found.value == pytest.approx(0.33, abs=0.05) and "labels:interest" in look.unjudged


def test_feedback_that_stops_for_good_is_an_outage_to_midnight(spoiled: Callable[[Spoil], Subject]) -> None:
    def stopped(table: str, rows: pa.Table) -> pa.Table:
        if table != "feedback":
            return rows
        day = rows["event_time"].cast(pa.date32())
        return rows.filter(pc.and_(pc.equal(day, pa.scalar(DAYS[-1])), pc.less(pc.hour(rows["event_time"]), 14)))

    def emptied(table: str, rows: pa.Table) -> pa.Table:
        left = stopped(table, rows)
        return left if left.num_rows else rows.slice(0, 1)  # a day of a table is never empty

    (found,) = flow.look(spoiled(emptied)).findings
    assert found.cause == "labels:outage" and "14:00" in found.said


def test_feedback_that_does_not_read_leaves_the_rest_judged(three_days: Subject, spoiled: Callable[[Spoil], Subject]) -> None:
    subject = spoiled(lambda table, rows: rows)
    for path in contract.read_paths(subject.ws.logs(subject.params), "feedback", subject.day):
        Path(path).write_bytes(b"PAR1 not a file PAR1")
    look = flow.look(subject)
    assert look.findings == () and look.unjudged == {"labels:delay"}
    assert "passed over" in look.notes[0] and all("\n" not in note for note in look.notes)


def test_days_that_cannot_be_compared_are_said_in_one_line(three_days: Subject) -> None:
    absent = flow.look(replace(three_days, day=DAYS[-1] + dt.timedelta(days=5)))
    assert absent.missing and "hapctl collect --day 2026-01-08" in absent.notes[0]
    alone = flow.look(replace(three_days, window=(DAYS[0] - dt.timedelta(days=3),)))
    assert alone.missing and "has nothing beside it" in alone.notes[0]
