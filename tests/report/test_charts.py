"""Charts: values at their places, odd input drawn without a fault."""

from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.report.charts import (
    AGREEMENT_FACTOR,
    Drawing,
    Scale,
    agreement,
    agreement_chart,
    dice_chart,
    interval_chart,
    loss_chart,
    padded,
    strip_chart,
    tick_label,
)
from autoseg.selection.record import CandidateScore

reals = st.floats(-1e6, 1e6)


def _nodes(markup, tag, style=""):
    return [node for node in fromstring(markup).iter(tag) if style in (node.get("class") or "")]


@given(reals, st.floats(1e-6, 1e6), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_ticks_are_few_evenly_spaced_and_inside(low, span, count):
    scale = Scale(low, low + span, 0, 100)
    ticks = scale.ticks(count)
    assert len(ticks) <= 2 * count + 2
    slack = 1e-6 * span + 4 * np.spacing(abs(low) + span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)
    if len(ticks) > 2:
        steps = np.diff(ticks)
        assert np.allclose(steps, steps[0], rtol=1e-3, atol=1e-9 * max(abs(low), span))


@given(st.lists(reals, max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_padded_range_holds_every_value_and_is_never_empty(values):
    low, high = padded(values)
    assert low < high
    assert all(low <= value <= high for value in values)


def test_a_scale_without_extent_has_one_tick():
    assert Scale(2.0, 2.0, 0, 1).ticks() == (2.0,)
    assert Scale(2.0, 2.0, 0, 1)(2.0) == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=20))
@settings(max_examples=40, deadline=None)
def test_limits_of_agreement_follow_bland_and_altman(pairs):
    differences = np.array([predicted - reference for predicted, reference in pairs])
    found = agreement(pairs)
    assert found.bias == pytest.approx(differences.mean(), abs=1e-9)
    assert found.high - found.low == pytest.approx(2 * AGREEMENT_FACTOR * differences.std(ddof=1), abs=1e-6)
    assert found.cases == len(pairs)


def test_one_pair_has_no_limits_of_agreement_but_is_drawn():
    assert agreement([(1.0, 2.0)]) is None
    chart = agreement_chart({"a": (1.0, 2.0)}, "ml", "t")
    assert len(_nodes(chart, "circle")) == 1
    assert not _nodes(chart, "line", "bias")


def test_every_case_is_a_dot_with_its_name():
    chart = strip_chart({"liver": {"a": 0.5, "b": 0.9}, "nothing": {}}, "Dice", "t", (0.0, 1.0))
    hints = [node.find("title").text for node in _nodes(chart, "circle")]
    assert hints == ["a: 0.5", "b: 0.9"]
    assert len(_nodes(chart, "line", "median")) == 1


def _candidate(name, dice, interval):
    return CandidateScore(name, "single", (), dice, interval, {}, None, None, None, None)


def test_intervals_are_drawn_around_their_scores():
    rows = [
        _candidate("a", 0.8, (0.7, 0.9)),
        _candidate("b", None, None),
        _candidate("c", 0.6, None),
    ]
    chart = interval_chart(rows, "a", "t")
    (whisker,) = _nodes(chart, "line", "whisker")
    marks = _nodes(chart, "circle", "mark")
    assert float(whisker.get("x1")) < float(marks[0].get("cx")) < float(whisker.get("x2"))
    assert "chosen" in marks[0].get("class")
    assert len(marks) == 2
    assert interval_chart([], "a", "t")


def _history(epochs, **changes):
    return [
        {"epoch": i, "loss": 1 - i / 100, "validation_loss": 0.5, "ema_dice": i / 1000} | changes for i in range(epochs)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 1000])
def test_curves_of_any_length_stay_small(epochs):
    chart = loss_chart({"fold 0": _history(epochs), "fold 1": _history(epochs, validation_loss=None)}, "t")
    assert [node.get("class") for node in _nodes(chart, "path")] == ["c0 curve", "c1 curve", "c0 curve dashed"]
    assert len(chart) < 20_000


def test_missing_values_leave_a_gap():
    history = _history(5)
    history[2]["ema_dice"] = None
    (path,) = _nodes(dice_chart({"fold 0": history}, "t"), "path")
    assert path.get("d").count("M") == 2


def test_curves_without_any_value_are_an_empty_frame():
    assert not _nodes(dice_chart({"fold 0": _history(3, ema_dice=None)}, "t"), "path")
    assert not _nodes(loss_chart({}, "t"), "path")


def test_text_is_escaped_and_long_names_are_cut():
    evil = "<b>&\"'" + "x" * 60
    chart = interval_chart([_candidate(evil, 0.5, (0.4, 0.6))], evil, evil)
    assert "<b>" not in chart
    assert fromstring(chart).get("aria-label") == evil
    assert any(node.text.endswith("…") for node in _nodes(chart, "text", "label"))


def test_numbers_of_an_axis_are_short():
    assert [tick_label(value) for value in (-0.5, 100000.0, 0.1 + 0.2)] == ["\N{MINUS SIGN}0.5", "100,000", "0.3"]


def test_a_single_point_of_a_line_is_still_drawn():
    drawing = Drawing(10, 10, "t")
    drawing.polyline([None, (1.0, 2.0), None], "curve")
    drawing.polyline([None], "curve")
    (path,) = _nodes(drawing.markup(), "path")
    assert path.get("d") == "M1 2L1 2"
