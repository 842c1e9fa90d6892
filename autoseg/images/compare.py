"""Whether two grids hold the same voxels: image against labels, channel against channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product
from typing import Literal

import numpy as np

from autoseg.core.geometry import Geometry

Relation = Literal["identical", "rounding", "flipped", "different"]

ROUNDING_VOXELS = 1e-3
"""Displacement of a corner, in voxels, that is taken for rounding in headers (single precision, text)."""

SAME_FORM_VOXELS = 0.05
"""Displacement of a corner, in voxels, up to which two forms of NIfTI state the same grid: converters' rounding."""

_IDENTICAL_VOXELS = 1e-9
"""Displacement that double precision itself makes."""


def compare_geometry(image: Geometry, labels: Geometry) -> Relation:
    """How the grid of a label map (or another channel) relates to that of its image.

    Returns:
        "identical"; "rounding": every corner lies within 1e-3 of a voxel; "flipped": the same set of voxel centers,
        stored along flipped or permuted axes; "different": anything else.
    """
    moved = displacement(image, labels)
    if moved <= _IDENTICAL_VOXELS:
        return "identical"
    if moved < ROUNDING_VOXELS:
        return "rounding"
    if any(displacement(stored, labels) < ROUNDING_VOXELS for stored in reorientations(image)):
        return "flipped"
    return "different"


def share_a_form(image: Geometry, other: Geometry) -> bool:
    """Whether a label map (or another channel) lies on the image's grid by any of the forms that NIfTI headers state.

    They state two; programs that follow the other one than AutoSeg write label maps with that alone.
    """
    return any(displacement(grid, its) < SAME_FORM_VOXELS for grid, its in product(_stated(image), _stated(other)))


def _stated(geometry: Geometry) -> tuple[Geometry, ...]:
    forms = () if geometry.forms is None else tuple(geometry.forms.grids(geometry.shape).values())
    return (geometry, *forms)


def reorientations(geometry: Geometry) -> Iterator[Geometry]:
    """The 48 ways to store the same voxels along permuted and flipped axes; the first is the grid itself."""
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            yield reoriented(geometry, order, flips)


def reoriented(geometry: Geometry, order: tuple[int, ...], flips: tuple[bool, ...]) -> Geometry:
    """The grid of `np.flip(array.transpose(order), flipped axes)`, for an array on `geometry`.

    Args:
        geometry: grid of the array.
        order: old axis that becomes each new axis.
        flips: for each new axis, whether it runs backwards.
    """
    rows = np.array(geometry.direction).reshape(3, 3)[list(order)]
    signs = np.where(flips, -1.0, 1.0)
    first = np.zeros(3)
    for axis, is_flipped in zip(order, flips, strict=True):
        first[axis] = geometry.shape[axis] - 1 if is_flipped else 0
    z, y, x = order
    (x0, y0, z0) = geometry.world(first[None])[0].tolist()
    a, b, c, d, e, f, g, h, i = (rows * signs[:, None]).ravel().tolist()
    return replace(
        geometry,
        shape=(geometry.shape[z], geometry.shape[y], geometry.shape[x]),
        spacing_mm=(geometry.spacing_mm[z], geometry.spacing_mm[y], geometry.spacing_mm[x]),
        origin_mm=(x0, y0, z0),
        direction=(a, b, c, d, e, f, g, h, i),
    )


def displacement(one: Geometry, other: Geometry) -> float:
    """Largest displacement of a corner of `other` from that of `one`, along an axis of `one` in its voxels.

    Infinite where the shapes differ, or the axes of `one` lie in a plane.
    """
    if one.shape != other.shape:
        return float("inf")
    try:
        offsets = np.linalg.solve(one.axes.T, (other.corners - one.corners).T)
    except np.linalg.LinAlgError:
        return float("inf")
    return float(np.abs(offsets).max())
