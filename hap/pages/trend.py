"""Small pictures of figures: the trend of one over days, and one value against its limit.

SVG as data URIs, as in hap/pages/figures.py: what is in a picture can neither load nor run anything. They are drawn here,
since a page has dozens and a phone has to open it; matplotlib's are larger and take far longer (docs/results.md).
"""

import base64
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from hap.days import start_of
from hap.monitoring.findings import Figure
from hap.pages.figures import BAND, FAINT, INK

WRONG, MOVED, BACK = "#b91c1c", "#1d4ed8", "#b45309"
WIDTH, HEIGHT = 340, 140
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 18, 18  # of the plot within the picture
LABEL_ROOM, MOVE_ROOM = 11, 26  # nearer to each other two labels would lie over each other, above and beside


@dataclass(frozen=True)
class Move:
    """A promotion, or a rollback, to a version."""

    at: dt.datetime
    label: str
    back: bool


def is_wrong(figure: Figure) -> bool:
    """Whether a figure lies beyond its limits."""
    if figure.value is None:
        return False
    return (figure.most is not None and figure.value > figure.most) or (figure.least is not None and figure.value < figure.least)


def plain(value: float) -> str:
    """A number in three digits or four, and no more letters than an axis has room for."""
    size = abs(value)
    if value == 0 or 1e-3 <= size < 999.5:
        return f"{value:.3g}"
    if size < 1e-3 or size >= 999.5e9:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    if size < 9999.5:
        return f"{value:,.0f}"
    unit, letter = next(pair for pair in ((1e3, "k"), (1e6, "M"), (1e9, "G")) if size < 999.5 * pair[0])
    return f"{value / unit:.3g}{letter}"


def trend(figures: Sequence[Figure | None], first: dt.date, moves: Sequence[Move]) -> str:
    """A figure over days, one for each day from `first` on, None where there is none; beyond its limits is shaded.

    Upright lines are promotions (blue) and rollbacks (brown), dashes what it was compared with, bars its interval.
    """
    known = [one for one in figures if one is not None]
    low, high = _range([v for one in known for v in (one.value, one.lower, one.upper, one.reference, one.least, one.most) if v is not None])
    step = (WIDTH - LEFT - RIGHT) / max(len(figures), 1)
    floor = HEIGHT - BOTTOM

    def x(day: float) -> float:
        return LEFT + day * step

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (floor - TOP)

    picture = _Picture(WIDTH, HEIGHT)
    for begin, end, limit in _runs(figures, lambda one: one.most):
        picture.box(x(begin), TOP, x(end), y(limit), BAND)
        picture.line([(x(begin), y(limit)), (x(end), y(limit))], WRONG, 0.8)
    for begin, end, limit in _runs(figures, lambda one: one.least):
        picture.box(x(begin), y(limit), x(end), floor, BAND)
        picture.line([(x(begin), y(limit)), (x(end), y(limit))], WRONG, 0.8)
    for begin, end, value in _runs(figures, lambda one: one.reference):
        picture.line([(x(begin), y(value)), (x(end), y(value))], FAINT, 1, dashed=True)
    picture.line([(LEFT, TOP), (LEFT, floor), (WIDTH - RIGHT, floor)], FAINT, 0.8)
    places = [(x((move.at - start_of(first)) / dt.timedelta(days=1)), move) for move in moves]
    shown = [(place, move) for place, move in places if LEFT <= place <= WIDTH - RIGHT]
    for number, (place, move) in enumerate(shown):
        colour = BACK if move.back else MOVED
        picture.line([(place, TOP - 4), (place, floor)], colour, 1)
        crowded = number + 1 < len(shown) and shown[number + 1][0] - place < MOVE_ROOM
        after = number > 0 and place - shown[number - 1][0] < MOVE_ROOM
        anchor = "end" if crowded or place > WIDTH - MOVE_ROOM else "start" if after else "middle"
        picture.text(place, TOP - 7, move.label, colour, anchor)
    for day, one in enumerate(figures):
        if one is not None and one.lower is not None and one.upper is not None:
            picture.line([(x(day + 0.5), y(one.lower)), (x(day + 0.5), y(one.upper))], FAINT, 2)
    points = [(x(day + 0.5), y(one.value)) if one is not None and one.value is not None else None for day, one in enumerate(figures)]
    for stretch in _stretches(points):
        picture.line(stretch, INK, 1.4)
    for day, (point, one) in enumerate(zip(points, figures, strict=True)):
        last = day == len(points) - 1
        alone = (day == 0 or points[day - 1] is None) and (last or points[day + 1] is None)
        if point is not None and one is not None and (last or alone or is_wrong(one)):  # the line shows the others
            picture.dot(*point, 3.4 if last else 2.0, WRONG if is_wrong(one) else INK)
    _label(picture, figures, y, low, high)
    picture.text(LEFT, HEIGHT - 4, f"{first:%m-%d}", FAINT, "start")
    picture.text(WIDTH - RIGHT, HEIGHT - 4, f"{first + dt.timedelta(days=len(figures) - 1):%m-%d}", FAINT, "end")
    return picture.uri()


def bar(value: float, limit: float) -> str:
    """One value against its limit; what lies beyond the limit, on the value's side of it, is shaded."""
    width, height, room = 240, 40, 10
    low, high = min(0.0, value, limit), max(0.0, value, limit)
    if value >= limit:
        high += 0.12 * (high - low or 1)
    span = high - low or 1.0

    def x(at: float) -> float:
        return room + (at - low) / span * (width - 2 * room)

    picture = _Picture(width, height)
    picture.box(x(low), 8, x(high), 22, "#f3f4f6")
    picture.box(x(limit), 8, x(high) if value >= limit else x(low), 22, BAND)
    picture.box(x(0.0), 11, x(value), 19, WRONG)
    picture.line([(x(limit), 4), (x(limit), 26)], INK, 1.6)
    near = x(limit) / width
    picture.text(x(limit), 36, f"limit {plain(limit)}", INK, "start" if near < 0.2 else "end" if near > 0.8 else "middle")
    return picture.uri()


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The scale that shows all values, with some room; never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _runs(figures: Sequence[Figure | None], of: Callable[[Figure], float | None]) -> Iterator[tuple[int, int, float]]:
    """(first day, day after the last, value) of every run of days in which a value stays the same."""
    values = [None if one is None else of(one) for one in figures]
    begin = 0
    for day in range(1, len(values) + 1):
        if day == len(values) or values[day] != values[begin]:
            if (value := values[begin]) is not None:
                yield begin, day, value
            begin = day


def _stretches(points: Sequence[tuple[float, float] | None]) -> Iterator[list[tuple[float, float]]]:
    """Points that follow each other without a gap, two at least."""
    stretch: list[tuple[float, float]] = []
    for point in (*points, None):
        if point is not None:
            stretch.append(point)
        else:
            if len(stretch) > 1:
                yield stretch
            stretch = []


def _label(picture: "_Picture", figures: Sequence[Figure | None], y: Callable[[float], float], low: float, high: float) -> None:
    """The latest limits and, where there is room beside them, the ends of the values."""
    known = [one for one in figures if one is not None]
    limits = [limit for one in known[-1:] for limit in (one.most, one.least) if limit is not None]
    values = [one.value for one in known if one.value is not None]
    taken: list[float] = []
    for value, colour in [*((limit, WRONG) for limit in limits), *((end, FAINT) for end in ({max(values), min(values)} if values else ()))]:
        if all(abs(y(value) - other) >= LABEL_ROOM for other in taken):
            picture.text(LEFT - 4, y(value) + 3, plain(value), colour, "end")
            taken.append(y(value))


class _Picture:
    """An SVG document that is drawn from the back to the front; coordinates in its own units, y downwards."""

    def __init__(self, width: int, height: int) -> None:
        self._root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {width} {height}",
                "width": str(width),
                "height": str(height),
                "font-family": "system-ui, sans-serif",
                "font-size": "10.5",
            },
        )

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        left, top = min(x0, x1), min(y0, y1)
        self._add("rect", x=left, y=top, width=abs(x1 - x0), height=abs(y1 - y0), fill=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = {"stroke-dasharray": "3 3"} if dashed else {}
        self._add("polyline", points=path, fill="none", stroke=colour, **{"stroke-width": width}, **dash)

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        self._add("circle", cx=x, cy=y, r=radius, fill=colour)

    def text(self, x: float, y: float, said: str, colour: str, anchor: str) -> None:
        self._add("text", x=x, y=y, fill=colour, **{"text-anchor": anchor}).text = said

    def _add(self, tag: str, **values: float | str) -> ElementTree.Element:
        said = {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in values.items()}
        return ElementTree.SubElement(self._root, tag, said)

    def uri(self) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(ElementTree.tostring(self._root)).decode()}"
