"""Where a prepared case came from, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.images.crop import slices


@dataclass(frozen=True, slots=True)
class Placement:
    """What preparation did to the grid of a case. Axes in the plan's order, except those of `geometry`.

    Attributes:
        geometry: grid of the file, axes z, y, x.
        axis_order: file axis that became each axis of the plan.
        box: crop to nonzero: for each axis the first voxel inside and the first behind.
        cropped_spacing_mm: voxel spacing before resampling.
        prepared_shape: voxels after resampling.
        prepared_spacing_mm: spacing that was resampled to.
    """

    geometry: Geometry
    axis_order: tuple[int, int, int]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    cropped_spacing_mm: tuple[float, float, float]
    prepared_shape: tuple[int, int, int]
    prepared_spacing_mm: tuple[float, float, float]

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """Voxels after the crop and before resampling; predictions are resampled to it."""
        a, b, c = (behind - first for first, behind in self.box)
        return a, b, c

    def restore_labels(self, labels: NDArray[Any], background: int = 0) -> NDArray[Any]:
        """The label map on the grid of the file (z, y, x), `background` outside the crop.

        Args:
            labels: (`cropped_shape`), axes in the plan's order.
            background: value outside the crop.
        """
        file_shape = self.geometry.shape
        restored = np.full([file_shape[axis] for axis in self.axis_order], background, labels.dtype)
        restored[slices(self.box)] = labels
        return np.ascontiguousarray(restored.transpose(np.argsort(self.axis_order)))
