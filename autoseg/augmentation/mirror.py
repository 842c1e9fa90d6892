"""Mirroring along the axes that allow it."""

from __future__ import annotations

import torch
from torch import Tensor

from autoseg.augmentation.draws import happens
from autoseg.planning.lateral import LateralSwap

MIRROR_PROBABILITY = 0.5


def draw_mirror(generator: torch.Generator, allowed_axes: tuple[int, ...]) -> tuple[int, ...]:
    """Each allowed axis with probability 0.5."""
    return tuple(axis for axis in allowed_axes if happens(generator, MIRROR_PROBABILITY))


def apply_mirror(array: Tensor, axes: tuple[int, ...], dimensions: int) -> Tensor:
    """The array (..., *shape) mirrored along spatial axes (0 = first of the last `dimensions`)."""
    return array.flip([axis - dimensions for axis in axes]) if axes else array


def mirror_labels(labels: Tensor, axes: tuple[int, ...], dimensions: int, swap: LateralSwap | None) -> Tensor:
    """Labels (..., *shape) mirrored along spatial axes; lateral ones change places where left becomes right.

    Args:
        labels: training values of any integer or float type; negative ones stay as they are.
        axes: spatial axes (0 = first of the last `dimensions`).
        dimensions: number of spatial axes.
        swap: what changes places, or None.
    """
    mirrored = apply_mirror(labels, axes, dimensions)
    if swap is None or swap.axis not in axes:
        return mirrored
    table = torch.tensor(swap.values, device=labels.device).to(labels.dtype)
    return table[mirrored.clamp(min=0).long()].where(mirrored >= 0, mirrored)
