"""The mark of 2D grids."""

from dataclasses import replace

from autoseg.core.geometry import Geometry
from autoseg.images.volume import is_plane, plane_geometry


def test_a_picture_without_physical_size_is_a_plane():
    assert plane_geometry((5, 7)) == Geometry((1, 5, 7), (999.0, 1.0, 1.0))
    assert is_plane(plane_geometry((5, 7)))


def test_a_single_thick_slice_or_a_tilted_plane_is_not_a_plane():
    assert not is_plane(Geometry((1, 5, 7), (5.0, 1.0, 1.0)))
    assert not is_plane(Geometry((2, 5, 7), (999.0, 1.0, 1.0)))
    tilted = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    assert not is_plane(replace(plane_geometry((5, 7)), direction=tilted))
