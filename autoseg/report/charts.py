"""The charts of a report, as vector pictures that follow the colors of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from markupsafe import Markup

from autoseg.selection.record import CandidateScore

Point = tuple[float, float]

PALETTE_SIZE = 7
"""Colors that the style sheet names c0, c1, ...; more lines than this use them again."""

AGREEMENT_FACTOR = 1.96
"""Standard deviations around the mean difference that hold 95 % of the cases, if differences are normal.

Source: Bland and Altman, Lancet 1986.
"""

_ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_WIDTH, _HEIGHT = 460.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 26.0, 42.0
_ROW = 26.0
_MOST_POINTS = 240  # of a curve; more are not to be told apart
_FEW_EPOCHS = 30  # every epoch gets a mark
_LABEL_LETTERS = 40
_LETTER_WIDTH = 7.4  # on average, of the largest font that the style sheet gives to labels


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


@dataclass(frozen=True, slots=True)
class Agreement:
    """Differences of two measurements of the same things (Bland and Altman, Lancet 1986).

    Attributes:
        bias: mean difference, prediction minus reference.
        low: lower limit of agreement.
        high: upper limit of agreement.
        cases: number of pairs.
    """

    bias: float
    low: float
    high: float
    cases: int


def agreement(pairs: Sequence[tuple[float, float]]) -> Agreement | None:
    """Bias and limits of agreement of (prediction, reference) pairs; None for fewer than two."""
    if len(pairs) < 2:
        return None
    differences = [predicted - reference for predicted, reference in pairs]
    bias, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    return Agreement(bias, bias - AGREEMENT_FACTOR * spread, bias + AGREEMENT_FACTOR * spread, len(pairs))


def loss_chart(histories: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Markup:
    """Training losses (solid) and validation losses (dashed) over epochs, one color per run.

    Args:
        histories: name of each run -> lines of its history.jsonl.
        title: what is shown, for those who cannot see it.
    """
    curves = [(f"c{index % PALETTE_SIZE} curve", name, "loss") for index, name in enumerate(histories)]
    dashed = [(f"{style} dashed", name, "validation_loss") for style, name, _ in curves]
    values = [line.get(key) for _, name, key in curves + dashed for line in histories[name]]
    return _curves(histories, curves + dashed, padded(_known(values)), ("epoch", "loss"), title)


def dice_chart(histories: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Markup:
    """Smoothed Dice of validation patches over epochs, one color per run."""
    curves = [(f"c{index % PALETTE_SIZE} curve", name, "ema_dice") for index, name in enumerate(histories)]
    return _curves(histories, curves, (0.0, 1.0), ("epoch", "Dice of patches, smoothed"), title)


def _curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    curves: Sequence[tuple[str, str, str]],
    limits: tuple[float, float],
    labels: tuple[str, str],
    title: str,
) -> Markup:
    last = max((line["epoch"] for lines in histories.values() for line in lines), default=1)
    drawing = Drawing(_WIDTH, _HEIGHT, title)
    across = Scale(0.0, float(max(last, 1)), _LEFT, _WIDTH - _RIGHT)
    up = Scale(*limits, _HEIGHT - _BOTTOM, _TOP)
    frame(drawing, across, up, labels, min(5, max(last, 1)))  # no tick between two epochs
    for classes, name, key in curves:
        lines = histories[name][:: math.ceil(len(histories[name]) / _MOST_POINTS) or 1]
        points = [None if (value := line.get(key)) is None else (across(line["epoch"]), up(value)) for line in lines]
        drawing.polyline(points, classes, name)
        for point in points if len(lines) < _FEW_EPOCHS else ():
            if point is not None:
                drawing.dot(point, 2.2, f"{classes.split()[0]} point")
    return drawing.markup()


def _known(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values if value is not None]


def interval_chart(candidates: Sequence[CandidateScore], chosen: str, title: str) -> Markup:
    """Mean Dice of candidates with its interval, one row each.

    Args:
        candidates: from top to bottom.
        chosen: name of the one drawn with emphasis.
        title: what is shown, for those who cannot see it.
    """
    known = [value for own in candidates for value in (own.dice, *(own.interval or ())) if value is not None]
    drawing, across, up = _rows([own.name for own in candidates], _ROW, padded(known, 0.08), "mean Dice", title, 60)
    for index, own in enumerate(candidates):
        middle, style = up(index + 0.5), "chosen" if own.name == chosen else "plain"
        drawing.text((across.start - 10, middle + 4), _short(own.name), f"label {style}", "end")
        if own.interval is not None:
            drawing.line((across(own.interval[0]), middle), (across(own.interval[1]), middle), f"whisker {style}")
        if own.dice is not None:
            drawing.dot((across(own.dice), middle), 5.0, f"mark {style}", f"{own.name}: {own.dice:.4f}")
            drawing.text((drawing.width - 52, middle + 4), f"{own.dice:.3f}", f"label {style}")
    return drawing.markup()


def strip_chart(
    rows: Mapping[str, Mapping[str, float]], label: str, title: str, limits: tuple[float, float] | None = None
) -> Markup:
    """Every case as a dot, one row per group, with the median and the quartiles.

    Args:
        rows: group -> case -> value.
        label: of the axis.
        title: what is shown, for those who cannot see it.
        limits: of the axis; None for the range of the values.
    """
    values = [value for cases in rows.values() for value in cases.values()]
    drawing, across, up = _rows(list(rows), _ROW + 8, limits or padded(values), label, title)
    for index, (name, cases) in enumerate(rows.items()):
        middle = up(index + 0.5)
        drawing.text((across.start - 10, middle + 4), _short(name), "label plain", "end")
        if cases:
            first, median, third = (across(value) for value in np.quantile(list(cases.values()), (0.25, 0.5, 0.75)))
            drawing.add("rect", "box", x=first, y=middle - 11, width=third - first, height=22.0, rx=3)
            for rank, (case, value) in enumerate(cases.items()):
                shift = (rank * 0.618034 % 1 - 0.5) * 16  # spread evenly, the same every time
                place = (across(value), middle + shift)
                drawing.dot(place, 2.6, f"c{index % PALETTE_SIZE} point", f"{case}: {tick_label(value)}")
            drawing.line((median, middle - 11), (median, middle + 11), "median")
    return drawing.markup()


def _rows(
    names: Sequence[str], row: float, limits: tuple[float, float], label: str, title: str, right: float = 14
) -> tuple[Drawing, Scale, Scale]:
    """A drawing with a row for each name, its scale from left to right with grid lines, and that of the rows."""
    left = 16.0 + _LETTER_WIDTH * max(min(max(map(len, names), default=0), _LABEL_LETTERS), 6)
    drawing = Drawing(left + 420, _TOP + row * len(names) + _BOTTOM - 10, title)
    across = Scale(*limits, left, drawing.width - right)
    up = Scale(0.0, float(len(names)), _TOP, _TOP + row * len(names))
    for value in across.ticks():
        drawing.line((across(value), up.start), (across(value), up.end), "grid")
        drawing.text((across(value), up.end + 16), tick_label(value), "tick", "middle")
    drawing.text(((across.start + across.end) / 2, up.start - 10), label, "axis", "middle")
    return drawing, across, up


def agreement_chart(volumes: Mapping[str, tuple[float, float]], unit: str, title: str, color: int = 0) -> Markup:
    """Differences of predicted and reference volumes over their means, with bias and limits of agreement.

    Args:
        volumes: case -> (predicted, reference).
        unit: of the volumes.
        title: what is shown, for those who cannot see it.
        color: index in the palette.
    """
    found = agreement(list(volumes.values()))
    means = {case: (predicted + reference) / 2 for case, (predicted, reference) in volumes.items()}
    differences = {case: predicted - reference for case, (predicted, reference) in volumes.items()}
    limits = [] if found is None else [found.low, found.high]
    drawing = Drawing(_WIDTH, _HEIGHT, title)
    across = Scale(*padded(means.values()), _LEFT, _WIDTH - _RIGHT)
    up = Scale(*padded([*differences.values(), *limits, 0.0], 0.1), _HEIGHT - _BOTTOM, _TOP)
    frame(drawing, across, up, (f"mean of prediction and reference, {unit}", f"prediction - reference, {unit}"))
    drawing.line((across.start, up(0)), (across.end, up(0)), "zero")
    if found is not None:
        for value, style in ((found.bias, "bias"), (found.low, "limit"), (found.high, "limit")):
            drawing.line((across.start, up(value)), (across.end, up(value)), style, f"{value:.3g} {unit}")
    for case, mean in means.items():
        hint = f"{case}: {differences[case]:+.3g} {unit}"
        drawing.dot((across(mean), up(differences[case])), 3.4, f"c{color % PALETTE_SIZE} point", hint)
    return drawing.markup()


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_LETTERS else f"{name[: _LABEL_LETTERS - 1]}…"
