"""Simulated low resolution: what scanners with larger voxels show."""

from __future__ import annotations

import torch

from autoseg.augmentation.along_axes import coarsening_matrix, multiply_along_axes
from autoseg.augmentation.draws import Limits, Probability, happens, uniform
from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.records import record

Scales = tuple[float | None, ...]
"""For each channel the factor on its number of voxels along every axis; None for a channel left as it is."""


@record
class LowResolution(Transform):
    """Reads some channels at fewer voxels, by a factor from `scales`, and interpolates them back."""

    probability: Probability = 0.25
    probability_per_channel: Probability = 0.5
    scales: Limits = (0.5, 1.0)

    def draw(self, generator: torch.Generator, _spec: AugmentationSpec, channels: int) -> Scales | None:
        """Factors of the channels."""
        if not happens(generator, self.probability):
            return None
        return tuple(
            uniform(generator, *self.scales) if happens(generator, self.probability_per_channel) else None
            for _ in range(channels)
        )

    def apply(self, sample: Sample, drawn: Scales, spec: AugmentationSpec) -> None:
        """Coarsens in place; in dummy 2D slices stay apart."""
        for channel, scale in zip(sample.image, drawn, strict=True):
            if scale is not None:
                matrices = [
                    None if spec.is_dummy_2d and axis == 0 else coarsening_matrix(n, max(1, round(n * scale)))
                    for axis, n in enumerate(channel.shape)
                ]
                channel.copy_(multiply_along_axes(channel, matrices))
