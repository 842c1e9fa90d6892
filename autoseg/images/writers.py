"""Writing label maps and images so that they open in their format's own programs, on the grid they were read from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import GeometryMismatch, NotEnoughResources, UnreadableFile, UsageError
from autoseg.core.files import swap_in, sync, temporary_beside
from autoseg.core.geometry import Geometry
from autoseg.images.formats.files import WRITTEN_ENDINGS, find_format, verify_file
from autoseg.images.image_errors import first_line, place
from autoseg.images.volume import Volume

Write = Callable[[Path, NDArray[Any], Geometry], None]
"""A `Format.write`."""


OnReplace = Callable[[Mapping[Path, Path]], None]
"""Called with the place of every file that is about to be put there, and the finished file; may raise to prevent it."""


def write_labels(
    path: Path, labels: NDArray[np.integer[Any]], geometry: Geometry, on_replace: OnReplace | None = None
) -> None:
    """Writes a label map; readers see the whole file or none.

    The format follows the ending. Values are stored as uint8, uint16 or int32, the first that holds them. A grid marked
    as 2D gives a 2D file. Beside a TIFF stack, `<case>.json` holds its spacing.

    Args:
        path: file to write; its folder is made if needed.
        labels: integers (z, y, x).
        geometry: their grid.
        on_replace: called before anything is put into its place.

    Raises:
        UsageError: the format cannot hold these values or this grid.
        NotEnoughResources: the disk is full or the folder not writable; nothing is left behind.
        GeometryMismatch: `labels` has another shape than the grid.
    """
    if labels.dtype.kind not in "biu":
        raise UsageError(f"labels are {labels.dtype.name}, not integers", where=place(path))
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    kind = np.uint8 if low >= 0 and high <= 255 else np.uint16 if low >= 0 and high <= 65535 else np.int32
    _write(path, labels.astype(kind, copy=False)[None], geometry, on_replace)


def write_image(path: Path, volume: Volume) -> None:
    """Writes an image with all its channels; readers see the whole file or none.

    Several channels become a fourth axis in NIfTI, vector voxels in NRRD and MetaImage, RGB(A) or channel pages in
    TIFF, and RGB(A) in PNG and BMP. Pictures hold whole numbers only (PNG up to 65535, BMP up to 255).

    Raises:
        UsageError: the format cannot hold these intensities, channels or this grid.
        GeometryMismatch: the array has another shape than the grid.
    """
    _write(path, volume.array, volume.geometry)


def _write(path: Path, array: NDArray[Any], geometry: Geometry, on_replace: OnReplace | None = None) -> None:
    """Writes (c, z, y, x) voxels in the format of the path's ending."""
    if array.shape[1:] != geometry.shape:
        raise GeometryMismatch(f"array of {array.shape[1:]} voxels for a grid of {geometry.shape}", where=place(path))
    found = find_format(path)
    if found is None or found.write is None:
        raise UsageError(
            f"cannot write {path.name}: its ending names no format that can be written",
            do=f"choose one of {', '.join(WRITTEN_ENDINGS)}",
        )
    if (limit := found.limit(array, geometry)) is not None:
        raise UsageError(
            f"{path.name}: this format cannot hold {limit}", where=place(path), do="write .nii.gz or .nrrd"
        )
    try:
        _write_whole(path, found.write, array, geometry, on_replace)
    except (OSError, RuntimeError, UnreadableFile) as error:
        raise NotEnoughResources(
            f"{path.name} could not be written completely",
            where=place(path),
            why=first_line(error),
            do="free disk space, check the rights of the folder, and run the same command again",
        ) from error


def _write_whole(
    path: Path, write: Write, array: NDArray[Any], geometry: Geometry, on_replace: OnReplace | None
) -> None:
    """Writes into a folder of its own, verifies what is there, and moves it to its place.

    Files beside the image (the spacing of a TIFF, the voxels of a .mhd header) are moved first, so that the image is
    never there without them. They are written under their final names, because headers name them. What was written is
    verified, because some writers do not notice that the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_beside(path)
    folder.mkdir()
    try:
        written = folder / path.name
        write(written, array, geometry)
        verify_file(written)
        for file in folder.rglob("*"):
            sync(file)
        entries = sorted(folder.iterdir(), key=lambda entry: entry == written)
        if on_replace is not None:
            on_replace({path.with_name(entry.name): entry for entry in entries})
        for entry in entries:
            swap_in(entry, path.with_name(entry.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
