"""Where the tiles of a sliding window lie, and how much each voxel of a tile counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import UsageError
from autoseg.core.geometry import Shape

Window = tuple[int, ...]
"""First voxel of a tile along each axis."""

SIGMAS_PER_PATCH = 8
"""The Gaussian's standard deviation is this fraction of the patch, so that a border voxel lies four of them away."""

PEAK_WEIGHT = 10.0
"""Weight of a tile's center; only ratios of weights matter. Source: nnU-Net v2 predict_from_raw_data.py."""


def window_origins(length: int, patch: int, overlap: float = 0.5) -> tuple[int, ...]:
    """First voxels of the tiles along one axis: evenly spread, the first and last one flush with the borders.

    Args:
        length: voxels of the padded volume along the axis; at least `patch`.
        patch: voxels of a tile along the axis.
        overlap: fraction of a tile that neighbors share at least, in [0, 1).

    Raises:
        UsageError: the overlap is outside [0, 1).

    Source: nnU-Net v2 sliding_window_prediction.py (steps of at most half a patch).
    """
    if not 0 <= overlap < 1:
        raise UsageError(f"the overlap of windows is {overlap}", do="give a fraction from 0 (no overlap) to below 1")
    farthest = length - patch
    count = math.ceil(farthest / (patch * (1 - overlap))) + 1
    step = farthest / (count - 1) if count > 1 else 0.0
    return tuple(dict.fromkeys(round(step * index) for index in range(count)))  # tiles of one voxel would repeat


def sliding_windows(shape: Shape, patch_size: Shape, overlap: float = 0.5) -> list[Window]:
    """Origins of the windows that cover a volume: the product of the origins of all axes, first axis slowest.

    Args:
        shape: voxels of the padded volume; each axis at least `patch_size`.
        patch_size: voxels of a tile.
        overlap: fraction of a tile that neighbors share at least, in [0, 1).
    """
    axes = [window_origins(length, patch, overlap) for length, patch in zip(shape, patch_size, strict=True)]
    return list(product(*axes))


def axis_weights(patch: int) -> NDArray[np.float64]:
    """Gaussian weights along one axis of a tile, 1 at voxel `patch // 2`, nowhere zero."""
    from scipy.ndimage import gaussian_filter1d

    peak = np.zeros(patch)
    peak[patch // 2] = 1.0
    weights = gaussian_filter1d(peak, patch / SIGMAS_PER_PATCH, mode="constant")
    weights /= weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return np.asarray(weights, dtype=np.float64)


def gaussian_weights(patch_size: Shape) -> NDArray[np.float32]:
    """How much each voxel of a tile counts: a Gaussian around its center, since a network knows least at the border.

    The Gaussian is the product of one factor per axis; its maximum is `PEAK_WEIGHT`.

    Source: nnU-Net v2 sliding_window_prediction.py.
    """
    weights = np.full((1,) * len(patch_size), PEAK_WEIGHT)
    for axis, patch in enumerate(patch_size):
        weights = weights * along_axis(axis_weights(patch), axis, len(patch_size))
    return weights.astype(np.float32)


def along_axis(values: NDArray[np.float64], axis: int, dimensions: int) -> NDArray[np.float64]:
    """The values as an array that broadcasts along `axis`."""
    return values.reshape([-1 if other == axis else 1 for other in range(dimensions)])


def axis_shares(length: int, patch: int, origins: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """For each origin along an axis, the tile's share of the total weight at each of its voxels.

    Windows form a full grid and the Gaussian is a product over axes, so the total weight of a voxel is a product too,
    and multiplying the shares of the axes gives weights that sum to one at every voxel: the accumulated logits need
    no division and no volume of weights.

    Args:
        length: voxels of the padded volume along the axis.
        patch: voxels of a tile along the axis.
        origins: first voxel of every tile along the axis.
    """
    weights = axis_weights(patch)
    total = np.zeros(length)
    for origin in origins:
        total[origin : origin + patch] += weights
    return {origin: (weights / total[origin : origin + patch]).astype(np.float32) for origin in origins}


def centered_padding(shape: Shape, patch_size: Shape) -> tuple[tuple[int, int], ...]:
    """Voxels to add before and after each axis so that it holds a patch; an odd voxel goes after.

    Source: nnU-Net v2 (pad_nd_image of its augmentation package).
    """
    missing = [max(patch - length, 0) for length, patch in zip(shape, patch_size, strict=True)]
    return tuple((gap // 2, gap - gap // 2) for gap in missing)
