"""How often each axis of a patch can be halved, and with which kernels.

Source: nnU-Net v2 experiment_planning/experiment_planners/network_topology.py (Isensee et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_EDGE = 4
"""Voxels that every axis keeps at the bottleneck."""

SIMILAR_SPACING = 2.0
"""Axes whose spacings differ by less than this factor are treated alike."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Strides and kernels of a U-Net, and the patch padded to suit them. Axes in the plan's order.

    Attributes:
        strides: per stage; the first stage has all ones.
        kernel_sizes: per stage, the bottleneck included.
        divisors: what each axis of the patch must be a multiple of.
        patch_size: the patch, padded up to multiples of `divisors`.
    """

    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    divisors: tuple[int, ...]
    patch_size: tuple[int, ...]


def topology(spacing_mm: Sequence[float], patch_size: Sequence[float]) -> Topology:
    """The U-Net that suits a patch: axes are halved while at least 4 voxels remain, the finest spacings first.

    Args:
        spacing_mm: voxel spacing, one per axis.
        patch_size: voxels, one per axis; may hold halves (median shapes do).
    """
    spacing = list(spacing_mm)
    size = list(patch_size)
    kernel = [1] * len(size)
    strides = [(1,) * len(size)]
    kernels: list[tuple[int, ...]] = []
    while halved := _axes_to_halve(spacing, size):
        kernel = _grown_kernel(kernel, spacing)
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(size))))
        for axis in halved:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * len(size))
    divisors = tuple(math.prod(stage) for stage in zip(*strides, strict=True))
    padded = tuple(_next_multiple(edge, divisor) for edge, divisor in zip(patch_size, divisors, strict=True))
    return Topology(tuple(strides), tuple(kernels), divisors, padded)


def _axes_to_halve(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    """Axes of the next pooling: large enough, and among the finest; a lone axis needs one voxel edge more."""
    large = [axis for axis in range(len(size)) if size[axis] >= 2 * SMALLEST_EDGE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    axes = [axis for axis in large if spacing[axis] / finest < SIMILAR_SPACING]
    if len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_EDGE:
        return []
    return axes


def _grown_kernel(kernel: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """An axis gets kernel 3 once its spacing is within a factor of 2 of the finest, and keeps it."""
    finest = min(spacing)
    return [3 if edge == 3 or own / finest < SIMILAR_SPACING else 1 for edge, own in zip(kernel, spacing, strict=True)]


def _next_multiple(edge: float, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not below `edge`; half voxels are dropped as nnU-Net drops them."""
    remainder = edge % divisor
    return int(edge if remainder == 0 else edge + divisor - remainder)
