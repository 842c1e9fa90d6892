"""Laws of the voxel grid."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoseg.core.geometry import Geometry

geometries = st.builds(
    Geometry,
    shape=st.tuples(*[st.integers(1, 50)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.1, 10)] * 3),
    origin_mm=st.tuples(*[st.floats(-100, 100)] * 3),
)


@given(geometries)
def test_the_first_voxel_is_the_origin(geometry):
    assert np.allclose(geometry.world(np.zeros((1, 3))), geometry.origin_mm)


@given(geometries)
def test_neighbors_are_one_spacing_apart(geometry):
    steps = geometry.world(np.eye(3)) - geometry.world(np.zeros((1, 3)))
    assert np.allclose(np.linalg.norm(steps, axis=1), geometry.spacing_mm)


@given(geometries)
def test_corners_span_the_volume(geometry):
    extent = (np.array(geometry.shape) - 1) * geometry.spacing_mm
    corners = geometry.corners
    assert corners.shape == (8, 3)
    assert np.allclose(np.ptp(corners, axis=0), extent[::-1])


def test_the_default_direction_is_the_identity_of_itk():
    geometry = Geometry((2, 3, 4))
    for z, y, x in itertools.product(range(2), range(3), range(4)):
        assert geometry.world(np.array([[z, y, x]])).tolist() == [[x, y, z]]
