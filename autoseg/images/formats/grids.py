"""Grids as headers of medical formats state them: axes, units and channels, brought to z, y, x and millimeters."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import SLICE_SPACING_OF_2D, Geometry, Shape, geometry_of
from autoseg.images.formats import headers
from autoseg.images.image_errors import FOUR_D_REMEDY, unreadable

LARGEST_SHEAR = 1e-2
"""Cosine between two axes up to which a sheared grid is straightened: 1 voxel in 100, as converters' rounding makes."""

_NO_SHEAR = 1e-4
"""Cosines up to this are rounding of single precision and text; such axes are kept as they are, as ITK does."""

_SAME_LENGTH = 1e-4
"""Distance from 1 up to which a direction counts as a unit vector."""

_UNITS_MM = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("um", "µm", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-6),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e3),
}

_NO_UNIT = ("", "?", "??", "???", "none", "unknown", "nan", "px", "pixel", "pixels", "voxel", "voxels")
"""What stands where a unit could, but says nothing."""


def unit_mm(unit: str, path: Path) -> float:
    """Millimeters per unit of a header's name for it; a unit that is not stated counts as millimeters.

    Raises:
        UnreadableFile: it is no unit of length that is known here.
    """
    name = re.sub(r'"(.*)"', r"\1", unit.strip()).strip().lower()
    if name in _NO_UNIT:
        return 1.0
    if name not in _UNITS_MM:
        raise unreadable(
            path,
            f"states its lengths in {name!r}, which is not a known unit",
            do="write the spacing in millimeters (mm), or remove the unit if it is millimeters",
        )
    return _UNITS_MM[name]


def unit_notes(unit_mm: float, spacing_mm: Sequence[float]) -> tuple[str, ...]:
    """A note on lengths that were converted, as headers of some programs name a unit that is not theirs.

    Args:
        unit_mm: millimeters per unit of the header.
        spacing_mm: along z, y, x, as converted.
    """
    if unit_mm == 1:
        return ()
    shown = " x ".join(f"{step:.6g}" for step in spacing_mm[::-1])
    return (f"its header states lengths in {unit_name(unit_mm)}, so its voxels are {shown} mm (x, y, z)",)


def unit_name(millimeters: float) -> str:
    """The shortest name of a unit of so many millimeters."""
    return next(name for name, size in _UNITS_MM.items() if size == millimeters and len(name) <= 2)


def grid_of(
    shape: Shape,
    steps: Sequence[float],
    columns: NDArray[np.float64],
    origin: Sequence[float],
    path: Path,
) -> tuple[Geometry, tuple[str, ...]]:
    """The grid of (z, y, x) or (y, x) voxels with spacings, directions and origin in the order x, y, z, and notes.

    Directions with a small shear become the nearest ones at right angles (polar decomposition). Two of them are those
    of a 2D image: it gets a third one, and a slice spacing of 999 times the larger pixel edge, as in nnU-Net v2
    (imageio/simpleitk_reader_writer.py).

    Args:
        shape: voxels; a 2D image may have a z of 1, too.
        steps: two or three, in millimeters.
        columns: as many unit vectors as steps, in LPS.
        origin: as many numbers as steps, in LPS and millimeters.
        path: for the error.

    Raises:
        UnreadableFile: two axes are too far from a right angle, or a spacing cannot be true.
    """
    headers.check_spacing(steps, path)
    units = columns / np.linalg.norm(columns, axis=0)
    shear = float(np.abs(units.T @ units - np.eye(len(units))).max())
    if not shear <= LARGEST_SHEAR:  # NaN is not, either
        raise unreadable(
            path,
            f"has sheared axes: the cosine between two of them is {shear:.3g}, at most {LARGEST_SHEAR} is straightened",
            do="resample it onto a grid with right angles (and its labels with it), or remove the case",
        )
    notes: tuple[str, ...] = ()
    if shear > _NO_SHEAR:
        left, _, right = np.linalg.svd(units)
        columns, notes = left @ right, (f"axes are sheared by {shear:.2g} and were straightened",)
    if len(steps) == 2:
        steps, origin = (*steps, SLICE_SPACING_OF_2D * max(steps)), (*origin, 0.0)
        columns = np.block([[columns, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    z, y, x = (1, *shape) if len(shape) == 2 else shape
    return geometry_of((z, y, x), steps, origin, columns), notes


def of_unit_length(
    steps: Sequence[float], columns: NDArray[np.float64], field: str, path: Path
) -> tuple[Sequence[float], NDArray[np.float64], tuple[str, ...]]:
    """Steps and unit vectors of directions that may be longer or shorter; the steps are multiplied then, and noted.

    Raises:
        UnreadableFile: a direction is zero; `field` is its name in the header.
    """
    lengths = np.linalg.norm(columns, axis=0)
    if not lengths.all():
        raise unreadable(
            path,
            f"states no direction: {field} holds a vector of zeros",
            do="write the true axes into the header, or export the file again",
        )
    if np.abs(lengths - 1).max() <= _SAME_LENGTH:
        return steps, columns, ()
    shown = " x ".join(f"{length:.4g}" for length in lengths)
    note = f"the directions in {field} have lengths {shown} (x, y, z) instead of 1; the spacing was multiplied by them"
    return (np.array(steps) * lengths).tolist(), columns / lengths, (note,)


def channels_first(
    array: NDArray[Any], component_axis: int | None, four_d: bool, path: Path
) -> tuple[NDArray[Any], bool]:
    """Voxels (c, z, y, x) of an array with axes (..., z, y, x) or (y, x), and whether it was a 2D image.

    Args:
        array: as decoded.
        component_axis: the axis that holds several numbers of one voxel, if there is one.
        four_d: whether a fourth axis holds channels.
        path: for the error.

    Raises:
        UnreadableFile: it has more axes than it may.
    """
    components = 1
    if component_axis is not None:
        array = np.moveaxis(array, component_axis, 0)
        components = len(array)
    size = array.shape[:0:-1] if component_axis is not None else array.shape[::-1]
    check_axes(size, four_d, components, path)
    is_2d = len(size) == 2
    spatial = (1, *size[1::-1]) if is_2d else size[2::-1]
    return array.reshape(-1, *spatial), is_2d


def check_axes(size: Sequence[int], four_d: bool, components: int, path: Path) -> None:
    """Checks the number of axes of an image of `size` voxels (x, y, z, ...) with `components` numbers each.

    Raises:
        UnreadableFile: there are more than three beside channels, or a fourth one that was not to be expected.
    """
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    if len(size) > 4 or (len(size) == 4 and components > 1):
        raise unreadable(
            path,
            f"has {len(size) + (components > 1)} axes; at most x, y, z and channels are understood",
            do="split it into one 3D file per channel and time point",
        )
    if len(size) < 2:
        raise unreadable(path, f"is 1D ({size[0]} voxels) where an image is expected")
    if len(size) == 4 and not four_d:
        raise unreadable(path, f"is 4D ({' x '.join(map(str, size))}) where a 3D image is expected", do=FOUR_D_REMEDY)


def interleaved(array: NDArray[Any], is_flat: bool) -> NDArray[Any]:
    """Voxels (c, z, y, x) as files hold them: (z, y, x) of one channel, (z, y, x, c) of several; no z of a flat one."""
    voxels = array[:, 0] if is_flat else array
    return np.ascontiguousarray(voxels[0] if len(voxels) == 1 else np.moveaxis(voxels, 0, -1))


def text(numbers: Sequence[float], separator: str = " ") -> str:
    """Numbers for a text header, with all digits of double precision."""
    return separator.join(f"{number:.17g}" for number in numbers)


def unknown_type(array: NDArray[Any], known: Container[str]) -> str | None:
    """What keeps a format from holding an array, if its type ("u1" for bytes) is not among those that it has."""
    return None if array.dtype.str[1:] in known else f"values of type {array.dtype.name}"
