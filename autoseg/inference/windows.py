"""Where the tiles of a sliding window lie, how much each voxel of a tile counts, and in what order they come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.core.errors import UsageError
from autoseg.core.geometry import Shape

Window = tuple[int, ...]
"""First voxel of a tile along each axis."""

SIGMAS_PER_PATCH = 8
"""The Gaussian's standard deviation is this fraction of the patch, so that a border voxel lies four of them away."""

_BYTES_PER_LOGIT = 4


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


def axis_weights(patch: int) -> NDArray[np.float64]:
    """How much the voxels of a tile count along one axis: a Gaussian, 1 at voxel `patch // 2`, nowhere zero.

    A network knows least at the border of a tile. The weight of a voxel is the product of those along its axes.

    Source: nnU-Net v2 sliding_window_prediction.py.
    """
    from scipy.ndimage import gaussian_filter1d

    peak = np.zeros(patch)
    peak[patch // 2] = 1.0
    weights = gaussian_filter1d(peak, patch / SIGMAS_PER_PATCH, mode="constant")
    weights /= weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return np.asarray(weights, dtype=np.float64)


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


@dataclass(frozen=True)
class Tiling:
    """How one volume is cut into overlapping tiles.

    Attributes:
        shape: voxels (z, y, x) of the image as prepared.
        patch_size: voxels (z, y, x) of a tile; 1 along z for a 2D network.
        overlap: fraction of a tile that neighbors share at least.
    """

    shape: Shape
    patch_size: Shape
    overlap: float = 0.5

    @cached_property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Zeros added before and after each axis so that it holds a tile."""
        return centered_padding(self.shape, self.patch_size)

    @cached_property
    def padded_shape(self) -> Shape:
        """Voxels of the image with its padding."""
        return tuple(max(length, patch) for length, patch in zip(self.shape, self.patch_size, strict=True))

    @cached_property
    def rolling_axis(self) -> int:
        """The axis along which tiles are computed and finished: that of which a tile covers the smallest part."""
        covered = [patch / length for patch, length in zip(self.patch_size, self.padded_shape, strict=True)]
        return int(np.argmin(covered))

    @cached_property
    def rolled_axes(self) -> tuple[int, int, int]:
        """The image's axes with the rolling axis first."""
        first, second = (axis for axis in range(3) if axis != self.rolling_axis)
        return self.rolling_axis, first, second

    @cached_property
    def windows(self) -> list[Window]:
        """Origins of all tiles in the padded volume, sorted along the rolling axis."""
        axes = zip(self.padded_shape, self.patch_size, strict=True)
        everywhere = product(*(window_origins(length, patch, self.overlap) for length, patch in axes))
        return sorted(everywhere, key=lambda window: window[self.rolling_axis])

    @cached_property
    def shares(self) -> tuple[dict[int, Tensor], ...]:
        """For each axis and origin the tile's share of the total weight, ready to broadcast over a tile."""
        shares = []
        for axis, (length, patch) in enumerate(zip(self.padded_shape, self.patch_size, strict=True)):
            by_origin = axis_shares(length, patch, window_origins(length, patch, self.overlap))
            view = tuple(-1 if other == axis else 1 for other in range(3))
            shares.append({origin: torch.from_numpy(share).reshape(view) for origin, share in by_origin.items()})
        return tuple(shares)

    def batches(self, size: int) -> list[list[Window]]:
        """The windows in the order of the rolling axis, `size` at a time."""
        return [self.windows[start : start + size] for start in range(0, len(self.windows), size)]

    def weights(self, window: Window) -> Tensor:
        """What each voxel (z, y, x) of the tile at `window` contributes; sums to one over all tiles of a voxel."""
        z, y, x = (share[origin] for share, origin in zip(self.shares, window, strict=True))
        return z * y * x

    def slab_shape(self, heads: int, batch_size: int) -> tuple[int, int, int, int]:
        """(rows, heads, a, b) of the slab in which tiles are added up.

        Its rows are those along the rolling axis that are touched but not finished at any one time, at most.
        """
        axis, first, second = self.rolled_axes
        spans = [batch[-1][axis] - batch[0][axis] for batch in self.batches(batch_size)]
        return max(spans) + self.patch_size[axis], heads, self.padded_shape[first], self.padded_shape[second]

    def slab_bytes(self, heads: int, batch_size: int) -> int:
        """Memory of the slab of float32 logits."""
        return math.prod(self.slab_shape(heads, batch_size)) * _BYTES_PER_LOGIT
