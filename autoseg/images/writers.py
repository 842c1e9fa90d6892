"""Writing label maps and images so that they open in their format's own programs, on the grid they were read from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import GeometryMismatch, NotEnoughResources, UnreadableFile, UsageError
from autoseg.core.files import atomic_file, sync, temporary_beside
from autoseg.core.geometry import Geometry
from autoseg.images.formats.files import RASTER_ENDINGS, SUPPORTED_ENDINGS, TIFF_ENDINGS, file_ending, stem, verify_file
from autoseg.images.formats.itk import write_itk
from autoseg.images.formats.raster import write_raster
from autoseg.images.formats.tiff import write_side_car, write_tiff
from autoseg.images.image_errors import first_line, place
from autoseg.images.volume import Volume

_IDENTITY = Geometry(shape=(1, 1, 1)).direction


def write_labels(path: Path, labels: NDArray[np.integer[Any]], geometry: Geometry) -> None:
    """Writes a label map; readers see the whole file or none.

    The format follows the ending. Values are stored as uint8, uint16 or int32, the first that holds them. A grid marked
    as 2D gives a 2D file. A TIFF stack gets its spacing twice: in ImageJ's tags, for ImageJ and Fiji, and in nnU-Net's
    side-car `<case>.json`, because the tags hold fractions of 32-bit numbers and the side-car is exact.

    Args:
        path: file to write; its folder is made if needed.
        labels: integers (z, y, x).
        geometry: their grid.

    Raises:
        UsageError: the format cannot hold these values or this grid.
        NotEnoughResources: the disk is full or the folder not writable; nothing is left behind.
        GeometryMismatch: `labels` has another shape than the grid.
    """
    if labels.dtype.kind not in "biu":
        raise UsageError(f"labels are {labels.dtype.name}, not integers", where=place(path))
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    kind = np.uint8 if low >= 0 and high <= 255 else np.uint16 if low >= 0 and high <= 65535 else np.int32
    _write(path, labels.astype(kind, copy=False)[None], geometry)


def write_image(path: Path, volume: Volume) -> None:
    """Writes an image with all its channels; readers see the whole file or none.

    Several channels become a fourth axis in NIfTI, vector voxels in NRRD and MetaImage, RGB(A) or channel pages in
    TIFF, and RGB(A) in PNG and BMP. Pictures hold whole numbers only (PNG up to 65535, BMP up to 255).

    Raises:
        UsageError: the format cannot hold these intensities, channels or this grid.
        GeometryMismatch: the array has another shape than the grid.
    """
    _write(path, volume.array, volume.geometry)


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Writes (c, z, y, x) voxels in the format of the path's ending."""
    ending = file_ending(path)
    if array.shape[1:] != geometry.shape:
        raise GeometryMismatch(f"array of {array.shape[1:]} voxels for a grid of {geometry.shape}", where=place(path))
    if ending is None:
        raise UsageError(
            f"cannot write {path.name}: its ending names no supported format",
            do=f"choose one of {', '.join(SUPPORTED_ENDINGS)}",
        )
    if ending in RASTER_ENDINGS:
        picture = _picture(array, ending, path)
        with _complete_file(path) as temporary:
            write_raster(temporary, picture)
    elif ending in TIFF_ENDINGS:
        _write_tiff(path, array, geometry)
    elif ending == ".mhd":
        _write_header_and_data(path, array, geometry)
    else:
        if ending == ".gipl":
            _refuse_for_gipl(path, array, geometry)
        with _complete_file(path) as temporary:
            write_itk(temporary, array, geometry)


@contextmanager
def _complete_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; what lies there is verified, because a full disk goes unnoticed by some writers."""
    with atomic_file(path) as temporary, _fullness_noticed(path):
        yield temporary
        verify_file(temporary)


@contextmanager
def _fullness_noticed(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, UnreadableFile) as error:
        raise NotEnoughResources(
            f"{path.name} could not be written completely",
            where=place(path),
            why=first_line(error),
            do="free disk space, check the rights of the folder, and run the same command again",
        ) from error


def _refuse_for_gipl(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    if geometry.direction != _IDENTITY or len(array) > 1:
        raise _cannot_hold(path, "several channels or rotated axes")
    if array.dtype not in (np.uint8, np.int8, np.uint16, np.int16, np.float32, np.float64):
        raise _cannot_hold(path, f"values of type {array.dtype.name}")


def _cannot_hold(path: Path, what: str) -> UsageError:
    return UsageError(f"{path.name}: this format cannot hold {what}", where=place(path), do="write .nii.gz or .nrrd")


def _picture(array: NDArray[Any], ending: str, path: Path) -> NDArray[Any]:
    """The (y, x) or (y, x, c) pixels of one slice, as uint8 or uint16."""
    count, depth = array.shape[:2]
    if depth != 1:
        raise _cannot_hold(path, f"{depth} slices")
    if count not in ((1, 3, 4) if ending == ".png" else (1, 3)):
        raise _cannot_hold(path, f"{count} channels")
    pixels = array[0, 0] if count == 1 else np.moveaxis(array[:, 0], 0, -1)
    if not (np.isfinite(pixels).all() and (np.rint(pixels) == pixels).all() and pixels.min() >= 0):
        raise _cannot_hold(path, "negative or fractional intensities")
    if pixels.max() <= 255:
        return pixels.astype(np.uint8)
    if pixels.max() <= 65535 and ending == ".png" and count == 1:
        return pixels.astype(np.uint16)
    raise _cannot_hold(path, f"intensities up to {pixels.max()} in {count} channels")


def _write_tiff(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    if geometry.shape[0] == 1:
        with _complete_file(path) as temporary:
            write_tiff(temporary, array, None)
        return
    with _complete_file(path) as temporary:
        write_tiff(temporary, array, geometry.spacing_mm)
        write_side_car(path, geometry.spacing_mm)


def _write_header_and_data(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Writes .mhd and .zraw under their final names in a folder of their own, then moves the data before the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_beside(path)
    folder.mkdir()
    try:
        with _fullness_noticed(path):
            write_itk(folder / path.name, array, geometry)
            verify_file(folder / path.name)
        data = f"{stem(path)}.zraw"
        for name in (data, path.name):
            sync(folder / name)
            (folder / name).replace(path.with_name(name))
        sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
