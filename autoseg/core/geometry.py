"""Where the voxels of a volume are in the world. The one geometry type; axes are z, y, x everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


NIFTI_UNITS_MM = {1: 1e3, 2: 1.0, 3: 1e-3}
"""Millimeters per unit of NIfTI's code for meters, millimeters and micrometers; others count as millimeters."""


_HALF_TURN = 1e-7
"""Square of a quaternion's first number below which it is what single precision leaves of 0: half a turn, as scans have
that are tilted about one axis. Source: nifti_quatern_to_mat44 in nifti1_io.c of the standard's reference library."""


@dataclass(frozen=True, slots=True)
class NiftiForms:
    """What a NIfTI header states of the grid, as written there: it does so twice, and the two may differ.

    Attributes:
        qform_code: what the qform refers to: 0 nothing, 1 scanner, 2 another image, 3 Talairach, 4 MNI, 5 a template.
        sform_code: the same of the sform.
        unit_code: of the lengths, see `NIFTI_UNITS_MM`.
        pixdim: handedness of the qform (1 or -1), then the voxel sizes along x, y, z.
        quaternion: rotation of the qform: b, c, d.
        offset: place of the first voxel in the qform: x, y, z.
        sform: rows of the sform: four numbers each for x, y, z.
    """

    qform_code: int
    sform_code: int
    unit_code: int
    pixdim: tuple[float, float, float, float]
    quaternion: tuple[float, float, float]
    offset: tuple[float, float, float]
    sform: tuple[float, float, float, float, float, float, float, float, float, float, float, float]

    @property
    def unit_mm(self) -> float:
        """Millimeters per unit."""
        return NIFTI_UNITS_MM.get(self.unit_code, 1.0)

    @property
    def steps_mm(self) -> tuple[float, float, float]:
        """Voxel sizes x, y, z of `pixdim`; 1 unit where there is none, as along the only slice of an image."""
        x, y, z = (step * self.unit_mm if step > 0 else self.unit_mm for step in self.pixdim[1:])
        return x, y, z

    def grids(self, shape: tuple[int, int, int]) -> dict[str, Geometry]:
        """The grid of `shape` (z, y, x) in each form with a code above 0, as stated: its axes may be sheared.

        The sform comes first: the field's readers prefer it where both have a code. A form that has no direction for
        an axis of several voxels states no grid.
        """
        affines: dict[str, NDArray[np.float64]] = {}
        if self.sform_code > 0:
            affines["sform"] = np.array(self.sform).reshape(3, 4)
        if self.qform_code > 0:
            handed = np.array(self.steps_mm) / self.unit_mm * (1.0, 1.0, -1.0 if self.pixdim[0] < 0 else 1.0)
            affines["qform"] = np.column_stack((self._rotation() * handed, self.offset))
        to_lps = np.array([[-1.0], [-1.0], [1.0]]) * self.unit_mm
        found = {name: self._grid(affine * to_lps, shape) for name, affine in affines.items()}
        return {name: grid for name, grid in found.items() if grid is not None}

    def _grid(self, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> Geometry | None:
        columns, steps = affine[:, :3].copy(), np.linalg.norm(affine[:, :3], axis=0)
        missing = np.flatnonzero(steps == 0)
        if len(missing) == 1 and shape[2 - missing[0]] == 1:
            one, other = (columns[:, (missing[0] + further) % 3] for further in (1, 2))
            columns[:, missing[0]] = np.cross(one, other)
            columns[:, missing[0]] *= self.steps_mm[missing[0]] / (np.linalg.norm(columns[:, missing[0]]) or 1.0)
            steps = np.linalg.norm(columns, axis=0)
        return geometry_of(shape, steps, affine[:, 3], columns / steps) if steps.all() else None

    def _rotation(self) -> NDArray[np.float64]:
        """Source: nifti_quatern_to_mat44 in nifti1_io.c of the standard's reference library."""
        b, c, d = np.array(self.quaternion) / max(1.0, float(np.linalg.norm(self.quaternion)))
        rest = 1.0 - (b * b + c * c + d * d)
        if rest < _HALF_TURN:
            b, c, d = np.array((b, c, d)) / np.linalg.norm((b, c, d))
            rest = 0.0
        a = rest**0.5
        return np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
            ]
        )


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
        unit_mm: millimeters per unit of the lengths in the file; what is written for it has the same unit.
        forms: the header that the grid was taken from, if it was a NIfTI file's; what is written for it has the same.
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
    unit_mm: float = field(default=1.0, compare=False)
    forms: NiftiForms | None = field(default=None, compare=False)

    @property
    def columns(self) -> NDArray[np.float64]:
        """World unit vectors of the file's axes x, y and z as columns, as ITK has them."""
        return np.array(self.direction).reshape(3, 3)[::-1].T

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


def geometry_of(shape: tuple[int, int, int], steps: Any, origin: Any, columns: NDArray[np.float64]) -> Geometry:
    """The grid of `shape` (z, y, x) with spacings, origin and direction columns given in the order x, y, z."""
    x, y, z = (float(step) for step in steps)
    right, back, up = (float(position) for position in origin)
    (zx, zy, zz), (yx, yy, yz), (xx, xy, xz) = columns.T[::-1].tolist()
    return Geometry(shape, (z, y, x), (right, back, up), (zx, zy, zz, yx, yy, yz, xx, xy, xz))
