"""Independent normal noise."""

from __future__ import annotations

import torch

from autoseg.augmentation.draws import Limits, Probability, happens, seed, uniform
from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.records import record


@record
class Noise(Transform):
    """Adds noise of one standard deviation to all channels, drawn from `deviations` (the source says variances)."""

    probability: Probability = 0.1
    deviations: Limits = (0.0, 0.1)

    def draw(self, generator: torch.Generator, _spec: AugmentationSpec, _channels: int) -> tuple[float, int] | None:
        """Standard deviation, and the seed of the numbers."""
        if not happens(generator, self.probability):
            return None
        return uniform(generator, *self.deviations), seed(generator)

    def apply(self, sample: Sample, drawn: tuple[float, int], _spec: AugmentationSpec) -> None:
        """Adds the noise; repeatable on the same kind of device."""
        deviation, number = drawn
        generator = torch.Generator(sample.image.device).manual_seed(number)
        numbers = torch.randn(sample.image.shape, generator=generator, device=sample.image.device)
        sample.image.add_(numbers, alpha=deviation)
