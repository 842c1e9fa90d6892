"""Gaussian blur: what softer kernels of a scanner show."""

from __future__ import annotations

import torch

from autoseg.augmentation.along_axes import gaussian_matrix, multiply_along_axes
from autoseg.augmentation.draws import Limits, Probability, happens, uniform
from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.records import record

KERNEL_WIDTH = 6.0
"""The kernel covers about this many standard deviations in all (nnU-Net v2's augmentation package)."""

Sigmas = tuple[tuple[float, ...] | None, ...]
"""Standard deviations in voxels for each channel and axis; None for a channel left as it is."""


@record
class Blur(Transform):
    """Blurs some channels, mirrored at the border, with standard deviations from `sigmas` (voxels), one per axis."""

    probability: Probability = 0.2
    probability_per_channel: Probability = 0.5
    sigmas: Limits = (0.5, 1.0)

    def draw(self, generator: torch.Generator, spec: AugmentationSpec, channels: int) -> Sigmas | None:
        """Standard deviations of the channels."""
        if not happens(generator, self.probability):
            return None
        return tuple(
            tuple(uniform(generator, *self.sigmas) for _ in spec.patch_size)
            if happens(generator, self.probability_per_channel)
            else None
            for _ in range(channels)
        )

    def apply(self, sample: Sample, drawn: Sigmas, _spec: AugmentationSpec) -> None:
        """Blurs in place."""
        for channel, sigmas in zip(sample.image, drawn, strict=True):
            if sigmas is not None:
                pairs = zip(channel.shape, sigmas, strict=True)
                channel.copy_(multiply_along_axes(channel, [gaussian_matrix(n, s, blur_radius(s)) for n, s in pairs]))


def blur_radius(sigma: float) -> int:
    """Voxels on each side of the center that the kernel covers; its length is the odd number nearest 6 sigma + 0.5."""
    length = KERNEL_WIDTH * sigma + 0.5
    nearest = round(length)
    if nearest % 2 == 0:
        nearest += 1 if length >= nearest else -1
    return nearest // 2
