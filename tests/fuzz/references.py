"""Independent readers, used plainly: what an image file holds, by somebody else's code or by a few lines of our own.

Each returns a `Reference` or raises whatever it raises; then nobody but AutoSeg understands the file.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reference:
    """Voxels and grid of a file.

    Attributes:
        voxels: with axes x, y, z, channels.
        spacing: of the first three axes, in millimeters; None where the file cannot state it.
        affine: 3 x 4, from indices (i, j, k) to LPS in millimeters; None where the file does not state it.
    """

    voxels: np.ndarray
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None


_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def arranged(array: np.ndarray, axes: str) -> np.ndarray:
    """An array whose axes are named by letters, with axes x, y, z, c; those that are not there have length 1."""
    order = sorted(range(array.ndim), key=lambda axis: ("xyzc".index(axes[axis]), axis))
    lengths = [int(np.prod([array.shape[axis] for axis in order if axes[axis] == name])) for name in "xyzc"]
    return array.transpose(order).reshape(lengths)


def read_nifti(path: Path) -> Reference:
    """Through nibabel: the sform where its code is set, else the qform."""
    import nibabel

    image: Any = nibabel.load(path)
    voxels = np.asarray(image.dataobj)
    axes = "xyzccccc"[: voxels.ndim]
    if voxels.dtype.names:
        voxels, axes = np.stack([voxels[name] for name in voxels.dtype.names], -1), f"{axes}c"
    _refuse_what_nibabel_corrects(path, image.header)
    unit = {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) % 8, 1.0)
    is_stated = bool(image.header["sform_code"] or image.header["qform_code"])
    affine = _TO_LPS @ image.affine[:3] * unit
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    return Reference(arranged(voxels, axes), tuple(spacing[: min(3, image.ndim)]), affine if is_stated else None)


def _refuse_what_nibabel_corrects(path: Path, header: Any) -> None:
    """Codes of qform and sform that no standard knows are 0 to it, and a handedness other than -1 is 1."""
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
        start = stream.read(352)
    is_second = header.sizeof_hdr == 540
    codes = struct.unpack_from(header.endianness + ("2i" if is_second else "2h"), start, 344 if is_second else 252)
    (handed,) = struct.unpack_from(header.endianness + ("d" if is_second else "f"), start, 104 if is_second else 76)
    if not set(codes) <= set(range(6)) or handed not in (-1, 0, 1):
        raise ValueError(f"codes {codes}, handedness {handed}")


def read_gipl(path: Path) -> Reference:
    """256 bytes of big-endian header, then the voxels."""
    data = path.read_bytes()
    kinds = {1: "u1", 7: "i1", 8: "u1", 15: ">i2", 16: ">u2", 31: ">u4", 32: ">i4", 64: ">f4", 65: ">f8"}
    *dims, kind = struct.unpack_from(">5H", data)
    while len(dims) > 2 and dims[-1] <= 1:
        dims.pop()
    spacing = struct.unpack_from(">4f", data, 10)[:3]
    count = int(np.prod(dims))
    voxels = np.frombuffer(data, kinds[kind], count, 256).reshape(dims, order="F")
    return Reference(arranged(voxels, "xyzc"[: len(dims)]), spacing[: len(dims)])


_NRRD_TYPES = {
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_UNITS = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "nm": 1e-6}


_NRRD_FIELDS = (
    *("type", "dimension", "sizes", "encoding", "endian", "space", "spacedimension", "spacedirections", "spaceorigin"),
    *("spacings", "spaceunits", "units", "kinds", "datafile", "lineskip", "byteskip", "centerings", "content"),
    *("measurementframe", "thicknesses", "axismins", "axismaxs", "labels", "min", "max", "oldmin", "oldmax"),
)
_NRRD_CHANNELS = ("vector", "list", "rgb-color", "rgba-color", "2-vector", "3-vector", "4-vector")


def read_nrrd(path: Path) -> Reference:
    """By the format's definition (teem.sourceforge.net/nrrd/format.html)."""
    head, data = _parted(path.read_bytes(), rb"\r?\n\r?\n")
    fields = _fields(head, ":")
    if unknown := fields.keys() - set(_NRRD_FIELDS):
        raise ValueError(f"unknown fields {unknown}")
    if "datafile" in fields:
        data = (path.parent / fields["datafile"]).read_bytes()
    sizes = [int(size) for size in fields["sizes"].split()]
    if len(sizes) != int(fields["dimension"]):
        raise ValueError("dimension and sizes differ")
    for _ in range(int(fields.get("lineskip", "0"))):
        data = data.partition(b"\n")[2]
    kind = np.dtype(_NRRD_TYPES[fields["type"].lower()])
    voxels = _nrrd_values(data, fields, kind, math.prod(sizes)).reshape(sizes, order="F")
    return _on_nrrd_grid(arranged(voxels, _nrrd_axes(fields, len(sizes))), fields)


def _nrrd_axes(fields: dict[str, str], count: int) -> str:
    """Names of the axes, by what the file says of their kinds or of their directions."""
    kinds = fields.get("kinds", "domain " * count).lower().split()
    vectors = re.findall(r"\([^)]*\)|none", fields.get("spacedirections", "() " * count))
    is_spatial = [kind not in _NRRD_CHANNELS and vector != "none" for kind, vector in zip(kinds, vectors, strict=True)]
    if len(is_spatial) != count or not 2 <= sum(is_spatial) <= 3:
        raise ValueError("axes that are neither space nor channels")
    names = iter("xyz")
    return "".join(next(names) if own else "c" for own in is_spatial)


def _nrrd_values(data: bytes, fields: dict[str, str], kind: np.dtype[Any], count: int) -> np.ndarray:
    encoding, skip = fields["encoding"].lower(), int(fields.get("byteskip", "0"))
    if encoding in ("txt", "text", "ascii"):
        return np.array(data[max(skip, 0) :].split()[:count], np.float64).astype(kind)
    if encoding in ("gz", "gzip"):
        data = gzip.decompress(data)
    elif encoding != "raw":
        raise ValueError(encoding)
    if skip == -1:
        data = data[len(data) - count * kind.itemsize :]
    if kind.itemsize > 1:
        kind = kind.newbyteorder({"big": ">", "little": "<"}[fields["endian"].lower()])
    return np.frombuffer(data, kind, count, max(skip, 0))


def _on_nrrd_grid(voxels: np.ndarray, fields: dict[str, str]) -> Reference:
    count = 3 if voxels.shape[2] > 1 else 2
    units = {
        _UNITS[unit.lower()]
        for unit in re.findall(r'"([^"]+)"', fields.get("spaceunits" if "spacedirections" in fields else "units", ""))
    }
    if len(units) > 1:
        raise ValueError("units differ")
    unit = units.pop() if units else 1.0
    if "spacedirections" not in fields:
        steps = [float(step) * unit for step in fields.get("spacings", "").split()] or [1.0] * count
        axes = _nrrd_axes(fields, int(fields["dimension"]))
        return Reference(voxels, tuple(step for step, axis in zip(steps, axes, strict=False) if axis != "c"))
    vectors = [_vector(text) for text in re.findall(r"\([^)]*\)", fields["spacedirections"])]
    spacing = tuple(float(np.linalg.norm(vector)) * unit for vector in vectors)
    space = fields.get("space", "").lower()
    letters = "".join(word[0] for word in space.split("-")) if "-" in space else space
    signs = {"ras": (-1, -1, 1), "las": (1, -1, 1), "lps": (1, 1, 1)}.get(letters[:3])
    if signs is None or len(vectors) != 3:
        return Reference(voxels, spacing)
    columns = np.diag(signs) @ np.array(vectors).T * unit
    origin = np.diag(signs) @ _vector(fields.get("spaceorigin", "(0,0,0)")) * unit
    return Reference(voxels, spacing, np.column_stack([columns, origin]))


def _vector(text: str) -> np.ndarray:
    return np.array([float(part) for part in text.strip("() \t").split(",")])


_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_meta(path: Path) -> Reference:
    """By MetaIO's documentation (itk.org/Wiki/ITK/MetaIO/Documentation); fields given twice are not understood."""
    head, data = _parted(path.read_bytes(), rb"(?m)^(?=ElementDataFile)")
    line, data = data.partition(b"\n")[::2]
    fields = _fields(head, "=")
    name = line.partition(b"=")[2].strip().decode()
    if name.upper() != "LOCAL":
        data = (path.parent / name).read_bytes()
    sizes = [int(size) for size in fields["dimsize"].split()]
    if len(sizes) != int(fields["ndims"]):
        raise ValueError("NDims and DimSize differ")
    channels = int(fields.get("elementnumberofchannels", "1"))
    kind = np.dtype(_META_TYPES[fields["elementtype"].removesuffix("_ARRAY")])
    voxels = _meta_values(data, fields, kind, int(np.prod(sizes)) * channels)
    axes = "c" + "xyzc"[: len(sizes)]
    return _on_meta_grid(arranged(voxels.reshape((channels, *sizes), order="F"), axes), fields, len(sizes))


def _meta_values(data: bytes, fields: dict[str, str], kind: np.dtype[Any], count: int) -> np.ndarray:
    def says(*names: str) -> bool:
        return any(fields.get(name, "").lower()[:1] in ("t", "1", "y") for name in names)

    size = int(fields.get("headersize", "0"))
    if not says("binarydata"):
        return np.array(data.split()[:count], np.float64).astype(kind)
    if says("compresseddata"):
        data = zlib.decompress(data)
    elif size == -1:
        data = data[len(data) - count * kind.itemsize :]
    order = ">" if says("binarydatabyteordermsb", "elementbyteordermsb") else "<"
    return np.frombuffer(data, kind.newbyteorder(order), count, max(size, 0))


def _on_meta_grid(voxels: np.ndarray, fields: dict[str, str], dimensions: int) -> Reference:
    def numbers(*names: str) -> np.ndarray | None:
        text = next((fields[name] for name in names if name in fields), None)
        return None if text is None else np.array(text.split(), float)

    spacing = numbers("elementspacing", "elementsize")
    if spacing is None:
        return Reference(voxels)
    spacing = spacing[:dimensions]
    unit = _UNITS.get(fields.get("distanceunits", "mm").lower(), 1.0)
    matrix, origin = numbers("transformmatrix", "rotation", "orientation"), numbers("offset", "position", "origin")
    affine = None
    if matrix is not None and dimensions == 3:
        columns = matrix.reshape(3, 3).T * spacing
        spacing = np.linalg.norm(columns, axis=0)
        affine = np.column_stack([columns, np.zeros(3) if origin is None else origin]) * unit
    return Reference(voxels, tuple(spacing * unit)[:3], affine)


def _parted(data: bytes, mark: bytes) -> tuple[str, bytes]:
    found = re.search(mark, data)
    if found is None:
        raise ValueError("the header does not end")
    return data[: found.start()].decode("latin-1"), data[found.end() :]


def _fields(head: str, separator: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in head.splitlines():
        name, mark, value = line.partition(separator)
        if mark and not line.startswith("#") and not value.startswith("="):
            key = re.sub(r"\s", "", name).lower()
            if fields.setdefault(key, value.strip()) != value.strip():
                raise ValueError(f"{key} is given twice")
    return fields


def read_tiff(path: Path) -> Reference:
    """Through tifffile, which uses imagecodecs."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise ValueError("several images")
        series = file.series[0]
        names = {"X": "x", "Y": "y", "S": "c", "C": "c"}
        voxels = arranged(series.asarray(), "".join(names.get(axis, "z") for axis in series.axes))
        page = series.keyframe
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not file.is_imagej and voxels.shape[3] == 1:
            colors = page.colormap >> 8 if page.colormap.max() > 255 else page.colormap
            voxels = np.moveaxis(colors[:, voxels[..., 0]], 0, -1)
        return Reference(voxels)


def read_png(path: Path) -> Reference:
    """Through imagecodecs, which uses libpng."""
    import imagecodecs

    return Reference(_picture(imagecodecs.png_decode(path.read_bytes())))


def read_bmp(path: Path) -> Reference:
    """Through imagecodecs, which makes colors of every palette."""
    import imagecodecs

    return Reference(_picture(imagecodecs.bmp_decode(path.read_bytes())))


def _picture(pixels: np.ndarray) -> np.ndarray:
    return arranged(pixels, "yxc"[: pixels.ndim])


READERS: dict[str, Callable[[Path], Reference]] = {
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".gipl": read_gipl,
    ".nrrd": read_nrrd,
    ".nhdr": read_nrrd,
    ".mha": read_meta,
    ".mhd": read_meta,
    ".tif": read_tiff,
    ".png": read_png,
    ".bmp": read_bmp,
}
