"""Scores per case and class, and their means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import Overlap, overlaps
from autoseg.evaluation.metrics import METRICS, surface_distances
from autoseg.evaluation.scores import mean_scores, score_case, score_files
from autoseg.images.orientation import turn_to
from autoseg.images.volume import Volume
from autoseg.images.writers import write_labels

PLAIN = LabelSet({"background": (0,), "one": (1,), "two": (2,), "three": (3,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2, 3), "core": (2, 3)}, ignore=4, regions_class_order=(1, 2))


def overlap(prediction, reference):
    return Overlap(*(int(mask.sum()) for mask in (prediction & reference, prediction, reference)))


def two_label_maps(largest: int):
    shapes = st.tuples(*[st.integers(1, 6)] * 3)
    return shapes.flatmap(lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, largest))] * 2))


@given(two_label_maps(3))
@settings(max_examples=60, deadline=None)
def test_scores_of_a_class_are_those_of_its_masks(pair):
    prediction, reference = pair
    spacing = (2.0, 0.7, 1.1)
    scores = score_case(prediction, reference, PLAIN, spacing, tolerance_mm=0.9)
    kept = [axis for axis in range(3) if prediction.shape[axis] > 1] or [0]
    for name, (value,) in PLAIN.classes.items():
        if name == "background":
            continue
        masks = np.atleast_1d((prediction == value).squeeze()), np.atleast_1d((reference == value).squeeze())
        distances = surface_distances(*masks, [spacing[axis] for axis in kept])
        counts = overlap(*masks)
        assert (scores[name]["dice"], scores[name]["iou"]) == (counts.dice, counts.iou)
        assert scores[name]["nsd"] == pytest.approx(distances.within(0.9))
        assert scores[name]["hd95_mm"] == pytest.approx(distances.hausdorff())
        assert scores[name]["assd_mm"] == pytest.approx(distances.average)
        assert scores[name]["reference_volume_ml"] == pytest.approx(masks[1].sum() * np.prod(spacing) / 1000)


@given(two_label_maps(4))
@settings(max_examples=40, deadline=None)
def test_regions_are_unions_and_ignored_voxels_do_not_count(pair):
    prediction, reference = pair
    prediction[prediction == 4] = 0
    annotated = reference != 4
    counts = overlaps(prediction, reference, REGIONS)
    for name in REGIONS.foreground:
        first, second = (np.isin(array, REGIONS.classes[name]) & annotated for array in pair)
        assert counts[name] == overlap(first, second)
    scores = score_case(prediction, reference, REGIONS, (1, 1, 1))
    assert {name: score["dice"] for name, score in scores.items()} == {name: counts[name].dice for name in counts}


def test_a_flat_object_in_a_volume_is_all_surface_but_a_flat_image_is_measured_in_its_plane():
    volume = np.zeros((3, 9, 9), np.uint8)
    volume[1, 2:7, 2:7] = 1
    dented = volume.copy()
    dented[1, 4, 4] = 0
    labels = LabelSet({"background": (0,), "one": (1,)})
    in_volume = score_case(dented, volume, labels, (1, 1, 1), tolerance_mm=0.5)["one"]
    assert in_volume["nsd"] == pytest.approx((24 + 24) / (24 + 25))
    in_plane = score_case(dented[1:2], volume[1:2], labels, (999, 1, 1), tolerance_mm=0.5)["one"]
    assert in_plane["nsd"] == pytest.approx((16 + 16) / (20 + 16))
    assert (in_plane["volume_ml"], in_plane["reference_volume_ml"]) == (None, None)


def test_means_leave_out_what_is_undefined():
    def score(dice):
        return {"dice": dice, "hd95_mm": None, "reference_volume_ml": 2.0}

    cases = {"a": {"x": score(0.5), "y": score(None)}, "b": {"x": score(1.0), "y": score(None)}}
    mean, foreground = mean_scores(cases, score(0))
    assert (mean["x"]["dice"], mean["y"]["dice"]) == (0.75, None)
    assert foreground == {"dice": 0.75, "hd95_mm": None, "reference_volume_ml": 2.0}


def test_no_cases_have_no_means():
    assert mean_scores({}, ("dice",)) == ({}, {"dice": None})


def test_every_metric_is_computed_and_defined():
    nothing = np.zeros((2, 3, 4), np.uint8)
    assert list(score_case(nothing, nothing, PLAIN, (1, 1, 1))["one"]) == list(METRICS)
    assert all(metric.definition.format(tolerance_mm=1.0) for metric in METRICS.values())


def test_absent_classes_are_undefined_and_empty_volumes_zero():
    nothing = np.zeros((2, 3, 4), np.uint8)
    scores = score_case(nothing, nothing, PLAIN, (1, 1, 1))["two"]
    empty = {"volume_ml": 0.0, "reference_volume_ml": 0.0}
    assert scores == dict.fromkeys(METRICS) | empty


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAL"])
def test_label_maps_stored_along_other_axes_are_compared_where_they_lie(codes, tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    reference = Volume(labels, Geometry((5, 6, 7), (3.0, 1.0, 2.0), (4.0, 5.0, 6.0)))
    prediction = turn_to(reference.geometry, codes).apply(Volume(np.roll(labels, 1, 2), reference.geometry))
    for name, volume in (
        ("reference", reference),
        ("prediction", prediction),
        ("same", Volume(np.roll(labels, 1, 2), reference.geometry)),
    ):
        write_labels(tmp_path / f"{name}.nii.gz", volume.array, volume.geometry)
    as_stored = score_files((tmp_path / "same.nii.gz", tmp_path / "reference.nii.gz"), PLAIN, 1.0)
    assert score_files((tmp_path / "prediction.nii.gz", tmp_path / "reference.nii.gz"), PLAIN, 1.0) == as_stored


def test_a_reference_that_names_its_values_as_other_classes_gives_no_scores(tmp_path):
    labels = np.zeros((4, 5, 6), np.int16)
    labels[1], labels[2] = 1, 2
    for name in ("prediction", "reference"):
        write_labels(tmp_path / f"{name}.nrrd", labels, Geometry((4, 5, 6)))
    files = (tmp_path / "prediction.nrrd", tmp_path / "reference.nrrd")
    assert score_files(files, PLAIN, 1.0).scores["one"]["dice"] == 1.0
    header, voxels = files[1].read_bytes().split(b"\n\n", 1)
    names = b"\nSegment0_LabelValue:=1\nSegment0_Name:=Two\nSegment1_LabelValue:=9\nSegment1_Name:=One\n\n"
    files[1].write_bytes(header + names + voxels)
    assert score_files(files, PLAIN, 1.0).failure.endswith("exchanged: 1 is Two in the file, Two is 2 in the dataset")


@pytest.mark.parametrize("unknown", ["prediction", "reference"])
def test_files_that_do_not_say_where_they_lie_are_compared_with_a_note(unknown, tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    known = Geometry((5, 6, 7), (3.0, 1.0, 2.0))
    for name in ("prediction", "reference"):
        write_labels(tmp_path / f"{name}.nii.gz", labels, replace(known, has_orientation=name != unknown))
    files = (tmp_path / "prediction.nii.gz", tmp_path / "reference.nii.gz")
    found = score_files(files, PLAIN, 1.0)
    assert found.scores["one"]["dice"] == 1.0
    assert found.notes == (f"the {unknown} does not state where its voxels lie; the two were matched voxel by voxel",)
    write_labels(files[0], labels, replace(known, origin_mm=(9.0, 0.0, 0.0)))
    write_labels(files[1], labels, known)
    assert (
        "the prediction lies on another grid than the reference: first voxel" in score_files(files, PLAIN, 1.0).failure
    )
