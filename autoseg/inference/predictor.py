"""From a prepared image to logits: sliding window, mirroring and averaging over the networks of several folds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations, product
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
from autoseg.networks.threads import computing_threads
from autoseg.planning.lateral import LateralSwap
from autoseg.planning.plan import Configuration

_log = logging.getLogger(__name__)

_CPU_VOXELS = 1 << 16
"""Voxels of the tiles that a CPU computes together. Measured with a 2D network of 32 channels in bf16: a tile of
64 x 64 pixels takes 18 ms alone and 9 ms among 16, one of 128 x 128 27 and 20 ms, one of 256 x 256 gains nothing."""

_LARGEST_PAIR = 1 << 19
"""Voxels of a tile up to which a CPU computes two together in fp32: in layers of few channels or few voxels of a single
one PyTorch leaves oneDNN. Measured with the planned hippocampus network: a case of one tile of 40 x 56 x 40 voxels,
eight mirrorings, takes 3.7 s, and 3.4 s in pairs; more at once, and bf16 in pairs, take longer (caches overflow)."""

_GPU_VOXELS = 1 << 21
"""Assumption: a patch of 128 x 128 x 128 keeps a GPU busy by itself."""

_MOST_TILES = 16

_SIDE_BY_SIDE_BYTES = 3 << 26
"""Feature maps and logits of the passes that a CPU computes side by side, together. In larger ones threads that share a
pass hardly wait for each other, and memory would grow. Measured on two cores (AVX512-BF16, torch 2.13), wall time of a
pass with both threads, and side by side: 43 and 34 ms with a patch of 40 x 56 x 40, 43 and 29 ms with 256 x 256."""

_UNIFORM_BYTES = 1 << 26
"""Logits of a uniform tile that are kept in memory for the next one; larger ones are computed again."""

_SPARSE = 16
"""Every so many voxels along each axis are compared before all of a tile are."""

_BYTES_PER_FLOAT = 4


@dataclass(frozen=True)
class Predictor:
    """Networks of one configuration and how they are applied; the same for users and for validation in training.

    The networks are set to evaluation mode and moved to where they are kept when the predictor is made.

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
        tile_batch: tiles, or mirrored copies of them, computed together; None lets the patch size decide.
        slab_device: where tiles are added up; None for `device`.
        max_slab_bytes: a larger slab is kept in a file in `scratch`; None for no limit.
        scratch: folder for temporary files; None for the system's.
        parks_networks: whether the networks are kept in main memory while the predictor is not at work.
        most_passes: that a CPU computes side by side; None lets the patch size and the threads decide.
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
    parks_networks: bool = False
    most_passes: int | None = None

    def __post_init__(self) -> None:
        place = "cpu" if self.parks_networks else self.device
        for network in self.networks:
            network.to(place, memory_format=self._memory_format).eval()  # type: ignore[call-overload]

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
        """Tiles, or mirrored copies, computed together: small ones share the overhead of a call, large gain nothing."""
        voxels, is_cpu = math.prod(self.patch_size), self._device_type == "cpu"
        fewest = 2 if is_cpu and self.dtype == torch.float32 and voxels <= _LARGEST_PAIR else 1
        return self.tile_batch or max(fewest, min(_MOST_TILES, (_CPU_VOXELS if is_cpu else _GPU_VOXELS) // voxels))

    @cached_property
    def passes_at_once(self) -> int:
        """Passes of a network that a CPU computes side by side, each with threads of its own."""
        if self._device_type != "cpu":
            return 1
        threads, fitting = torch.get_num_threads(), _SIDE_BY_SIDE_BYTES // max(1, self.tile_bytes * self.tiles_at_once)
        return self.most_passes or max(
            (count for count in range(1, threads + 1) if threads % count == 0 and count <= fitting), default=1
        )

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return computing_threads(self.passes_at_once, "pass")

    @cached_property
    def _tiles_of_pass(self) -> int:
        """Tiles computed together: mirrored copies of one come first, so that the slab stays small."""
        return max(1, self.tiles_at_once // len(self._mirrorings))

    @cached_property
    def _groups(self) -> list[list[tuple[int, ...]]]:
        """The mirrorings that are computed together."""
        together = max(1, self.tiles_at_once // self._tiles_of_pass)
        return [self._mirrorings[first : first + together] for first in range(0, len(self._mirrorings), together)]

    @cached_property
    def _batch_size(self) -> int:
        """Tiles of a batch: those of one pass, or more where there would be fewer passes than can be side by side."""
        passes = len(self._groups) * max(1, len(self.networks))
        return self._tiles_of_pass * -(-self.passes_at_once // passes)

    def tiling(self, shape: Shape) -> Tiling:
        """How an image of `shape` (z, y, x) is cut."""
        return Tiling(shape, self.patch_size, self.overlap)

    @property
    def tile_bytes(self) -> int:
        """Estimate of the main memory that a single tile takes: feature maps of full resolution, and the logits."""
        if self._device_type != "cpu":
            return 0
        logits = 2 * self.heads * math.prod(self.patch_size)
        features = self.configuration.network.prediction_elements(self.configuration.patch_size)
        return _BYTES_PER_FLOAT * (features + logits)

    @property
    def network_bytes(self) -> int:
        """Estimate of the main memory that the tiles computed together take."""
        return self.tile_bytes * self.tiles_at_once * self.passes_at_once

    def slab_bytes(self, shape: Shape) -> int:
        """What adding up the tiles of an image of `shape` (z, y, x) takes."""
        return self.tiling(shape).slab_bytes(self.heads, self._batch_size)

    def working_bytes(self, shape: Shape) -> int:
        """Estimate of what predicting an image of `shape` (z, y, x) takes beyond the image and the weights."""
        return self.network_bytes + self.slab_bytes(shape)

    def rows(self, image: NDArray[np.float32], progress: Progress = silent) -> Iterator[LogitRows]:
        """Logits of the image, a few rows at a time along `tiling(shape).rolling_axis`, in order.

        Peak memory is one slab (see `Tiling.slab_shape`), not the volume times its classes.

        Args:
            image: prepared (c, z, y, x) in the plan's axis order; may be memory-mapped.
            progress: called with finished and all tiles.

        Raises:
            NonFiniteLogits: a network returned an infinite or undefined value.
        """
        if not self.parks_networks:
            yield from self._rows(image, progress)
            return
        try:
            for network in self.networks:
                network.to(self.device)
            yield from self._rows(image, progress)
        finally:
            for network in self.networks:
                network.to("cpu")

    def _rows(self, image: NDArray[np.float32], progress: Progress) -> Iterator[LogitRows]:
        tiling = self.tiling(image.shape[1:])
        batches = tiling.batches(self._batch_size)
        device = torch.device(self.slab_device or self.device)
        shape = tiling.slab_shape(self.heads, self._batch_size)
        slab = RollingSlab(tiling, allocate(shape, device, self.max_slab_bytes, self.scratch))
        padded = np.pad(image, ((0, 0), *tiling.padding)) if any(map(any, tiling.padding)) else image
        axis, end = tiling.rolling_axis, tiling.padded_shape[tiling.rolling_axis]
        done, uniform = 0, UniformTiles(self.dtype)
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            for window, logits in zip(batch, self._batch_logits(padded, batch, uniform), strict=True):
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
        """This predictor with a smaller need of memory, or None if there is none.

        That is fewer tiles at once, one pass at a time, tiles added up in main memory, the CPU instead of the device,
        and in the end a file for what is added up.
        """
        if self.tiles_at_once > 1:
            passes = self.passes_at_once if self._device_type == "cpu" else self.most_passes
            smaller = replace(self, tile_batch=self.tiles_at_once // 2, most_passes=passes)
            _log.warning("not enough memory on %s: going on with %d tiles at a time", self.device, smaller.tile_batch)
            return smaller
        if self.passes_at_once > 1:
            _log.warning("not enough memory: going on with one pass of the network at a time")
            return replace(self, most_passes=1)
        if self._device_type == "cpu":
            if self.max_slab_bytes == 0:
                return None
            _log.warning("not enough memory: adding tiles up in a file")
            return replace(self, max_slab_bytes=0)
        if torch.device(self.slab_device or self.device).type != "cpu":
            _log.warning("not enough memory on %s: adding tiles up in main memory", self.device)
            return replace(self, slab_device="cpu")
        _log.warning("not enough memory on %s: going on with the CPU", self.device)
        return replace(self, device="cpu", dtype=torch.float32, parks_networks=False)

    def with_parked_networks(self) -> Predictor | None:
        """This predictor with its networks on the device while it works only; None where that frees no memory."""
        return None if self._device_type == "cpu" or self.parks_networks else replace(self, parks_networks=True)

    def _batch_logits(self, padded: NDArray[np.float32], batch: list[Window], uniform: UniformTiles) -> list[Tensor]:
        """Logits (heads, *patch) of the tile at each window of a batch."""
        tiles = [self._cut(padded, window) for window in batch]
        known = [uniform.logits(tile) for tile in tiles]
        missing = [tile for tile, logits in zip(tiles, known, strict=True) if logits is None]
        computed = iter(self._tile_logits(np.stack(missing)) if missing else ())
        every = [next(computed) if logits is None else logits for logits in known]
        for tile, logits in zip(tiles, every, strict=True):
            uniform.keep(tile, logits)
        return every

    def _cut(self, padded: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
        """The tile (c, *patch) at a window."""
        z, y, x = (slice(o, o + p) for o, p in zip(window, self.patch_size, strict=True))
        return padded[:, z, y, x]

    def _tile_logits(self, stacked: NDArray[np.float32]) -> Tensor:
        """Mean logits (b, heads, z, y, x) of tiles (b, c, z, y, x), over mirrorings and networks."""
        tiles = torch.from_numpy(stacked).to(self.device)
        tiles = tiles.squeeze(2) if self.configuration.dimensions == 2 else tiles
        parts = torch.split(tiles, self._tiles_of_pass)
        passes = list(product(range(len(parts)), self._groups, self.networks))
        totals: dict[int, Tensor] = {}
        with torch.inference_mode():
            for first in range(0, len(passes), self.passes_at_once):
                some = passes[first : first + self.passes_at_once]
                calls = [partial(self._pass, parts[number], group, network) for number, group, network in some]
                for (number, group, _), logits in zip(some, self._side_by_side(calls), strict=True):
                    for axes, part in zip(group, torch.split(logits, len(parts[number])), strict=True):
                        own = self._mirrored_back(part, axes)
                        totals[number] = totals[number].add_(own) if number in totals else own.float()
            total = totals[0] if len(totals) == 1 else torch.cat(list(totals.values()))
            summands = len(self._mirrorings) * len(self.networks)
            total = total.div_(summands) if summands > 1 else total
        return total.unsqueeze(2) if self.configuration.dimensions == 2 else total

    def _side_by_side(self, calls: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        if len(calls) < self.passes_at_once or self.passes_at_once == 1:
            return [call() for call in calls]  # with all threads each
        return list(self._threads.map(lambda call: call(), calls))

    def _pass(self, tiles: Tensor, group: Sequence[tuple[int, ...]], network: nn.Module) -> Tensor:
        """Logits (b of the first mirroring, b of the second, ...; heads, *patch) of mirrored tiles (b, c, *patch)."""
        mirrored = torch.cat([self._mirrored(tiles, axes) for axes in group])
        is_half = self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self._device_type, self.dtype, enabled=is_half):
            logits: Tensor = network(mirrored.contiguous(memory_format=self._memory_format))
        return logits

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


class UniformTiles:
    """Logits of the last tile of one value per channel, such as the air around a body: those of the next one like it.

    Args:
        dtype: precision of the networks; values that are equal in it are equal to their first convolution.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._last: tuple[bytes, Tensor] | None = None

    def logits(self, tile: NDArray[np.float32]) -> Tensor | None:
        """The logits (heads, *patch) of a tile (c, *patch) if they are known."""
        return self._last[1] if self._last is not None and self._values(tile) == self._last[0] else None

    def keep(self, tile: NDArray[np.float32], logits: Tensor) -> None:
        """Keeps the logits of a tile if it is uniform and they are not large."""
        values = self._values(tile) if logits.nbytes <= _UNIFORM_BYTES else None
        if values is not None and (self._last is None or values != self._last[0]):
            self._last = values, logits.clone()  # without the others of its batch

    def _values(self, tile: NDArray[np.float32]) -> bytes | None:
        """The value of each channel; None if one has several."""
        for part in (tile[:, ::_SPARSE, ::_SPARSE, ::_SPARSE], tile):
            low, high = (torch.from_numpy(edge(part, axis=(1, 2, 3))).to(self._dtype) for edge in (np.min, np.max))
            if not torch.equal(low, high):
                return None
        return low.float().numpy().tobytes()


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values.sum())):
        raise NonFiniteLogits(
            "the network answered with infinite or undefined logits",
            why="weights of a diverged training, or an overflow of half precision",
            do="check the training curves, or predict on the CPU",
        )
