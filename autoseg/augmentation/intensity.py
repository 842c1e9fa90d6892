"""Noise, brightness, contrast and gamma: what changes gray values and leaves every voxel where it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoseg.augmentation.draws import around_one, happens, seed, uniform

NOISE_PROBABILITY = 0.1
NOISE_DEVIATIONS = (0.0, 0.1)
"""Standard deviations, although the source calls them variances."""

BRIGHTNESS_PROBABILITY = 0.15
BRIGHTNESS_FACTORS = (0.75, 1.25)

CONTRAST_PROBABILITY = 0.15
CONTRAST_FACTORS = (0.75, 1.25)

INVERTED_GAMMA_PROBABILITY = 0.1
GAMMA_PROBABILITY = 0.3
GAMMAS = (0.7, 1.5)

_SMALLEST_RANGE = 1e-7


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviation for all channels, and the seed of the numbers."""

    deviation: float
    seed: int


@dataclass(frozen=True, slots=True)
class Factors:
    """One factor (brightness, contrast) or exponent (gamma) per channel."""

    values: tuple[float, ...]


def draw_noise(generator: torch.Generator) -> Noise | None:
    """Probability 0.1; standard deviation from [0, 0.1)."""
    if not happens(generator, NOISE_PROBABILITY):
        return None
    return Noise(uniform(generator, *NOISE_DEVIATIONS), seed(generator))


def apply_noise(image: Tensor, noise: Noise) -> None:
    """Adds independent normal noise to an image (c, *shape) in place; repeatable on the same kind of device."""
    generator = torch.Generator(image.device).manual_seed(noise.seed)
    numbers = torch.randn(image.shape, generator=generator, device=image.device)
    image.add_(numbers, alpha=noise.deviation)


def draw_brightness(generator: torch.Generator, channels: int) -> Factors | None:
    """Probability 0.15; factors from [0.75, 1.25)."""
    return _draw_factors(generator, BRIGHTNESS_PROBABILITY, BRIGHTNESS_FACTORS, channels)


def apply_brightness(image: Tensor, brightness: Factors) -> None:
    """Multiplies each channel of an image (c, *shape) in place."""
    for channel, factor in zip(image, brightness.values, strict=True):
        channel.mul_(factor)


def draw_contrast(generator: torch.Generator, channels: int) -> Factors | None:
    """Probability 0.15; factors from [0.75, 1.25)."""
    return _draw_factors(generator, CONTRAST_PROBABILITY, CONTRAST_FACTORS, channels)


def apply_contrast(image: Tensor, contrast: Factors) -> None:
    """Stretches each channel of an image (c, *shape) about its mean in place, cut to the range it had."""
    for channel, factor in zip(image, contrast.values, strict=True):
        mean = channel.mean()
        lowest, highest = torch.aminmax(channel)
        channel.mul_(factor).add_(mean * (1 - factor)).clamp_(lowest, highest)


def draw_gamma(generator: torch.Generator, probability: float, channels: int) -> Factors | None:
    """Exponents from [0.7, 1) or [1, 1.5)."""
    return _draw_factors(generator, probability, GAMMAS, channels)


def apply_gamma(image: Tensor, gamma: Factors, *, is_inverted: bool) -> None:
    """Raises each channel of an image (c, *shape), scaled to 0..1, to a power in place; mean and deviation stay.

    Args:
        image: changed in place.
        gamma: exponents.
        is_inverted: whether the power is taken of the negative image.
    """
    for channel, exponent in zip(image, gamma.values, strict=True):
        mean, deviation = channel.mean(), channel.std(correction=0)
        lowest, highest = torch.aminmax(channel)
        extent = (highest - lowest).clamp(min=_SMALLEST_RANGE)
        if is_inverted:
            channel.sub_(highest).div_(-extent).pow_(exponent).neg_()
        else:
            channel.sub_(lowest).div_(extent).pow_(exponent)
        channel.sub_(channel.mean())
        channel.mul_(deviation / channel.std(correction=0).clamp(min=_SMALLEST_RANGE)).add_(mean)


def _draw_factors(
    generator: torch.Generator, probability: float, limits: tuple[float, float], channels: int
) -> Factors | None:
    if not happens(generator, probability):
        return None
    return Factors(tuple(around_one(generator, *limits) for _ in range(channels)))
