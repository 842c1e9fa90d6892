"""Adding up overlapping tiles in a slab that rolls through the volume, so that memory does not grow with the volume.

Tiles come in the order of one axis, the rolling axis. As soon as no later tile can touch a row of voxels, that row is
complete and handed on; the memory of its place is used again for a row further on:

    volume, rows along the rolling axis    ==========------------..........
                                           handed on  in the slab  not yet touched
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoseg.core.errors import NotEnoughResources
from autoseg.core.geometry import Shape
from autoseg.core.machine import BYTES_PER_GIB
from autoseg.inference.windows import Tiling, Window

_ROWS_AT_ONCE = 8
"""Finished rows handed on together; assumption: enough to keep the overhead per hand-over small."""

_log = logging.getLogger(__name__)


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
    """Sums of weighted tiles over the rows that windows still touch.

    The rows are kept in a ring: row r of the padded volume lies at r modulo the depth of the storage. No two rows in
    work share a place, because the depth is the largest number of rows that are ever in work together.

    Args:
        tiling: how the volume is cut.
        storage: zeros (depth, heads, a, b), as `Tiling.slab_shape` says; a and b are the other two axes, padded.
    """

    def __init__(self, tiling: Tiling, storage: Tensor) -> None:
        self._tiling = tiling
        self._storage = storage
        self._finished = 0

    def add(self, logits: Tensor, window: Window) -> None:
        """Adds the logits (heads, z, y, x) of the tile at `window`; it must not touch finished rows."""
        axis, *others = self._tiling.rolled_axes
        start, patch = window[axis], self._tiling.patch_size[axis]
        a, b = (slice(window[other], window[other] + self._tiling.patch_size[other]) for other in others)
        order = (axis + 1, 0, others[0] + 1, others[1] + 1)
        weights = self._tiling.weights(window)[None].permute(order).to(self._storage.device)
        tile = logits.permute(order).to(self._storage.device)
        for ring, rows in self._ring(start, start + patch):
            inside = slice(rows.start - start, rows.stop - start)
            self._storage[ring, :, a, b].addcmul_(tile[inside], weights[inside])

    def finish(self, until: int) -> Iterator[LogitRows]:
        """Hands on the rows below `until` (padded), without their padding, and clears them for reuse."""
        tiling = self._tiling
        before, length = tiling.padding[tiling.rolling_axis][0], tiling.shape[tiling.rolling_axis]
        a, b = (slice(tiling.padding[o][0], tiling.padding[o][0] + tiling.shape[o]) for o in tiling.rolled_axes[1:])
        for start in range(self._finished, until, _ROWS_AT_ONCE):
            for ring, rows in self._ring(start, min(start + _ROWS_AT_ONCE, until)):
                # padding lies at both ends of the rolling axis; a piece may consist of nothing else
                kept = range(max(rows.start, before), min(rows.stop, before + length))
                if kept:
                    shift = ring.start - rows.start
                    yield LogitRows(kept.start - before, self._storage[kept.start + shift : kept.stop + shift, :, a, b])
                self._storage[ring].zero_()  # only after the yield: what was handed on is a view of it
        self._finished = until

    def _ring(self, start: int, stop: int) -> Iterator[tuple[slice, range]]:
        """Where rows lie in the ring: one piece, or two where it wraps around."""
        depth = len(self._storage)
        while start < stop:
            position = start % depth
            end = min(stop, start + depth - position)
            yield slice(position, position + end - start), range(start, end)
            start = end


def allocate(
    shape: Shape,
    device: torch.device,
    most_bytes: int | None,
    scratch: Path | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Zeros in memory, or in an unnamed file, which vanishes with the tensor.

    Args:
        shape: of the zeros.
        device: where they lie, if in memory.
        most_bytes: that they may take of the memory; None for no limit.
        scratch: folder of the file; None for the system's.
        dtype: float32 or float16.

    Raises:
        NotEnoughResources: the disk cannot hold them.
    """
    needed = math.prod(shape) * dtype.itemsize
    if most_bytes is None or needed <= most_bytes:
        return torch.zeros(shape, dtype=dtype, device=device)
    folder = scratch or Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NotEnoughResources(
            f"predicting needs {needed / BYTES_PER_GIB:.1f} GiB more than --max-ram allows, and the disk has less free",
            where=str(folder),
            do=f"free {(needed - free) / BYTES_PER_GIB:.1f} GiB there, or raise --max-ram",
        )
    _log.info("%.1f GiB are kept in a temporary file, to respect --max-ram", needed / BYTES_PER_GIB)
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping keeps the file alive after it is closed
        _reserve(file.fileno(), needed, folder)
        kind = np.float32 if dtype == torch.float32 else np.float16
        return torch.from_numpy(np.memmap(file, dtype=kind, mode="w+", shape=shape))


def _reserve(file: int, needed: int, folder: Path) -> None:
    """Takes the space of a file on the disk now: where that is full later, writing into the mapping ends the process.

    Raises:
        NotEnoughResources: others took it since the disk was asked.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, needed)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return  # a file system that cannot
        raise NotEnoughResources(
            f"predicting needs {needed / BYTES_PER_GIB:.1f} GiB on the disk, which has less free by now",
            where=str(folder),
            do="free some space there, or raise --max-ram",
        ) from error
