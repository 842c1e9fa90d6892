"""NRRD: a text header, and voxels behind it or in a file beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
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
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), "i8"),
    **dict.fromkeys(("int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
"""Types of an entry by the header's `type`."""

_TYPES = {kind: name for name, kind in reversed(_KINDS.items())}

_ENCODINGS = {
    "raw": "raw",
    "hex": "hex",
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
    **dict.fromkeys(("txt", "text", "ascii"), "text"),
}

_MOST_AXES = 16
"""NRRD_DIM_MAX of teem, the format's own library."""

_ENDIANS = {"little": "<", "big": ">"}

_DOMAINS = ("domain", "space", "time", "???", "none", "")
"""Kinds of axes along which samples lie; along others lie the numbers of one sample."""

_CHANNELS = (
    *("scalar", "stub", "list", "vector", "2-vector", "3-vector", "4-vector", "point", "covariant-vector", "normal"),
    *("3-gradient", "3-normal", "rgb-color", "rgba-color", "3-color", "4-color"),
)
"""Kinds of axes whose numbers can be channels; those of others are parts of matrices, complex numbers, quaternions."""

_TO_LPS = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1.0, -1.0, 1.0)),
}
"""Factors to LPS of the spaces whose axes are those of a body. Others say nothing about left and right."""

_Vectors = list[tuple[float, ...] | None]

_OTHER_SPACES = ("scanner-xyz", "3d-right-handed", "3d-left-handed")


@dataclass(frozen=True, slots=True)
class _Header:
    """What a header says; axes are numbered as there, the fastest first.

    Attributes:
        layout: where the data are.
        order: axes of one sample's numbers (0 or 1), without a place in space (0 or 1), and in space, slowest first.
        has_components: whether the first of these is that of one sample's numbers.
        in_space: how many of them are in space: 2 of a picture, 3 of a volume.
        geometry: grid of the axes in space.
        notes: oddities of it.
    """

    layout: voxel_data.Layout
    order: tuple[int, ...]
    has_components: bool
    in_space: int
    geometry: Geometry
    notes: tuple[str, ...]


def _header(path: Path) -> _Header:
    """What the header says, checked.

    Raises:
        UnreadableFile: there is no such header, or what it says cannot be true.

    Source: the NRRD format definition (teem.sourceforge.net/nrrd/format.html).
    """
    with path.open("rb") as stream:
        if stream.read(7) != b"NRRD000":
            raise unreadable(path, "is not an NRRD file, or its header is damaged")
    fields, end = headers.read_fields(path, ":", rb"\r?\n\r?\n")
    if end is None and "datafile" not in fields:
        raise unreadable(path, "is cut short: its header does not end")
    layout = _layout(fields, end.end() if end else 0, path)
    vectors = _vectors(fields, len(layout.dims), path)
    components, others, spatial = _roles(fields, vectors, len(layout.dims), path)
    shape = tuple(layout.dims[axis] for axis in spatial[::-1])
    place = _placed(fields, vectors, spatial, path) if vectors else _spaced(fields, len(layout.dims), spatial, path)
    layout = voxel_data.checked(replace(layout, spacing_mm=tuple(place.steps)), path)
    geometry, notes = grids.grid_of(shape, place.steps, place.columns, place.origin, path)
    geometry = replace(geometry, has_orientation=place.is_anatomical, unit_mm=place.unit_mm)
    notes = (*place.notes, *notes, *grids.unit_notes(place.unit_mm, geometry.spacing_mm))
    order = (*components, *others, *spatial[::-1])
    return _Header(layout, order, bool(components), len(spatial), geometry, notes)


def _layout(fields: headers.Fields, end: int, path: Path) -> voxel_data.Layout:
    """Where the data are, and of which type; `end` is the first byte behind the header."""
    kind, encoding = _stored_as(fields, path)
    dims = headers.integers(fields.get("sizes", ""), path)
    if len(dims) != headers.integer(fields.get("dimension", str(len(dims))), path):
        raise unreadable(path, f"has an impossible header: {len(dims)} sizes of {fields['dimension']} dimensions")
    if len(dims) > _MOST_AXES:
        raise unreadable(path, f"has an impossible header: {len(dims)} dimensions, at most {_MOST_AXES} are allowed")
    lines = headers.integer(fields.get("lineskip", "0"), path)
    skip = headers.integer(fields.get("byteskip", "0"), path)  # -1: the voxels are the last bytes of the file
    if lines < 0 or skip < (-1 if encoding == "raw" else 0):
        raise unreadable(path, f"has an impossible header: line skip {lines}, byte skip {skip} of {encoding} data")
    name = fields.get("datafile")
    return voxel_data.Layout(
        dims=dims,
        kind=kind,
        spacing_mm=(),
        data=headers.beside(path, name) if name else path,
        offset=0 if name else end,
        lines=lines,
        encoding=encoding,
        skip=max(skip, 0),
        is_at_end=skip == -1,
    )


def _stored_as(fields: headers.Fields, path: Path) -> tuple[np.dtype[Any], str]:
    """Type of an entry with its byte order, and how the data are encoded."""
    encoding = _ENCODINGS.get(fields.get("encoding", "raw").lower())
    kind = _KINDS.get(fields.get("type", "").lower())
    if kind is None or encoding is None:
        raise unreadable(
            path,
            f"has an NRRD type {fields.get('type')!r} or encoding {fields.get('encoding')!r} that is not supported",
            do="save it with a numeric type and raw or gzip encoding",
        )
    endian = _ENDIANS.get(fields.get("endian", "").lower(), "=")
    if endian == "=" and encoding != "text" and np.dtype(kind).itemsize > 1:
        raise unreadable(path, f"does not say its byte order: endian is {fields.get('endian')!r}, not little or big")
    return np.dtype(endian + kind), encoding


def _vectors(fields: headers.Fields, count: int, path: Path) -> _Vectors:
    """The vector of each axis in space, None for axes without one; empty where the header has none."""
    if "spacedirections" not in fields:
        return []
    found = re.findall(r"none|\([^)]*\)", fields["spacedirections"].lower())
    numbers = [headers.numbers(text.strip("()").replace("none", "nan"), path) for text in found]
    vectors = [None if np.isnan(vector).all() else vector for vector in numbers]
    if len(vectors) != count or len({len(vector) for vector in vectors if vector is not None}) != 1:
        raise unreadable(path, f"has an impossible header: space directions {fields['spacedirections'][:60]!r}")
    return vectors


def _roles(
    fields: headers.Fields, vectors: _Vectors, count: int, path: Path
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Axes of one sample's numbers (at most 1), axes without a place in space, and the two or three that have one."""
    kinds = fields.get("kinds", "").lower().split() or ["???"] * count
    if len(kinds) != count:
        raise unreadable(path, f"has an impossible header: {len(kinds)} kinds of {count} axes")
    components = tuple(axis for axis, kind in enumerate(kinds) if kind not in _DOMAINS)
    spatial = _in_space(kinds, vectors)
    several = [kinds[axis] for axis in components]
    if len(several) > 1 or not set(several).issubset(_CHANNELS):
        do = "export it as one channel per number"
        raise unreadable(path, f"holds a {' and '.join(several)} in every voxel, not intensities", do=do)
    if not set(spatial).isdisjoint(components):
        raise unreadable(path, "has an impossible header: an axis of channels with a direction in space")
    if len(spatial) not in (2, 3):
        do = "export it as a volume of 3 axes"
        raise unreadable(path, f"has {len(spatial)} axes in space; 2 or 3 are understood", do=do)
    others = set(range(count)).difference(components, spatial)
    return components, tuple(sorted(others)), spatial


def _in_space(kinds: list[str], vectors: _Vectors) -> tuple[int, ...]:
    """The axes that have a vector; where the header has none, the first three along which samples lie."""
    if vectors:
        return tuple(axis for axis, vector in enumerate(vectors) if vector is not None)
    return tuple(axis for axis, kind in enumerate(kinds) if kind in _DOMAINS and kind != "time")[:3]


@dataclass(frozen=True, slots=True)
class _Place:
    """Steps, unit vectors (columns) and origin of the axes in space, in LPS and millimeters."""

    steps: Sequence[float]
    columns: NDArray[np.float64]
    origin: Sequence[float]
    unit_mm: float
    is_anatomical: bool = False
    notes: tuple[str, ...] = ()


def _placed(fields: headers.Fields, vectors: _Vectors, spatial: tuple[int, ...], path: Path) -> _Place:
    """The place that `space directions` and `space origin` state in the units of the space."""
    axes = np.array([vectors[axis] for axis in spatial], np.float64).T
    origin = headers.numbers(fields.get("spaceorigin", "").strip("()"), path) or (0.0,) * len(axes)
    headers.check_place((*axes.ravel().tolist(), *origin), path)
    space = fields.get("space", "").lower()
    is_known = space in _TO_LPS or space in _OTHER_SPACES
    dimension = 3 if is_known else headers.integer(fields.get("spacedimension", "0"), path)
    if (space and not is_known) or not len(axes) == len(origin) == dimension == len(spatial):
        raise unreadable(
            path,
            f"has {len(spatial)} axes in a space of {dimension} dimensions ({space or 'without a name'}), with "
            f"directions of {len(axes)} and an origin of {len(origin)} numbers; that is not supported",
            do="export it as a 3D volume in left-posterior-superior",
        )
    units = _units(fields.get("spaceunits", ""), len(axes), path)
    axes *= np.array(_TO_LPS.get(space, (1.0,) * len(axes)))[:, None] * np.array(units)[:, None]
    steps = np.linalg.norm(axes, axis=0)
    return _Place(
        steps=steps.tolist(),
        columns=axes / np.where(steps == 0, 1.0, steps),
        origin=(np.array(origin) * units * _TO_LPS.get(space, (1.0,) * len(axes))).tolist(),
        unit_mm=units[0] if len(set(units)) == 1 else 1.0,
        is_anatomical=space in _TO_LPS,
        notes=tuple(_notes_on_spacings(fields)),
    )


def _spaced(fields: headers.Fields, count: int, spatial: tuple[int, ...], path: Path) -> _Place:
    """The spacings that `spacings` states along each axis in its unit; 1 mm, with a note, where it states none."""
    texts = fields.get("spacings", "").split() or ["nan"] * count
    units = _units(fields.get("units", ""), count, path)
    if len(texts) != count:
        raise unreadable(path, f"has an impossible header: {len(texts)} spacings of {count} axes")
    steps = np.array([headers.numbers(texts[axis], path) for axis in spatial]).ravel() * [units[a] for a in spatial]
    is_stated = "spacings" in fields
    return _Place(
        steps=steps.tolist() if is_stated else [1.0] * len(spatial),
        columns=np.eye(len(spatial)),
        origin=[0.0] * len(spatial),
        unit_mm=units[spatial[0]] if len({units[axis] for axis in spatial}) == 1 else 1.0,
        notes=tuple(_notes_on_spacings(fields)),
    )


def _notes_on_spacings(fields: headers.Fields) -> Iterator[str]:
    if "spacings" in fields and "spacedirections" in fields:
        yield "its spacings were not used: its space directions state them, too"
    elif "spacings" not in fields and "spacedirections" not in fields:
        yield "it states no voxel spacing; 1 mm is assumed"
    if "spaceunits" in fields and "spacedirections" not in fields:
        yield "its space units were not used, as it states no space directions: lengths without units count as mm"
    if not fields.keys().isdisjoint(("axismins", "axismaxs")):
        yield "its axis mins and axis maxs were not used: its first voxel is taken to lie at 0"


def _units(text: str, count: int, path: Path) -> tuple[float, ...]:
    """Millimeters per unit of each axis, of texts in quotes."""
    names = re.findall(r'"([^"]*)"', text) or text.split() or [""] * count
    if len(names) != count:
        raise unreadable(path, f"has an impossible header: {len(names)} units of {count} axes")
    return tuple(grids.unit_mm(name, path) for name in names)


def _read(path: Path, four_d: bool) -> Volume:
    header = _header(path)
    sizes = [header.layout.dims[axis] for axis in header.order]
    if header.in_space == 2 and math.prod(sizes[header.has_components : -2]) > 1:
        sizes.insert(-2, 1)  # pictures along a further axis, which is none in space and must not be taken for z
    components = sizes[0] if header.has_components else 1
    grids.check_axes(sizes[: -len(sizes) - 1 + header.has_components : -1], four_d, components, path)
    stored = voxel_data.read_data(header.layout, path)
    last = stored.ndim - 1
    array = stored.transpose([last - axis for axis in header.order]).reshape(sizes)
    array, _ = grids.channels_first(array, 0 if header.has_components else None, four_d, path)
    notes = (*header.notes, *voxel_data.notes_on_end(header.layout))
    return Volume(array, header.geometry, notes, _segment_names(path))


def _segment_names(path: Path) -> dict[int, str]:
    """The names that 3D Slicer's segmentations give to their values."""
    with path.open("rb") as stream:
        header = re.split(rb"\r?\n\r?\n", stream.read(headers.LONGEST_HEADER), maxsplit=1)[0].decode(errors="replace")
    found: dict[str, dict[str, str]] = {}
    for number, field, text in re.findall(r"(?m)^Segment(\d+)_(Name|LabelValue):=([^\r\n]*)", header):
        found.setdefault(number, {})[field] = text.strip()
    pairs = ((segment.get("LabelValue", ""), segment.get("Name", "")) for segment in found.values())
    return {int(value): name for value, name in pairs if name and re.fullmatch(r"[0-9]{1,9}", value)}


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Several channels become the first axis."""
    is_flat = is_plane(geometry)
    voxels = grids.interleaved(array, is_flat)
    channels = ["vector"] if len(array) > 1 else []
    lines = [
        "NRRD0004",
        f"type: {_TYPES[voxels.dtype.str[1:]]}",
        f"dimension: {voxels.ndim}",
        f"sizes: {' '.join(map(str, voxels.shape[::-1]))}",
        *_stated(geometry, 2 if is_flat else 3, len(channels)),
        f"kinds: {' '.join([*channels, *['domain'] * (2 if is_flat else 3)])}",
        "endian: little",
        "encoding: gzip",
    ]
    with path.open("wb") as stream:
        stream.write("\n".join([*lines, "", ""]).encode())
        voxel_data.write_gzip(stream, voxels)


def _stated(geometry: Geometry, count: int, channels: int) -> list[str]:
    """The place of the first `count` axes, in the unit of the file that it was read from.

    Spacings only where nothing else is stated; directions in a space without a name where the orientation is unknown;
    a 2D image lies in a plane of its own.
    """
    steps = [step / geometry.unit_mm for step in geometry.spacing_mm[::-1][:count]]
    origin = [position / geometry.unit_mm for position in geometry.origin_mm[:count]]
    unit = [f'"{grids.unit_name(geometry.unit_mm)}"'] * count
    is_named = geometry.has_orientation and count == 3
    has_steps_alone = not geometry.has_orientation and geometry == Geometry(geometry.shape, geometry.spacing_mm)
    if has_steps_alone and count == 3:
        units = " ".join(['""'] * channels + unit)
        return [f"spacings: {'nan ' * channels}{grids.text(steps)}", f"units: {units}"][: 1 + (geometry.unit_mm != 1)]
    rows = (geometry.columns[:count, :count] * steps).T.tolist()
    vectors = [f"({grids.text(row, ',')})" for row in rows]
    return [
        "space: left-posterior-superior" if is_named else f"space dimension: {count}",
        f"space directions: {'none ' * channels}{' '.join(vectors)}",
        f"space origin: ({grids.text(origin, ',')})",
        *([f"space units: {' '.join(unit)}"] if geometry.unit_mm != 1 else []),
    ]


NRRD = Format(
    endings=(".nrrd",),
    verify=lambda path: voxel_data.verify_data(_header(path).layout, path),
    read=_read,
    read_verifies=True,
    write=_write,
    limit=lambda array, _geometry: grids.unknown_type(array, _TYPES),
    files=voxel_data.header_and_data(lambda path: _header(path).layout),
)
