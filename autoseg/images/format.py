"""What AutoSeg has to know about a file format; `images.formats.files.FORMATS` lists one record for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.images.volume import Volume


def _itself(path: Path) -> tuple[Path, ...]:
    return (path,)


def _unlimited(_array: NDArray[Any], _geometry: Geometry) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of file, or of folder, that holds an image or a label map.

    Attributes:
        endings: of its names, in lower case, dot included.
        verify: raises `UnreadableFile` unless everything is there that the header promises. It allocates no more than
            a few megabytes, however large a damaged header claims the image to be. Called before `read`.
        read: the voxels at a path as they were decoded, axes (c, z, y, x), any numeric type; the second argument says
            whether a fourth axis without a name holds channels.
        read_values: the numbers that a label map holds, where `read` turns them into colors; None where it does not.
        write: writes voxels (c, z, y, x) on a grid to a path, and what belongs to them beside it. None: read only.
        limit: what keeps the format from holding such voxels on such a grid ("4 channels"); None if nothing does.
        files: all files that are read for the image at a path, the one at the path first. Hashes and time stamps are
            taken of these, so they must be the same at each call.
        is_folder: whether the path of an image is that of a folder.
        has_grid: whether files state the place and the direction of their voxels.
        has_colors: whether one file may hold several channels by itself.
        ending_is_compression: whether the endings differ in compression only, so that one may stand for the other.
    """

    endings: tuple[str, ...]
    verify: Callable[[Path], None]
    read: Callable[[Path, bool], Volume]
    read_verifies: bool = False
    read_values: Callable[[Path], Volume] | None = None
    write: Callable[[Path, NDArray[Any], Geometry], None] | None = None
    limit: Callable[[NDArray[Any], Geometry], str | None] = _unlimited
    files: Callable[[Path], tuple[Path, ...]] = _itself
    is_folder: bool = False
    has_grid: bool = True
    has_colors: bool = False
    ending_is_compression: bool = False
