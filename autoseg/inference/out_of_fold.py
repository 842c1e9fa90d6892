"""Probabilities of validation cases, kept in 8 bits beside their label maps, so that selection needs no re-run.

A file is a zip of plain arrays (numpy's .npz): `probabilities` uint8 (rows, heads, a, b), 255 being certain, of the
crop to nonzero on the grid of the image file; `shape` of that grid; `start` of the crop in it; `order`, the file axis
(0 is z) along each of rows, a and b; and, if there is one, `flips`: 1 for each file axis that all this counts from its
end. With softmax the background head is left out: it is what the others leave over.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoseg.core.errors import IntegrityRefusal, MissingInput
from autoseg.core.files import atomic_file
from autoseg.data.model import LabelSet
from autoseg.inference.restore import TakeRow
from autoseg.preprocessing.prepare import Placement

CERTAIN = 255
"""Stored value of probability 1; the error of a stored probability is 0.002 at most."""

_COMPRESSION = 1
"""Of zlib. Level 1 takes a fifth of the time of level 6 for files a third larger (measured on a blurred box)."""


def probabilities_file(folder: Path, case: str) -> Path:
    """Name of the kept probabilities of a case in the folder of its label map."""
    return folder / f"{case}.probabilities.npz"


def kept_heads(labels: LabelSet) -> int:
    """Heads that are stored: all of regions, all but the background with softmax."""
    return labels.head_count - (not labels.has_regions)


class _TooLargeError(Exception):
    """The file exceeds what it may take."""


@contextmanager
def keeping_probabilities(
    path: Path, placement: Placement, rolling_axis: int, labels: LabelSet, allowed_bytes: int
) -> Iterator[TakeRow]:
    """A function that gets all rows in order; at the end the file is there, unless it would be too large.

    Rows are compressed as they come, and no longer taken once the file exceeds what it may take. An older file of this
    name vanishes first.

    Args:
        path: of the file, as `probabilities_file` names it.
        placement: of the case.
        rolling_axis: axis of the plan along which rows come.
        labels: classes of the plan.
        allowed_bytes: for the file; otherwise nothing is kept.
    """
    path.unlink(missing_ok=True)
    order = [rolling_axis, *(axis for axis in range(3) if axis != rolling_axis)]
    grid = {
        "shape": placement.geometry.shape,
        "start": [placement.box[placement.axis_order.index(axis)][0] for axis in range(3)],
        "order": [placement.axis_order[axis] for axis in order],
    }
    if any(placement.flips):
        grid["flips"] = [int(placement.flips[placement.axis_order.index(axis)]) for axis in range(3)]
    rows, first, second = (placement.cropped_shape[axis] for axis in order)
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, kept_heads(labels), first, second)}
    first_head = labels.head_count - kept_heads(labels)
    with suppress(_TooLargeError), atomic_file(path) as temporary:
        with (
            temporary.open("wb") as stream,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION) as archive,
        ):
            for name, numbers in grid.items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, np.array(numbers, np.int64))
            with archive.open("probabilities.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)

                def take_row(_index: int, probabilities: Tensor) -> None:
                    if stream.tell() <= allowed_bytes:
                        values = probabilities[first_head:].mul(CERTAIN).round_().byte()
                        entry.write(values.cpu().numpy().tobytes())

                yield take_row
        if temporary.stat().st_size > allowed_bytes:
            raise _TooLargeError


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
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_at(archive, kept_heads(labels), voxels)
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


def _read_at(archive: zipfile.ZipFile, heads: int, voxels: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    shape, start, order = (_small_array(archive, name) for name in ("shape", "start", "order"))
    if sorted(order) != [0, 1, 2]:
        raise ValueError(f"its axes are {order}")
    found = np.zeros((heads, len(voxels)), np.uint8)
    with archive.open("probabilities.npy") as entry:
        row_shape, lengths = _row_shape(entry, heads)
        if any(start[axis] + length > shape[axis] for axis, length in zip(order, lengths, strict=True)):
            raise ValueError("its rows do not lie inside its grid")
        # where the voxels lie in the stored crop: (row, a, b) each, sorted by the row in which they will come by
        at = _places(archive, shape, voxels)[list(order)] - np.array([[start[axis]] for axis in order])
        inside = np.flatnonzero(((at >= 0) & (at < np.array(lengths)[:, None])).all(0))
        inside = inside[np.argsort(at[0, inside], kind="stable")]
        ends = np.searchsorted(at[0, inside], np.arange(lengths[0] + 1))
        for index in range(lengths[0]):
            content = entry.read(math.prod(row_shape))
            row = np.frombuffer(content, np.uint8).reshape(row_shape)  # a row that is cut short raises ValueError
            own = inside[ends[index] : ends[index + 1]]
            found[:, own] = row[:, at[1, own], at[2, own]]
        entry.read(1)  # reaching the end checks the sum
    return found


def _places(archive: zipfile.ZipFile, shape: tuple[int, ...], voxels: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Position (3, n) of the voxels along each file axis, counted as the file does."""
    places = np.stack(np.unravel_index(voxels, shape))
    if "flips.npy" not in archive.namelist():
        return places
    is_flipped, lengths = np.array(_small_array(archive, "flips"))[:, None], np.array(shape)[:, None]
    return np.where(is_flipped, lengths - 1 - places, places)


def _row_shape(entry: IO[bytes], heads: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape (heads, a, b) of a stored row, and how many rows, a and b there are."""
    np.lib.format.read_magic(entry)
    (rows, found, *plane), _, kind = np.lib.format.read_array_header_1_0(entry)
    if found != heads or kind != np.uint8:
        raise ValueError(f"it holds {found} heads of {kind}, the plan has {heads}")
    return (found, *plane), (rows, *plane)


def _small_array(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(f"{name}.npy") as entry:
        return tuple(map(int, np.lib.format.read_array(entry, allow_pickle=False)))
