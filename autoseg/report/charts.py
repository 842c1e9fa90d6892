"""The charts of a report, as vector pictures that follow the colors of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from autoseg.report.svg import Drawing, Scale, frame, padded, tick_label

PALETTE_SIZE = 7
"""Colors that the style sheet names c0, c1, ...; more lines than this use them again."""

AGREEMENT_FACTOR = 1.96
"""Standard deviations around the mean difference that hold 95 % of the cases, if differences are normal.

Source: Bland and Altman, Lancet 1986.
"""

_WIDTH, _HEIGHT = 460.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 26.0, 42.0
_ROW = 26.0
_MOST_POINTS = 240  # of a curve; more are not to be told apart
_FEW_EPOCHS = 30  # every epoch gets a mark
_LABEL_LETTERS = 40
_LETTER_WIDTH = 7.4  # on average, of the largest font that the style sheet gives to labels


@dataclass(frozen=True, slots=True)
class Interval:
    """A row of `interval_chart`.

    Attributes:
        name: of the candidate.
        value: its score, None if it has none.
        low: end of the interval, or None.
        high: end of the interval, or None.
        is_chosen: drawn with emphasis.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    is_chosen: bool = False


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


def interval_chart(rows: Sequence[Interval], label: str, title: str) -> Markup:
    """Scores with their intervals, one row per candidate.

    Args:
        rows: from top to bottom.
        label: of the axis.
        title: what is shown, for those who cannot see it.
    """
    known = [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    left = 16.0 + _LETTER_WIDTH * max(min(max((len(row.name) for row in rows), default=0), _LABEL_LETTERS), 6)
    drawing = Drawing(left + 420, _TOP + _ROW * len(rows) + _BOTTOM - 10, title)
    across = Scale(*padded(known, 0.08), left, drawing.width - 60)
    up = Scale(0.0, float(len(rows)), _TOP, _TOP + _ROW * len(rows))
    _ruler(drawing, across, up, label)
    for index, row in enumerate(rows):
        middle = up(index + 0.5)
        style = "chosen" if row.is_chosen else "plain"
        drawing.text((left - 10, middle + 4), _short(row.name), f"label {style}", "end")
        if row.low is not None and row.high is not None:
            drawing.line((across(row.low), middle), (across(row.high), middle), f"whisker {style}")
        if row.value is not None:
            drawing.dot((across(row.value), middle), 5.0, f"mark {style}", f"{row.name}: {row.value:.4f}")
            drawing.text((drawing.width - 52, middle + 4), f"{row.value:.3f}", f"label {style}")
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
    left = 16.0 + _LETTER_WIDTH * max(min(max((len(name) for name in rows), default=0), _LABEL_LETTERS), 6)
    drawing = Drawing(left + 420, _TOP + (_ROW + 8) * len(rows) + _BOTTOM - 10, title)
    values = [value for cases in rows.values() for value in cases.values()]
    across = Scale(*(limits or padded(values)), left, drawing.width - 14)
    up = Scale(0.0, float(len(rows)), _TOP, _TOP + (_ROW + 8) * len(rows))
    _ruler(drawing, across, up, label)
    for index, (name, cases) in enumerate(rows.items()):
        middle = up(index + 0.5)
        drawing.text((left - 10, middle + 4), _short(name), "label plain", "end")
        if cases:
            first, median, third = (across(value) for value in np.quantile(list(cases.values()), (0.25, 0.5, 0.75)))
            drawing.add("rect", "box", x=first, y=middle - 11, width=third - first, height=22.0, rx=3)
            for rank, (case, value) in enumerate(cases.items()):
                shift = (rank * 0.618034 % 1 - 0.5) * 16  # spread evenly, the same every time
                place = (across(value), middle + shift)
                drawing.dot(place, 2.6, f"c{index % PALETTE_SIZE} point", f"{case}: {tick_label(value)}")
            drawing.line((median, middle - 11), (median, middle + 11), "median")
    return drawing.markup()


def _ruler(drawing: Drawing, across: Scale, up: Scale, label: str) -> None:
    for value in across.ticks():
        drawing.line((across(value), up.start), (across(value), up.end), "grid")
        drawing.text((across(value), up.end + 16), tick_label(value), "tick", "middle")
    drawing.text(((across.start + across.end) / 2, up.start - 10), label, "axis", "middle")


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
