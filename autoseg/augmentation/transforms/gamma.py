"""Gamma correction: gray values raised to a power."""

from __future__ import annotations

import torch

from autoseg.augmentation.draws import Limits, Probability, draw_factors
from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.records import record

_SMALLEST_RANGE = 1e-7


@record
class Gamma(Transform):
    """Raises each channel, scaled to 0..1, to a power from `exponents`; its mean and deviation stay.

    With `is_inverted` the power is taken of the negative image.
    """

    probability: Probability = 0.3
    exponents: Limits = (0.7, 1.5)
    is_inverted: bool = False

    def draw(self, generator: torch.Generator, _spec: AugmentationSpec, channels: int) -> tuple[float, ...] | None:
        """An exponent per channel."""
        return draw_factors(generator, self.probability, self.exponents, channels)

    def apply(self, sample: Sample, drawn: tuple[float, ...], _spec: AugmentationSpec) -> None:
        """Raises in place; a constant channel stays as it is."""
        for channel, exponent in zip(sample.image, drawn, strict=True):
            mean, deviation = channel.mean(), channel.std(correction=0)
            lowest, highest = torch.aminmax(channel)
            extent = (highest - lowest).clamp(min=_SMALLEST_RANGE)
            if self.is_inverted:
                channel.sub_(highest).div_(-extent).pow_(exponent).neg_()
            else:
                channel.sub_(lowest).div_(extent).pow_(exponent)
            channel.sub_(channel.mean())
            channel.mul_(deviation / channel.std(correction=0).clamp(min=_SMALLEST_RANGE)).add_(mean)


DEFAULT_GAMMAS = (Gamma(probability=0.1, is_inverted=True), Gamma())
"""Both are in the default augmentation, in this order (nnU-Net v2)."""
