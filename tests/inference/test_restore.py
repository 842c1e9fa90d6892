"""Labels decided row by row equal those of whole volumes of logits, on the grid of the file."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.images.resample import coarse_axis, resample_image
from autoseg.images.volume import Volume
from autoseg.inference.accumulate import LogitRows
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import (
    interpolation,
    interpolation_orders,
    labels_of_rows,
    predict_case,
    predict_case_probabilities,
    resampled_rows,
)
from autoseg.inference.windows import Tiling
from autoseg.preprocessing.prepare import Preparation, prepare
from tests.inference.examples import VoxelWise, configuration, random_unet

THREE = LabelSet({"background": (0,), "one": (1,), "two": (2,)})
REGIONS = LabelSet({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))


def rows_of(logits, tiling, size=3):
    rolled = torch.from_numpy(logits).permute(*[(tiling.rolling_axis + 1), 0, *(a + 1 for a in tiling.rolled_axes[1:])])
    for start in range(0, len(rolled), size):
        block = rolled[start : start + size].clone()
        yield LogitRows(start, block)
        block.fill_(torch.nan)  # rows are valid only until the next are asked for


def decided(logits, tiling, shape, orders, labels):
    rows = resampled_rows(rows_of(logits, tiling), tiling, shape, orders)
    return labels_of_rows(rows, tiling.rolling_axis, shape, labels)


def tiling_rolling_along(axis, shape):
    return Tiling(shape, tuple(1 if other == axis else length for other, length in enumerate(shape)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resampled_logits_give_the_labels_of_the_reference_resampling(golden_vectors, axis):
    entries = json.loads((golden_vectors / "resampling.json").read_text())
    entries = [entry for entry in entries if entry["key"].endswith(".probabilities")]
    assert len(entries) == 9
    with np.load(golden_vectors / "resampling.npz") as stored:
        for entry in entries:
            logits, expected = stored[f"{entry['key']}.in"], stored[f"{entry['key']}.out"]
            names = {"background": (0,), **{f"c{value}": (value,) for value in range(1, len(logits))}}
            tiling = tiling_rolling_along(axis, logits.shape[1:])
            orders = interpolation_orders(entry["current_spacing"], entry["new_spacing"])
            found = decided(logits, tiling, entry["new_shape"], orders, LabelSet(names))
            lead = np.sort(expected, 0)[-1] - np.sort(expected, 0)[-2]
            assert found.shape == tuple(entry["new_shape"])
            assert (found == expected.argmax(0))[lead > 1e-5].all()
            assert (lead > 1e-5).mean() > 0.999


@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 25)] * 3),
    st.tuples(*[st.sampled_from([0.5, 1.0, 4.0])] * 3),
    st.integers(0, 2),
    st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_labels_row_by_row_equal_the_argmax_of_the_resampled_volume(shape, new_shape, spacing, axis, seed):
    logits = np.random.default_rng(seed).normal(size=(3, *shape)).astype(np.float32)
    tiling = tiling_rolling_along(axis, shape)
    found = decided(logits, tiling, new_shape, interpolation_orders(spacing, (1.0, 1.0, 1.0)), THREE)
    whole = resample_image(logits, new_shape, spacing, (1.0, 1.0, 1.0), order=1)
    lead = np.diff(np.sort(whole, 0)[-2:], axis=0)[0]
    assert (found == whole.argmax(0))[lead > 1e-5].all()


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 1]))
@settings(max_examples=60, deadline=None)
def test_a_line_is_interpolated_as_scipy_does_it(n_in, n_out, order):
    line = np.random.default_rng(n_in).normal(size=n_in).astype(np.float32)
    own = interpolation(n_in, n_out, order)
    if n_in == n_out:
        assert own is None
        return
    expected = ndimage.zoom(line, n_out / n_in, order=order, mode="nearest", grid_mode=True)
    assert np.allclose(own.apply(torch.from_numpy(line)[:, None], 0)[:, 0].numpy(), expected, atol=1e-5)
    assert np.allclose(own.apply(torch.from_numpy(line)[None], 1)[0].numpy(), expected, atol=1e-5)


def test_slices_far_apart_are_not_interpolated_between():
    assert interpolation_orders((5, 1, 1), (6, 1, 1)) == (0, 1, 1)
    assert interpolation_orders((1, 1, 1), (2, 2, 2)) == (1, 1, 1)
    assert coarse_axis((5, 1, 1), (6, 1, 1)) == 0


def test_regions_are_painted_in_their_order_where_their_probability_exceeds_one_half():
    logits = np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]], np.float32).reshape(2, 1, 1, 4)
    tiling = tiling_rolling_along(0, (1, 1, 4))
    found = decided(logits, tiling, (1, 1, 4), (1, 1, 1), REGIONS)
    assert found.tolist() == [[[0, 1, 2, 2]]]


def test_more_classes_than_a_byte_holds_are_told_apart():
    count = 300
    labels = LabelSet({"background": (0,), **{f"c{value}": (value,) for value in range(1, count)}})
    wanted = np.array([0, 255, 256, 299])
    logits = (np.arange(count)[:, None] == wanted).astype(np.float32).reshape(count, 1, 1, 4)
    tiling = tiling_rolling_along(0, (1, 1, 4))
    found = decided(logits, tiling, (1, 1, 4), (1, 1, 1), labels)
    assert found.ravel().tolist() == wanted.tolist()


def naive_case(predictor, image, placement):
    """All classes at full resolution in memory, as one would write it down."""
    tiling = predictor.tiling(image.shape[1:])
    logits = np.empty((predictor.heads, *image.shape[1:]), np.float32)
    rolled = np.moveaxis(logits, tiling.rolling_axis + 1, 0)
    for rows in predictor.rows(image):
        rolled[rows.start : rows.start + len(rows.values)] = rows.values.numpy()
    spacings = placement.prepared_spacing_mm, placement.cropped_spacing_mm
    whole = resample_image(logits, placement.cropped_shape, *spacings, order=1)
    return placement.restore_labels(whole.argmax(0).astype(np.uint8))


@pytest.mark.parametrize("axis_order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize(("dimensions", "target"), [(3, (2.0, 0.9, 0.7)), (3, (1.0, 1.0, 1.0)), (2, (None, 0.9, 0.7))])
def test_labels_on_the_grid_of_the_file_equal_the_naive_way(axis_order, dimensions, target):
    generator = np.random.default_rng(4)
    array = np.zeros((1, 17, 15, 19), np.float32)
    array[0, 2:16, 1:14, 3:19] = ndimage.gaussian_filter(generator.normal(size=(14, 13, 16)), 1) + 3
    volume = Volume(array, Geometry((17, 15, 19), (1.5, 0.8, 1.1)))
    prepared = prepare(volume, None, Preparation(axis_order, target, ("zscore",), (False,), (None,)))
    predictor = Predictor((random_unet(dimensions),), configuration((8,) * dimensions), 3, tile_batch=2)
    found = predict_case(predictor, prepared.image, prepared.placement, THREE)
    expected = naive_case(predictor, prepared.image, prepared.placement)
    assert found.shape == volume.geometry.shape
    assert np.count_nonzero(found != expected) == 0
    assert not found[:2].any()
    assert len(np.unique(found)) > 1


def test_a_threshold_learned_voxel_by_voxel_comes_back_where_it_was():
    """Without resampling, prepare and restore are inverse to each other: labels = intensity above a threshold."""
    array = np.zeros((1, 6, 9, 11), np.float32)
    array[0, 1:5, 2:8, 3:10] = np.random.default_rng(0).integers(1, 4, (4, 6, 7))
    volume = Volume(array, Geometry((6, 9, 11)))
    prepared = prepare(volume, None, Preparation((2, 1, 0), (1.0, 1.0, 1.0), ("none",), (False,), (None,)))
    predictor = Predictor((VoxelWise(2),), configuration((4, 4, 4)), 2, mirror_axes=(0, 1))
    labels = LabelSet({"background": (0,), "bright": (1,)})
    assert np.array_equal(predict_case(predictor, prepared.image, prepared.placement, labels), array[0] > 0)


@pytest.mark.parametrize("labels", [THREE, REGIONS])
def test_probabilities_agree_with_the_labels_and_are_certain_outside_the_crop(labels):
    array = np.zeros((1, 9, 10, 12), np.float32)
    array[0, 2:8, 1:9, 3:] = np.random.default_rng(0).normal(size=(6, 8, 9)) + 4
    volume = Volume(array, Geometry((9, 10, 12), (2.0, 1.0, 1.0)))
    prepared = prepare(volume, None, Preparation((1, 0, 2), (0.7, 1.5, 1.0), ("zscore",), (False,), (None,)))
    predictor = Predictor((random_unet(3, heads=labels.head_count),), configuration((8, 8, 8)), labels.head_count)
    found, probabilities = predict_case_probabilities(predictor, prepared.image, prepared.placement, labels)
    assert np.array_equal(found, predict_case(predictor, prepared.image, prepared.placement, labels))
    assert (probabilities.shape, probabilities.dtype) == ((labels.head_count, 9, 10, 12), np.float16)
    assert (probabilities[1:, :2] == 0).all()
    if labels.has_regions:
        assert (probabilities[:, :2] == 0).all()
        assert np.array_equal(found > 0, (probabilities > 0.5).any(0))
    else:
        assert (probabilities[0, :2] == 1).all()
        assert np.allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
        lead = np.diff(np.sort(probabilities.astype(np.float32), 0)[-2:], axis=0)[0]
        assert np.array_equal(found[lead > 0], probabilities.argmax(0)[lead > 0])


MEMORY_CHECK = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from autoseg.core.geometry import Geometry
from autoseg.data.model import LabelSet
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import predict_case
from autoseg.preprocessing.prepare import Placement
from tests.inference.examples import configuration, VoxelWise
heads, shape, full, patch = {heads}, {shape}, {full}, {patch}
predictor = Predictor((VoxelWise(heads),), configuration(patch), heads)
image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
labels = LabelSet({{str(value): (value,) for value in range(heads)}})
box = tuple((0, length) for length in full)
placement = Placement(Geometry(full), (0, 1, 2), box, (1., 1., 1.), shape, tuple(f / s for f, s in zip(full, shape)))
list(predictor.rows(image[:, :patch[0], :patch[1], :patch[2]]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
predict_case(predictor, image, placement, labels)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_peak_memory_is_a_slab_and_not_a_volume_of_classes(repository):
    heads, shape, full, patch = 20, (96, 48, 48), (144, 96, 96), (16, 32, 32)
    code = MEMORY_CHECK.format(heads=heads, shape=shape, full=full, patch=patch)
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    growth, mebibyte = int(done.stdout), 1 << 20
    one_volume = heads * 4 * int(np.prod(full))
    slab = Tiling(shape, patch).slab_bytes(heads, 1)
    assert slab < 4 * mebibyte < one_volume / 20
    assert growth < 20 * mebibyte
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
