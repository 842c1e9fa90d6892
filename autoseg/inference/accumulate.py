"""Adding up overlapping tiles in a slab that rolls through the volume, so that memory does not grow with the volume."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoseg.core.errors import NotEnoughResources
from autoseg.core.geometry import Shape
from autoseg.inference.windows import Window, axis_shares, centered_padding, sliding_windows, window_origins

_ROWS_AT_ONCE = 8
"""Finished rows handed on together; assumption: enough to keep the overhead per hand-over small."""

_BYTES_PER_LOGIT = 4


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
        """The axis along which the slab rolls: that of which a tile covers the smallest part."""
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
        everywhere = sliding_windows(self.padded_shape, self.patch_size, self.overlap)
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

    def slab_depth(self, batch_size: int) -> int:
        """Rows along the rolling axis that are touched but not finished at any one time, at most."""
        axis = self.rolling_axis
        spans = [batch[-1][axis] - batch[0][axis] for batch in self.batches(batch_size)]
        return max(spans) + self.patch_size[axis]

    def slab_bytes(self, heads: int, batch_size: int) -> int:
        """Memory of the slab of float32 logits."""
        _, first, second = self.rolled_axes
        plane = self.padded_shape[first] * self.padded_shape[second]
        return self.slab_depth(batch_size) * heads * plane * _BYTES_PER_LOGIT


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Finished logits of consecutive rows of a volume.

    Attributes:
        start: index of the first row along the rolling axis, in the image without padding.
        values: float32 (rows, heads, a, b); a and b are the other two axes in order. Valid until the next rows are
            asked for.
    """

    start: int
    values: Tensor


class RollingSlab:
    """Sums of weighted tiles over the rows that windows still touch: a ring of rows along the rolling axis.

    Args:
        tiling: how the volume is cut.
        storage: zeros (depth, heads, a, b), a and b being the other two axes of the padded volume.
    """

    def __init__(self, tiling: Tiling, storage: Tensor) -> None:
        self._tiling = tiling
        self._storage = storage
        self._finished = 0

    def add(self, logits: Tensor, window: Window) -> None:
        """Adds the logits (heads, z, y, x) of the tile at `window`; it must not touch finished rows."""
        axis, *others = self._tiling.rolled_axes
        start, patch = window[axis], self._tiling.patch_size[axis]
        plane = [slice(window[other], window[other] + self._tiling.patch_size[other]) for other in others]
        order = (axis + 1, 0, others[0] + 1, others[1] + 1)
        weights = self._tiling.weights(window)[None].permute(order).to(self._storage.device)
        tile = logits.permute(order).to(self._storage.device)
        for ring, rows in self._ring(start, start + patch):
            inside = slice(rows.start - start, rows.stop - start)
            self._storage[ring, :, plane[0], plane[1]].addcmul_(tile[inside], weights[inside])

    def finish(self, until: int) -> Iterator[LogitRows]:
        """Hands on the rows below `until` (padded), without their padding, and clears them for reuse."""
        axis, *others = self._tiling.rolled_axes
        before = self._tiling.padding[axis][0]
        image_rows = range(before, before + self._tiling.shape[axis])
        plane = [slice(self._tiling.padding[other][0], None) for other in others]
        plane = [slice(cut.start, cut.start + self._tiling.shape[o]) for cut, o in zip(plane, others, strict=True)]
        for start in range(self._finished, until, _ROWS_AT_ONCE):
            for ring, rows in self._ring(start, min(start + _ROWS_AT_ONCE, until)):
                kept = range(max(rows.start, image_rows.start), min(rows.stop, image_rows.stop))
                if kept:
                    shift = ring.start - rows.start
                    values = self._storage[kept.start + shift : kept.stop + shift, :, plane[0], plane[1]]
                    yield LogitRows(kept.start - before, values)
                self._storage[ring].zero_()
        self._finished = until

    def _ring(self, start: int, stop: int) -> Iterator[tuple[slice, range]]:
        """Where rows lie in the ring: one piece, or two where it wraps around."""
        depth = len(self._storage)
        while start < stop:
            position = start % depth
            end = min(stop, start + depth - position)
            yield slice(position, position + end - start), range(start, end)
            start = end


def allocate(shape: Shape, device: torch.device, scratch: Path | None) -> Tensor:
    """Zeros in memory, or in an unnamed file in the folder `scratch`, which vanishes with the tensor.

    Raises:
        NotEnoughResources: the disk cannot hold them.
    """
    if scratch is None:
        return torch.zeros(shape, dtype=torch.float32, device=device)
    needed, free = int(np.prod(shape)) * _BYTES_PER_LOGIT, shutil.disk_usage(scratch).free
    if needed > free:
        raise NotEnoughResources(
            f"the logits need {needed / 2**30:.1f} GiB, more than --max-ram allows and more than the disk has free",
            where=str(scratch),
            do=f"free {(needed - free) / 2**30:.1f} GiB there, or raise --max-ram",
        )
    with tempfile.TemporaryFile(dir=scratch) as file:
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))
