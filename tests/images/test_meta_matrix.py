"""MetaImage in all combinations of what a header can say, against what a small writer put there."""

import gzip
import zlib

import numpy as np

from autoseg.core.geometry import SLICE_SPACING_OF_2D
from autoseg.images.readers import read_image
from tests.images.examples import check_cells, matrix_cells, refused

TYPES = {
    **dict(
        zip(
            ("u1", "i1", "u2", "i2", "u4"),
            ("MET_UCHAR", "MET_CHAR", "MET_USHORT", "MET_SHORT", "MET_UINT"),
            strict=True,
        )
    ),
    **dict(zip(("i4", "i8", "f4", "f8"), ("MET_LONG", "MET_LONG_LONG", "MET_FLOAT", "MET_DOUBLE_ARRAY"), strict=True)),
    "S4": "MET_STRING",
}
SIZES = {"2D": (5, 4), "3D": (5, 4, 2), "4D of one": (5, 4, 2, 1), "4D": (5, 4, 2, 3)}
DATA = ("raw", "zlib", "gzip", "no size", "small size", "large size", "text", "short raw", "short zlib", "short text")
PLACES = ("local", "beside", "header of 7 bytes", "at the end", "LIST")
MATRICES = {
    "unit": np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]),
    "length 2": np.array([[0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, -2.0]]),
    "sheared": np.array([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]),
    "zero": np.zeros((3, 3)),
    "short": np.eye(1),
    "none": None,
}
UNITS = {None: 1.0, "um": 1e-3, "cm": 10.0, "furlong": None}
CELLS = (TYPES, ("True", "False"), DATA, PLACES, (1, 3), MATRICES, UNITS, SIZES, (False, True))

STEPS, ORIGIN = (1.5, 2.0, 3.0, 1.0), (10.0, -20.0, 30.0, 0.0)


def header_of(cell, size):
    kind, is_big, data, place, channels, matrix, unit, dims, twice = cell
    sizes = SIZES[dims]
    count, factor = len(sizes), 1 / (UNITS[unit] or 1)
    lines = ["ObjectType = Image", f"NDims = {count}", f"BinaryData = {'text' not in data}"]
    lines += [f"BinaryDataByteOrderMSB = {is_big}"]
    lines += [f"CompressedData = {data not in ('raw', 'text', 'short raw', 'short text')}"]
    lines += [] if size is None else [f"CompressedDataSize = {size}"]
    lines += [f"HeaderSize = {7 if '7' in place else -1}"] if place in PLACES[2:4] else []
    if MATRICES[matrix] is not None:
        numbers = np.eye(count) if matrix == "unit" else np.zeros((count, count))
        axes = MATRICES[matrix][:count, :count]
        numbers[: len(axes), : len(axes)] = axes
        numbers[3:, 3:] = np.abs(axes).max()
        shown = axes if matrix == "short" else numbers
        lines += [f"TransformMatrix = {' '.join(map(repr, shown.ravel().tolist()))}"]
    lines += [f"Offset = {' '.join(repr(number * factor) for number in ORIGIN[:count])}"]
    lines += [f"DistanceUnits = {unit}"] if unit else []
    lines += [f"ElementSpacing = {' '.join(repr(number * factor) for number in STEPS[:count])}"]
    lines += ["ElementSpacing = 7 7 7"] if twice else []
    lines += [f"DimSize = {' '.join(map(str, sizes))}", f"ElementNumberOfChannels = {channels}"]
    name = {"local": "LOCAL", "LIST": "LIST"}.get(place, "case.bin")
    return "\n".join([*lines, f"ElementType = {TYPES[kind]}", f"ElementDataFile = {name}", ""])


def encoded(array, data):
    whole = array.tobytes()[:-1] if data in ("short raw", "short zlib") else array.tobytes()
    if "text" in data:
        return " ".join(map(repr, array.ravel()[: array.size - ("short" in data)].tolist())).encode()
    if "raw" in data:
        return whole
    return gzip.compress(whole, 1) if data == "gzip" else zlib.compress(whole, 1)


def reason(kind, data, place, channels, matrix, unit, dims, twice):
    if kind == "S4":
        return "not supported"
    if place == "LIST":
        return "several files"
    if place == "at the end" and data not in ("raw", "short raw"):
        return "HeaderSize -1"
    if unit == "furlong":
        return "not a known unit"
    if twice:
        return "'ElementSpacing' twice"
    return reason_of_grid(matrix) or reason_of_data(data, channels, dims)


def reason_of_grid(matrix):
    grids = {"sheared": "sheared axes: the cosine between two of them is 0.6", "zero": "vector of zeros"}
    return {**grids, "short": "1 of TransformMatrix"}.get(matrix)


def reason_of_data(data, channels, dims):
    if "short" in data:
        return "cut short"
    return None if dims != "4D" else "axes" if channels > 1 else "is 4D"


def test_every_combination_is_read_as_it_is_or_refused_for_what_it_is(tmp_path):
    def check(cell):
        kind, is_big, data, place, channels, matrix, unit, dims, twice = cell
        sizes, native = SIZES[dims], np.dtype("u1" if kind == "S4" else kind)
        array = (np.arange(int(np.prod(sizes)) * channels) % 120).astype(
            native.newbyteorder(">" if is_big == "True" else "<")
        )
        content = encoded(array, data)
        changes = {"no size": None, "small size": 5, "large size": len(content) + 4000}
        size = changes.get(data, len(content)) if "raw" not in data and "text" not in data else None
        path = tmp_path / "case.mha"
        is_after = place == "header of 7 bytes" or (place == "at the end" and "short" not in data)
        before = b"rubbish" if is_after else b""
        header = header_of(cell, size)
        path.write_bytes(header.encode() + (content if place == "local" else b""))
        (tmp_path / "case.bin").write_bytes(before + content)
        if (why := reason(kind, data, place, channels, matrix, unit, dims, twice)) is not None:
            return refused(read_image, path, why)
        volume = read_image([path])
        stored = array.reshape(*(*sizes, 1)[:3][::-1], channels)
        assert np.array_equal(volume.array, np.moveaxis(stored, -1, 0).astype(np.float32))
        check_grid(volume.geometry, matrix, dims)
        noted = any("CompressedDataSize" in note for note in volume.notes)
        assert noted == (data in changes)
        return "equal"

    counts = check_cells(matrix_cells(600, *CELLS), check)
    assert len(counts) == 12


def check_grid(grid, matrix, dims):
    length = 2 if matrix == "length 2" else 1
    assert grid.has_orientation == (matrix != "none" and dims != "2D")
    across = SLICE_SPACING_OF_2D * 2 if dims == "2D" else 3
    assert np.allclose(grid.spacing_mm, np.array((across, 2.0, 1.5)) * length, rtol=1e-6)
    if dims != "2D":
        rows = np.eye(3) if MATRICES[matrix] is None else MATRICES[matrix]
        index = np.array([[z, y, x] for z in (0, 1) for y in (0, 3) for x in (0, 4)])
        assert np.allclose(grid.corners, ORIGIN[:3] + (index[:, ::-1] * STEPS[:3]) @ rows, atol=1e-6)
