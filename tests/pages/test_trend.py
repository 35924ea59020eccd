"""Small pictures: well-formed whatever the numbers, everything inside the frame, and what is beyond a limit in its colour."""

import base64
import datetime as dt
import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from hap.monitoring.findings import Figure
from hap.pages.trend import BACK, MOVED, WRONG, Move, bar, is_wrong, plain, trend

FIRST = dt.date(2026, 3, 1)
NUMBERS = st.floats(-1e12, 1e12, allow_subnormal=False)
MAYBE = st.none() | NUMBERS
FIGURES = st.builds(
    Figure, name=st.just("x.y"), title=st.just("y"), value=MAYBE, lower=MAYBE, upper=MAYBE, reference=MAYBE, least=MAYBE, most=MAYBE
)


def opened(uri: str) -> ElementTree.Element:
    assert uri.startswith("data:image/svg+xml;base64,")
    return ElementTree.fromstring(base64.b64decode(uri.partition(",")[2]))


def numbers(picture: ElementTree.Element) -> list[float]:
    """Every coordinate."""
    found = []
    for part in picture.iter():
        for name, text in part.attrib.items():
            if name in ("x", "y", "cx", "cy", "points"):
                found += [float(number) for number in re.split("[ ,]", text)]
    return found


@given(st.lists(st.none() | FIGURES, min_size=1, max_size=30), st.lists(st.tuples(st.integers(-50, 900), st.booleans()), max_size=4))
def test_a_trend_is_well_formed_and_inside_its_frame_whatever_the_numbers(figures, moved) -> None:
    moves = [Move(dt.datetime(2026, 3, 1, tzinfo=dt.UTC) + dt.timedelta(hours=hours), "v7", back) for hours, back in sorted(moved)]
    picture = opened(trend(figures, FIRST, moves))
    assert all(math.isfinite(number) and -1 <= number <= 341 for number in numbers(picture))


@given(NUMBERS, NUMBERS)
def test_a_bar_is_well_formed_and_inside_its_frame_whatever_the_numbers(value: float, limit: float) -> None:
    assert all(math.isfinite(number) and -1 <= number <= 241 for number in numbers(opened(bar(value, limit))))


def test_the_day_is_drawn_in_the_colour_of_wrong_exactly_where_it_is_beyond_a_limit() -> None:
    for value, wrong in ((0.2, True), (0.1, False), (0.05, False), (0.01, True), (None, False)):
        figure = Figure(name="x.y", title="y", value=value, least=0.02, most=0.1)
        dots = [part.get("fill") for part in opened(trend([None, figure], FIRST, [])).iter() if part.tag.endswith("circle")]
        assert is_wrong(figure) is wrong and dots == ([] if value is None else [WRONG if wrong else "#1f2937"])


def test_promotions_and_rollbacks_inside_the_days_are_marked_each_in_its_colour() -> None:
    def at(day: float) -> dt.datetime:
        return dt.datetime(2026, 3, 1, tzinfo=dt.UTC) + dt.timedelta(days=day)

    moves = [Move(at(-1), "v1", False), Move(at(2.5), "v2", False), Move(at(8), "v1", True), Move(at(40), "v3", False)]
    figures = [Figure(name="x.y", title="y", value=1.0)] * 10
    marks = [(part.text, part.get("fill")) for part in opened(trend(figures, FIRST, moves)).iter() if (part.text or "").startswith("v")]
    assert marks == [("v2", MOVED), ("v1", BACK)]


def test_numbers_are_short() -> None:
    assert [plain(number) for number in (0.0, 0.12, 0.4248, 309.2, -2.0, 6e-5, 2.44e-6, 12_345_678.0)] == [
        "0", "0.12", "0.425", "309", "-2", "6e-5", "2.4e-6", "12.3M",
    ]  # fmt: skip
    counts = (999.4, 999.6, 1500.0, -2170.0, 9999.4, 9999.6, 123_456.0, 999_600.0, 4.56e9, 2.5e12)
    assert [plain(number) for number in counts] == [
        "999", "1,000", "1,500", "-2,170", "9,999", "10k", "123k", "1M", "4.56G", "2.5e12",
    ]  # fmt: skip
