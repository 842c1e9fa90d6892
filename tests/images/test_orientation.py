"""Orientations: the letters are nibabel's, and turning moves no voxel in the world."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.geometry import Geometry
from autoseg.images.orientation import (
    AS_STORED,
    Turn,
    direction_along,
    is_orientation,
    orientation_of,
    turn_onto,
    turn_to,
)
from autoseg.images.volume import Volume
from tests.images.examples import CODES, OBLIQUE, ORIENTATIONS, geometries, label_array, oriented


def nibabel_codes(geometry):
    from nibabel.orientations import aff2axcodes

    affine = np.eye(4)
    affine[:3, :3] = (geometry.axes[::-1] * (-1, -1, 1)).T  # columns x, y, z of the file; the world in RAS
    return "".join(aff2axcodes(affine))


def rotated(direction, degrees):
    """A direction turned about the world axes x, y, z, one after another."""
    rows = np.array(direction).reshape(3, 3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one, other = (index for index in range(3) if index != axis)
        turn = np.eye(3)
        turn[[one, one, other, other], [one, other, one, other]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        rows = rows @ turn
    return tuple(rows.ravel().tolist())


def test_every_way_to_store_a_volume_has_its_letters_and_they_are_those_of_nibabel():
    grids = [Geometry((4, 5, 6), (3.0, 1.0, 0.5), direction=oriented(*way)) for way in ORIENTATIONS]
    found = [orientation_of(grid) for grid in grids]
    assert sorted(found) == sorted(CODES)
    assert found == [nibabel_codes(grid) for grid in grids]
    assert orientation_of(Geometry((4, 5, 6))) == "LPS"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ORIENTATIONS), st.floats(0, 1))
def test_oblique_grids_have_the_letters_of_nibabel(seed, way, tilt):
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(np.array(oriented(*way)).reshape(3, 3) + tilt * random.normal(size=(3, 3)))
    grid = Geometry((4, 5, 6), tuple(random.uniform(0.3, 5, 3)), direction=tuple(turn.ravel().tolist()))
    assert orientation_of(grid) == nibabel_codes(grid)


def test_a_grid_without_a_stated_orientation_has_none_and_is_never_turned():
    unknown = replace(Geometry((4, 5, 6)), has_orientation=False)
    assert orientation_of(unknown) is None
    assert turn_to(unknown, "RAS") == AS_STORED
    assert turn_to(Geometry((4, 5, 6)), None) == AS_STORED
    assert turn_onto(Geometry((4, 5, 6)), unknown) == AS_STORED, "nothing to turn"
    turned = Turn(flips=(False, False, True)).apply(Volume(label_array((4, 5, 6)), unknown))
    assert not turned.geometry.has_orientation
    assert turn_onto(Geometry((4, 5, 6)), turned.geometry) is None


@settings(max_examples=40, deadline=None)
@given(geometries(), st.sampled_from(CODES))
def test_a_turned_volume_has_the_orientation_and_every_voxel_where_it_was(geometry, codes):
    labels = label_array(geometry.shape, highest=10_000)
    turned = turn_to(geometry, codes).apply(Volume(labels, geometry))
    assert orientation_of(turned.geometry) == codes

    def places(volume):
        indices = np.argwhere(np.ones(volume.array.shape))
        found = np.column_stack([volume.geometry.world(indices).round(6) + 0.0, volume.array.ravel()])
        return found[np.lexsort(found.T)]

    assert np.allclose(places(turned), places(Volume(labels, geometry)))


@settings(max_examples=40, deadline=None)
@given(geometries(), st.sampled_from(ORIENTATIONS), st.booleans())
def test_a_volume_is_turned_onto_the_grid_that_holds_the_same_voxels(geometry, way, is_oblique):
    geometry = replace(geometry, direction=OBLIQUE) if is_oblique else geometry
    order, signs = way
    stored = Turn(order, tuple(sign < 0 for sign in signs)).apply(Volume(label_array(geometry.shape), geometry))
    turn = turn_onto(geometry, stored.geometry)
    assert turn is not None
    back = turn.apply(stored)
    assert np.array_equal(back.array, label_array(geometry.shape))
    assert np.allclose(back.geometry.corners, geometry.corners)
    moved = replace(stored.geometry, origin_mm=tuple(np.add(stored.geometry.origin_mm, 0.5 * min(geometry.spacing_mm))))
    assert turn_onto(geometry, moved) is None


def test_what_is_written_into_a_view_reaches_the_array():
    array = np.zeros((2, 3, 4, 5), np.uint8)
    turn = Turn((2, 0, 1), (True, False, True))
    view = turn.view(array)
    assert view.shape == (2, 5, 3, 4)
    view[1, 0, 2, 0] = 7
    assert array[1, 2, 3, 4] == 7


def test_the_direction_along_letters_has_these_letters():
    for codes in CODES:
        assert orientation_of(Geometry((4, 5, 6), direction=direction_along(codes))) == codes


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CODES), st.tuples(*[st.floats(-20, 20)] * 3), st.booleans())
def test_oblique_volumes_of_one_kind_are_turned_alike_although_their_nearest_axes_differ(codes, angles, is_oblique):
    middle = rotated(direction_along("LPS"), (0, 0, 45 if is_oblique else 0))
    own = Geometry((4, 5, 6), direction=rotated(middle, angles))
    volume = Volume(label_array(own.shape), own)
    stored = turn_to(own, codes).apply(volume)
    usual = orientation_of(Geometry((4, 5, 6), direction=middle))
    turn = turn_to(stored.geometry, usual, middle)
    if orientation_of(stored.geometry) == usual:
        assert turn == AS_STORED  # what is stored in the usual orientation is never touched
    else:
        assert np.array_equal(turn.view(stored.array), volume.array)


def test_a_single_slice_is_mirrored_but_never_stood_on_edge():
    flat = Geometry((1, 5, 6), direction=direction_along("RAS"))
    assert turn_to(flat, "LPS").flips == (False, True, True)
    sagittal = Geometry((1, 5, 6), direction=direction_along("PSL"))
    assert turn_to(sagittal, "LPS") == AS_STORED
    assert turn_to(replace(sagittal, shape=(2, 5, 6)), "LPS").view(np.zeros((2, 5, 6))).shape == (5, 6, 2)


@pytest.mark.parametrize("codes", ["", "LP", "LPSS", "LRS", "lps", "XYZ", "LLL"])
def test_other_letters_are_no_orientation(codes):
    assert not is_orientation(codes)
    assert all(map(is_orientation, CODES))
