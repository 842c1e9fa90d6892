"""How well a mask agrees with a reference. Pure functions of two masks; what is undefined is None, never 0.

Surfaces are voxels: a voxel of the mask of which at least one face neighbor (six in 3D, four in 2D) is not in the mask;
what lies outside the image counts as not in the mask. Distances are measured between centers of surface voxels, in the
unit of the spacing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.confusion import dice

Mask = NDArray[np.bool_]

ROBUST_PERCENTILE = 95.0
"""Of the surface distances; the largest five percent are taken for outliers."""

_ROUNDING = 1e-9
"""A distance equal to the tolerance counts as within it, although both are products of rounded spacings."""

DEFINITIONS: dict[str, str] = {
    "dice": "2 |P and R| / (|P| + |R|); undefined if both are empty",
    "iou": "|P and R| / |P or R|; undefined if both are empty",
    "nsd": "share of the surface voxels of P and R that lie within the tolerance of the other surface; "
    "0 if one is empty, undefined if both are",
    "hd95_mm": "the larger of two 95th percentiles (linearly interpolated): distances from P's surface voxels to R's "
    "surface, and from R's to P's; undefined if either is empty",
    "assd_mm": "mean over the surface voxels of P and R of the distance to the other surface; undefined if either is "
    "empty",
    "volume_ml": "voxels of P times the volume of a voxel; undefined for pictures without physical size",
    "reference_volume_ml": "voxels of R times the volume of a voxel",
}
"""Each score in words; P is the prediction and R the reference of one class."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Voxels of a prediction and a reference.

    Attributes:
        both: in prediction and reference.
        prediction: in the prediction.
        reference: in the reference.
    """

    both: int
    prediction: int
    reference: int

    @property
    def dice(self) -> float | None:
        """Twice the common voxels over the sum of voxels."""
        return dice(self.both, self.prediction, self.reference)

    @property
    def iou(self) -> float | None:
        """Common voxels over voxels in either."""
        return _ratio(self.both, self.prediction + self.reference - self.both)


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Distances between two surfaces.

    Attributes:
        from_prediction: of each surface voxel of the prediction to the reference's surface; infinite if empty.
        from_reference: of each surface voxel of the reference to the prediction's surface; infinite if empty.
    """

    from_prediction: NDArray[np.float64]
    from_reference: NDArray[np.float64]

    @property
    def are_defined(self) -> bool:
        """Whether both masks have a surface."""
        return self.from_prediction.size > 0 and self.from_reference.size > 0

    def within(self, tolerance_mm: float) -> float | None:
        """Normalized surface Dice: the share of surface voxels whose distance is at most the tolerance."""
        limit = tolerance_mm * (1 + _ROUNDING)
        close = np.count_nonzero(self.from_prediction <= limit) + np.count_nonzero(self.from_reference <= limit)
        return _ratio(int(close), self.from_prediction.size + self.from_reference.size)

    def hausdorff(self, percentile: float = ROBUST_PERCENTILE) -> float | None:
        """The larger of the two directed percentiles; 100 gives the Hausdorff distance between the surfaces."""
        if not self.are_defined:
            return None
        return float(
            max(np.percentile(self.from_prediction, percentile), np.percentile(self.from_reference, percentile))
        )

    @property
    def average(self) -> float | None:
        """Average symmetric surface distance: the mean over all surface voxels of both."""
        if not self.are_defined:
            return None
        total = self.from_prediction.sum() + self.from_reference.sum()
        return float(total / (self.from_prediction.size + self.from_reference.size))


def overlap(prediction: Mask, reference: Mask) -> Overlap:
    """Counts of voxels of two masks of the same shape."""
    both = np.count_nonzero(prediction & reference)
    return Overlap(int(both), int(np.count_nonzero(prediction)), int(np.count_nonzero(reference)))


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances from each surface voxel of one mask to the nearest surface voxel of the other, both ways.

    Only the surfaces are searched (a k-d tree of their voxels), so the cost follows the objects and not the image.

    Args:
        prediction: mask with two or three axes.
        reference: mask of the same shape.
        spacing_mm: distance of neighboring voxels along each axis.
    """
    first, second = (np.argwhere(surface(mask)) * np.asarray(spacing_mm) for mask in (prediction, reference))
    return SurfaceDistances(_nearest(first, second), _nearest(second, first))


def surface(mask: Mask) -> Mask:
    """Voxels of the mask with at least one face neighbor outside it; outside the image is outside the mask."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        body, moved = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        body[1:] &= moved[:-1]
        body[:-1] &= moved[1:]
        body[:1] = False
        body[-1:] = False
    return mask & ~inner


def _nearest(points: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(points) == 0 or len(targets) == 0:
        return np.full(len(points), np.inf)
    from scipy.spatial import KDTree

    # building the tree fast pays here: the two surfaces are near each other, so searches are short
    distances, _ = KDTree(targets, balanced_tree=False, compact_nodes=False).query(points)
    return np.asarray(distances, dtype=np.float64)


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
