"""Headers written as text: NRRD and MetaImage (.mha, .mhd)."""

from __future__ import annotations

import re
from pathlib import Path

from autoseg.images.formats.headers import TEXT_HEADER_BYTES, Layout, beside, checked, refuse_unknown_place
from autoseg.images.image_errors import refused

_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_NRRD_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", **dict.fromkeys(("txt", "text", "ascii"), "text")}

_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}

_META_PLACES = ("offset", "position", "origin", "transformmatrix", "rotation", "orientation")


def parse_nrrd(path: Path) -> Layout:
    """The layout that the text header of an NRRD file promises.

    Raises:
        UnreadableFile: there is no such header, or what it says cannot be true.

    Source: the NRRD format definition (teem.sourceforge.net/nrrd/format.html).
    """
    start = _start_of(path)
    if not start.startswith(b"NRRD000"):
        raise refused(path, "is not an NRRD file, or its header is damaged")
    end = re.search(rb"\r?\n\r?\n", start)
    fields = _fields(start[: end.start()] if end else start, ":")
    voxel_bytes = _NRRD_BYTES.get(fields.get("type", "").lower())
    encoding = _NRRD_ENCODINGS.get(fields.get("encoding", "raw").lower())
    if voxel_bytes is None or encoding is None:
        raise refused(
            path,
            f"has an NRRD type {fields.get('type')!r} or encoding {fields.get('encoding')!r} that is not supported",
            do="save it with a numeric type and raw or gzip encoding",
        )
    (skip,) = _integers(fields.get("byte skip", "0"), path, count=1)
    name = fields.get("data file", fields.get("datafile"))
    if name is None and end is None:
        raise refused(path, "is cut short: its header does not end")
    offset = (end.end() if end and name is None else 0) + max(skip, 0)
    dims = _integers(fields.get("sizes", ""), path)
    data = beside(path, name) if name else path
    spacing = _nrrd_spacing(fields, path)
    refuse_unknown_place(_numbers(fields.get("space origin", "").strip("()"), path), path)
    return checked(Layout(dims, voxel_bytes, spacing, offset, encoding, data, is_at_end=skip == -1), path)


def _nrrd_spacing(fields: dict[str, str], path: Path) -> tuple[float, ...]:
    """Lengths of the axes that have one; axes of channels say `none` or `nan` instead."""
    if "space directions" in fields:
        vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
        return tuple(sum(part**2 for part in _numbers(vector, path)) ** 0.5 for vector in vectors)
    kinds = fields.get("kinds", "").split()
    steps = _numbers(fields["spacings"], path) if "spacings" in fields else ()
    spatial = [kinds[axis] in ("domain", "space", "???") if axis < len(kinds) else True for axis in range(len(steps))]
    return tuple(step for step, is_spatial in zip(steps, spatial, strict=True) if is_spatial)


def parse_meta(path: Path) -> Layout:
    """The layout that the text header of a MetaImage (.mha, .mhd) promises.

    Raises:
        UnreadableFile: there is no such header, or what it says cannot be true.
    """
    start = _start_of(path)
    end = re.search(rb"(?m)^ElementDataFile\s*=\s*([^\r\n]*?)\s*\r?\n", start + b"\n")
    if end is None:
        raise refused(path, "is not a MetaImage file, or its header is cut short")
    fields = _fields(start[: end.end()], "=")
    voxel_bytes = _META_BYTES.get(fields.get("elementtype", "").removesuffix("_ARRAY"))
    if voxel_bytes is None:
        raise refused(path, f"has a MetaImage type {fields.get('elementtype')!r} that is not supported")
    name = fields["elementdatafile"]
    is_local = name.upper() == "LOCAL"
    (header_size,) = _integers(fields.get("headersize", "0"), path, count=1)
    offset = header_size or (end.end() if is_local else 0)
    encoding = "zlib" if fields.get("compresseddata", "").lower() == "true" else "raw"
    if fields.get("binarydata", "true").lower() == "false":
        encoding = "text"
    for field in _META_PLACES:
        refuse_unknown_place(_numbers(fields.get(field, ""), path), path)
    spacing = _numbers(fields.get("elementspacing", fields.get("elementsize", "")), path)
    sizes = _integers(fields.get("dimsize", ""), path)
    (channels,) = _integers(fields.get("elementnumberofchannels", "1"), path, count=1)
    dims = (*sizes, channels) if sizes and channels != 1 else sizes
    data = path if is_local else beside(path, name)
    return checked(Layout(dims, voxel_bytes, spacing, offset, encoding, data, is_at_end=header_size == -1), path)


def _start_of(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(TEXT_HEADER_BYTES)


def _fields(header: bytes, separator: str) -> dict[str, str]:
    """Lower-case field name -> value, of a header of one field per line; the first of equal names counts."""
    fields: dict[str, str] = {}
    for line in header.decode("latin-1").splitlines():
        name, mark, value = line.partition(separator)
        if mark and not line.startswith("#") and not value.startswith("="):  # NRRD's key:=value is free text
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _numbers(text: str, path: Path) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in re.split(r"[,\s]+", text.strip()) if part)
    except ValueError as error:
        raise refused(path, f"has an impossible header: {text[:60]!r} should be numbers") from error


def _integers(text: str, path: Path, count: int | None = None) -> tuple[int, ...]:
    parts = text.split()
    if not all(re.fullmatch(r"[+-]?\d{1,18}", part) for part in parts) or (count is not None and len(parts) != count):
        raise refused(path, f"has an impossible header: {text[:60]!r} should be {count or 'some'} whole numbers")
    return tuple(int(part) for part in parts)
