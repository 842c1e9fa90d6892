"""GIPL: 256 bytes of header, then the voxels, all with the highest byte first; one channel, no rotation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry, geometry_of
from autoseg.images.format import Format
from autoseg.images.formats import grids, headers, voxel_data
from autoseg.images.image_errors import unreadable
from autoseg.images.volume import Volume

_HEADER = np.dtype(
    {
        "names": ["dims", "kind", "steps", "place", "magic"],
        "formats": ["4>u2", ">u2", "4>f4", "4>f8", ">u4"],
        "offsets": [0, 8, 10, 204, 252],
        "itemsize": 256,
    }
)
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
_KINDS = {1: "u1", 7: "i1", 8: "u1", 15: "i2", 16: "u2", 31: "u4", 32: "i4", 64: "f4", 65: "f8"}
_CODES = {kind: code for code, kind in _KINDS.items() if code not in (1, 31, 32)}
"""Types of a voxel by the header's image type, and those that ITK reads as well, which are written."""


def _header(path: Path) -> tuple[voxel_data.Layout, Any]:
    with path.open("rb") as stream:
        found = stream.read(_HEADER.itemsize)
    fields = np.frombuffer(found, _HEADER)[0] if len(found) == _HEADER.itemsize else None
    if fields is None or fields["magic"] not in _MAGIC:
        raise unreadable(path, "is not a GIPL file, or its header is damaged")
    if int(fields["kind"]) not in _KINDS:
        raise unreadable(path, f"holds voxels of a kind that is not supported (GIPL image type {fields['kind']})")
    x, y, z, t = fields["dims"].tolist()
    dims = [x, y, max(z, 1), max(t, 1)]  # writers of 2D images leave out the further axes
    spacing = [
        1.0 if size == 1 and step == 0 else step for size, step in zip(dims, fields["steps"].tolist(), strict=True)
    ]
    headers.check_place(tuple(fields["place"].tolist()), path)
    layout = voxel_data.Layout(
        dims=tuple(dims if dims[3] > 1 else dims[:3]),
        kind=np.dtype(f">{_KINDS[int(fields['kind'])]}"),
        spacing_mm=tuple(spacing[:3]),
        data=path,
        offset=_HEADER.itemsize,
    )
    return voxel_data.checked(layout, path), fields


def _read(path: Path, four_d: bool) -> Volume:
    """The voxels; the format has no place for the axes, so their orientation is unknown."""
    layout, fields = _header(path)
    grids.check_axes(layout.dims, four_d, 1, path)
    array, _ = grids.channels_first(voxel_data.read_data(layout, path), None, four_d, path)
    geometry = geometry_of(array.shape[1:], layout.spacing_mm, fields["place"][:3], np.eye(3))
    return Volume(array, replace(geometry, has_orientation=False))


def _limit(array: NDArray[Any], geometry: Geometry) -> str | None:
    if len(array) > 1 or geometry.direction != Geometry((1, 1, 1)).direction:
        return "several channels or rotated axes"
    if max(array.shape) > np.iinfo(np.uint16).max:
        return f"{max(array.shape)} voxels along an axis"
    return grids.unknown_type(array, _CODES)


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    header = np.ones((), _HEADER)
    header["dims"][:3], header["kind"] = geometry.shape[::-1], _CODES[array.dtype.str[1:]]
    header["steps"][:3], header["magic"] = geometry.spacing_mm[::-1], _MAGIC[0]
    header["place"] = (*geometry.origin_mm, 0.0)
    voxels = np.ascontiguousarray(array[0], array.dtype.newbyteorder(">"))
    path.write_bytes(header.tobytes() + voxels.tobytes())


GIPL = Format(
    endings=(".gipl",),
    verify=lambda path: voxel_data.verify_data(_header(path)[0], path),
    read=_read,
    read_verifies=True,
    write=_write,
    limit=_limit,
)
