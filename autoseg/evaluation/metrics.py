"""The scores of a predicted class: an entry of `COUNT_METRICS` or `MASK_METRICS` needs no other edit to be shown.

Both are in what evaluate writes and prints; scores that counts of voxels are enough for are in `scores.json` of every
validation and in the reports as well.

What is undefined is None, never 0, and is left out of means.

Surfaces are voxels: a voxel of the mask of which at least one face neighbor (six in 3D, four in 2D) is not in the mask;
what lies outside the image counts as not in the mask. Distances are measured between centers of surface voxels, in the
unit of the spacing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.confusion import Overlap

Mask = NDArray[np.bool_]
Compared = TypeVar("Compared", Overlap, "ClassMasks")

ROBUST_PERCENTILE = 95.0
"""Of the surface distances; the largest five percent are taken for outliers."""

_ROUNDING = 1e-9
"""A distance equal to the tolerance counts as within it, although both are products of rounded spacings."""


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
        count = self.from_prediction.size + self.from_reference.size
        return int(close) / count if count else None

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


@dataclass(frozen=True)
class ClassMasks:
    """Prediction and reference of one class in one case; distances are computed once, for the metrics that need them.

    Attributes:
        prediction: mask with two or three axes, cut to a box that holds both objects.
        reference: mask of the same shape.
        counts: voxels of both, of the whole image.
        spacing_mm: distance of neighboring voxels along each axis.
        voxel_ml: volume of a voxel; None in pictures, which have no thickness.
        tolerance_mm: of the normalized surface Dice.
    """

    prediction: Mask
    reference: Mask
    counts: Overlap
    spacing_mm: tuple[float, ...]
    voxel_ml: float | None
    tolerance_mm: float

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between the two surfaces."""
        return surface_distances(self.prediction, self.reference, self.spacing_mm)

    def volume_ml(self, voxels: int) -> float | None:
        """Volume of so many voxels."""
        return None if self.voxel_ml is None else voxels * self.voxel_ml


@dataclass(frozen=True, slots=True)
class Metric(Generic[Compared]):
    """A score of one class in one case.

    Attributes:
        title: heads its column.
        definition: in words; P is the prediction, R the reference, `{tolerance_mm}` is filled in.
        compute: from what is compared; None where undefined.
        unit: of the score, or empty.
        is_higher_better: None where neither direction is.
    """

    title: str
    definition: str
    compute: Callable[[Compared], float | None]
    unit: str = ""
    is_higher_better: bool | None = True

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


COUNT_METRICS: Mapping[str, Metric[Overlap]] = {
    "dice": Metric("Dice", "2 |P and R| / (|P| + |R|); undefined if both are empty", lambda counts: counts.dice),
    "iou": Metric("IoU", "|P and R| / |P or R|; undefined if both are empty", lambda counts: counts.iou),
}
"""Scores that numbers of voxels are enough for: cheap, so that each fold's validation and the reports have them too."""

MASK_METRICS: Mapping[str, Metric[ClassMasks]] = {
    "nsd": Metric(
        "NSD",
        "share of the surface voxels of P and R that lie within {tolerance_mm:g} mm of the other surface; "
        "0 if one is empty, undefined if both are",
        lambda masks: masks.distances.within(masks.tolerance_mm),
    ),
    "hd95_mm": Metric(
        "HD95",
        "the larger of two 95th percentiles (linearly interpolated): distances from P's surface voxels to R's "
        "surface, and from R's to P's; undefined if either is empty",
        lambda masks: masks.distances.hausdorff(),
        unit="mm",
        is_higher_better=False,
    ),
    "assd_mm": Metric(
        "ASSD",
        "mean over the surface voxels of P and R of the distance to the other surface; undefined if either is empty",
        lambda masks: masks.distances.average,
        unit="mm",
        is_higher_better=False,
    ),
    "volume_ml": Metric(
        "volume",
        "voxels of P times the volume of a voxel; undefined for pictures without physical size",
        lambda masks: masks.volume_ml(masks.counts.prediction),
        unit="ml",
        is_higher_better=None,
    ),
    "reference_volume_ml": Metric(
        "reference",
        "voxels of R times the volume of a voxel",
        lambda masks: masks.volume_ml(masks.counts.reference),
        unit="ml",
        is_higher_better=None,
    ),
}
"""Scores that need both masks and their spacing."""

METRICS: Mapping[str, Metric[Overlap] | Metric[ClassMasks]] = {**COUNT_METRICS, **MASK_METRICS}
"""Every score by its name in files."""
