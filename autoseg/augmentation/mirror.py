"""Mirroring along the axes that allow it."""

from __future__ import annotations

import torch
from torch import Tensor

from autoseg.augmentation.draws import happens

MIRROR_PROBABILITY = 0.5


def draw_mirror(generator: torch.Generator, allowed_axes: tuple[int, ...]) -> tuple[int, ...]:
    """Each allowed axis with probability 0.5."""
    return tuple(axis for axis in allowed_axes if happens(generator, MIRROR_PROBABILITY))


def apply_mirror(array: Tensor, axes: tuple[int, ...], dimensions: int) -> Tensor:
    """The array (..., *shape) mirrored along spatial axes (0 = first of the last `dimensions`)."""
    return array.flip([axis - dimensions for axis in axes]) if axes else array
