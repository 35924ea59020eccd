"""What opens, is told again and closes: properties over whole histories, on a book in memory that folds as the ledger does."""

import datetime as dt
import random
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hap.errors import NotFound, UsageError
from hap.monitoring.alerts import acknowledge, apply, letter, settle, snooze
from hap.monitoring.causes import gathered
from hap.monitoring.findings import Finding, Look
from hap.params import SEVERITIES, Alerts
from hap.registry.incidents import incidents, promotions_held, words_of
from hap.registry.ledger import Entry, Row

NOW = dt.datetime(2026, 1, 5, 3, 0, tzinfo=dt.UTC)
ALERTS = Alerts(page=("HAP_ALERTS_PAGE",), ticket=("HAP_ALERTS_TICKET",))
CAUSES = ("input:cand_price", "input:activity", "labels:click_rate", "cascade:candidates")


class Killed(Exception):
    """Stands for the end of the process."""


class Book:
    """The ledger's interface in memory; `left` rows can be written before it is killed."""

    def __init__(self, rows: list[Row] | None = None, left: int | None = None) -> None:
        self._rows, self.left = list(rows or []), left

    def append(self, entry: Entry) -> Row:
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1
        said = {one.name: getattr(entry, one.name) for one in fields(Entry)}
        self._rows.append(Row(**said, id=len(self._rows) + 1, prev_hash="", hash=""))
        return self._rows[-1]

    def rows(self) -> list[Row]:
        return list(self._rows)


def finding(cause=CAUSES[0], severity="ticket", value=0.2, limit=0.1) -> Finding:
    return Finding(cause=cause, severity=severity, said=f"{cause} moved", value=value, limit=limit, do="hapctl show 2026-01-04")


def look(day: int, *found: Finding, unjudged=(), missing=False, watcher="drift") -> Look:
    return Look(watcher=watcher, day=f"2026-01-{day:02}", findings=found, unjudged=frozenset(unjudged), missing=missing)


@st.composite
def looks(draw, day: int) -> Look:
    causes = draw(st.lists(st.sampled_from(CAUSES), unique=True))
    found = [
        finding(
            cause,
            draw(st.sampled_from(SEVERITIES)),
            draw(st.one_of(st.none(), st.floats(0.1, 2), st.just(float("inf")), st.just(float("nan")))),
        )
        for cause in causes
    ]
    unjudged = draw(st.sets(st.sampled_from(CAUSES))) - set(causes)
    return look(day, *found, unjudged=unjudged, missing=draw(st.booleans()) and draw(st.booleans()))


@st.composite
def histories(draw) -> list[Look]:
    days = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    return [draw(looks(day)) for day in days]


def play(history: list[Look], book: Book | None = None) -> Book:
    book = book or Book()
    for place, one in enumerate(history):
        apply(book, one, ALERTS, NOW + dt.timedelta(hours=place))
    return book


def story(book: Book) -> list[tuple]:
    return [(one.cause, one.closed is None, [message.event for message in one.messages]) for one in incidents(book.rows()).all]


@given(histories(), st.randoms())
def test_the_order_of_findings_does_not_matter(history: list[Look], chance: random.Random) -> None:
    *before, last = history
    known = incidents(play(before).rows())
    shuffled = list(last.findings)
    chance.shuffle(shuffled)
    latest = known.settled.get("drift")
    one = settle(last, known.open, NOW, 1.5, latest)
    assert settle(replace(last, findings=tuple(shuffled)), known.open[::-1], NOW, 1.5, latest) == one


@given(histories())
def test_the_same_day_again_changes_nothing_and_writes_nothing(history: list[Look]) -> None:
    book = play(history)
    rows = book.rows()
    assert not apply(book, history[-1], ALERTS, NOW + dt.timedelta(days=1))[0]
    assert book.rows() == rows


@given(histories())
def test_a_cause_is_open_where_the_latest_day_that_judged_it_found_it(history: list[Look]) -> None:
    judged: dict[str, str] = {}  # cause -> the latest day that judged it
    standing: set[str] = set()
    for one in history:
        for cause in () if one.missing else set(CAUSES) - one.unjudged:
            if one.day >= judged.get(cause, ""):
                judged[cause] = one.day
                standing = standing | {cause} if cause in {found.cause for found in one.findings} else standing - {cause}
    assert {one.cause for one in incidents(play(history).rows()).open} == standing


@given(histories())
def test_an_incident_is_told_again_only_when_it_grew(history: list[Look]) -> None:
    for one in incidents(play(history).rows()).all:
        events = [message.event for message in one.messages]
        assert events[0] == "opened" and set(events[1:-1]) <= {"grew"} and (events.count("closed") == 1) == (one.closed is not None)
        told = [message.figure for message in one.messages if message.event != "closed"]
        for place, figure in enumerate(told[1:], start=1):
            worse = SEVERITIES.index(figure.severity) < min(SEVERITIES.index(other.severity) for other in told[:place])
            assert worse or figure.excess >= 1.5 * max(other.excess for other in told[:place])


@given(histories(), st.integers(0, 30))
def test_a_kill_after_any_row_is_made_good_by_running_the_day_again(history: list[Look], rows: int) -> None:
    *before, last = history
    whole = play(history)
    half = Book(play(before).rows(), left=rows)
    when = NOW + dt.timedelta(hours=len(before))
    try:
        apply(half, last, ALERTS, when)
    except Killed:
        half.left = None
        apply(half, last, ALERTS, when)
    assert story(half) == story(whole)


@given(histories(), st.sampled_from(SEVERITIES), st.floats(0.1, 50))
def test_a_snoozed_incident_is_silent_until_its_time_unless_it_gets_worse(history: list[Look], severity, value: float) -> None:
    book = play([*history, look(7, finding(severity="ticket"))])
    worst = next(one for one in incidents(book.rows()).open if one.cause == CAUSES[0]).worst_said
    largest = max(m.figure.excess for one in incidents(book.rows()).open if one.cause == CAUSES[0] for m in one.messages)
    later = NOW + dt.timedelta(days=1)
    snooze(book, CAUSES[0], until=later + dt.timedelta(hours=8), actor="ann", now=later)
    known = incidents(book.rows()).open
    grown = look(8, finding(severity=severity, value=value))
    worse = SEVERITIES.index(severity) < SEVERITIES.index(worst)
    assert bool(settle(grown, known, later + dt.timedelta(hours=7), 1.5).grown) == worse
    assert bool(settle(grown, known, later + dt.timedelta(hours=8), 1.5).grown) == (worse or value / 0.1 >= 1.5 * largest)


@given(histories(), looks(7))
def test_an_acknowledged_incident_is_told_again_exactly_when_any_other_would_be(history: list[Look], last: Look) -> None:
    book = play(history)
    plain = settle(last, incidents(book.rows()).open, NOW, 1.5)
    for one in incidents(book.rows()).open:
        acknowledge(book, one.cause, actor="ann", now=NOW, reason="seen")
    acked = settle(last, incidents(book.rows()).open, NOW, 1.5)
    assert [one.cause for one in acked.opened] == [one.cause for one in plain.opened]
    assert [one.cause for one, _ in acked.grown] == [one.cause for one, _ in plain.grown]
    assert [one.cause for one in acked.closed] == [one.cause for one in plain.closed]
    assert all(one.acked is not None for one in acked.closed)


def test_an_incident_is_closed_by_the_watcher_that_opened_it_alone() -> None:
    book = play([look(4, finding())])
    assert not apply(book, look(5, watcher="labels"), ALERTS, NOW)[0].closed
    assert [one.cause for one in apply(book, look(5), ALERTS, NOW)[0].closed] == [CAUSES[0]]


def test_a_mended_day_that_is_looked_at_again_closes_and_a_relapse_is_a_new_incident() -> None:
    book = play([look(4, finding()), look(4), look(5, finding())])
    assert story(book) == [(CAUSES[0], False, ["opened", "closed"]), (CAUSES[0], True, ["opened"])]
    assert incidents(book.rows()).open[0].since == "2026-01-05"


def test_labels_that_come_later_than_the_next_day_still_open_and_close_an_incident() -> None:
    clicks = "labels:click_rate"
    open_looks = [look(day, unjudged=(clicks,)) for day in (4, 5)]  # their labels are open, and come two days later
    book = play([look(3), *open_looks, look(4, finding(clicks))])
    assert [(one.cause, one.since) for one in incidents(book.rows()).open] == [(clicks, "2026-01-04")]
    assert not apply(book, look(3), ALERTS, NOW)[0]  # a day before the latest that judged it
    assert not apply(book, look(4, finding(clicks), finding()), ALERTS, NOW)[0], "of the other causes the 5th has spoken"
    play([look(6, unjudged=(clicks,)), look(5)], book)
    assert incidents(book.rows()).open == []


def test_a_model_that_falls_behind_opens_and_closes_though_the_next_day_was_looked_at_before_its_labels_came() -> None:
    gaucs = ("funnel:gauc_light", "funnel:gauc_cascade")

    def early(day: int) -> Look:
        return gathered([look(day, unjudged=(*gaucs, "funnel:labels"), watcher="funnel")])[0]

    def matured(day: int, *causes: str) -> Look:
        return gathered([look(day, *map(finding, causes), watcher="funnel")])[0]

    book = play([early(4), early(5), matured(4, *gaucs), early(6)])
    assert [(one.cause, one.since) for one in incidents(book.rows()).open] == [("model:behind", "2026-01-04")]
    assert [one.event for one in incidents(book.rows()).all[0].messages] == ["opened"], "an early look heals nothing"
    play([matured(5), early(7)], book)
    assert story(book) == [("model:behind", False, ["opened", "closed"])]


def test_each_message_goes_to_the_places_of_its_severity_and_a_recovery_to_all_that_were_addressed() -> None:
    book = play([look(4, finding()), look(5, finding(severity="page")), look(6)])
    (one,) = incidents(book.rows()).all
    assert [message.places for message in one.messages] == [
        ("HAP_ALERTS_TICKET",),
        ("HAP_ALERTS_PAGE",),
        ("HAP_ALERTS_PAGE", "HAP_ALERTS_TICKET"),
    ]


def test_what_was_told_nobody_waits_for_a_place_while_it_is_open_and_no_longer() -> None:
    book = Book()
    apply(book, look(4, finding()), Alerts(), NOW)
    (one,) = incidents(book.rows()).all
    assert one.waiting(Alerts()) == [] and [places for _, places in one.waiting(ALERTS)] == [("HAP_ALERTS_TICKET",)]
    apply(book, look(5), Alerts(), NOW)
    assert incidents(book.rows()).all[0].waiting(ALERTS) == []


def test_what_was_told_nobody_waits_for_every_place_that_is_named_now_until_each_has_it() -> None:
    named = Alerts(ticket=("HAP_FIRST", "HAP_SECOND"))
    book = Book()
    apply(book, look(4, finding()), Alerts(), NOW)
    for place, left in (("HAP_SECOND", ["HAP_FIRST"]), ("HAP_FIRST", [])):
        number = incidents(book.rows()).all[0].messages[0].number
        evidence = {"incident": number, "message": number, "place": place}
        book.append(Entry(at=NOW, actor="ann", action="alert", state="told", reason="", evidence=evidence))
        assert [one for _, places in incidents(book.rows()).all[0].waiting(named) for one in places] == left


def test_a_place_that_the_parameters_no_longer_name_is_not_waited_for() -> None:
    book = play([look(4, finding()), look(5)])
    (one,) = incidents(book.rows()).all
    assert len(one.waiting(ALERTS)) == 2 and one.waiting(Alerts(page=("OTHER",))) == []


def test_a_letter_says_what_since_when_the_figure_and_what_to_type() -> None:
    book = play([look(4, finding()), look(5, finding(severity="page", value=0.9)), look(6)])
    (one,) = incidents(book.rows()).all
    opened, grew, closed = (letter(one, message, "/srv/feeds", "host") for message in one.messages)
    assert opened.title == "[ticket] input:cand_price" and opened.kind == "warning"
    for said in ("input:cand_price moved", "2026-01-04", "0.2, 2.0 times its limit of 0.1", "hapctl show", "hapctl ack input:cand_price"):
        assert said in opened.body
    assert grew.title == "[page, grew] input:cand_price" and "2026-01-04; this is of 2026-01-05" in grew.body
    assert closed.body == "input:cand_price healed on 2026-01-06; it was open since 2026-01-04." and closed.kind == "success"
    assert opened.key == grew.key == closed.key


def test_a_failed_delivery_says_what_was_not_told_where_and_why_in_rows_of_any_age() -> None:
    book = play([look(1, finding())])
    (opened,) = (row for row in book.rows() if row.state == "opened")
    old = {"incident": opened.id, "message": opened.id, "place": "HAP_A"}
    for evidence in (old, {**old, "cause": CAUSES[0]}, {}):
        book.append(Entry(at=NOW, actor="ann", action="alert", state="untold", reason="HTTP 500", evidence=evidence))
    said = f"opened of {CAUSES[0]} not told to HAP_A: HTTP 500"
    assert words_of(book.rows())[-3:] == [said, said, "HTTP 500"]
    assert words_of(book.rows())[:-3] == [row.reason for row in book.rows()[:-3]]


def test_a_cause_that_is_not_open_is_answered_with_those_that_are() -> None:
    book = play([look(4, finding())])
    with pytest.raises(NotFound, match=r"no incident 'price' is open; open are: input:cand_price"):
        acknowledge(book, "price", actor="ann", now=NOW)
    with pytest.raises(UsageError, match="has passed"):
        snooze(book, CAUSES[0], until=NOW, actor="ann", now=NOW)


def test_promotions_are_held_by_an_open_page_alone_and_by_its_severity_of_now() -> None:
    book = play([look(4, finding())])
    assert promotions_held(book.rows()) is None
    play([look(5, finding(severity="page"))], book)
    acknowledge(book, CAUSES[0], actor="ann", now=NOW)
    assert "promotions are held: input:cand_price is open since 2026-01-04" in (promotions_held(book.rows()) or "")
    play([look(6, finding())], book)  # still open, and no longer a page
    assert promotions_held(book.rows()) is None
