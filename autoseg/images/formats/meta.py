"""MetaImage: a text header with the voxels behind it (.mha) or in a file beside it (.mhd)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoseg.images.format import Format
from autoseg.images.formats import headers
from autoseg.images.formats.itk import read_itk, write_vectors
from autoseg.images.image_errors import unreadable
from autoseg.images.volume import Volume

_VOXEL_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}

_AXES = ("transformmatrix", "rotation", "orientation")
_PLACES = ("offset", "position", "origin", *_AXES)
"""Fields with the origin and the axes, under all names that ITK knows for them."""

_END = rb"(?m)^ElementDataFile\s*=\s*([^\r\n]*?)\s*\r?\n"


def _layout(path: Path) -> headers.Layout:
    """The layout that the header promises.

    Raises:
        UnreadableFile: there is no such header, or what it says cannot be true.
    """
    fields, end = headers.read_fields(path, "=", _END)
    if end is None:
        raise unreadable(path, "is not a MetaImage file, or its header is cut short")
    voxel_bytes = _VOXEL_BYTES.get(fields.get("elementtype", "").removesuffix("_ARRAY"))
    if voxel_bytes is None:
        raise unreadable(path, f"has a MetaImage type {fields.get('elementtype')!r} that is not supported")
    for field in _PLACES:
        headers.check_place(headers.numbers(fields.get(field, ""), path), path)
    sizes = headers.integers(fields.get("dimsize", ""), path)
    channels = headers.integer(fields.get("elementnumberofchannels", "1"), path)
    name = fields["elementdatafile"]
    is_local = name.upper() == "LOCAL"
    header_size = headers.integer(fields.get("headersize", "0"), path)  # -1: the voxels are the last bytes of the file
    layout = headers.Layout(
        dims=(*sizes, channels) if sizes and channels != 1 else sizes,
        voxel_bytes=voxel_bytes,
        spacing_mm=headers.numbers(fields.get("elementspacing", fields.get("elementsize", "")), path),
        offset=header_size or (end.end() if is_local else 0),
        encoding=_encoding(fields),
        data=path if is_local else headers.beside(path, name),
        is_at_end=header_size == -1,
    )
    return headers.checked(layout, path)


def _encoding(fields: dict[str, str]) -> str:
    if fields.get("binarydata", "true").lower() == "false":
        return "text"
    return "zlib" if fields.get("compresseddata", "").lower() == "true" else "raw"


def _read(path: Path, four_d: bool) -> Volume:
    """The voxels; a file states its orientation with a matrix. `AnatomicalOrientation` only describes that matrix."""
    volume = read_itk(path, four_d)
    fields, _ = headers.read_fields(path, "=", _END)
    return replace(volume, geometry=replace(volume.geometry, has_orientation=not fields.keys().isdisjoint(_AXES)))


META = Format(
    endings=(".mha", ".mhd"),
    verify=lambda path: headers.verify_data(_layout(path), path),
    read=_read,
    write=write_vectors,
    files=headers.header_and_data(_layout),
)
