"""What a cascade's second stage is shown of the first: one channel per label, sometimes made worse than it was.

The first stage errs less on cases that its second stage is trained with than a user's images will make it err. So its
labels are grown, shrunk and smoothed now and then, and components are left out.

Source: nnU-Net v2, `nnUNetTrainer.get_training_transforms` and its augmentation package, `transforms/nnunet`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from autoseg.augmentation.draws import Probability, happens, uniform
from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.records import record

Mask = NDArray[np.bool_]
Operation = Callable[[Mask, float], Mask]
Change = tuple[int, Operation, float]
"""A channel, what is done to it, and how much: the radius of a ball in voxels, or which component is left out."""

LARGEST_REMOVED_SHARE = 0.15
"""Components that cover this share of the patch or more are kept."""

Radius = Annotated[int, Field(ge=1)]


@record
class FirstStage(Transform):
    """Changes the labels of a cascade's first stage: grows, shrinks or smooths some, then leaves components out.

    Attributes:
        morphing_probability: that labels of a sample are grown, shrunk or smoothed.
        removal_probability: that components of a sample are left out.
        probability_per_label: that a label takes part, in a sample where any does.
        radii: voxels, smallest and largest radius of the ball (assumption for 2D: the same disk). The source draws
            fractions and builds balls of whole and half radii from them; here they are whole.
    """

    morphing_probability: Probability = 0.4
    removal_probability: Probability = 0.2
    probability_per_label: Probability = 0.5
    radii: tuple[Radius, Radius] = (1, 8)

    def draw(self, generator: torch.Generator, spec: AugmentationSpec, _channels: int) -> list[Change] | None:
        """The changes in order, labels in random order; None without a first stage."""
        if not spec.first_stage_values:
            return None
        changes: list[Change] = []
        operations = tuple(OPERATIONS.values())
        if happens(generator, self.morphing_probability):
            for channel in self._chosen(generator, len(spec.first_stage_values)):
                operation = operations[int(uniform(generator, 0, len(operations)))]
                radius = int(uniform(generator, self.radii[0], self.radii[1] + 1))
                changes.append((channel, operation, radius))
        if happens(generator, self.removal_probability):
            chosen = self._chosen(generator, len(spec.first_stage_values))
            changes += [(channel, without_component, uniform(generator, 0.0, 1.0)) for channel in chosen]
        return changes or None

    def _chosen(self, generator: torch.Generator, channels: int) -> list[int]:
        shuffled = torch.randperm(channels, generator=generator).tolist()
        return [channel for channel in shuffled if happens(generator, self.probability_per_label)]

    def apply(self, sample: Sample, drawn: list[Change], spec: AugmentationSpec) -> None:
        """Changes the label map on the CPU; values without a channel become 0."""
        if sample.first_stage is None:
            return
        before = sample.first_stage.cpu().numpy()
        after = np.zeros_like(before)
        channels = np.stack([before == value for value in spec.first_stage_values])
        for value, mask in zip(spec.first_stage_values, apply_changes(channels, drawn), strict=True):
            after[mask] = value
        sample.first_stage = torch.from_numpy(after).to(sample.first_stage.device)


def apply_changes(channels: Mask, changes: Sequence[Change]) -> Mask:
    """Channels (n, *patch) after the changes; the argument is not modified.

    A voxel that one label gains is taken from all others; one that a label loses is given to none.
    """
    changed = channels.copy()
    for channel, operation, amount in changes:
        before = changed[channel].copy()
        after = operation(before, amount)
        changed &= ~(after & ~before)
        changed[channel] = after
    return changed


def without_component(mask: Mask, fraction: float) -> Mask:
    """The mask without one of its small components (neighbors across corners count): the one at a fraction of them."""
    from scipy import ndimage  # 0.2 s of imports that not every prediction needs

    components, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(components.reshape(-1))[1:]
    small = np.flatnonzero(sizes < LARGEST_REMOVED_SHARE * mask.size)
    return mask & (components != small[int(fraction * len(small))] + 1) if len(small) else mask


def dilate(mask: Mask, radius: float) -> Mask:
    """Every voxel within `radius` voxels of the mask (distance between centers)."""
    from scipy import ndimage

    result = mask.copy()
    box = _box(mask, int(radius))
    if box is not None:
        result[box] = ndimage.distance_transform_edt(~mask[box]) <= radius
    return result


def erode(mask: Mask, radius: float) -> Mask:
    """Voxels of the mask with no voxel of the patch outside it within `radius`; beyond the patch nothing counts."""
    from scipy import ndimage

    result = mask.copy()
    box = _box(mask, 1)  # the voxels around the mask are nearer than any behind them
    if box is not None and not mask[box].all():
        result[box] = ndimage.distance_transform_edt(mask[box]) > radius
    return result


def _close(mask: Mask, radius: float) -> Mask:
    return erode(dilate(mask, radius), radius)


def _open(mask: Mask, radius: float) -> Mask:
    return dilate(erode(mask, radius), radius)


OPERATIONS: dict[str, Operation] = {"dilate": dilate, "erode": erode, "close": _close, "open": _open}
"""Morphological operations with a ball, (mask, radius) -> mask."""


def _box(mask: Mask, margin: int) -> tuple[slice, ...] | None:
    """The bounding box of a mask, wider by the margin where the patch allows it; None if the mask is empty."""
    from scipy import ndimage

    found = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(0, s.start - margin), s.stop + margin) for s in found[0]) if found else None
