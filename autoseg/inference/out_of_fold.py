"""Probabilities of validation cases, kept in 8 bits beside their label maps, so that selection needs no re-run.

A file is a zip of plain arrays (numpy's .npz): `probabilities` uint8 (rows, heads, a, b), 255 being certain, of the
crop to nonzero on the grid of the image file; `shape` of that grid; `start` of the crop in it; `order`, the file axis
(0 is z) along each of rows, a and b. With softmax the background head is left out: it is what the others leave over.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import IntegrityRefusal, MissingInput
from autoseg.core.files import sync, temporary_beside
from autoseg.data.model import LabelSet
from autoseg.preprocessing.prepare import Placement

if TYPE_CHECKING:
    from torch import Tensor

CERTAIN = 255
"""Stored value of probability 1; the error of a stored probability is 0.002 at most."""

_COMPRESSION = 1
"""Of zlib. Level 1 takes a fifth of the time of level 6 for files a third larger (measured on a blurred box)."""

_GRID_ENTRIES = ("shape", "start", "order")


def probabilities_file(folder: Path, case: str) -> Path:
    """Name of the kept probabilities of a case in the folder of its label map."""
    return folder / f"{case}.probabilities.npz"


def kept_heads(labels: LabelSet) -> int:
    """Heads that are stored: all of regions, all but the background with softmax."""
    return labels.head_count - (not labels.has_regions)


class ProbabilityWriter:
    """Compresses rows of probabilities as they come; gives up once the file exceeds what it may take.

    Args:
        stream: of the file.
        placement: of the case.
        rolling_axis: axis of the plan along which rows come.
        labels: classes of the plan.
        allowed_bytes: for the file.
    """

    def __init__(
        self, stream: BinaryIO, placement: Placement, rolling_axis: int, labels: LabelSet, allowed_bytes: int
    ) -> None:
        self._stream = stream
        self._allowed_bytes = allowed_bytes
        self._first_head = labels.head_count - kept_heads(labels)
        self._archive = zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION)
        order = [rolling_axis, *(axis for axis in range(3) if axis != rolling_axis)]
        grid = {
            "shape": placement.geometry.shape,
            "start": [placement.box[placement.axis_order.index(axis)][0] for axis in range(3)],
            "order": [placement.axis_order[axis] for axis in order],
        }
        for name, numbers in grid.items():
            with self._archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.array(numbers, np.int64))
        rows, first, second = (placement.cropped_shape[axis] for axis in order)
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, kept_heads(labels), first, second)}
        self._entry: Any = self._archive.open("probabilities.npy", "w", force_zip64=True)
        np.lib.format.write_array_header_1_0(self._entry, header)

    @property
    def fits(self) -> bool:
        """Whether the file is within what it may take so far."""
        return self._stream.tell() <= self._allowed_bytes

    def take_row(self, _index: int, probabilities: Tensor) -> None:
        """Adds the probabilities (heads, a, b) of the next row."""
        if self.fits:
            values = probabilities[self._first_head :].mul(CERTAIN).round_().byte()
            self._entry.write(values.cpu().numpy().tobytes())

    def close(self) -> None:
        """Completes the file."""
        self._entry.close()
        self._archive.close()


@contextmanager
def keeping_probabilities(
    path: Path, placement: Placement, rolling_axis: int, labels: LabelSet, allowed_bytes: int
) -> Iterator[ProbabilityWriter]:
    """A writer whose `take_row` gets all rows; at the end the file is there, unless it would be too large.

    An older file of this name vanishes first.

    Args:
        path: of the file, as `probabilities_file` names it.
        placement: of the case.
        rolling_axis: axis of the plan along which rows come.
        labels: classes of the plan.
        allowed_bytes: for the file; otherwise nothing is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as stream:
            writer = ProbabilityWriter(stream, placement, rolling_axis, labels, allowed_bytes)
            try:
                yield writer
            finally:
                writer.close()
            fits = writer.fits
        if fits:
            sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_probabilities(path: Path, labels: LabelSet) -> NDArray[np.float32]:
    """Probabilities (heads, z, y, x) on the grid of the image file, the background head of softmax included.

    Raises:
        MissingInput: they were not kept.
        IntegrityRefusal: the file is damaged, or of other classes.
    """
    with _opened(path, labels) as stored:
        values = np.zeros((kept_heads(labels), *stored.shape), np.float32)
        in_order = values.transpose(0, *(axis + 1 for axis in stored.order))[(slice(None), *stored.inside)]
        for index, row in enumerate(stored.rows()):
            in_order[:, index] = row
    values /= CERTAIN
    if labels.has_regions:
        return values
    return np.concatenate([np.clip(1 - values.sum(0, keepdims=True), 0, 1), values])


def probabilities_at(path: Path, labels: LabelSet, voxels: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Stored values (kept heads, n) of some voxels; one row of the volume is in memory at a time.

    Args:
        path: of the file.
        labels: classes of the plan.
        voxels: flat indices (n,) into the grid of the image file.

    Raises:
        MissingInput: they were not kept.
        IntegrityRefusal: the file is damaged, or of other classes.
    """
    found = np.zeros((kept_heads(labels), len(voxels)), np.uint8)
    with _opened(path, labels) as stored:
        at = np.stack(np.unravel_index(voxels, stored.shape))[list(stored.order)]
        at -= np.array([cut.start for cut in stored.inside])[:, None]
        lengths = np.array([cut.stop - cut.start for cut in stored.inside])[:, None]
        inside = np.flatnonzero(((at >= 0) & (at < lengths)).all(0))
        inside = inside[np.argsort(at[0, inside], kind="stable")]
        ends = np.searchsorted(at[0, inside], np.arange(int(lengths[0, 0]) + 1))
        for index, row in enumerate(stored.rows()):
            own = inside[ends[index] : ends[index + 1]]
            found[:, own] = row[:, at[1, own], at[2, own]]
    return found


@dataclass(frozen=True, slots=True)
class _Stored:
    """An open file: where its rows belong, and the rows."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    inside: tuple[slice, ...]
    row_shape: tuple[int, ...]
    entry: Any

    def rows(self) -> Iterator[NDArray[np.uint8]]:
        """Rows (heads, a, b) in order."""
        size = int(np.prod(self.row_shape))
        for _ in range(self.inside[0].stop - self.inside[0].start):
            content = self.entry.read(size)
            if len(content) != size:
                raise EOFError("its rows end early")
            yield np.frombuffer(content, np.uint8).reshape(self.row_shape)
        self.entry.read(1)  # reaching the end checks the sum


@contextmanager
def _opened(path: Path, labels: LabelSet) -> Iterator[_Stored]:
    try:
        with zipfile.ZipFile(path) as archive:
            grid = {name: _small_array(archive, name) for name in _GRID_ENTRIES}
            with archive.open("probabilities.npy") as entry:
                yield _stored(entry, grid, kept_heads(labels))
    except FileNotFoundError as error:
        raise MissingInput(
            f"the probabilities of {path.name.removesuffix('.probabilities.npz')} were not kept", where=str(path.parent)
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError, IndexError) as error:
        raise IntegrityRefusal(
            "the kept probabilities are damaged",
            where=str(path),
            why=str(error),
            do="delete the file: the case then counts with its label map",
        ) from error


def _small_array(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(f"{name}.npy") as entry:
        return tuple(map(int, np.lib.format.read_array(entry, allow_pickle=False)))


def _stored(entry: Any, grid: dict[str, tuple[int, ...]], heads: int) -> _Stored:
    np.lib.format.read_magic(entry)
    (rows, found, *plane), _, kind = np.lib.format.read_array_header_1_0(entry)
    if found != heads or kind != np.uint8 or sorted(grid["order"]) != [0, 1, 2]:
        raise ValueError(f"it holds {found} heads of {kind}, the plan has {heads}")
    starts = [grid["start"][axis] for axis in grid["order"]]
    inside = tuple(slice(start, start + length) for start, length in zip(starts, (rows, *plane), strict=True))
    if any(cut.stop > grid["shape"][axis] for cut, axis in zip(inside, grid["order"], strict=True)):
        raise ValueError("its rows do not lie inside its grid")
    return _Stored(grid["shape"], grid["order"], inside, (found, *plane), entry)
