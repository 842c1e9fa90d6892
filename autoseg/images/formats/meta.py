"""MetaImage: a text header with the voxels behind it (.mha) or in a file beside it (.mhd)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import Geometry
from autoseg.images.format import Format
from autoseg.images.formats import grids, headers, voxel_data
from autoseg.images.image_errors import unreadable
from autoseg.images.volume import Volume, is_plane

_KINDS = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_ULONG": "u4",
    "MET_LONG": "i4",
    "MET_ULONG_LONG": "u8",
    "MET_LONG_LONG": "i8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""Types of an element by the header's `ElementType`, as MetaIO has them on every machine."""

_TYPES = {kind: name for name, kind in reversed(_KINDS.items())}

_ORIGINS = ("offset", "position", "origin")
_AXES = ("transformmatrix", "rotation", "orientation")
"""Fields with the place of the first voxel and with the directions of the axes, under all names that MetaIO knows."""

_END = rb"(?m)^ElementDataFile[ \t]*[=:][ \t]*([^\r\n]*?)[ \t]*\r?\n"
"""Ends with one line end: further ones are the first voxels."""

_LOCAL = "LOCAL"


@dataclass(frozen=True, slots=True)
class _Header:
    """What a header says: where the data are, whether several numbers of a voxel come first, the grid, and oddities."""

    layout: voxel_data.Layout
    has_components: bool
    geometry: Geometry
    notes: tuple[str, ...]


def _header(path: Path) -> _Header:
    """What the header says, checked.

    Raises:
        UnreadableFile: there is no such header, or what it says cannot be true.

    Source: MetaIO's documentation (itk.org/Wiki/MetaIO/Documentation), metaImage.cxx where that says nothing.
    """
    fields, end = headers.read_fields(path, "=:", _END)
    if end is None:
        raise unreadable(path, "is not a MetaImage file, or its header is cut short")
    sizes = headers.integers(fields.get("dimsize", ""), path)
    if len(sizes) != headers.integer(fields.get("ndims", str(len(sizes))), path):
        raise unreadable(path, f"has an impossible header: DimSize has {len(sizes)} numbers, NDims {fields['ndims']}")
    channels = headers.integer(fields.get("elementnumberofchannels", "1"), path)
    layout, notes = _layout(fields, end.end(), path)
    layout = replace(layout, dims=(channels, *sizes) if channels != 1 else sizes)
    if not 2 <= len(sizes) <= 4:
        raise unreadable(path, f"has {len(sizes)} axes; at most x, y, z and channels are understood")
    steps, columns, origin, more = _place(fields, len(sizes), path)
    layout = voxel_data.checked(replace(layout, spacing_mm=tuple(steps)), path)
    count = min(len(sizes), 3)
    geometry, further = grids.grid_of(sizes[:count][::-1], steps[:count], columns[:count, :count], origin[:count], path)
    unit = grids.unit_mm(fields.get("distanceunits", ""), path)
    is_stated = count == 3 and not fields.keys().isdisjoint(_AXES)
    geometry = replace(geometry, has_orientation=is_stated, unit_mm=unit)
    notes = (*notes, *more, *further, *grids.unit_notes(unit, geometry.spacing_mm))
    return _Header(layout, channels != 1, geometry, notes)


def _one_of(fields: headers.Fields, names: tuple[str, ...], path: Path) -> str:
    """The value of a field that has several names; empty where none of them is there."""
    found = {fields[name] for name in names if name in fields}
    if len(found) > 1:
        raise unreadable(path, f"states the same twice, and differently: {' and '.join(sorted(found))[:100]}")
    return found.pop() if found else ""


def _is_true(text: str) -> bool:
    return text[:1].lower() in ("t", "1", "y")


def _layout(fields: headers.Fields, end: int, path: Path) -> tuple[voxel_data.Layout, tuple[str, ...]]:
    """Where the data are and of which type, and what is odd there; `end` is the first byte behind the header."""
    kind = _KINDS.get(fields.get("elementtype", "").upper().removesuffix("_ARRAY"))
    if kind is None:
        raise unreadable(path, f"has a MetaImage type {fields.get('elementtype')!r} that is not supported")
    is_big = _is_true(_one_of(fields, ("binarydatabyteordermsb", "elementbyteordermsb"), path))
    name, encoding = fields["elementdatafile"], _encoding(fields)
    is_local = name.upper() == _LOCAL
    header_size = headers.integer(fields.get("headersize", "0"), path)  # -1: the voxels are the last bytes of the file
    allowed = (0, -1) if encoding == "raw" else (0,)
    if header_size not in allowed and (header_size < 0 or is_local):
        raise unreadable(path, f"has an impossible header: HeaderSize {header_size} of {encoding} data in {name}")
    layout = voxel_data.Layout(
        dims=(),
        kind=np.dtype((">" if is_big else "<") + kind),
        spacing_mm=(),
        data=path if is_local else headers.beside(path, name),
        offset=end if is_local else max(header_size, 0),
        encoding=encoding,
        is_at_end=header_size == -1,
    )
    return layout, _data_notes(fields, layout, path)


def _encoding(fields: headers.Fields) -> str:
    if not _is_true(fields.get("binarydata", "true")):
        return "text"
    return "zlib" if _is_true(fields.get("compresseddata", "false")) else "raw"


def _data_notes(fields: headers.Fields, layout: voxel_data.Layout, path: Path) -> tuple[str, ...]:
    notes = []
    if layout.encoding == "zlib":
        found = layout.data.stat().st_size - layout.offset
        stated = fields.get("compresseddatasize")
        if stated is None or headers.integer(stated, path) != found:
            says = "is missing" if stated is None else f"says {stated}"
            notes.append(f"its CompressedDataSize {says}, there are {found} bytes; all of them were decoded")
    slope, offset = (fields.get(f"elementtointensityfunction{name}", "") for name in ("slope", "offset"))
    if headers.numbers(slope or "1", path) != (1.0,) or headers.numbers(offset or "0", path) != (0.0,):
        notes.append("its ElementToIntensityFunction was not applied: the numbers are those stored, as ITK has them")
    return tuple(notes)


def _place(
    fields: headers.Fields, count: int, path: Path
) -> tuple[list[float], NDArray[np.float64], list[float], tuple[str, ...]]:
    """Steps, directions (columns) and origin of `count` axes in millimeters, and notes."""
    unit = grids.unit_mm(fields.get("distanceunits", ""), path)
    steps = headers.numbers(fields.get("elementspacing", fields.get("elementsize", "")), path)
    notes = () if steps else ("it states no voxel spacing; 1 mm is assumed",)
    steps = tuple(step * unit for step in steps) or (1.0,) * count
    origin = headers.numbers(_one_of(fields, _ORIGINS, path), path) or (0.0,) * count
    matrix = headers.numbers(_one_of(fields, _AXES, path), path) or tuple(np.eye(count).ravel().tolist())
    headers.check_place((*origin, *matrix), path)
    if (len(steps), len(origin), len(matrix)) != (count, count, count * count):
        raise unreadable(
            path,
            f"has an impossible header: {len(steps)} spacings, {len(origin)} numbers of the position and {len(matrix)} "
            f"of TransformMatrix for {count} axes",
        )
    columns = np.array(matrix).reshape(count, count).T
    if columns[3:, :3].any() or columns[:3, 3:].any():
        raise unreadable(path, "has an impossible header: TransformMatrix turns a fourth axis into space")
    lengths, columns, more = grids.of_unit_length(steps, columns, "TransformMatrix", path)
    return list(lengths), columns, [position * unit for position in origin], (*notes, *more)


def _read(path: Path, four_d: bool) -> Volume:
    header = _header(path)
    dims = header.layout.dims[1:] if header.has_components else header.layout.dims
    grids.check_axes(dims, four_d, header.layout.dims[0] if header.has_components else 1, path)
    stored = voxel_data.read_data(header.layout, path)
    array, _ = grids.channels_first(stored, stored.ndim - 1 if header.has_components else None, four_d, path)
    return Volume(array, header.geometry, (*header.notes, *voxel_data.notes_on_end(header.layout)))


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Several channels become numbers of one voxel."""
    is_flat, is_apart = is_plane(geometry), path.suffix.lower() == ".mhd"
    voxels = grids.interleaved(array, is_flat)
    count = 2 if is_flat else 3
    data = zlib.compress(voxels.data, voxel_data.COMPRESSION_LEVEL)
    lines = [
        "ObjectType = Image",
        f"NDims = {count}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {len(data)}",
        *_stated(geometry, count),
        f"DimSize = {' '.join(map(str, geometry.shape[::-1][:count]))}",
        f"ElementNumberOfChannels = {len(array)}",
        f"ElementType = {_TYPES[voxels.dtype.str[1:]]}",
        f"ElementDataFile = {path.stem + '.zraw' if is_apart else _LOCAL}",
    ]
    if is_apart:
        path.with_suffix(".zraw").write_bytes(data)
    path.write_bytes("\n".join([*lines, ""]).encode() + (b"" if is_apart else data))


def _stated(geometry: Geometry, count: int) -> list[str]:
    """The place of the first `count` axes, in the unit of the file that it was read from; no matrix if unknown."""
    unit = geometry.unit_mm
    matrix = geometry.columns[:count, :count].T.ravel().tolist()
    steps = [step / unit for step in geometry.spacing_mm[::-1][:count]]
    return [
        *([f"TransformMatrix = {grids.text(matrix)}"] if geometry.has_orientation or count == 2 else []),
        f"Offset = {grids.text([position / unit for position in geometry.origin_mm[:count]])}",
        *([f"DistanceUnits = {grids.unit_name(unit)}"] if unit != 1 else []),
        f"ElementSpacing = {grids.text(steps)}",
    ]


META = Format(
    endings=(".mha", ".mhd"),
    verify=lambda path: voxel_data.verify_data(_header(path).layout, path),
    read=_read,
    read_verifies=True,
    write=_write,
    limit=lambda array, _geometry: grids.unknown_type(array, _TYPES),
    files=voxel_data.header_and_data(lambda path: _header(path).layout),
)
