"""Scores of masks against brute force, SimpleITK, scipy, analytic shapes and the laws they must obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from autoseg.evaluation.confusion import Overlap
from autoseg.evaluation.metrics import surface, surface_distances

SHAPES = st.one_of(st.tuples(*[st.integers(1, 5)] * 3), st.tuples(*[st.integers(1, 7)] * 2))


@st.composite
def mask_pairs(draw):
    shape = draw(SHAPES)
    spacing = tuple(draw(st.floats(0.2, 5)) for _ in shape)
    return draw(arrays(bool, shape)), draw(arrays(bool, shape)), spacing


def overlap(prediction, reference):
    return Overlap(*(int(mask.sum()) for mask in (prediction & reference, prediction, reference)))


def brute_surface(mask):
    found = []
    for voxel in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbor = voxel.copy()
                neighbor[axis] += step
                is_inside = (neighbor >= 0).all() and (neighbor < mask.shape).all()
                if not (is_inside and mask[tuple(neighbor)]):
                    found.append(tuple(voxel))
    return sorted(set(found))


def brute_directed(first, second, spacing):
    points, targets = (np.array(brute_surface(mask), dtype=float).reshape(-1, mask.ndim) for mask in (first, second))
    return [
        min((np.sqrt((((point - target) * spacing) ** 2).sum()) for target in targets), default=np.inf)
        for point in points
    ]


@given(mask_pairs())
@settings(max_examples=150, deadline=None)
def test_every_score_equals_brute_force(pair):
    prediction, reference, spacing = pair
    distances = surface_distances(prediction, reference, spacing)
    there, back = (
        brute_directed(*masks, np.array(spacing)) for masks in ((prediction, reference), (reference, prediction))
    )
    assert list(map(tuple, np.argwhere(surface(prediction)))) == brute_surface(prediction)
    assert np.allclose(np.sort(distances.from_prediction), np.sort(there), rtol=0, atol=1e-9)
    counts = overlap(prediction, reference)
    both, either = (prediction & reference).sum(), (prediction | reference).sum()
    if either == 0:
        assert (counts.dice, counts.iou, distances.within(1.0)) == (None, None, None)
    else:
        assert counts.dice == pytest.approx(2 * both / (prediction.sum() + reference.sum()), abs=1e-12)
        assert counts.iou == pytest.approx(both / either, abs=1e-12)
        assert distances.within(1.0) == pytest.approx(np.mean(np.array(there + back) <= 1.0 + 1e-9), abs=1e-9)
    if there and back and both + either and prediction.any() and reference.any():
        assert distances.hausdorff() == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-9)
        assert distances.average == pytest.approx(np.mean(there + back), abs=1e-9)
    else:
        assert (distances.hausdorff(), distances.average) == (None, None)


@given(mask_pairs())
@settings(max_examples=60, deadline=None)
def test_exchanging_prediction_and_reference_changes_no_score(pair):
    prediction, reference, spacing = pair
    here, swapped = surface_distances(prediction, reference, spacing), surface_distances(reference, prediction, spacing)
    assert overlap(prediction, reference).dice == overlap(reference, prediction).dice
    assert (here.hausdorff(), here.within(0.7)) == (swapped.hausdorff(), swapped.within(0.7))
    assert here.average is None or here.average == pytest.approx(swapped.average)


@given(mask_pairs())
@settings(max_examples=60, deadline=None)
def test_a_mask_agrees_with_itself_perfectly(pair):
    mask, _, spacing = pair
    distances = surface_distances(mask, mask, spacing)
    expected = (1.0, 1.0, 1.0, 0.0, 0.0) if mask.any() else (None,) * 5
    counts = overlap(mask, mask)
    assert (counts.dice, counts.iou, distances.within(0), distances.hausdorff(), distances.average) == expected


@given(mask_pairs(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_background_around_the_masks_changes_nothing(pair, margin):
    prediction, reference, spacing = pair
    wide = [np.pad(mask, margin) for mask in (prediction, reference)]
    near, far = surface_distances(prediction, reference, spacing), surface_distances(*wide, spacing)
    assert near.hausdorff() == pytest.approx(far.hausdorff())
    assert near.within(1.0) == far.within(1.0)


def test_scores_are_undefined_exactly_where_their_definition_says():
    something, nothing = np.ones((2, 2), bool), np.zeros((2, 2), bool)
    one_sided = surface_distances(something, nothing, (1, 1))
    assert (one_sided.hausdorff(), one_sided.average, one_sided.within(5.0)) == (None, None, 0.0)
    assert (overlap(something, nothing).dice, overlap(something, nothing).iou) == (0.0, 0.0)
    both_empty = surface_distances(nothing, nothing, (1, 1))
    assert (both_empty.hausdorff(), both_empty.average, both_empty.within(5.0)) == (None, None, None)


@pytest.mark.parametrize("seed", range(6))
def test_overlap_and_hausdorff_equal_simpleitk(seed):
    sitk = pytest.importorskip("SimpleITK")
    generator = np.random.default_rng(seed)
    spacing = generator.uniform(0.5, 3, 3)
    smooth = [ndimage.gaussian_filter(generator.normal(size=(9, 14, 12)), 1.5) for _ in range(2)]
    prediction, reference = (volume > 0.02 for volume in smooth)
    images, surfaces = [], []
    for mask in (prediction, reference):
        for group, array in ((images, mask), (surfaces, surface(mask))):
            image = sitk.GetImageFromArray(array.astype(np.uint8))
            image.SetSpacing(spacing[::-1].tolist())
            group.append(image)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*images)
    counts = overlap(prediction, reference)
    assert counts.dice == pytest.approx(measures.GetDiceCoefficient(), abs=1e-9)
    assert counts.iou == pytest.approx(measures.GetJaccardCoefficient(), abs=1e-9)
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(*surfaces)
    distances = surface_distances(prediction, reference, spacing)
    assert distances.hausdorff(100) == pytest.approx(hausdorff.GetHausdorffDistance(), abs=1e-5)
    average = (distances.from_prediction.mean() + distances.from_reference.mean()) / 2
    assert average == pytest.approx(hausdorff.GetAverageHausdorffDistance(), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_distances_equal_a_euclidean_distance_transform(seed):
    generator = np.random.default_rng(seed)
    spacing = generator.uniform(0.3, 4, 3)
    prediction, reference = (ndimage.gaussian_filter(generator.normal(size=(12, 16, 10)), 2) > 0.01 for _ in range(2))
    transform = ndimage.distance_transform_edt(~surface(reference), sampling=spacing)
    found = surface_distances(prediction, reference, spacing).from_prediction
    assert np.allclose(found, transform[surface(prediction)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_plane_is_as_far_away_as_it_was_shifted(shift, axis):
    spacing = (3.0, 0.5, 0.8)
    prediction = np.zeros((12, 12, 12), bool)
    prediction[tuple(4 if other == axis else slice(None) for other in range(3))] = True
    distances = surface_distances(prediction, np.roll(prediction, shift, axis), spacing)
    expected = shift * spacing[axis]
    assert distances.hausdorff() == pytest.approx(expected)
    assert distances.average == pytest.approx(expected)
    assert (distances.within(expected), distances.within(expected - 0.01)) == (1.0, 0.0)


@pytest.mark.parametrize(("inner", "outer"), [(6, 9), (5, 6), (8, 12)])
def test_concentric_balls_are_apart_by_the_difference_of_their_radii(inner, outer):
    radius = np.sqrt(((np.indices((31, 31, 31)) - 15) ** 2).sum(0))
    distances = surface_distances(radius <= inner, radius <= outer, (1, 1, 1))
    assert distances.average == pytest.approx(outer - inner, abs=0.5)
    assert distances.hausdorff() == pytest.approx(outer - inner, abs=1.0)
    volume_ratio = 2 * inner**3 / (inner**3 + outer**3)
    assert overlap(radius <= inner, radius <= outer).dice == pytest.approx(volume_ratio, abs=0.03)


def test_a_few_outliers_move_the_maximum_but_not_the_robust_distance():
    reference = np.zeros((40, 40), bool)
    reference[10:30, 10:30] = True
    prediction = reference.copy()
    prediction[0, 0] = True
    distances = surface_distances(prediction, reference, (1, 1))
    assert distances.hausdorff(100) > 14
    assert distances.hausdorff() == 0


def test_a_distance_of_exactly_the_tolerance_is_within_it_despite_rounding():
    prediction, reference = np.zeros((20, 1), bool), np.zeros((20, 1), bool)
    prediction[1], reference[11] = True, True
    assert surface_distances(prediction, reference, (0.1, 0.1)).within(1.0) == 1.0
