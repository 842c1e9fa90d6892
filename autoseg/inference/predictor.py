"""From a prepared image to logits: sliding window, mirroring and averaging over the networks of several folds."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoseg.core.errors import NonFiniteLogits
from autoseg.core.geometry import Shape
from autoseg.core.progress import Progress, silent
from autoseg.inference.accumulate import LogitRows, RollingSlab, allocate
from autoseg.inference.windows import Tiling, Window
from autoseg.planning.lateral import LateralSwap
from autoseg.planning.plan import Configuration

_log = logging.getLogger(__name__)

_CPU_VOXELS = 1 << 16
"""Voxels of the tiles that a CPU computes together. Measured with a 2D network of 32 channels in bf16: a tile of
64 x 64 pixels takes 18 ms alone and 9 ms among 16, one of 128 x 128 27 and 20 ms, one of 256 x 256 gains nothing."""

_GPU_VOXELS = 1 << 21
"""Assumption: a patch of 128 x 128 x 128 keeps a GPU busy by itself."""

_MOST_TILES = 16

_BYTES_PER_FLOAT = 4


@dataclass(frozen=True)
class Predictor:
    """Networks of one configuration and how they are applied; the same for users and for validation in training.

    The networks are moved to the device and set to evaluation mode when the predictor is made.

    Attributes:
        networks: one per fold; their logits are averaged.
        configuration: gives dimensions and patch size.
        heads: output channels of the networks.
        mirror_axes: spatial axes (0 is the first of the configuration's) to mirror along; logits are averaged over
            all subsets of them.
        swap: what changes places where the image is mirrored from left to right, or None: see `lateral_swap`.
        overlap: fraction of a tile that neighbors share at least.
        device: where the networks run.
        dtype: precision of autocast; float32 switches it off.
        channels_last: whether channels are the fastest axis in memory.
        tile_batch: tiles computed together; None lets the patch size decide.
        slab_device: where tiles are added up; None for `device`.
        max_slab_bytes: a larger slab is kept in a file in `scratch`; None for no limit.
        scratch: folder for temporary files; None for the system's.
    """

    networks: tuple[nn.Module, ...]
    configuration: Configuration
    heads: int
    mirror_axes: tuple[int, ...] = ()
    swap: LateralSwap | None = None
    overlap: float = 0.5
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    tile_batch: int | None = None
    slab_device: torch.device | str | None = None
    max_slab_bytes: int | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        for network in self.networks:
            network.to(self.device, memory_format=self._memory_format).eval()  # type: ignore[call-overload]

    @cached_property
    def _memory_format(self) -> torch.memory_format:
        if not self.channels_last:
            return torch.contiguous_format
        return torch.channels_last if self.configuration.dimensions == 2 else torch.channels_last_3d

    @cached_property
    def _device_type(self) -> str:
        return torch.device(self.device).type

    @property
    def numerics(self) -> str:
        """Precision and memory format, in words."""
        words = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return f"{words[self.dtype]}, {'channels last' if self.channels_last else 'contiguous'}"

    @cached_property
    def patch_size(self) -> Shape:
        """Voxels of a tile along all three axes; a 2D network looks at one slice."""
        missing = 3 - self.configuration.dimensions
        return (1,) * missing + tuple(self.configuration.patch_size)

    @cached_property
    def _mirrorings(self) -> list[tuple[int, ...]]:
        axes = [axis + 2 for axis in self.mirror_axes]
        return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]

    @cached_property
    def tiles_at_once(self) -> int:
        """Tiles computed together: small ones share the overhead of a call, large ones gain nothing."""
        voxels = _CPU_VOXELS if self._device_type == "cpu" else _GPU_VOXELS
        return self.tile_batch or max(1, min(_MOST_TILES, voxels // math.prod(self.patch_size)))

    def tiling(self, shape: Shape) -> Tiling:
        """How an image of `shape` (z, y, x) is cut."""
        return Tiling(shape, self.patch_size, self.overlap)

    @property
    def network_bytes(self) -> int:
        """Estimate of the main memory that a batch of tiles takes: feature maps of full resolution, and the logits."""
        if self._device_type != "cpu":
            return 0
        logits = 2 * self.heads * math.prod(self.patch_size)
        features = self.configuration.network.prediction_elements(self.configuration.patch_size)
        return _BYTES_PER_FLOAT * (features + logits) * self.tiles_at_once

    def working_bytes(self, shape: Shape) -> int:
        """Estimate of what predicting an image of `shape` (z, y, x) takes beyond the image and the weights."""
        return self.network_bytes + self.tiling(shape).slab_bytes(self.heads, self.tiles_at_once)

    def rows(self, image: NDArray[np.float32], progress: Progress = silent) -> Iterator[LogitRows]:
        """Logits of the image, a few rows at a time along `tiling(shape).rolling_axis`, in order.

        Peak memory is one slab (see `Tiling.slab_shape`), not the volume times its classes.

        Args:
            image: prepared (c, z, y, x) in the plan's axis order; may be memory-mapped.
            progress: called with finished and all tiles.

        Raises:
            NonFiniteLogits: a network returned an infinite or undefined value.
        """
        tiling = self.tiling(image.shape[1:])
        batches = tiling.batches(self.tiles_at_once)
        device = torch.device(self.slab_device or self.device)
        shape = tiling.slab_shape(self.heads, self.tiles_at_once)
        slab = RollingSlab(tiling, allocate(shape, device, self.max_slab_bytes, self.scratch))
        padded = np.pad(image, ((0, 0), *tiling.padding)) if any(map(any, tiling.padding)) else image
        axis, end = tiling.rolling_axis, tiling.padded_shape[tiling.rolling_axis]
        done = 0
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            for window, logits in zip(batch, self._tile_logits(self._tiles(padded, batch)), strict=True):
                slab.add(logits, window)
            done += len(batch)
            progress(done, len(tiling.windows))
            # windows are sorted along the rolling axis: no later one reaches below the first of the next batch
            for rows in slab.finish(following[0][axis] if following else end):
                _check_finite(rows.values)
                yield rows

    def logits(self, image: NDArray[np.float32], progress: Progress = silent) -> NDArray[np.float16]:
        """Logits (heads, z, y, x) of the whole image in half precision, in memory."""
        tiling = self.tiling(image.shape[1:])
        volume = np.empty((self.heads, *tiling.shape), dtype=np.float16)
        rolled = np.moveaxis(volume, tiling.rolling_axis + 1, 0)
        for rows in self.rows(image, progress):
            rolled[rows.start : rows.start + len(rows.values)] = rows.values.to("cpu", torch.float16).numpy()
        return volume

    def with_less_memory(self) -> Predictor | None:
        """This predictor with a smaller need of device memory, or None if it runs on the CPU with single tiles."""
        if self.tiles_at_once > 1:
            smaller = replace(self, tile_batch=self.tiles_at_once // 2)
            _log.warning("not enough memory on %s: going on with %d tiles at a time", self.device, smaller.tile_batch)
            return smaller
        if self._device_type == "cpu":
            return None
        if torch.device(self.slab_device or self.device).type != "cpu":
            _log.warning("not enough memory on %s: adding tiles up in main memory", self.device)
            return replace(self, slab_device="cpu")
        _log.warning("not enough memory on %s: going on with the CPU", self.device)
        return replace(self, device="cpu", dtype=torch.float32)

    def _tiles(self, padded: NDArray[np.float32], batch: list[Window]) -> Tensor:
        """The tiles (b, c, *patch) at the windows of a batch, on the device."""
        cuts = [tuple(slice(o, o + p) for o, p in zip(window, self.patch_size, strict=True)) for window in batch]
        tiles = torch.from_numpy(np.stack([padded[:, z, y, x] for z, y, x in cuts])).to(self.device)
        return tiles.squeeze(2) if self.configuration.dimensions == 2 else tiles

    def _tile_logits(self, tiles: Tensor) -> Tensor:
        """Mean logits (b, heads, z, y, x) of tiles (b, c, *patch), over mirrorings and networks."""
        total: Tensor | None = None
        with torch.inference_mode(), torch.autocast(self._device_type, self.dtype, enabled=self.dtype != torch.float32):
            for axes in self._mirrorings:
                mirrored = self._mirrored(tiles, axes).contiguous(memory_format=self._memory_format)
                for network in self.networks:
                    logits = self._mirrored_back(network(mirrored), axes)
                    total = logits.float() if total is None else total.add_(logits)
            assert total is not None, "a predictor has at least one network"
            summands = len(self._mirrorings) * len(self.networks)
            total = total.div_(summands) if summands > 1 else total
        return total.unsqueeze(2) if self.configuration.dimensions == 2 else total

    def _mirrored(self, tiles: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Tiles (b, c, *shape) flipped along array axes; channels of lateral labels of a first stage change places."""
        tiles = tiles.flip(axes) if axes else tiles
        swap = self._swap_along(axes)
        return tiles if swap is None else tiles[:, list(swap.channels)]

    def _mirrored_back(self, logits: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Logits (b, heads, *shape) of flipped tiles flipped back; heads of lateral classes change places."""
        logits = logits.flip(axes) if axes else logits
        swap = self._swap_along(axes)
        return logits if swap is None else logits[:, list(swap.heads)]

    def _swap_along(self, axes: tuple[int, ...]) -> LateralSwap | None:
        return self.swap if self.swap is not None and self.swap.axis + 2 in axes else None


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values.sum())):
        raise NonFiniteLogits(
            "the network answered with infinite or undefined logits",
            why="weights of a diverged training, or an overflow of half precision",
            do="check the training curves, or predict on the CPU",
        )
