"""What a dataset.json declares."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import RecordFault
from autoseg.data.layouts.description import describe_nnunet

PLAIN = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


def test_a_plain_description_is_read():
    described = describe_nnunet(PLAIN, "liver")
    labels = described.labels
    assert described.channels == ("CT",)
    assert labels.classes == {"background": (0,), "liver": (1,), "tumor": (2,)}
    assert (labels.file_values, labels.ignore, labels.head_count, labels.declared_count) == ((0, 1, 2), None, 3, 3)
    assert (described.file_ending, described.announced_cases) == (".nii.gz", 3)


def test_channels_are_ordered_by_their_number_and_not_as_text():
    names = {str(index): f"channel {index}" for index in reversed(range(12))}
    described = describe_nnunet({**PLAIN, "channel_names": names}, "many")
    assert described.channels == tuple(f"channel {index}" for index in range(12))


def test_the_legacy_modality_table_and_inverted_labels_are_understood():
    legacy = {"modality": {"0": "T1"}, "labels": {"0": "Background", "1": "edema"}, "numTraining": 4}
    described = describe_nnunet(legacy, "legacy")
    assert described.channels == ("T1",)
    assert described.labels.classes == {"background": (0,), "edema": (1,)}
    assert described.file_ending == ".nii.gz"


def test_regions_and_the_ignore_label_become_training_values():
    labels = {"background": 0, "whole": [200, 210, 220], "core": [210, 220], "active": 220, "ignore": 255}
    described = describe_nnunet({**PLAIN, "labels": labels, "regions_class_order": [200, 210, 220]}, "regions")
    assert described.labels.classes == {"background": (0,), "whole": (1, 2, 3), "core": (2, 3), "active": (3,)}
    assert described.labels.regions_class_order == (1, 2, 3)
    assert (described.labels.ignore, described.labels.file_values) == (4, (0, 200, 210, 220, 255))
    assert (described.labels.head_count, described.labels.declared_count) == (3, 5)


def test_an_ignore_label_below_the_classes_still_comes_last():
    described = describe_nnunet({**PLAIN, "labels": {"background": 0, "cell": 7, "ignore": 3}}, "ignore")
    assert (described.labels.ignore, described.labels.file_values) == (2, (0, 7, 3))


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(1, 70000), min_size=1, max_size=20))
def test_gaps_are_closed_and_the_original_values_remembered(values):
    table = {"background": 0, **{f"class {value}": value for value in values}}
    labels = describe_nnunet({**PLAIN, "labels": table}, "gaps").labels
    assert sorted(value for (value,) in labels.classes.values()) == list(range(len(values) + 1))
    assert {name: labels.file_values[value] for name, (value,) in labels.classes.items()} == table


def test_every_fault_is_listed_at_once():
    with pytest.raises(RecordFault) as caught:
        describe_nnunet(
            {"channel_names": {"1": "CT"}, "labels": {"background": 0, "a": "1"}, "numTraining": "3"}, "bad"
        )
    for word in ("channel_names", "labels.a", "numTraining", "file_ending"):
        assert word in caught.value.what


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"channel_names": {}}, "channel_names"),
        ({"channel_names": ["CT"]}, "channel_names"),
        ({"channel_names": {"0": 1}}, "channel_names.0"),
        ({"channel_names": {"zero": "CT"}}, "channel_names"),
        ({"channel_names": None}, "channel_names is missing"),
        ({"labels": None}, "missing"),
        ({"labels": {"background": 0}}, "at least one class"),
        ({"labels": {"liver": 1}}, "labels: background"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "a and b"),
        ({"labels": {"background": 0, "a": -1}}, "labels.a"),
        ({"labels": {"background": 0, "a": 2**31}}, "labels.a"),
        ({"labels": {"background": 0, "a": [[1]]}}, "labels.a"),
        ({"labels": {"background": 0, "a": True}}, "labels.a"),
        ({"labels": {"background": 0, "a": []}}, "labels.a"),
        ({"labels": {"background": 0, "a": [1, 1]}}, "twice"),
        ({"labels": {"background": 0, "a": [0, 1]}, "regions_class_order": [1]}, "includes 0"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "labels: ignore"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "one value"),
        ({"labels": {"background": 0, "a": [1, 2]}}, "regions_class_order"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1]}, "1 values for 2 regions"),
        ({"labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [5]}, "value 5"),
        ({"numTraining": -1}, "numTraining"),
        ({"file_ending": "nii.gz"}, "file_ending"),
    ],
)
def test_a_fault_names_its_key(change, word):
    with pytest.raises(RecordFault, match="description") as caught:
        describe_nnunet({**PLAIN, **change}, "bad")
    assert word in caught.value.what


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"Labels": PLAIN["labels"], "labels": None}, "'Labels' is read as 'labels'"),
        ({"channelNames": {"0": "CT"}, "channel_names": None}, "channelNames"),
        ({"labels": {"Background": 0, "liver": 1}}, "'Background' is taken for 'background'"),
        ({"labels": {"background": 0, "liver": 1, "IGNORE": 9}}, "'IGNORE' is taken for 'ignore'"),
        ({"labels": {"0": "Background", "1": "liver", "9": "Ignore"}}, "'Ignore' is taken for 'ignore'"),
        ({"labels": {"background": 0, "liver": 1, "Ignored": 9}}, "'Ignored' is a class like any other"),
        ({"modality": {"0": "MR"}}, "not read: modality"),
        ({"patch_size": [1, 2, 3]}, "not read: patch_size"),
        ({"region_class_order": [1]}, "not read: region_class_order (did you mean regions_class_order?)"),
    ],
)
def test_what_is_spelled_otherwise_or_not_read_is_noted(change, word):
    table = {key: value for key, value in {**PLAIN, **change}.items() if value is not None}
    described = describe_nnunet(table, "spelled")
    assert described.channels == ("CT",)
    assert "liver" in described.labels.foreground
    assert (described.labels.ignore is not None) == ("ignore'" in word)
    assert any(word in note for note in described.notes)


def test_a_plain_description_needs_no_note():
    assert describe_nnunet({**PLAIN, "name": "liver", "description": "", "release": "1.0"}, "liver").notes == ()


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({"channel_names": ["CT", "PET"]}, '{"0": "CT", "1": "PET"}'),
        ({"channel_names": {"PET": 1, "CT": 0}}, '{"0": "CT", "1": "PET"}'),
        ({"labels": {"background": 0, "liver": "1"}}, "write 1 without quotes"),
        ({"labels": {"bg": 0, "liver": 1}}, 'write "background": 0 instead of "bg": 0'),
        ({"numTraining": "3"}, "write 3 without quotes"),
        ({"labels": {"background": 0, "Background": 1}}, "background is there twice"),
    ],
)
def test_a_fault_of_form_names_the_right_entry(change, right):
    with pytest.raises(RecordFault, match="description") as caught:
        describe_nnunet({**PLAIN, **change}, "bad")
    assert right in caught.value.what


def test_a_missing_count_is_tolerated():
    described = describe_nnunet({key: value for key, value in PLAIN.items() if key != "numTraining"}, "no count")
    assert described.announced_cases is None


def test_two_legacy_classes_of_one_name_stay_apart():
    labels = {"0": "background", "1": "lesion", "2": "lesion"}
    assert describe_nnunet({**PLAIN, "labels": labels}, "twins").labels.foreground == ("lesion", "lesion (2)")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("01aign", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("01ai", max_size=4), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["channel_names", "modality", "labels", "regions_class_order", "numTraining", "file_ending"])


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(keys, json_values, max_size=4) | json_values, st.booleans())
def test_whatever_a_file_holds_it_is_read_or_refused(data, complete):
    data = {**PLAIN, **data} if complete and isinstance(data, dict) else data
    try:
        described = describe_nnunet(data, "anything")
    except RecordFault:
        return
    assert described.labels.file_values[0] == 0
    assert len(described.labels.file_values) == described.labels.largest_value + 1
