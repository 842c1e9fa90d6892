"""Valid images of every format, a few hundred bytes each, in the variants that programs write."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.fuzz.target import Files

SHAPE = (5, 4, 3)
"""Voxels x, y, z."""


def voxels(kind: str = "i2", shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Whole numbers, small enough for every type, none of them alike enough to be exchanged unnoticed."""
    return np.random.default_rng(seed).integers(0, 100, shape).astype(kind)


# --- NIfTI ---------------------------------------------------------------------------------------------------------
def _nifti(array: np.ndarray, form: str = "both", unit: str = "mm", **changes: Any) -> bytes:
    import nibabel

    kind = nibabel.Nifti2Image if changes.pop("is_second", False) else nibabel.Nifti1Image
    affine = np.array([[0, 0, 2.5, 5], [-0.75, 0, 0, -7], [0, 1.5, 0, 11], [0, 0, 0, 1.0]])
    header = kind.header_class(endianness=changes.pop("order", "<"))
    header.set_data_dtype(array.dtype)
    image: Any = kind(array, affine, header)
    image.header.set_xyzt_units(unit)
    image.set_qform(affine if form in ("both", "qform") else None, int(form in ("both", "qform")))
    image.set_sform(affine if form in ("both", "sform") else None, int(form in ("both", "sform")))
    if "slope" in changes:
        image.header.set_slope_inter(changes["slope"], 3.0)
    return bytes(image.to_bytes())


def nifti_seeds() -> list[Files]:
    """Types, byte orders, both versions, transforms, units, dimensions, scale factors."""
    colors = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colors["R"], colors["B"] = voxels("u1"), voxels("u1", seed=1)
    plain = [
        *(_nifti(voxels(kind)) for kind in ("u1", "i1", "i2", "u2", "i4", "f4", "f8")),
        *(_nifti(voxels(), form) for form in ("qform", "sform", "none")),
        *(_nifti(voxels("i2"), order=">", is_second=is_second) for is_second in (False, True)),
        _nifti(voxels("f4"), is_second=True),
        _nifti(voxels("i2"), unit="micron"),
        _nifti(voxels("i2"), slope=0.5),
        _nifti(voxels("u1", (7, 6))),
        _nifti(voxels("i2", (*SHAPE, 1))),
        _nifti(colors),
    ]
    seeds: list[Files] = [{"x.nii": content} for content in plain]
    return [*seeds, {"four.nii": _nifti(voxels("i2", (*SHAPE, 2)))}]


def nifti_gz_seeds() -> list[Files]:
    """The same, compressed."""
    return [{f"{name}.gz": gzip.compress(data, mtime=0) for name, data in seed.items()} for seed in nifti_seeds()]


# --- NRRD ----------------------------------------------------------------------------------------------------------
_NRRD_KINDS = {"u1": "uchar", "i2": "short", "u2": "ushort", "f4": "float", "f8": "double", "i4": "int"}
_GRID = "space: left-posterior-superior\nspace directions: (0,2,0) (1.5,0,0) (0,0,3)\nspace origin: (5,-7,11)\n"


def _nrrd(kind: str = "i2", encoding: str = "raw", *, order: str = "<", grid: str = _GRID, detached: str = "") -> Files:
    array = voxels(kind).astype(np.dtype(kind).newbyteorder(order))
    packed = {
        "raw": lambda: array.tobytes("F"),
        "gzip": lambda: gzip.compress(array.tobytes("F"), mtime=0),
        "ascii": lambda: " ".join(map(str, array.ravel("F").tolist())).encode() + b"\n",
    }[encoding]()
    head = (
        f"NRRD0004\n# made for tests\ntype: {_NRRD_KINDS[kind]}\ndimension: 3\nsizes: {' '.join(map(str, SHAPE))}\n"
        f"encoding: {encoding}\nendian: {'big' if order == '>' else 'little'}\n{grid}"
    )
    if detached:
        return {"x.nrrd": f"{head}data file: {detached}\n\n".encode(), detached: packed}
    return {"x.nrrd": head.encode() + b"\n" + packed}


def _nrrd_vectors() -> Files:
    array = voxels("u1", (2, *SHAPE))
    directions = "space: RAS\nspace directions: none (0,2,0) (1.5,0,0) (0,0,3)\nkinds: vector domain domain domain\n"
    head = f"NRRD0005\ntype: uchar\ndimension: 4\nsizes: 2 5 4 3\nencoding: raw\n{directions}space origin: (1,2,3)\n\n"
    return {"x.nrrd": head.encode() + array.tobytes("F")}


def nrrd_seeds() -> list[Files]:
    """Encodings, types, byte orders, with and without a space, detached."""
    return [
        *(_nrrd(kind) for kind in ("u1", "i2", "u2", "f4", "f8", "i4")),
        *(_nrrd("i2", encoding) for encoding in ("gzip", "ascii")),
        _nrrd("i2", order=">"),
        _nrrd("i2", grid="spacings: 1 2 3\n"),
        _nrrd("i2", grid=_GRID + 'space units: "um" "um" "um"\n'),
        _nrrd("i2", grid=_GRID.replace("left-posterior-superior", "right-anterior-superior")),
        *(_nrrd("i2", encoding, detached="x.raw") for encoding in ("raw", "gzip", "ascii")),
        _nrrd_vectors(),
    ]


# --- MetaImage -----------------------------------------------------------------------------------------------------
_META_KINDS = {"u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}


def _meta(kind: str = "i2", *, compressed: bool = False, order: str = "<", more: str = "", detached: str = "") -> Files:
    shape = (2, *SHAPE) if "ElementNumberOfChannels" in more else SHAPE
    array = voxels(kind, shape).astype(np.dtype(kind).newbyteorder(order))
    data = array.tobytes("F")
    packed = zlib.compress(data) if compressed else data
    size = f"CompressedDataSize = {len(packed)}\n" if compressed else ""
    head = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {order == '>'}\n"
        f"CompressedData = {compressed}\n{size}TransformMatrix = 0 1 0 1 0 0 0 0 1\nOffset = 5 -7 11\n"
        f"CenterOfRotation = 0 0 0\nElementSpacing = 1.5 2 3\nDimSize = 5 4 3\n{more}"
        f"ElementType = {_META_KINDS[kind]}\nElementDataFile = {detached or 'LOCAL'}\n"
    )
    return {"x.mhd": head.encode(), detached: packed} if detached else {"x.mha": head.encode() + packed}


def meta_seeds() -> list[Files]:
    """Types, byte orders, compressed or not, vectors, detached."""
    return [
        *(_meta(kind) for kind in _META_KINDS),
        _meta(compressed=True),
        _meta(order=">"),
        _meta(more="ElementNumberOfChannels = 2\n"),
        _meta(more="AnatomicalOrientation = RAI\n"),
        _meta(more="DistanceUnits = um\n"),
        _meta(detached="x.raw"),
        _meta(compressed=True, detached="x.zraw"),
    ]


# --- GIPL ----------------------------------------------------------------------------------------------------------
def gipl_seeds() -> list[Files]:
    """Types, as ITK writes them."""
    seeds = []
    for kind, code in (("u1", 8), ("i2", 15), ("u2", 16), ("f4", 64), ("f8", 65)):
        header = bytearray(256)
        header[:10] = np.array([*SHAPE, 1, code], ">u2").tobytes()
        header[10:26] = np.array([1.5, 2, 3, 1], ">f4").tobytes()
        header[252:] = (0xEFFFE9B0).to_bytes(4, "big")
        seeds.append({"x.gipl": bytes(header) + voxels(kind).astype(np.dtype(kind).newbyteorder(">")).tobytes("F")})
    return seeds


# --- pictures ------------------------------------------------------------------------------------------------------
def _pictures() -> Iterator[tuple[str, Any]]:
    from PIL import Image

    gray, colors = voxels("u1", (6, 7)), voxels("u1", (6, 7, 3), seed=1)
    yield "gray", Image.fromarray(gray)
    yield "bits", Image.fromarray(gray > 50)
    yield "colors", Image.fromarray(colors)
    palette = Image.fromarray(gray % 4).convert("P")
    palette.putpalette([value for index in range(4) for value in (index * 60, 255 - index, index)])
    yield "palette", palette
    yield "alpha", Image.fromarray(voxels("u1", (6, 7, 4), seed=2))
    yield "gray alpha", Image.fromarray(voxels("u1", (6, 7, 2), seed=3), "LA")
    yield "deep", Image.fromarray(voxels("u2", (6, 7), seed=4) * 300)


def _saved(picture: Any, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png_seeds() -> list[Files]:
    """Gray of 1 to 16 bits, colors, alpha, palettes."""
    pictures = dict(_pictures())
    seeds = [{"x.png": _saved(picture, "PNG")} for picture in pictures.values()]
    seeds += [{"x.png": _saved(pictures["palette"], "PNG", bits=bits)} for bits in (2, 4)]
    return [*seeds, {"x.png": _saved(pictures["gray"], "PNG", transparency=5)}]


def bmp_seeds() -> list[Files]:
    """What Pillow writes."""
    return [
        {"x.bmp": _saved(picture, "BMP")}
        for name, picture in _pictures()
        if name in ("gray", "bits", "colors", "palette")
    ]


# --- TIFF ----------------------------------------------------------------------------------------------------------
_STACK = (3, 16, 18)
_TIFF_KINDS: tuple[tuple[tuple[int, ...], str, dict[str, Any]], ...] = (
    ((16, 18), "u1", {}),
    ((16, 18), "u2", {"compression": "zlib", "predictor": 2}),
    ((16, 18), "f4", {"compression": "zlib", "predictor": 3}),
    ((16, 18), "u1", {"compression": "packbits"}),
    ((16, 18), "u2", {"compression": "lzw"}),
    ((16, 18), "u1", {"compression": "zstd"}),
    ((16, 18), "u1", {"tile": (16, 16), "compression": "zlib"}),
    ((16, 18, 3), "u1", {"photometric": "rgb"}),
    ((16, 18, 4), "u2", {"photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib"}),
    ((3, 16, 18), "u1", {"photometric": "rgb", "planarconfig": "separate"}),
    ((16, 18), "i1", {}),
    ((16, 18), "f2", {}),
    ((16, 18), "f8", {"byteorder": ">"}),
    ((16, 18), "bool", {}),
    (_STACK, "u2", {"photometric": "minisblack"}),
    (
        _STACK,
        "u1",
        {"imagej": True, "metadata": {"spacing": 2.0, "unit": "um", "axes": "ZYX"}, "resolution": (2.0, 2.0)},
    ),
    (_STACK, "u2", {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}}),
    (_STACK, "i2", {"compression": "zlib", "rowsperstrip": 5, "metadata": None}),
    ((2, *_STACK), "u1", {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    ((16, 18), "u1", {"photometric": "palette", "colormap": np.arange(768, dtype="u2").reshape(3, 256)}),
    ((16, 18), "u1", {"photometric": "miniswhite"}),
)


def tiff_seeds() -> list[Files]:
    """Types, compressions, strips and tiles, colors, stacks with their descriptions, a spacing beside."""
    import tifffile

    seeds: list[Files] = []
    for shape, kind, options in _TIFF_KINDS:
        stream = io.BytesIO()
        array = voxels("u1", shape) > 50 if kind == "bool" else voxels(kind, shape)
        tifffile.imwrite(stream, array, **options)
        seeds.append({"x.tif": stream.getvalue()})
    stack = next(seed for seed, (shape, _, _) in zip(seeds, _TIFF_KINDS, strict=True) if shape == _STACK)
    return [*seeds, {**stack, "x.json": json.dumps({"spacing": [3.0, 1.0, 2.0]}).encode()}]


SEEDS: dict[str, Callable[[], list[Files]]] = {
    "NIfTI": nifti_seeds,
    "NIfTI gz": nifti_gz_seeds,
    "NRRD": nrrd_seeds,
    "MetaImage": meta_seeds,
    "GIPL": gipl_seeds,
    "PNG": png_seeds,
    "BMP": bmp_seeds,
    "TIFF": tiff_seeds,
}
