"""How two grids relate: laws over all orientations."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from autoseg.core.geometry import Geometry
from autoseg.images.compare import compare_geometry, reorientations, reoriented
from tests.images.examples import OBLIQUE, ORIENTATIONS, geometries, oriented

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (0.5, 0.3, 2.5)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("shift", "expected"), [(1e-5, "rounding"), (0.5, "different"), (5.0, "different")])
def test_a_shift_is_rounding_only_below_a_thousandth_of_a_voxel(spacing, shift, expected):
    for order, signs in ORIENTATIONS:
        image = Geometry((7, 8, 9), spacing, (10.0, -20.0, 30.0), oriented(order, signs))
        for axis in range(3):
            origin = list(image.origin_mm)
            origin[axis] += shift
            assert compare_geometry(image, replace(image, origin_mm=tuple(origin))) == expected


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_reorientation_but_the_first_is_flipped(spacing):
    for number, (order, signs) in enumerate(ORIENTATIONS):
        image = Geometry((4, 5, 6), spacing, (1.0, 2.0, 3.0), oriented(order, signs))
        first, *others = reorientations(image)
        assert compare_geometry(image, first) == "identical"
        assert len(others) == 47
        tried = others if number == 0 else others[number % 8 :: 8]
        assert {compare_geometry(image, other) for other in tried} == {"flipped"}


def test_a_flipped_grid_that_is_also_shifted_is_different():
    image = Geometry((4, 5, 6), (3.0, 1.0, 1.0), direction=OBLIQUE)
    for stored in list(reorientations(image))[1:]:
        moved = replace(stored, origin_mm=tuple(np.array(stored.origin_mm) + 0.5))
        assert compare_geometry(image, moved) == "different"


@settings(max_examples=60, deadline=None)
@given(geometries(smallest=1))
def test_a_reoriented_grid_describes_the_reoriented_array(geometry):
    indices = np.indices(geometry.shape).reshape(3, -1).T
    positions = geometry.world(indices).reshape(*geometry.shape, 3)
    for order, flips in [((2, 0, 1), (True, False, True)), ((0, 1, 2), (False, True, False))]:
        moved = reoriented(geometry, order, flips)
        expected = np.flip(positions.transpose(*order, 3), [axis for axis in range(3) if flips[axis]])
        found = moved.world(np.indices(moved.shape).reshape(3, -1).T).reshape(*moved.shape, 3)
        assert np.allclose(found, expected, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(geometries(smallest=1))
def test_a_grid_is_identical_to_itself(geometry):
    assert compare_geometry(geometry, geometry) == "identical"


def test_another_shape_or_spacing_is_different():
    image = Geometry((4, 5, 6))
    assert compare_geometry(image, Geometry((4, 5, 7))) == "different"
    assert compare_geometry(image, Geometry((4, 5, 6), (1.0, 1.0, 1.1))) == "different"
    assert compare_geometry(image, Geometry((6, 5, 4))) == "different"


def test_a_position_that_is_not_a_number_is_different():
    assert compare_geometry(Geometry((4, 5, 6)), Geometry((4, 5, 6), origin_mm=(float("nan"), 0.0, 0.0))) == "different"
