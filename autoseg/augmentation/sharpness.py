"""Gaussian blur and simulated low resolution: what scanners with thicker slices or softer kernels show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoseg.augmentation.along_axes import coarsening_matrix, gaussian_matrix, multiply_along_axes
from autoseg.augmentation.draws import happens, uniform

BLUR_PROBABILITY = 0.2
BLUR_PROBABILITY_PER_CHANNEL = 0.5
BLUR_SIGMAS = (0.5, 1.0)
"""Voxels."""

BLUR_WIDTH = 6.0
"""The kernel covers about this many standard deviations in all (nnU-Net v2's augmentation package)."""

COARSENING_PROBABILITY = 0.25
COARSENING_PROBABILITY_PER_CHANNEL = 0.5
COARSENING_SCALES = (0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Blur:
    """Standard deviations in voxels for each channel and axis; None for a channel left as it is."""

    sigmas: tuple[tuple[float, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Coarsening:
    """For each channel the factor on its number of voxels along every axis; None for a channel left as it is."""

    scales: tuple[float | None, ...]


def draw_blur(generator: torch.Generator, channels: int, dimensions: int) -> Blur | None:
    """Probability 0.2; then each channel with probability 0.5, sigma from [0.5, 1) voxels for each axis."""
    if not happens(generator, BLUR_PROBABILITY):
        return None
    return Blur(
        tuple(
            tuple(uniform(generator, *BLUR_SIGMAS) for _ in range(dimensions))
            if happens(generator, BLUR_PROBABILITY_PER_CHANNEL)
            else None
            for _ in range(channels)
        )
    )


def apply_blur(image: Tensor, blur: Blur) -> None:
    """Blurs an image (c, *shape) in place, mirrored at its border."""
    for channel, sigmas in zip(image, blur.sigmas, strict=True):
        if sigmas is not None:
            pairs = zip(channel.shape, sigmas, strict=True)
            channel.copy_(multiply_along_axes(channel, [gaussian_matrix(n, s, blur_radius(s)) for n, s in pairs]))


def blur_radius(sigma: float) -> int:
    """Voxels on each side of the center that the kernel covers; its length is the odd number nearest 6 sigma + 0.5."""
    length = BLUR_WIDTH * sigma + 0.5
    nearest = round(length)
    if nearest % 2 == 0:
        nearest += 1 if length >= nearest else -1
    return nearest // 2


def draw_coarsening(generator: torch.Generator, channels: int) -> Coarsening | None:
    """Probability 0.25; then each channel with probability 0.5, by a factor from [0.5, 1)."""
    if not happens(generator, COARSENING_PROBABILITY):
        return None
    return Coarsening(
        tuple(
            uniform(generator, *COARSENING_SCALES) if happens(generator, COARSENING_PROBABILITY_PER_CHANNEL) else None
            for _ in range(channels)
        )
    )


def apply_coarsening(image: Tensor, coarsening: Coarsening, is_dummy_2d: bool) -> None:
    """Reads an image (c, *shape) at fewer voxels and interpolates it back, in place; slices stay apart in dummy 2D."""
    for channel, scale in zip(image, coarsening.scales, strict=True):
        if scale is not None:
            matrices = [
                None if is_dummy_2d and axis == 0 else coarsening_matrix(n, max(1, round(n * scale)))
                for axis, n in enumerate(channel.shape)
            ]
            channel.copy_(multiply_along_axes(channel, matrices))
