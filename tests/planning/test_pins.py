"""Pins are checked before anything is planned."""

import pytest

from autoseg.core.errors import PlanFault, UsageError
from autoseg.planning.pins import Pins, parse_pins


def test_pins_may_stand_under_a_pin_key():
    assert parse_pins({"pin": {"patch_size": [8, 8]}}, "x") == Pins(patch_size=(8, 8))


def test_nothing_is_pinned_by_default():
    assert Pins().find("patch_size", "2d", 2) is None


def test_a_configuration_s_own_pin_wins_and_a_patch_serves_its_dimensions_only():
    pins = parse_pins({"patch_size": [8, 8], "batch_size": 4, "2d": {"batch_size": 3}}, "x")
    assert [pins.find("batch_size", name, None) for name in ("2d", "3d_fullres")] == [3, 4]
    assert [pins.find("patch_size", None, dimensions) for dimensions in (2, 3)] == [(8, 8), None]


@pytest.mark.parametrize(
    "content",
    [
        {"batch_size": None},
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
def test_impossible_values_are_refused_by_name(content):
    decision = ".".join(part for part in flat_names(content))
    with pytest.raises(PlanFault, match=decision):
        parse_pins(content, "pins.yaml")


def flat_names(content):
    for name, value in content.items():
        yield name
        yield from flat_names(value) if isinstance(value, dict) else ()


def test_a_fault_says_what_was_expected_and_found():
    with pytest.raises(PlanFault, match=r"2d\.patch_size\.1: .*greater than 0, found -8"):
        parse_pins({"2d": {"patch_size": [8, -8]}}, "pins.yaml")
    with pytest.raises(
        PlanFault, match=r"normalization\.0: unknown normalization .zcore.; did you mean zscore\?.*rgb_0_1, zscore \("
    ):
        parse_pins({"normalization": ["zcore"]}, "pins.yaml")


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
