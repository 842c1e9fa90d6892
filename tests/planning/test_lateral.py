"""Left and right: classes recognized by name, values and heads that change places."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import PlanFault, RecordFault
from autoseg.core.records import from_json, to_json
from autoseg.data.model import LabelSet
from autoseg.planning.lateral import (
    can_swap,
    find_pairs,
    head_swap,
    heart_pairs,
    lateral_swap,
    value_swap,
    without_counterpart,
)
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions, make_plan
from tests.planning.builders import dataset_of, fingerprint_of

PLAIN = LabelSet({"background": (0,), "right_lung": (1,), "heart": (2,), "left_lung": (3,)}, ignore=4)
REGIONS = LabelSet(
    {
        "background": (0,),
        "lungs": (1, 2, 3, 4),
        "left": (1, 2),
        "right": (3, 4),
        "left_tumor": (2,),
        "right_tumor": (4,),
    },
    regions_class_order=(1, 1, 3, 2, 4),
)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_parotid", "right_parotid"),
        ("Parotid_L", "Parotid_R"),
        ("LungLeft", "LungRight"),
        ("kidney-left-cyst", "kidney-right-cyst"),
        ("LEFT EYE", "RIGHT EYE"),
        ("leftkidney", "rightkidney"),
        ("hippocampusleft", "hippocampusright"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("RibL", "RibR"),
        ("rib_left_1", "rib_right_1"),
        ("l", "r"),
        ("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),
    ],
)
def test_pairs_are_found_by_their_names_in_any_order(left, right):
    assert find_pairs(["organ", right, left]) == ((left, right),)


@pytest.mark.parametrize(
    "names",
    [
        ["left_lung"],
        ["bright", "light"],
        ["LV", "RV"],
        ["anterior", "posterior"],
        ["left_lung", "right_kidney"],
        ["rib_left_1", "rib_right_2"],
        ["liver", "river"],
    ],
)
def test_names_without_a_counterpart_are_no_pair(names):
    assert find_pairs(names) == ()


def test_chambers_of_the_heart_are_told_apart_by_more_than_their_side():
    names = ["heart_atrium_left", "heart_atrium_right", "left_lung", "right_lung"]
    assert find_pairs(names) == (("left_lung", "right_lung"),)
    assert heart_pairs(names) == (("heart_atrium_left", "heart_atrium_right"),)


def test_values_and_heads_change_places():
    pairs = (("left_lung", "right_lung"),)
    assert value_swap(PLAIN, pairs) == (0, 3, 2, 1, 4)
    assert head_swap(PLAIN, pairs) == (0, 3, 2, 1)


def test_values_of_regions_follow_all_regions_that_they_lie_in():
    pairs = find_pairs(REGIONS.foreground)
    assert pairs == (("left", "right"), ("left_tumor", "right_tumor"))
    assert value_swap(REGIONS, pairs) == (0, 3, 4, 1, 2)
    assert head_swap(REGIONS, pairs) == (0, 2, 1, 4, 3)
    assert not can_swap(REGIONS, pairs[:1])


@pytest.mark.parametrize("pairs", [(("a", "b"),), (("left_lung", "left_lung"),), (("left_lung", "heart"),) * 2])
def test_impossible_pairs_are_refused(pairs):
    with pytest.raises(PlanFault, match="cannot be exchanged"):
        value_swap(PLAIN, pairs)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(1, 7)))
def test_exchanging_twice_changes_nothing(values):
    names = ("left_a", "right_a", "left_b", "right_b", "c", "d")
    labels = LabelSet({"background": (0,), **{name: (value,) for name, value in zip(names, values, strict=True)}})
    swap = value_swap(labels, find_pairs(labels.foreground))
    assert [swap[other] for other in swap] == list(range(7))
    assert swap[labels.classes["left_a"][0]] == labels.classes["right_a"][0]
    assert swap[labels.classes["c"][0]] == labels.classes["c"][0]


def planned(axes, labels=PLAIN, pins=None, preset="reference", spacings=None):
    plain = fingerprint_of(spacings or [(1, 1, 1)] * len(axes), [(40, 50, 60)] * len(axes))
    cases = tuple(replace(case, left_right_axis=axis) for case, axis in zip(plain.cases, axes, strict=True))
    options = PlanOptions(preset, 8.0, pins=pins)
    return make_plan(dataset_of(labels=labels), replace(plain, cases=cases), options)


def decisions(plan, name):
    return [entry for entry in plan.decisions if entry.name == name]


def test_a_plan_exchanges_lateral_classes_along_the_axis_from_left_to_right():
    plan = planned([2, 2])
    assert (plan.lateral_axis, plan.lateral_pairs) == (2, (("left_lung", "right_lung"),))
    assert decisions(plan, "lateral_pairs")[0].value == [["left_lung", "right_lung"]]
    assert "change places" in decisions(plan, "mirror_axes")[0].because
    assert from_json(Plan, to_json(plan), "plan") == plan
    for name, axis in (("2d", 1), ("3d_fullres", 2)):
        swap = lateral_swap(plan, plan.configurations[name])
        assert (swap.axis, swap.values, swap.heads, swap.channels) == (axis, (0, 3, 2, 1, 4), (0, 3, 2, 1), (0,))


def test_the_axis_is_that_of_the_plan_and_may_lie_across_the_slices():
    plan = planned([2, 2], spacings=[(1, 1, 5)] * 2)  # sagittal slices
    assert plan.axis_order[0] == 2
    assert plan.lateral_axis == 0
    assert lateral_swap(plan, plan.configurations["2d"]) is None
    assert lateral_swap(plan, plan.configurations["3d_fullres"]).axis == 0


def oriented(*stored, usual="LPS"):
    """The plan of cases stored in these orientations, those that state another than `usual` turned to it."""
    plain = fingerprint_of([(1, 1, 1)] * len(stored), [(40, 50, 60)] * len(stored))
    turns = [None if codes in (None, usual) else usual for codes in stored]
    cases = tuple(
        replace(case, left_right_axis=2, orientation=codes, turned_to=turn)
        for case, codes, turn in zip(plain.cases, stored, turns, strict=True)
    )
    return make_plan(dataset_of(labels=PLAIN), replace(plain, cases=cases, orientation=usual), PlanOptions())


def test_the_plan_turns_what_is_stored_otherwise_and_says_so():
    mixed = oriented("LPS", "RAS", "LPS", "RAS", "RAS", "LPS")
    assert (mixed.orientation, mixed.lateral_axis) == ("LPS", 2)
    assert decisions(mixed, "orientation")[0].because == "3 of 6 cases are stored R-A-S and turned to L-P-S"
    assert "turned to L-P-S" in decisions(mixed, "lateral_axis")[0].because
    alike = oriented("LPS", "LPS")
    assert decisions(alike, "orientation")[0].because == "all 2 cases are stored L-P-S"
    assert "turned" not in decisions(alike, "lateral_axis")[0].because
    many = oriented("LPS", "RAS", "LPS", "SPL")
    assert decisions(many, "orientation")[0].because.startswith("2 of 4 cases are stored in 2 other orientations")
    assert from_json(Plan, to_json(mixed), "plan") == mixed
    assert replace(alike, decisions=()) == replace(
        oriented(None, None, usual=None), orientation="LPS", decisions=(), lateral_axis=2
    )


def test_lateral_classes_are_not_exchanged_where_some_cases_may_lie_either_way():
    plan = oriented("LPS", None, "LPS")
    assert (plan.orientation, plan.lateral_axis) == ("LPS", None)
    assert "1 of 3 cases is of no stated orientation" in decisions(plan, "orientation")[0].because
    assert all(own.mirror_axes == () for own in plan.configurations.values())
    unknown = oriented(None, None, usual=None)
    assert (unknown.orientation, unknown.lateral_axis) == (None, 2)
    assert "none says so" in decisions(unknown, "lateral_axis")[0].because


@pytest.mark.parametrize("codes", ["LP", "lps", "LLS", "XYZ"])
def test_a_plan_with_an_orientation_that_is_none_is_refused(codes):
    text = to_json(oriented("LPS", "LPS")).replace('"orientation": "LPS"', f'"orientation": "{codes}"')
    with pytest.raises(RecordFault, match="three letters"):
        from_json(Plan, text, "plan")


@pytest.mark.parametrize("axes", [[2, 1], [2, None], [None, None]])
def test_without_one_known_axis_lateral_datasets_are_not_mirrored(axes):
    plan = planned(axes)
    assert plan.lateral_axis is None
    assert all(own.mirror_axes == () for own in plan.configurations.values())
    assert lateral_swap(plan, plan.configurations["2d"]) is None


def test_a_pin_turns_the_exchange_off():
    plan = planned([2, 2], pins={"lateral_pairs": []})
    assert plan.lateral_pairs == ()
    assert lateral_swap(plan, plan.configurations["2d"]) is None
    assert plan.configurations["3d_fullres"].mirror_axes == (0, 1, 2)
    assert decisions(plan, "lateral_pairs")[0].by == "user"


def test_pins_can_name_the_pairs_and_the_axis_of_the_files():
    plan = planned([None, 2], pins={"lateral_pairs": [["heart", "left_lung"]], "lateral_axis": 1})
    assert plan.lateral_pairs == (("heart", "left_lung"),)
    assert plan.lateral_axis == 1
    assert lateral_swap(plan, plan.configurations["3d_fullres"]).values == (0, 1, 3, 2, 4)


@pytest.mark.parametrize(
    "pins",
    [
        {"lateral_pairs": [["a", "b"]]},
        {"lateral_pairs": "left"},
        {"lateral_pairs": [["left_lung"]]},
        {"lateral_pairs": [[1, 3]]},
        {"lateral_axis": 3},
        {"lateral_axis": [2]},
    ],
)
def test_impossible_pins_are_refused(pins):
    with pytest.raises(PlanFault):
        planned([2, 2], pins=pins)


def test_datasets_without_lateral_classes_have_nothing_to_exchange():
    plan = planned([2, 1], LabelSet({"background": (0,), "heart_left": (1,), "heart_right": (2,)}))
    assert (plan.lateral_axis, plan.lateral_pairs) == (None, ())
    assert "more than their side" in decisions(plan, "lateral_pairs")[0].because
    assert plan.configurations["3d_fullres"].mirror_axes == (0, 1, 2)


def test_regions_that_do_not_mirror_each_other_are_left_alone():
    labels = LabelSet({"background": (0,), "left": (1, 2), "right": (3,)}, regions_class_order=(1, 3))
    assert planned([2], labels).lateral_pairs == ()


def test_the_first_stage_s_channels_of_a_cascade_change_places_too():
    plan = planned([2])
    cascade = replace(plan.configurations["3d_fullres"], cascade_from="3d_lowres")
    assert lateral_swap(plan, cascade).channels == (0, 3, 2, 1)


def test_a_class_of_one_side_without_a_counterpart_is_not_mirrored_to_the_other():
    labels = LabelSet({"background": (0,), "left_lung": (1,), "right_lung": (2,), "middle_lobe_right": (3,)})
    assert without_counterpart(labels.foreground) == ("middle_lobe_right",)
    plan = planned([2, 2], labels)
    assert plan.configurations["2d"].mirror_axes == (0,)
    assert plan.configurations["3d_fullres"].mirror_axes == (0, 1)
    assert "middle_lobe_right has no counterpart" in decisions(plan, "mirror_axes")[0].because
    assert plan.lateral_pairs == (("left_lung", "right_lung"),)
    across_slices = planned([2, 2], labels, spacings=[(1, 1, 5)] * 2)
    assert across_slices.configurations["2d"].mirror_axes == (0, 1)
    assert across_slices.configurations["3d_fullres"].mirror_axes == (1, 2)
    pinned = planned([2, 2], labels, pins={"lateral_pairs": []})
    assert pinned.configurations["3d_fullres"].mirror_axes == (0, 1, 2)
    assert planned([None, 2], LabelSet({"background": (0,), "left_eye": (1,)})).configurations["2d"].mirror_axes == ()


@pytest.mark.parametrize("names", [["bright", "upright"], ["left_atrium"], ["L", "type_r"], ["left", "right"]])
def test_names_that_only_look_like_a_side_or_have_their_counterpart_spare_nothing(names):
    assert without_counterpart(names) == ()
