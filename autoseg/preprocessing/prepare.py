"""From an image as read to the arrays that networks see, and the way back: turn, crop, normalize, resample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import IntensityOverflow, PlanFault
from autoseg.core.geometry import Geometry
from autoseg.core.registry import choose
from autoseg.data.fingerprint import IntensityStatistics
from autoseg.images.crop import crop_to_nonzero, slices
from autoseg.images.normalize import NORMALIZATIONS, overflow_of
from autoseg.images.orientation import Direction, Turn, turn_to
from autoseg.images.resample import resample_image, resample_labels, resampled_shape
from autoseg.images.volume import Volume
from autoseg.planning.plan import Configuration, Plan


@dataclass(frozen=True, slots=True)
class Preparation:
    """Everything that decides how an image is prepared; equal records give equal arrays.

    Attributes:
        axis_order: axis of the image, turned to `orientation`, that becomes each axis of the plan.
        spacing_mm: target spacing in the plan's order; None keeps the case's own (across the slices of 2D).
        normalization: for each channel a key of `images.normalize.NORMALIZATIONS`.
        use_nonzero_mask: for each channel, whether it is normalized inside the nonzero mask only.
        intensities: for each channel the dataset's foreground statistics, or None where its normalization needs none.
        orientation: that images are turned to, as `orientation_of` gives it; None to take them as they are stored.
        direction: as that of the plan.
    """

    axis_order: tuple[int, int, int]
    spacing_mm: tuple[float | None, float, float]
    normalization: tuple[str, ...]
    use_nonzero_mask: tuple[bool, ...]
    intensities: tuple[IntensityStatistics | None, ...]
    orientation: str | None = None
    direction: Direction | None = None

    def turn(self, geometry: Geometry) -> Turn:
        """From an image as it is stored on a grid to the axes of the plan."""
        turn = turn_to(geometry, self.orientation, self.direction)
        a, b, c = self.axis_order
        return Turn(
            (turn.order[a], turn.order[b], turn.order[c]),
            (turn.flips[a], turn.flips[b], turn.flips[c]),
        )

    def target_mm(self, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
        """The spacing that a case with `spacing_mm` (plan's order) is resampled to."""
        first, second, third = self.spacing_mm
        return (spacing_mm[0] if first is None else first, second, third)


@dataclass(frozen=True, slots=True)
class Placement:
    """What preparation did to the grid of a case. Axes in the plan's order, except those of `geometry`.

    Attributes:
        geometry: grid of the file, axes z, y, x, as it is stored.
        axis_order: file axis that became each axis of the plan.
        box: crop to nonzero: for each axis the first voxel inside and the first behind.
        cropped_spacing_mm: voxel spacing before resampling.
        prepared_shape: voxels after resampling.
        prepared_spacing_mm: spacing that was resampled to.
        flips: for each axis of the plan, whether it runs against that of the file.
    """

    geometry: Geometry
    axis_order: tuple[int, int, int]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    cropped_spacing_mm: tuple[float, float, float]
    prepared_shape: tuple[int, int, int]
    prepared_spacing_mm: tuple[float, float, float]
    flips: tuple[bool, bool, bool] = (False, False, False)

    def in_plan_order(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array (..., z, y, x) on the grid of the file along the plan's axes; a view, to be read or written."""
        return Turn(self.axis_order, self.flips).view(array)

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
        restored = np.full(self.geometry.shape, background, labels.dtype)
        self.in_plan_order(restored)[slices(self.box)] = labels
        return restored


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A case ready for a network. Axes in the plan's order.

    Attributes:
        image: (c, z, y, x) float32, normalized and resampled.
        labels: (z, y, x) training values as int8 or int16, -1 outside the nonzero mask; None for a case without labels.
        placement: the way back to the grid of the file.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.signedinteger[Any]] | None
    placement: Placement


PreparedCase = Mapping[Preparation, Prepared]
"""A case as each of an ensemble's preparations gives it; all of them share the crop."""


def preparation_of(plan: Plan, configuration: Configuration) -> Preparation:
    """How the plan prepares images for one of its configurations."""
    if configuration.dimensions == 3:
        first, second, third = configuration.spacing_mm
        spacing: tuple[float | None, float, float] = (first, second, third)
    else:
        second, third = configuration.spacing_mm
        spacing = (None, second, third)
    statistics = tuple(
        entry if kind == "ct" else None
        for kind, entry in zip(configuration.normalization, plan.intensities, strict=True)
    )
    return Preparation(
        plan.axis_order,
        spacing,
        configuration.normalization,
        configuration.use_nonzero_mask,
        statistics,
        plan.orientation,
        plan.direction,
    )


def prepare(volume: Volume, labels: NDArray[Any] | None, preparation: Preparation) -> Prepared:
    """The image, and its labels if there are any, as the network sees them. The arguments are not changed.

    Args:
        volume: as read.
        labels: training values (z, y, x), or None.
        preparation: how.

    Raises:
        PlanFault: the image has another number of channels than the plan.
        IntensityOverflow: its intensities are too large to compute with.

    Source: nnU-Net v2 preprocessing/preprocessors/default_preprocessor.py.
    """
    if len(volume.array) != len(preparation.normalization):
        raise PlanFault(
            f"the image has {len(volume.array)} channels, the plan is for {len(preparation.normalization)}",
            do="give the channels that the model was planned for, in that order",
        )
    turn = preparation.turn(volume.geometry)
    spacing = _permuted(volume.geometry.spacing_mm, turn.order)
    image, inside, box = crop_to_nonzero(turn.view(volume.array), None if labels is None else turn.view(labels))
    target = preparation.target_mm(spacing)
    new_shape = resampled_shape(image.shape[1:], spacing, target)
    try:
        with np.errstate(over="raise", invalid="raise"):
            normalized = _normalize(image, inside, preparation)
            resampled = resample_image(normalized, new_shape, spacing, target)
    except FloatingPointError as error:
        raise _overflow(image) from error
    if not all(np.isfinite(channel.min()) and np.isfinite(channel.max()) for channel in resampled):
        raise _overflow(image)
    kept = None if labels is None else smallest_labels(resample_labels(inside, new_shape, spacing, target))
    placement = Placement(
        geometry=volume.geometry,
        axis_order=turn.order,
        box=(box[0], box[1], box[2]),
        cropped_spacing_mm=spacing,
        prepared_shape=(new_shape[0], new_shape[1], new_shape[2]),
        prepared_spacing_mm=target,
        flips=turn.flips,
    )
    return Prepared(resampled, kept, placement)


def _overflow(image: NDArray[Any]) -> IntensityOverflow:
    """The error for an image (c, z, y, x) whose intensities cannot be computed with."""
    faults = [f"channel {index}: {fault}" for index, channel in enumerate(image) if (fault := overflow_of(channel))]
    return IntensityOverflow(
        "the image cannot be normalized: its intensities leave the range of single precision",
        why="; ".join(faults) or None,
        do="replace such voxels, which may be padding, by the value of the background, or export the image again",
    )


def _permuted(values: Sequence[float], order: Sequence[int]) -> tuple[float, float, float]:
    a, b, c = (values[axis] for axis in order)
    return a, b, c


def _normalize(image: NDArray[Any], labels: NDArray[Any], preparation: Preparation) -> NDArray[np.float32]:
    """Each channel normalized, before resampling, so that resampled borders of a mask still fit the image."""
    settings = zip(preparation.normalization, preparation.use_nonzero_mask, preparation.intensities, strict=True)
    normalized = (
        choose(kind, NORMALIZATIONS, "normalization")(
            np.ascontiguousarray(channel, np.float32), labels >= 0 if is_masked else None, statistics
        )
        for channel, (kind, is_masked, statistics) in zip(image, settings, strict=True)
    )
    if len(image) == 1:
        return next(normalized)[None]  # copying it would take as long as computing it
    together = np.empty(image.shape, np.float32)
    for result, channel in zip(together, normalized, strict=True):
        result[...] = channel
    return together


def smallest_labels(labels: NDArray[Any]) -> NDArray[np.signedinteger[Any]]:
    """The label map as int8, or int16 where values exceed 127, contiguous."""
    kind = np.int8 if labels.max(initial=0) <= np.iinfo(np.int8).max else np.int16
    return np.ascontiguousarray(labels, kind)
