"""Drawing training patches: which case, where, and cutting them out of the store.

Batch i is a function of (seed, fold, stream, i) alone: it does not matter who makes it, when, or after which restart.

Source of all rules: nnU-Net v2 training/dataloading/data_loader.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, IntegrityRefusal, MissingInput, TrainingStopped, error_for
from autoseg.preprocessing.locations import ANNOTATED
from autoseg.preprocessing.store import StoredCase

TRAINING_STREAM = 0
VALIDATION_STREAM = 1
AUGMENTATION_STREAM = 2
"""Separate the random numbers of training patches, validation patches and augmentation."""

PADDED_IMAGE = 0.0
PADDED_LABEL = -1
"""What a patch holds where it reaches beyond the case."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How batches are drawn.

    Attributes:
        cases: identifiers, in a fixed order.
        open_case: gives the stored case of an identifier.
        initial_patch: voxels cut out, one per dimension (larger than `patch`, so that a rotation stays inside).
        patch: voxels the network sees, one per dimension.
        batch_size: patches per batch.
        oversample_foreground: share of the batch, its last part, that is centered on foreground.
        seed: numbers that identify the stream: (seed, fold, stream).
        allocate: gives the memory that patches are cut into.
    """

    cases: tuple[str, ...]
    open_case: Callable[[str], StoredCase]
    initial_patch: tuple[int, ...]
    patch: tuple[int, ...]
    batch_size: int
    oversample_foreground: float
    seed: tuple[int, ...]
    allocate: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = np.empty

    def __call__(self, index: int) -> Batch:
        """Batch number `index`: cases drawn uniformly with replacement, the last patches centered on foreground.

        Raises:
            TrainingStopped: a case cannot be read; it is named.
        """
        generator = np.random.default_rng(np.random.SeedSequence([*self.seed, index]))
        chosen = tuple(self.cases[i] for i in generator.integers(len(self.cases), size=self.batch_size))
        forced_from = first_forced(self.batch_size, self.oversample_foreground)
        batch: Batch | None = None
        for position, identifier in enumerate(chosen):
            try:
                case = self.open_case(identifier)
                batch = batch or self.empty_batch(chosen, case)
                corner = draw_corner(case, self, position >= forced_from, generator)
                batch.put(position, case, corner)
            except (OSError, ValueError, KeyError, IndexError, AutoSegError) as error:
                raise _unreadable(identifier, error) from error
        assert batch is not None, "a batch has patches"
        return batch

    def empty_batch(self, cases: tuple[str, ...], case: StoredCase) -> Batch:
        """Memory for one patch of each of the cases, with the channels of one of them; it holds anything."""
        shape = (len(cases), *self.initial_patch)
        image = self.allocate((shape[0], len(case.image), *shape[1:]), np.dtype(np.float32))
        labels = self.allocate(shape, np.dtype(np.int16))
        first_stage = None if case.first_stage is None else self.allocate(shape, np.dtype(np.int16))
        return Batch(cases, image, labels, first_stage)


def _unreadable(identifier: str, error: Exception) -> AutoSegError:
    """Why a stored case cannot be read; only where the machine is not at fault, it may be damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return error_for(error)
    if isinstance(error, AutoSegError) and not isinstance(error, IntegrityRefusal | MissingInput):
        return error
    return TrainingStopped(
        f"case {identifier} cannot be read from the store: {error}",
        where=identifier,
        why="the store was changed or the disk failed",
        do="delete this case's folder in the store and run the same command again",
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches as cut from the store.

    Attributes:
        cases: case of each patch.
        image: (b, c, *patch).
        labels: (b, *patch), -1 outside the nonzero mask and outside the case.
        first_stage: (b, *patch), label map of a cascade's first stage, -1 outside the case; None without one.
    """

    cases: tuple[str, ...]
    image: NDArray[np.float32]
    labels: NDArray[np.int16]
    first_stage: NDArray[np.int16] | None = None

    def put(self, position: int, case: StoredCase, corner: tuple[int, ...]) -> None:
        """Cuts a patch out of a case, where a corner (z, y, x) says; of a 2D batch a slice."""
        flat = (1,) * (5 - self.image.ndim)
        size = (*flat, *self.labels.shape[1:])
        cut(case.image, corner, PADDED_IMAGE, self.image[position].reshape(-1, *size))
        for own, maps in ((case.labels, self.labels), (case.first_stage, self.first_stage)):
            if own is not None and maps is not None:
                cut(own[None], corner, PADDED_LABEL, maps[position].reshape(1, *size))


def first_forced(batch_size: int, oversample_foreground: float) -> int:
    """Position in the batch from which patches are centered on foreground."""
    return round(batch_size * (1.0 - oversample_foreground))


def draw_corner(
    case: StoredCase, sampling: Sampling, is_forced: bool, generator: np.random.Generator
) -> tuple[int, ...]:
    """Where a patch of `initial_patch` voxels begins, (z, y, x); in 2D in a slice of the case."""
    flat = (1,) * (3 - len(sampling.patch))
    size, final = (*flat, *sampling.initial_patch), (*flat, *sampling.patch)
    low, high = corner_range(case.image.shape[1:], size, final)
    center = draw_center(case.locations, is_forced, generator)
    if center is None:
        return tuple(int(i) for i in generator.integers(low, np.array(high) + 1))
    return tuple(max(least, c - s // 2) for least, c, s in zip(low, center, size, strict=True))


def corner_range(
    shape: Sequence[int], size: Sequence[int], final: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lowest and highest corner of a random patch along each axis, both possible.

    A patch may reach beyond the case by half of what it is larger than the final patch, and by half of what the case is
    smaller than it.
    """
    pads = [max(s - f, s - n) for n, s, f in zip(shape, size, final, strict=True)]
    low = tuple(-pad // 2 for pad in pads)
    high = tuple(n + pad // 2 + pad % 2 - s for n, s, pad in zip(shape, size, pads, strict=True))
    return low, high


def draw_center(
    locations: Mapping[int, NDArray[Any]], is_forced: bool, generator: np.random.Generator
) -> tuple[int, ...] | None:
    """The voxel (z, y, x) that a patch is centered on, or None if it may lie anywhere.

    A forced patch is centered on a stored voxel of a class chosen uniformly among those present. With an ignore label
    the other patches are centered on annotated voxels, and so are the forced ones of a case without foreground.
    """
    foreground = [label for label in sorted(locations) if label != ANNOTATED and len(locations[label])]
    present = foreground if is_forced else []
    if not present and len(locations.get(ANNOTATED, ())):
        present = [ANNOTATED]
    if not present:
        return None
    voxels = locations[present[int(generator.integers(len(present)))]]
    return tuple(int(i) for i in voxels[int(generator.integers(len(voxels)))])


def cut(array: NDArray[Any], corner: Sequence[int], fill: float, patch: NDArray[Any]) -> None:
    """Copies the box at `corner` of an array (c, z, y, x) into a patch (c, *size), filled where it reaches beyond."""
    shape, size = array.shape[1:], patch.shape[1:]
    begin = [min(max(c, 0), n) for c, n in zip(corner, shape, strict=True)]
    end = [min(max(c + s, 0), n) for c, s, n in zip(corner, size, shape, strict=True)]
    source = array[(slice(None), *(slice(b, e) for b, e in zip(begin, end, strict=True)))]
    if source.shape[1:] == size:
        patch[...] = source
        return
    patch[...] = fill
    place = tuple(slice(b - c, e - c) for b, e, c in zip(begin, end, corner, strict=True))
    patch[(slice(None), *place)] = source
