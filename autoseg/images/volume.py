"""What readers return: an array with axes z, y, x and the place of its voxels in the world."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import SLICE_SPACING_OF_2D, Geometry


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """An image with all its channels, or a label map.

    Attributes:
        array: intensities (c, z, y, x), float32 when they come from `read_image`; or the values of a label map
            (z, y, x), int16 or, where that does not hold them, int32.
        geometry: grid of the array's last three axes.
        notes: one sentence for each oddity that the reader settled (an alpha channel dropped, a shear straightened).
        value_names: what the file of a label map itself says of the values that occur in it: names of segments, colors
            of a palette.
        alpha: opacity (z, y, x) that was left out of a gray picture; None without it.
    """

    array: NDArray[Any]
    geometry: Geometry
    notes: tuple[str, ...] = ()
    value_names: Mapping[int, str] = field(default_factory=dict)
    alpha: NDArray[Any] | None = None


def color_names(indices: NDArray[Any], colors: NDArray[np.uint8]) -> dict[int, str]:
    """The colors (number, 3) of a palette that occur among its indices, as {1: "#FF0000"}."""
    return {index: f"#{colors[index].tobytes().hex()}" for index in np.unique(indices).tolist() if index < len(colors)}


def plane_geometry(shape: tuple[int, int]) -> Geometry:
    """The grid given to a picture without physical size: pixels of 1, a slice spacing of 999.

    Args:
        shape: pixels (y, x).

    Source: nnU-Net v2 imageio/natural_image_reader_writer.py.
    """
    return Geometry(shape=(1, *shape), spacing_mm=(SLICE_SPACING_OF_2D, 1.0, 1.0), has_orientation=False)


def is_plane(geometry: Geometry) -> bool:
    """Whether the grid is that of a 2D image, marked by a slice spacing of 999 pixels; writers then write 2D."""
    mark = SLICE_SPACING_OF_2D * max(geometry.spacing_mm[1:])
    lies_flat = geometry.direction[:3] == (0.0, 0.0, 1.0)
    return geometry.shape[0] == 1 and lies_flat and math.isclose(geometry.spacing_mm[0], mark, rel_tol=1e-6)
