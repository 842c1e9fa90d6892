"""Pins are checked before anything is planned."""

import pytest

from autoseg.core.errors import PlanFault, UsageError
from autoseg.planning.pins import parse_pins


def test_pins_may_stand_under_a_pin_key():
    assert parse_pins({"pin": {"patch_size": [8, 8]}}, "x").everywhere == {"patch_size": (8, 8)}


@pytest.mark.parametrize(
    "content",
    [
        {"patch_size": [8, -8]},
        {"patch_size": 8},
        {"patch_size": []},
        {"patch_size": [True, True]},
        {"patch_size": ["8", "8"]},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_dice": 1},
        {"spacing_mm": [1, 1]},
        {"spacing_mm": [1, 1, float("nan")]},
        {"axis_order": [0, 1, 1]},
        {"normalization": ["zcore"]},
        {"use_nonzero_mask": ["yes"]},
        {"mirror_axes": [0, 0]},
        {"mirror_axes": [3]},
        {"2d": 5},
        {"2d": {"batch_size": "two"}},
    ],
)
def test_impossible_values_are_refused_with_what_was_expected(content):
    with pytest.raises(PlanFault, match="expected"):
        parse_pins(content, "pins.yaml")


def test_all_faults_are_listed_at_once():
    with pytest.raises(PlanFault, match=r"batch_size.*batch_dice"):
        parse_pins({"batch_size": 0, "batch_dice": 3}, "pins.yaml")


@pytest.mark.parametrize("content", [{"patchsize": [8, 8]}, {"2d": {"batchsize": 4}}])
def test_unknown_decisions_are_answered_with_the_nearest(content):
    with pytest.raises(UsageError, match="did you mean"):
        parse_pins(content, "pins.yaml")


def test_pin_must_be_a_mapping():
    with pytest.raises(PlanFault, match="lines"):
        parse_pins({"pin": [1]}, "pins.yaml")
