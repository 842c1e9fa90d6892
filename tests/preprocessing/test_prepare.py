from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import IntensityOverflow, PlanFault, UsageError
from autoseg.core.geometry import Geometry
from autoseg.core.records import from_json, to_json
from autoseg.images.orientation import orientation_of, turn_to
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from autoseg.nnunet.plans import read_nnunet_fingerprint
from autoseg.preprocessing.prepare import Placement, Preparation, prepare
from tests.images.examples import CODES, OBLIQUE

NORMALIZATIONS = {"ZScoreNormalization": "zscore", "CTNormalization": "ct"}
CASES = ("hippocampus", "openkbp_ct", "acdc_cardiac", "axon_sem", "vnc_em3d")


def reference_preparation(pair: dict, configuration: str) -> Preparation:
    """What nnU-Net's own plan says, as our record."""
    plan = pair["plan"]["configurations"][configuration]
    spacing = tuple(map(float, plan["spacing"]))
    kinds = tuple(NORMALIZATIONS[name] for name in plan["normalization_schemes"])
    intensities = read_nnunet_fingerprint(pair["fingerprint"]).intensities
    return Preparation(
        tuple(pair["plan"]["transpose_forward"]),
        (None, *spacing) if len(spacing) == 2 else spacing,
        kinds,
        tuple(plan["use_mask_for_norm"]),
        tuple(entry if kind == "ct" else None for kind, entry in zip(kinds, intensities, strict=True)),
    )


@pytest.mark.parametrize("name", CASES)
def test_a_whole_case_equals_the_reference(shared, name):
    expected = np.load(shared / "golden" / "vectors" / f"preprocessed_{name}.npz")
    pair = json.loads((shared / "golden" / "shared_data" / f"{name}.json").read_text())
    preparation = reference_preparation(pair, str(expected["configuration"]))
    folder, case, ending = shared / "data" / name, str(expected["case"]), pair["dataset"]["file_ending"]
    channels = range(len(preparation.normalization))
    volume = read_image([folder / "imagesTr" / f"{case}_{channel:04d}{ending}" for channel in channels])
    prepared = prepare(volume, read_labels(folder / "labelsTr" / f"{case}{ending}").array, preparation)

    image = expected["image"].astype(np.float32)
    tolerance = 1e-3 if expected["image"].dtype == np.float16 else 1e-6  # of the range; the reference's own precision
    assert np.abs(prepared.image - image).max() <= tolerance * np.ptp(image)
    assert np.array_equal(prepared.labels, expected["labels"][0])
    assert prepared.labels.dtype == expected["labels"].dtype
    assert np.array_equal(prepared.placement.box, expected["bbox"])
    assert prepared.placement.cropped_shape == tuple(expected["shape_after"])


def test_the_arguments_are_not_changed():
    image = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    labels = np.ones((4, 5, 6), np.int8)
    before = image.copy(), labels.copy()
    kinds = Preparation((1, 0, 2), (1.0, 1.0, 1.0), ("none", "zscore"), (False, True), (None, None))
    prepared = prepare(Volume(image, Geometry((4, 5, 6))), labels, kinds)
    prepared.image[:] = 0
    prepared.labels[:] = 0
    assert np.array_equal(image, before[0])
    assert np.array_equal(labels, before[1])


@pytest.mark.parametrize("codes", CODES)
def test_an_image_is_prepared_alike_however_it_is_stored_and_labels_come_back_on_its_own_grid(codes):
    random = np.random.default_rng(0)
    image, labels = np.zeros((2, 7, 9, 12), np.float32), random.integers(0, 3, (7, 9, 12)).astype(np.int8)
    image[:, 1:6, 2:9, 1:10] = random.normal(5, 1, (2, 5, 7, 9))
    stored = Volume(image, Geometry((7, 9, 12), (2.0, 1.0, 0.7), (4.0, 5.0, 6.0), OBLIQUE))
    turn = turn_to(stored.geometry, codes)
    turned = turn.apply(stored)
    for order, usual in (((0, 1, 2), orientation_of(stored.geometry)), ((2, 0, 1), "RAS")):
        how = Preparation(order, (1.5, 1.1, 1.0), ("zscore", "none"), (False, True), (None, None), usual)
        expected = prepare(stored, labels, how)
        found = prepare(turned, np.ascontiguousarray(turn.view(labels)), how)
        assert np.array_equal(found.image, expected.image)
        assert np.array_equal(found.labels, expected.labels)
        assert found.placement.box == expected.placement.box
        assert found.placement.geometry is turned.geometry
        cropped = random.integers(0, 3, expected.placement.cropped_shape)
        restored = turn.view(expected.placement.restore_labels(cropped, background=9))
        assert np.array_equal(found.placement.restore_labels(cropped, background=9), restored)
        assert from_json(Placement, to_json(found.placement), "case.json") == found.placement


def test_without_a_known_orientation_an_image_is_prepared_as_it_is_stored():
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    unknown = Volume(image, replace(Geometry((4, 5, 6)), has_orientation=False))
    mirrored = Volume(image, Geometry((4, 5, 6), direction=(0.0, 0.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0)))
    how = Preparation((1, 0, 2), (1.0, 1.0, 1.0), ("none",), (False,), (None,))
    for volume, orientation in ((unknown, "RAS"), (unknown, None), (mirrored, None)):
        prepared = prepare(volume, None, replace(how, orientation=orientation))
        assert np.array_equal(prepared.image[0], image[0].transpose(1, 0, 2))
        assert prepared.placement.flips == (False, False, False)


def test_masked_normalization_leaves_the_outside_at_zero():
    image = np.zeros((1, 5, 6, 7), np.float32)
    image[0, 1:4, 1:5, 1:6] = np.random.default_rng(0).uniform(5, 6, (3, 4, 5))
    image[0, 1, 1, 1] = 0
    preparation = Preparation((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (True,), (None,))
    prepared = prepare(Volume(image, Geometry((5, 6, 7))), None, preparation)
    assert prepared.labels is None
    assert prepared.image[0, 0, 0, 0] == 0
    assert prepared.image[0].ravel()[1:].mean() == pytest.approx(0, abs=1e-5)


def test_many_classes_take_two_bytes():
    labels = np.arange(200, dtype=np.int16).reshape(10, 5, 4)
    preparation = Preparation((0, 1, 2), (1.0, 1.0, 1.0), ("none",), (False,), (None,))
    volume = Volume(np.ones((1, 10, 5, 4), np.float32), Geometry((10, 5, 4)))
    assert prepare(volume, labels, preparation).labels.dtype == np.int16


def test_a_wrong_number_of_channels_is_refused():
    preparation = Preparation((0, 1, 2), (1.0, 1.0, 1.0), ("none", "none"), (False, False), (None, None))
    with pytest.raises(PlanFault, match="1 channels"):
        prepare(Volume(np.ones((1, 2, 2, 2), np.float32), Geometry((2, 2, 2))), None, preparation)


def test_an_unknown_normalization_is_answered_with_the_nearest():
    preparation = Preparation((0, 1, 2), (1.0, 1.0, 1.0), ("zscor",), (False,), (None,))
    with pytest.raises(UsageError, match="zscore"):
        prepare(Volume(np.ones((1, 2, 2, 2), np.float32), Geometry((2, 2, 2))), None, preparation)


orders = st.sampled_from(list(permutations(range(3))))
shapes = st.tuples(*[st.integers(1, 7)] * 3)


def a_volume(shape: tuple[int, int, int], seed: int) -> tuple[Volume, np.ndarray]:
    """A volume with a zero margin on some sides, and labels that lie where it is not zero."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(1, 2, (1, *shape)).astype(np.float32)
    labels = rng.integers(0, 3, shape).astype(np.int8)
    for axis in range(3):
        cut = [slice(None)] * 3
        cut[axis] = slice(0, int(rng.integers(0, shape[axis])))
        image[(0, *cut)] = 0
        labels[tuple(cut)] = 0
    spacing = tuple(float(value) for value in rng.choice([0.5, 1.0, 3.0], 3))
    return Volume(image, Geometry(shape, spacing)), labels


@given(shapes, orders, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_restoring_what_was_prepared_without_resampling_returns_the_labels(shape, order, seed):
    volume, labels = a_volume(shape, seed)
    spacing = tuple(volume.geometry.spacing_mm[axis] for axis in order)
    prepared = prepare(volume, labels, Preparation(order, spacing, ("zscore",), (False,), (None,)))
    restored = prepared.placement.restore_labels(np.maximum(prepared.labels, 0))
    assert np.array_equal(restored, labels)
    assert restored.flags.c_contiguous


@given(shapes, orders, st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_shapes_agree_and_the_way_back_has_the_shape_of_the_file(shape, order, seed):
    volume, labels = a_volume(shape, seed)
    placement = prepare(volume, labels, Preparation(order, (None, 1.5, 0.7), ("none",), (True,), (None,))).placement
    restored = placement.restore_labels(np.ones(placement.cropped_shape, np.uint8), background=9)
    assert restored.shape == shape
    assert (restored == 1).sum() == np.prod(placement.cropped_shape)
    assert placement.prepared_spacing_mm[0] == placement.cropped_spacing_mm[0]
    assert placement.prepared_shape[0] == placement.cropped_shape[0]
    assert from_json(Placement, to_json(placement), "case.json") == placement


@pytest.mark.parametrize("value", [3e38, -np.finfo(np.float32).max, 1e20])
@pytest.mark.parametrize("count", [1, 100])
def test_what_overflows_is_an_error_and_never_an_image_of_zeros(value, count):
    array = np.random.default_rng(0).normal(20, 4, (1, 8, 9, 10)).astype(np.float32)
    array.reshape(-1)[:count] = value
    preparation = Preparation((0, 1, 2), (1.5, 0.8, 1.0), ("zscore",), (False,), (None,))
    with pytest.raises(IntensityOverflow, match="single precision") as caught:
        prepare(Volume(array, Geometry((8, 9, 10))), None, preparation)
    assert f"{count} of 720 voxels" in str(caught.value.why)


def test_opposite_extremes_overflow_when_rescaled():
    array = np.zeros((1, 4, 5, 6), np.float32)
    array.reshape(-1)[:2] = -3e38, 3e38
    with pytest.raises(IntensityOverflow):
        prepare(
            Volume(array, Geometry((4, 5, 6))),
            None,
            Preparation((0, 1, 2), (1.0, 1.0, 1.0), ("rescale_0_1",), (False,), (None,)),
        )


def test_flags_that_blas_sets_for_numbers_it_does_not_use_are_no_overflow(monkeypatch):
    matmul = np.matmul

    def flagged(*args, **kwargs):
        np.subtract(np.float32(np.inf), np.float32(np.inf))  # invalid, as in lanes that hold whatever was there
        return matmul(*args, **kwargs)

    volume = Volume(np.random.default_rng(0).normal(size=(1, 8, 9, 10)).astype(np.float32), Geometry((8, 9, 10)))
    preparation = Preparation((0, 1, 2), (1.5, 0.8, 1.0), ("zscore",), (False,), (None,))
    expected = prepare(volume, None, preparation).image
    monkeypatch.setattr(np, "matmul", flagged)
    assert np.array_equal(prepare(volume, None, preparation).image, expected)


def test_interpolation_that_overflows_is_not_clipped_to_a_number():
    array = np.where(np.arange(720).reshape(1, 8, 9, 10) % 2, 3.3e38, -3.3e38).astype(np.float32)
    preparation = Preparation((0, 1, 2), (1.5, 0.8, 1.0), ("none",), (False,), (None,))
    with pytest.raises(IntensityOverflow):
        prepare(Volume(array, Geometry((8, 9, 10))), None, preparation)


def test_a_constant_image_is_no_overflow():
    volume = Volume(np.full((1, 4, 5, 6), 7, np.float32), Geometry((4, 5, 6)))
    preparation = Preparation((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (False,), (None,))
    assert not prepare(volume, None, preparation).image.any()
