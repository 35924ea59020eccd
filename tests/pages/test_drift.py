"""The page of a day: the first screen answers, everything from data is words, a phone can show it, and nothing of it runs or loads."""

import base64
import datetime as dt
import os
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from hap.monitoring.findings import Finding
from hap.pages.drift import render
from tests.pages.browser import chromium, needs_chromium, tab
from tests.pages.days import EVIL, at, broken_month, day, page, price, quiet_month, report, share
from tests.pages.test_version import words


def read(html: str) -> str:
    """The text of a part of a page, as a person reads it."""
    return unescape(words(re.sub(r"</?span[^>]*>", "", html)))


def header(html: str) -> str:
    """What the first screen says."""
    return read(html.split("<header>")[1].split("</header>")[0])


@pytest.fixture(scope="module")
def broken() -> str:
    return render(page(*broken_month(), promoted=3, known=True))


@pytest.fixture(scope="module")
def quiet() -> str:
    return render(page(*quiet_month()))


def test_the_first_screen_says_what_is_broken_since_when_what_changed_and_what_to_type(broken: str) -> None:
    said = header(broken)
    assert "2026-03-31: broken" in said and "input:cand_price since 2026-03-29, 3 days: cand_price: wasserstein 0.420 over 0.120" in said
    assert "1 more can wait until the morning: funnel:share_EN; the oldest is open since 2026-03-31." in said
    assert f"What changed: v2 was promoted on 2026-03-28 03:12 UTC by {EVIL}" in said
    commands = ["hapctl rollback --reason input:cand_price", f"hapctl show {day(0)}", "hapctl ack input:cand_price",
                "hapctl snooze input:cand_price --until 8h"]  # fmt: skip
    places = [said.index(command) for command in commands]
    assert places == sorted(places) and "Go back to v1" in said
    assert '<a href="#inputname">Runbook: input:NAME</a>' in broken.split("</header>")[0], "the line of the worst, one touch away"
    assert '<details class="wide" id="inputname" open>' in broken


@pytest.mark.parametrize(
    ("promoted", "back", "found", "offered"),
    [
        (2, None, price(0.4), True),  # on the day before the first bad one
        (0, None, price(0.4), True),  # after it, and it was not mended
        (3, None, price(0.4), False),  # a good day lies between
        (None, None, price(0.4), False),  # nothing to go back to
        (2, 1, price(0.4), False),  # rolled back already
        (1, None, Finding(cause="logs:missing", severity="page", said="no logs"), False),  # no version is the cause
    ],
)
def test_a_rollback_is_offered_where_a_promotion_came_before_and_the_runbook_says_that_it_can_help(promoted, back, found, offered) -> None:
    days = [report(2), report(1, found), report(0, found)]
    assert ("hapctl rollback" in header(render(page(*days, promoted=promoted, back=back)))) is offered


def test_what_was_promoted_after_the_day_is_neither_blamed_for_it_nor_rolled_back() -> None:
    found = [report(1, price(0.4)), report(0, price(0.4))]
    made = page(*found, promoted=20)
    later = replace(made.rows[0], at=at(-9), from_version=2, to_version=3, reason="next week's")
    looked_at_again = replace(made, rows=(*made.rows, later))
    said = header(render(looked_at_again))
    assert "hapctl rollback" not in said and "v3" not in said
    assert "What changed: no version since 2026-03-29: v2 serves since 2026-03-11 03:12 UTC." in said
    past = replace(made, rows=tuple(replace(row, at=row.at + dt.timedelta(days=400)) for row in made.rows))
    said = header(render(past))
    assert "v2 was promoted on" in said and "Go back to v1" in said, "in a simulated past what serves now is what was judged"


def test_the_headline_names_three_findings_beside_the_worst_and_counts_the_others() -> None:
    found = [Finding(cause=f"skew:column{n}", severity="ticket", said="differs", value=9.0 - n, limit=1.0) for n in range(6)]
    said = header(render(page(report(0, *found))))
    assert "5 more can wait until the morning" in said and ": skew:column1, skew:column2, skew:column3 and 2 others; the oldest" in said
    assert "column3 and 1 other;" in header(render(page(report(0, *found[:5]))))
    assert ": skew:column1, skew:column2; the oldest" in header(render(page(report(0, *found[:3]))))


def test_where_no_version_came_or_went_the_page_says_so() -> None:
    said = header(render(page(report(1), report(0, price(0.4)))))
    assert "What changed: no version since 2026-03-30: v2 serves since 2026-03-11 03:12 UTC." in said


def test_findings_are_ranked_and_each_has_its_figure_its_limit_its_age_and_its_line_of_the_runbook(broken: str) -> None:
    cards = re.findall(r'<div class="card (\w+)">(.*?)\n  </div>\n', broken, re.DOTALL)
    assert [kind for kind, _ in cards] == ["page", "ticket", "info"]
    first = read(cards[0][1])
    assert "0.42, 3.5 times its limit" in first and "since 2026-03-29, 3 days" in first and "Runbook: input:NAME" in first
    for part in ("Means.", "Confirm.", "Do.", "docs/runbook.md#inputname", f"hapctl collect --day {day(0)} --reopen"):
        assert part in first
    assert "ann knows" in first and "kept silent until 2026-04-02 03:12 UTC by bob" in first
    assert 'alt="0.42 against a limit of 0.12"' in cards[0][1]
    assert cards[0][1].count("<details") == 1 and " open>" in cards[0][1] and " open>" not in cards[1][1]


def test_the_trends_of_findings_come_first_and_every_measured_figure_has_one(broken: str) -> None:
    trends = broken.split('<section id="trends">')[1].split("</section>")[0]
    captions = [read(one) for one in re.findall(r"<figcaption>(.*?)</figcaption>", trends, re.DOTALL)]
    assert "cand_price" in captions[0] and "share of exposed negatives" in captions[1] and "candidates of a request" in captions[-1]
    assert len(captions) == 13 and not any("without an answer" in one for one in captions), "a figure that no day has is no trend"
    for anchor in re.findall(r'href="#(\w+)"', broken):
        assert broken.count(f'id="{anchor}"') == 1, anchor


def test_a_trend_shades_what_is_beyond_the_limit_marks_versions_and_has_a_gap_where_nobody_looked(broken: str) -> None:
    drawn = base64.b64decode(re.findall(r'<figure id="\w+">.*?base64,([^"]+)"', broken, re.DOTALL)[0]).decode()
    assert drawn.count("<rect") == 2 and "v2" in drawn and "v1" in drawn  # two runs of the limit, between them the day without a look
    lines = re.findall(r'<polyline points="([^"]+)" fill="none" stroke="#1f2937"', drawn)
    assert [len(one.split()) for one in lines] == [12, 17]
    assert drawn.count('fill="#b91c1c"') >= 3, "the days beyond the limit"


def test_a_quiet_day_says_so_and_when_it_last_was_not(quiet: str) -> None:
    assert header(quiet).strip().startswith("2026-03-31: quiet Nothing is wrong: 2 watchers judged 13 figures. "
                                            "The last day that was not quiet is 2026-03-07: input:cand_price.")  # fmt: skip
    assert "hapctl" not in header(quiet) and "What changed" not in header(quiet)
    fresh = header(render(page(report(0))))
    assert "No day before is known on which anything was." in fresh


def test_what_was_wrong_longer_ago_than_the_trends_reach_is_known_from_the_ledger() -> None:
    made = page(report(90, price(0.3)), report(89), report(0))
    html = render(replace(made, earlier=()))
    assert f"The last day that was not quiet is {day(90)}: input:cand_price." in header(html)


def test_a_day_that_nobody_could_judge_is_not_called_quiet() -> None:
    said = header(render(page(report(1), report(0, missing=True))))
    assert "2026-03-31: not judged" in said and "No watcher could judge the day." in said


def test_a_day_looked_at_again_later_is_dated_by_the_days_that_had_its_finding() -> None:
    days = [report(4), report(3, price(0.2, "ticket")), report(2, price(0.2, "ticket"))]
    made = page(report(0), *days)  # the last day was looked at first, so the ledger has no incident of these
    assert made.incidents.all == () and "since 2026-03-28, 2 days" in header(render(made))


def test_days_that_were_looked_at_after_the_one_that_opened_the_incident_date_it_back() -> None:
    opened = page(report(0, price(0.4)))
    made = replace(opened, earlier=(report(3), *(report(before, price(0.2, "ticket")).as_kept() for before in (2, 1))))
    assert [one.since for one in made.incidents.open] == ["2026-03-31"]
    assert "input:cand_price since 2026-03-29, 3 days" in header(render(made))


def test_equal_records_give_equal_bytes(broken: str) -> None:
    assert render(page(*broken_month(), promoted=3, known=True)) == broken


def test_text_from_data_is_escaped_everywhere(broken: str) -> None:
    assert "<script" not in broken and broken.count("&lt;script&gt;") > 8  # cause, words, command, column, figure, actor, reason, ack
    assert EVIL not in broken


def test_a_page_loads_nothing_and_links_only_to_what_stands_beside_it(broken: str) -> None:
    assert "default-src 'none'" in broken
    assert not re.findall(r'src="(?!data:image/svg\+xml;base64,)', broken)
    assert set(re.findall(r'href="([^#"][^"]*)"', broken)) == {
        "drift-2026-03-31-columns.html", "drift-2026-03-31.json", "drift-2026-03-30.html", "v1.html", "v2.html",
    }  # fmt: skip
    alone = render(page(*broken_month(), promoted=3, there=frozenset()))
    assert set(re.findall(r'href="([^#"][^"]*)"', alone)) == {"drift-2026-03-31.json"}


def test_a_finding_leads_to_the_trend_of_the_figure_that_it_names() -> None:
    html = render(page(report(0, share(0.06))))
    anchor = re.findall(r'<a href="#(t\d+)">trend</a>', html)
    assert len(anchor) == 1 and "share of exposed negatives" in html.split(f'<figure id="{anchor[0]}">')[1].split("</figure>")[0]


def test_a_page_stays_small_enough_for_a_phone(broken: str) -> None:
    assert len(broken) < 150_000


@pytest.mark.long
@needs_chromium
def test_a_browser_shows_the_page_at_every_width_and_runs_and_asks_for_nothing(broken: str, quiet: str, tmp_path: Path) -> None:
    shots = Path(os.environ.get("HAP_SHOTS", tmp_path))
    with chromium(tmp_path / "profile") as browser:
        for name, html in (("broken", broken), ("quiet", quiet)):
            path = tmp_path / f"{name}.html"
            path.write_text(html)
            for width in (1200, 390):
                with tab(browser, width) as shown:
                    shown.open(path.as_uri())
                    assert shown.said == [] and shown.asked == [path.as_uri()]
                    assert shown.ask("document.title") == f"hap 2026-03-31: {name}"
                    assert shown.ask("document.documentElement.scrollWidth") == width, "nothing is wider than the screen"
                    assert shown.ask("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
                    shown.shot(shots / f"{name}-{width}.png")
                    first = shown.ask("document.querySelector('header').getBoundingClientRect().bottom")
                    assert first < 900, "the answers are on the first screen"
                    if name == "broken":
                        links = shown.ask("[...document.querySelectorAll('a[href^=\"#\"]')].map(one => one.getAttribute('href').slice(1))")
                        assert links and all(shown.ask(f"!!document.getElementById({link!r})") for link in links)
                        rows = shown.ask("[...document.querySelectorAll('.card p')].map(one => one.innerText)")
                        assert any(EVIL in row for row in rows)
