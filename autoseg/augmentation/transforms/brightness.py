"""Brighter and darker channels."""

from __future__ import annotations

import torch

from autoseg.augmentation.draws import Limits, Probability, draw_factors
from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.records import record


@record
class Brightness(Transform):
    """Multiplies each channel by a factor from `factors`."""

    probability: Probability = 0.15
    factors: Limits = (0.75, 1.25)

    def draw(self, generator: torch.Generator, _spec: AugmentationSpec, channels: int) -> tuple[float, ...] | None:
        """A factor per channel."""
        return draw_factors(generator, self.probability, self.factors, channels)

    def apply(self, sample: Sample, drawn: tuple[float, ...], _spec: AugmentationSpec) -> None:
        """Multiplies in place."""
        for channel, factor in zip(sample.image, drawn, strict=True):
            channel.mul_(factor)
