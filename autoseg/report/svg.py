"""Drawing with scalable vectors: elements whose text is always escaped, scales, and axes with round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

Point = tuple[float, float]

_ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values to places on the drawing.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: place, in drawing units.
        end: place, in drawing units; smaller than `start` on an axis that points up.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, count: int = 5) -> tuple[float, ...]:
        """Round values inside the scale, about `count` of them."""
        span = self.high - self.low
        if not span:
            return (self.low,)
        rough = span / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in _ROUND_STEPS if unit * factor >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(round(index * step, 12) for index in range(first, last + 1))


def padded(values: Iterable[float], share: float = 0.05) -> tuple[float, float]:
    """The range of the values with a margin on both sides; (0, 1) if there are none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    margin = share * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


class Drawing:
    """An SVG picture under construction; colors and fonts come from the style sheet of the page, by class.

    Args:
        width: in drawing units; the page scales the whole.
        height: likewise.
        title: what the picture shows, for those who cannot see it.
        classes: of the style sheet.
    """

    def __init__(self, width: float, height: float, title: str, classes: str = "chart") -> None:
        self.width, self.height = width, height
        self.root = Element("svg", {"viewBox": f"0 0 {number(width)} {number(height)}", "class": classes})
        self.root.set("role", "img")
        self.root.set("aria-label", title)

    def add(self, tag: str, classes: str = "", hint: str = "", **attributes: object) -> Element:
        """Adds an element; `hint` is shown when the pointer rests on it. Underscores in names become hyphens."""
        element = SubElement(self.root, tag)
        if classes:
            element.set("class", classes)
        for name, value in attributes.items():
            element.set(name.replace("_", "-"), number(value) if isinstance(value, float) else str(value))
        if hint:
            SubElement(element, "title").text = hint
        return element

    def text(self, place: Point, text: str, classes: str = "", anchor: str = "start") -> None:
        """Writes text with its base line at `place`."""
        self.add("text", classes, x=place[0], y=place[1], text_anchor=anchor).text = text

    def line(self, start: Point, end: Point, classes: str, hint: str = "") -> None:
        """Draws a straight line."""
        self.add("line", classes, hint, x1=start[0], y1=start[1], x2=end[0], y2=end[1])

    def dot(self, center: Point, radius: float, classes: str, hint: str = "") -> None:
        """Draws a disk."""
        self.add("circle", classes, hint, cx=center[0], cy=center[1], r=radius)

    def polyline(self, points: Sequence[Point | None], classes: str, hint: str = "") -> None:
        """Draws a line through the points; None leaves a gap, and a point alone becomes a dot."""
        pieces: list[list[Point]] = [[]]
        for point in points:
            if point is not None:
                pieces[-1].append(point)
            elif pieces[-1]:
                pieces.append([])
        commands = [
            "M" + "L".join(f"{number(x)} {number(y)}" for x, y in (piece if len(piece) > 1 else piece * 2))
            for piece in pieces
            if piece
        ]
        if commands:
            self.add("path", classes, hint, d="".join(commands), fill="none")

    def markup(self) -> Markup:
        """The picture as text to put into a page; every text and attribute in it is escaped."""
        return Markup(tostring(self.root, encoding="unicode"))


def frame(drawing: Drawing, across: Scale, up: Scale, labels: tuple[str, str], most: int = 5) -> None:
    """Draws grid lines with their values, about `most` of them across, and the names of both axes."""
    for value in across.ticks(most):
        drawing.line((across(value), up.start), (across(value), up.end), "grid")
        drawing.text((across(value), up.start + 16), tick_label(value), "tick", "middle")
    for value in up.ticks(4):
        drawing.line((across.start, up(value)), (across.end, up(value)), "grid")
        drawing.text((across.start - 6, up(value) + 4), tick_label(value), "tick", "end")
    drawing.text(((across.start + across.end) / 2, up.start + 34), labels[0], "axis", "middle")
    drawing.text((across.start - 34, up.end - 8), labels[1], "axis")


def tick_label(value: float) -> str:
    """A value of an axis, with as many digits as it needs."""
    return f"{value:,.6g}".replace("-", "\N{MINUS SIGN}")


def number(value: object) -> str:
    """A coordinate with at most two decimals."""
    return f"{float(str(value)):.2f}".rstrip("0").rstrip(".")
