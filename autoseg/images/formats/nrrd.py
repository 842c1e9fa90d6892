"""NRRD: a text header, and voxels behind it or in a file beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from autoseg.images.format import Format
from autoseg.images.formats import headers
from autoseg.images.formats.itk import read_itk, write_vectors
from autoseg.images.image_errors import unreadable
from autoseg.images.volume import Volume

_VOXEL_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", **dict.fromkeys(("txt", "text", "ascii"), "text")}

_ANATOMICAL = (
    *("right-anterior-superior", "ras", "right-anterior-superior-time", "rast"),
    *("left-anterior-superior", "las", "left-anterior-superior-time", "last"),
    *("left-posterior-superior", "lps", "left-posterior-superior-time", "lpst"),
)
"""The spaces whose axes are those of a body; others (scanner-xyz, 3D-right-handed) say nothing about left and right."""


def _layout(path: Path) -> headers.Layout:
    """The layout that the header promises.

    Raises:
        UnreadableFile: there is no such header, or what it says cannot be true.

    Source: the NRRD format definition (teem.sourceforge.net/nrrd/format.html).
    """
    with path.open("rb") as stream:
        if stream.read(7) != b"NRRD000":
            raise unreadable(path, "is not an NRRD file, or its header is damaged")
    fields, end = headers.read_fields(path, ":", rb"\r?\n\r?\n")
    voxel_bytes = _VOXEL_BYTES.get(fields.get("type", "").lower())
    encoding = _ENCODINGS.get(fields.get("encoding", "raw").lower())
    if voxel_bytes is None or encoding is None:
        raise unreadable(
            path,
            f"has an NRRD type {fields.get('type')!r} or encoding {fields.get('encoding')!r} that is not supported",
            do="save it with a numeric type and raw or gzip encoding",
        )
    skip = headers.integer(fields.get("byte skip", "0"), path)  # -1: the voxels are the last bytes of the file
    name = fields.get("data file", fields.get("datafile"))
    if name is None and end is None:
        raise unreadable(path, "is cut short: its header does not end")
    offset = (end.end() if end and name is None else 0) + max(skip, 0)
    dims = headers.integers(fields.get("sizes", ""), path)
    data = headers.beside(path, name) if name else path
    headers.check_place(headers.numbers(fields.get("space origin", "").strip("()"), path), path)
    layout = headers.Layout(dims, voxel_bytes, _spacing(fields, path), offset, encoding, data, is_at_end=skip == -1)
    return headers.checked(layout, path)


def _spacing(fields: dict[str, str], path: Path) -> tuple[float, ...]:
    """Lengths of the axes that have one; axes of channels say `none` or `nan` instead."""
    if "space directions" in fields:
        vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
        return tuple(sum(part**2 for part in headers.numbers(vector, path)) ** 0.5 for vector in vectors)
    steps = headers.numbers(fields.get("spacings", ""), path)
    kinds = [*fields.get("kinds", "").split(), *["domain"] * len(steps)]
    return tuple(step for step, kind in zip(steps, kinds, strict=False) if kind in ("domain", "space", "???"))


def _read(path: Path, four_d: bool) -> Volume:
    """The voxels; a file states its orientation if its `space` is one of the body's and says how the axes lie in it."""
    volume = read_itk(path, four_d)
    fields, _ = headers.read_fields(path, ":", rb"\r?\n\r?\n")
    is_stated = fields.get("space", "").lower() in _ANATOMICAL and "space directions" in fields
    return replace(volume, geometry=replace(volume.geometry, has_orientation=is_stated))


NRRD = Format(
    endings=(".nrrd",),
    verify=lambda path: headers.verify_data(_layout(path), path),
    read=_read,
    write=write_vectors,
    files=headers.header_and_data(_layout),
)
