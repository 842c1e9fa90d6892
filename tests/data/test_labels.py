"""Label values: to training values and back, and classes that nobody declared."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import DataRefused, LabelFault
from autoseg.core.geometry import Geometry
from autoseg.data.labels import count_label_files, find_classes, to_file_values, to_training_values, value_counts
from autoseg.data.model import LabelSet, label_set_of
from autoseg.images.writers import write_labels

file_values = st.sets(st.one_of(st.integers(1, 300), st.integers(1, 2**31 - 1)), min_size=1, max_size=140)


def label_set(values: set[int], ignore: int | None = None) -> LabelSet:
    return label_set_of({"background": (0,), **{f"class {value}": (value,) for value in values}}, ignore)


@settings(deadline=None, max_examples=60)
@given(file_values, st.booleans(), st.randoms(use_true_random=False))
def test_file_values_come_back_after_training_values(values, has_ignore, random):
    ignore = max(values) if has_ignore and len(values) > 1 else None
    labels = label_set(values - {ignore}, ignore)
    array = np.array(random.choices([0, *values], k=60), dtype=np.int32).reshape(3, 4, 5)
    training = to_training_values(array, labels)
    assert training.dtype == (np.int8 if len(values) <= 127 else np.int16)
    assert training.min() >= 0
    assert training.max() <= labels.largest_value
    np.testing.assert_array_equal(to_file_values(training, labels), array)


@settings(deadline=None, max_examples=40)
@given(file_values, st.integers(-5, 2**31 - 1))
def test_an_undeclared_value_is_refused_wherever_it_lies(values, intruder):
    array = np.array([0, *values, intruder, intruder], dtype=np.int64)
    if intruder in {0, *values}:
        assert to_training_values(array, label_set(values)).min() == 0
    else:
        with pytest.raises(LabelFault) as caught:
            to_training_values(array, label_set(values))
        assert f"{intruder} (2 voxels)" in caught.value.what


def test_the_histogram_of_undeclared_values_is_cut_after_ten():
    with pytest.raises(LabelFault, match="and 20 more values"):
        to_training_values(np.arange(32), label_set({1}))


@pytest.mark.parametrize(
    ("values", "kind"), [({1}, np.uint8), ({255}, np.uint8), ({256}, np.uint16), ({70000}, np.int32)]
)
def test_file_values_take_the_smallest_type(values, kind):
    assert to_file_values(np.array([0, 1], dtype=np.int8), label_set(values)).dtype == kind


@pytest.mark.parametrize("value", [-1, 2])
def test_a_value_that_is_no_training_value_is_never_written(value):
    with pytest.raises(LabelFault, match="no training value"):
        to_file_values(np.array([0, 1, value]), label_set({255}))


def test_object_ids_become_one_class_and_negative_ones_are_refused():
    labels, _ = find_classes([dict.fromkeys(range(40), 10)])
    assert labels.has_instances
    np.testing.assert_array_equal(to_training_values(np.array([0, 7, 90000]), labels), [0, 1, 1])
    with pytest.raises(LabelFault, match="-1"):
        to_training_values(np.array([0, -1]), labels)


def test_empty_arrays_pass():
    empty = np.zeros((0, 3), dtype=np.int16)
    assert to_training_values(empty, label_set({5})).shape == (0, 3)
    assert value_counts(empty) == {}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.integers(-3, 9), st.integers(-(2**40), 2**40)), min_size=1, max_size=40))
def test_counts_equal_those_of_numpy(values):
    array = np.array(values, dtype=np.int64)
    expected = dict(zip(*(part.tolist() for part in np.unique(array, return_counts=True)), strict=True))
    assert value_counts(array) == expected


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 255), (0, 200, 210), (1, 2)])
def test_each_value_becomes_a_class_named_by_it(values):
    labels, how = find_classes([dict.fromkeys(values, 50)])
    foreground = [value for value in values if value]
    assert labels.file_values == (0, *foreground)
    assert labels.foreground == tuple(f"class_{value}" for value in foreground)
    assert ", ".join(map(str, foreground)) in how
    assert not labels.has_instances


def test_gray_edges_of_a_drawn_mask_are_not_taken_for_objects():
    labels, how = find_classes([{0: 1000, 255: 500, **dict.fromkeys(range(1, 255), 1)}])
    assert labels.file_values == (0, 255)
    assert "gray edges" in how


def test_a_few_numbered_objects_count_in_a_layout_made_for_them_only():
    counts = [dict.fromkeys(range(high + 1), 10) for high in (3, 9, 5)]
    assert find_classes(counts, made_for_objects=True)[0].has_instances
    assert not find_classes(counts)[0].has_instances
    same = [dict.fromkeys(range(10), 10) for _ in range(3)]
    assert not find_classes(same, made_for_objects=True)[0].has_instances


def test_a_stray_value_is_pointed_out():
    _, how = find_classes([{0: 5000, 1: 4000}, {0: 5000, 1: 4000, 130: 3}])
    assert "130 (3 voxels)" in how


@pytest.mark.parametrize("counts", [[], [{0: 5}], [{0: 5, -1: 2}]])
def test_labels_without_any_class_are_refused(counts):
    with pytest.raises(DataRefused, match="nothing to learn"):
        find_classes(counts)


class CrashesItsReader(type(Path())):
    """A file that ends the process which is to read it."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGSEGV,)


def test_a_label_file_that_crashes_its_reader_is_lost_alone(tmp_path):
    for name in "ab":
        write_labels(tmp_path / f"{name}.nii.gz", np.ones((2, 3, 4), np.uint8), Geometry((2, 3, 4)))
    deadly = CrashesItsReader(tmp_path / "b.nii.gz")
    counted = count_label_files([tmp_path / "a.nii.gz", deadly])
    assert counted.voxels == ({1: 24},)
    assert "SIGSEGV" in counted.faults[deadly]
