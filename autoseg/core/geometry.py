"""Where the voxels of a volume are in the world. The one geometry type; axes are z, y, x everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
"""Voxels along z, y, x (3D) or y, x (2D)."""

Spacing = tuple[float, ...]
"""Millimeters (or another length unit, the same for all axes) along z, y, x or y, x."""

SLICE_SPACING_OF_2D = 999.0
"""Spacing given to the single slice of a 2D image: so large that the planner never resamples across it."""


def is_picture(shape: Shape, spacing_mm: Spacing) -> bool:
    """Whether a grid is that of a 2D image: a single slice (z first) whose spacing marks it as without thickness."""
    return shape[0] == 1 and spacing_mm[0] >= SLICE_SPACING_OF_2D * max(spacing_mm[1:]) * (1 - 1e-6)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The grid of a volume.

    Attributes:
        shape: voxels (z, y, x).
        spacing_mm: distance of neighboring voxels along z, y, x.
        origin_mm: world position (x, y, z in LPS, as ITK has it) of voxel (0, 0, 0).
        direction: nine numbers, three rows: the world unit vectors (x, y, z in LPS) of the array axes z, y and x.
        has_orientation: whether the file states which way its axes run in the body; if not, origin and direction are
            placeholders (NIfTI without qform and sform, NRRD without space, TIFF, PNG, BMP).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, float, float, float, float, float, float, float, float] = (
        *(0.0, 0.0, 1.0),
        *(0.0, 1.0, 0.0),
        *(1.0, 0.0, 0.0),
    )
    has_orientation: bool = field(default=True, compare=False)

    @property
    def axes(self) -> NDArray[np.float64]:
        """World step (x, y, z) per voxel along each array axis: rows z, y, x."""
        steps: NDArray[np.float64] = np.array(self.direction).reshape(3, 3) * np.array(self.spacing_mm)[:, None]
        return steps

    def world(self, indices: NDArray[np.float64]) -> NDArray[np.float64]:
        """World positions (n, 3: x, y, z) of voxel indices (n, 3: z, y, x)."""
        positions: NDArray[np.float64] = np.asarray(self.origin_mm) + np.asarray(indices, dtype=np.float64) @ self.axes
        return positions

    @property
    def corners(self) -> NDArray[np.float64]:
        """World positions (8, 3) of the centers of the corner voxels."""
        last = np.array(self.shape) - 1
        return self.world(np.array([[z, y, x] for z in (0, last[0]) for y in (0, last[1]) for x in (0, last[2])]))
