"""GIPL: 256 bytes of header, then the voxels; one channel, no rotation."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.images.format import Format
from autoseg.images.formats.headers import Layout, checked, verify_data
from autoseg.images.formats.itk import read_itk, write_vectors
from autoseg.images.image_errors import unreadable
from autoseg.images.volume import Volume

_HEADER_BYTES = 256
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
_VOXEL_BYTES = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_TYPES = ("uint8", "int8", "uint16", "int16", "float32", "float64")


def _verify(path: Path) -> None:
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or struct.unpack_from(">I", header, 252)[0] not in _MAGIC:
        raise unreadable(path, "is not a GIPL file, or its header is damaged")
    *dims, kind = struct.unpack_from(">5H", header)
    if kind not in _VOXEL_BYTES:
        raise unreadable(path, f"holds voxels of a kind that is not supported (GIPL image type {kind})")
    while len(dims) > 1 and dims[-1] <= 1:
        del dims[-1]
    spacing = struct.unpack_from(">3f", header, 10)[: len(dims)]
    verify_data(checked(Layout(tuple(dims), _VOXEL_BYTES[kind], spacing, _HEADER_BYTES, "raw", path), path), path)


def _limit(array: NDArray[Any], geometry: Geometry) -> str | None:
    if len(array) > 1 or geometry.direction != Geometry((1, 1, 1)).direction:
        return "several channels or rotated axes"
    return None if np.dtype(array.dtype).name in _TYPES else f"values of type {array.dtype.name}"


def _read(path: Path, four_d: bool) -> Volume:
    """The voxels; the format has no place for the axes, so their orientation is unknown."""
    volume = read_itk(path, four_d)
    return replace(volume, geometry=replace(volume.geometry, has_orientation=False))


GIPL = Format(endings=(".gipl",), verify=_verify, read=_read, write=write_vectors, limit=_limit)
