"""What a cascade's second stage is shown of the first: one channel per label, sometimes made worse than it was.

The first stage errs less on cases that its second stage is trained with than a user's images will make it err. So its
labels are grown, shrunk and smoothed now and then, and components are left out.

Source: nnU-Net v2, `nnUNetTrainer.get_training_transforms` and its augmentation package, `transforms/nnunet`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from autoseg.augmentation.draws import happens, uniform

MORPHING_PROBABILITY = 0.4
"""That labels of a sample are grown, shrunk or smoothed."""

REMOVAL_PROBABILITY = 0.2
"""That components of a sample are left out."""

PROBABILITY_PER_LABEL = 0.5
"""That a label takes part, in a sample where any does."""

RADII = (1, 8)
"""Voxels, smallest and largest radius of the ball (assumption for 2D: the same disk). The source draws fractions and
builds balls of whole and half radii from them; here they are whole."""

LARGEST_REMOVED_SHARE = 0.15
"""Components that cover this share of the patch or more are kept."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Morphing:
    """A morphological operation on one channel: a key of `OPERATIONS` and the radius of its ball in voxels."""

    channel: int
    operation: str
    radius: int


@dataclass(frozen=True, slots=True)
class Removal:
    """One component of a channel is left out: the one at this fraction, in [0, 1), of those small enough."""

    channel: int
    fraction: float


@dataclass(frozen=True, slots=True)
class PreviousChanges:
    """What is done to the channels of one sample, in this order; empty where nothing was drawn."""

    morphings: tuple[Morphing, ...] = ()
    removals: tuple[Removal, ...] = ()


def draw_previous(generator: torch.Generator, channels: int) -> PreviousChanges:
    """The changes to a sample whose first stage has this many channels, labels in random order."""
    morphings: list[Morphing] = []
    if happens(generator, MORPHING_PROBABILITY):
        names = tuple(OPERATIONS)
        for channel in _draw_channels(generator, channels):
            operation = names[int(uniform(generator, 0, len(names)))]
            morphings.append(Morphing(channel, operation, int(uniform(generator, RADII[0], RADII[1] + 1))))
    removals: list[Removal] = []
    if happens(generator, REMOVAL_PROBABILITY):
        removals += [Removal(channel, uniform(generator, 0.0, 1.0)) for channel in _draw_channels(generator, channels)]
    return PreviousChanges(tuple(morphings), tuple(removals))


def _draw_channels(generator: torch.Generator, channels: int) -> list[int]:
    shuffled = torch.randperm(channels, generator=generator).tolist()
    return [channel for channel in shuffled if happens(generator, PROBABILITY_PER_LABEL)]


def append_previous(
    image: Tensor, previous: Tensor, values: Sequence[int], changes: Sequence[PreviousChanges] = ()
) -> Tensor:
    """The image (b, c, *patch) with one channel behind it for each label value of the first stage (b, *patch).

    Args:
        image: of any floating type; the result has it too.
        previous: label map of the first stage; values that are not listed appear nowhere.
        values: label value of each new channel.
        changes: of each sample, or none at all.
    """
    channels = torch.stack([previous == value for value in values], 1)
    for sample, own in zip(channels, changes, strict=False):
        if own.morphings or own.removals:
            sample.copy_(torch.from_numpy(apply_changes(sample.cpu().numpy(), own)))
    return torch.cat((image, channels.to(image.dtype)), 1)


def apply_changes(channels: Mask, changes: PreviousChanges) -> Mask:
    """Channels (n, *patch) after the changes; the argument is not modified.

    A voxel that one label gains is taken from all others; one that a label loses is given to none.
    """
    changed = channels.copy()
    for morphing in changes.morphings:
        before = changed[morphing.channel].copy()
        after = OPERATIONS[morphing.operation](before, morphing.radius)
        changed &= ~(after & ~before)
        changed[morphing.channel] = after
    for removal in changes.removals:
        changed[removal.channel] = without_component(changed[removal.channel], removal.fraction)
    return changed


def without_component(mask: Mask, fraction: float) -> Mask:
    """The mask without one of its components (neighbors across corners count) that cover less than 15 % of it."""
    components, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(components.reshape(-1))[1:]
    small = np.flatnonzero(sizes < LARGEST_REMOVED_SHARE * mask.size)
    return mask & (components != small[int(fraction * len(small))] + 1) if len(small) else mask


def dilate(mask: Mask, radius: int) -> Mask:
    """Every voxel within `radius` voxels of the mask (distance between centers)."""
    result = mask.copy()
    box = _box(mask, radius)
    if box is not None:
        result[box] = ndimage.distance_transform_edt(~mask[box]) <= radius
    return result


def erode(mask: Mask, radius: int) -> Mask:
    """Voxels of the mask with no voxel of the patch outside it within `radius`; beyond the patch nothing counts."""
    result = mask.copy()
    box = _box(mask, 1)  # the voxels around the mask are nearer than any behind them
    if box is not None and not mask[box].all():
        result[box] = ndimage.distance_transform_edt(mask[box]) > radius
    return result


def _close(mask: Mask, radius: int) -> Mask:
    return erode(dilate(mask, radius), radius)


def _open(mask: Mask, radius: int) -> Mask:
    return dilate(erode(mask, radius), radius)


OPERATIONS: dict[str, Callable[[Mask, int], Mask]] = {
    "dilate": dilate,
    "erode": erode,
    "close": _close,
    "open": _open,
}
"""Morphological operations with a ball, (mask, radius) -> mask."""


def _box(mask: Mask, margin: int) -> tuple[slice, ...] | None:
    """The bounding box of a mask, wider by the margin where the patch allows it; None if the mask is empty."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not hit.size:
            return None
        box.append(slice(max(0, int(hit[0]) - margin), int(hit[-1]) + 1 + margin))
    return tuple(box)
