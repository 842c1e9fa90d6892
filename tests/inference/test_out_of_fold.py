"""Kept probabilities are those that were predicted, on the grid of the file, within a step of 8 bits."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import IntegrityRefusal, MissingInput
from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.images.volume import Volume
from autoseg.inference.out_of_fold import (
    keeping_probabilities,
    kept_heads,
    probabilities_at,
    probabilities_file,
)
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import predict_case, predict_case_probabilities
from autoseg.preprocessing.prepare import Preparation, prepare
from tests.inference.examples import configuration, random_unet

THREE = LabelSet({"background": (0,), "one": (1,), "two": (2,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))
PLENTY = 1 << 30
EVERYWHERE = np.arange(6 * 9 * 10)


def predicted(labels, axis_order, shape=(6, 9, 10), border=1, seed=0, orientation=None):
    """A predictor of noise and a prepared case with a border of zeros that is cropped away."""
    image = np.zeros((1, *shape), np.float32)
    inside = (0, *(slice(border, length - 2 * border) for length in shape))
    image[inside] = np.random.default_rng(seed).normal(5, 1, image[inside].shape)
    plan = Preparation(axis_order, (1.5, 1.0, 1.0), ("zscore",), (False,), (None,), orientation)
    case = prepare(Volume(image, Geometry(shape, (1.0, 1.2, 1.0))), None, plan)
    network = random_unet(3, heads=labels.head_count, seed=seed)
    return Predictor((network,), configuration((4, 8, 8)), labels.head_count), case


def keep(path, labels, predictor, case, allowed=PLENTY):
    tiling = predictor.tiling(case.image.shape[1:])
    with keeping_probabilities(path, case.placement, tiling.rolling_axis, labels, allowed) as take_row:
        return predict_case(predictor, case.image, case.placement, labels, take_row)


def kept_volume(path, labels, shape):
    """Probabilities (kept heads, z, y, x) of every voxel of the grid."""
    values = probabilities_at(path, labels, np.arange(np.prod(shape)))
    return values.reshape(-1, *shape) / 255


@pytest.mark.parametrize("labels", [THREE, REGIONS], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("axis_order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("shape", [(6, 9, 10), (12, 5, 6)])
@pytest.mark.parametrize("orientation", [None, "RAS", "SPL"])
def test_what_is_kept_is_what_was_predicted(tmp_path, labels, axis_order, shape, orientation) -> None:
    predictor, case = predicted(labels, axis_order, shape, orientation=orientation)
    path = probabilities_file(tmp_path, "a")
    kept = keep(path, labels, predictor, case)
    expected_labels, expected = predict_case_probabilities(predictor, case.image, case.placement, labels)
    assert (kept == expected_labels).all()
    found = kept_volume(path, labels, shape)
    assert len(found) == kept_heads(labels)
    assert np.abs(found - expected[-len(found) :].astype(np.float32)).max() <= 0.5 / 255 + 1e-3
    assert found[-1].std() > 0.04  # the noise differs from voxel to voxel, so a wrong axis would show


@given(st.lists(st.integers(0, 6 * 9 * 10 - 1), unique=True, max_size=60), st.sampled_from([THREE, REGIONS]))
@settings(max_examples=20, deadline=None)
def test_some_voxels_are_those_of_the_whole(tmp_path_factory, voxels, labels) -> None:
    folder = tmp_path_factory.mktemp("kept")
    predictor, case = predicted(labels, (1, 2, 0))
    path = probabilities_file(folder, "a")
    keep(path, labels, predictor, case)
    _, expected = predict_case_probabilities(predictor, case.image, case.placement, labels)
    found = probabilities_at(path, labels, np.array(voxels, np.int64))
    wanted = expected.reshape(labels.head_count, -1)[-len(found) :, voxels].astype(np.float32)
    assert np.abs(found / 255 - wanted).max(initial=0) <= 0.5 / 255 + 1e-3


def test_what_does_not_fit_is_not_kept_and_the_labels_are_the_same(tmp_path) -> None:
    predictor, case = predicted(THREE, (0, 1, 2))
    path = probabilities_file(tmp_path, "a")
    whole = keep(path, THREE, predictor, case)
    size = path.stat().st_size
    assert (keep(path, THREE, predictor, case, allowed=size // 2) == whole).all()
    assert list(tmp_path.iterdir()) == []  # the older file is gone as well, and nothing unfinished is left
    assert (keep(path, THREE, predictor, case, allowed=size) == whole).all()
    assert path.stat().st_size == size


def test_a_failure_on_the_way_leaves_nothing(tmp_path) -> None:
    _, case = predicted(THREE, (0, 1, 2))
    path = probabilities_file(tmp_path, "a")
    with (
        pytest.raises(RuntimeError, match="stopped"),
        keeping_probabilities(path, case.placement, 0, THREE, PLENTY),
    ):
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []


def test_probabilities_that_were_not_kept_are_missing(tmp_path) -> None:
    with pytest.raises(MissingInput, match="of a were not kept"):
        probabilities_at(probabilities_file(tmp_path, "a"), THREE, EVERYWHERE)


def test_a_damaged_file_or_one_of_other_classes_is_refused(tmp_path) -> None:
    predictor, case = predicted(THREE, (0, 1, 2))
    path = probabilities_file(tmp_path, "a")
    keep(path, THREE, predictor, case)
    content = path.read_bytes()
    with pytest.raises(IntegrityRefusal, match="damaged"):
        probabilities_at(path, LabelSet({"background": (0,), "one": (1,)}), EVERYWHERE)
    for cut in (0, 10, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:cut])
        with pytest.raises(IntegrityRefusal, match="damaged"):
            probabilities_at(path, THREE, EVERYWHERE)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("probabilities.npy", b"")
    with pytest.raises(IntegrityRefusal, match="damaged"):
        probabilities_at(path, THREE, EVERYWHERE)


def test_a_grid_that_cannot_be_true_is_refused(tmp_path) -> None:
    path = probabilities_file(tmp_path, "a")
    for start, rows in (((5, 0, 0), 2), ((0, 0, 0), 1)):
        with path.open("wb") as stream:
            np.savez(
                stream, shape=(4, 4, 4), start=start, order=(0, 1, 2), probabilities=np.zeros((2, rows, 4, 4), "u1")
            )
        with pytest.raises(IntegrityRefusal, match="damaged"):
            probabilities_at(path, THREE, EVERYWHERE)


def test_a_flipped_bit_is_noticed(tmp_path) -> None:
    predictor, case = predicted(THREE, (0, 1, 2))
    path = probabilities_file(tmp_path, "a")
    keep(path, THREE, predictor, case)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(IntegrityRefusal, match="damaged"):
        probabilities_at(path, THREE, EVERYWHERE)
