"""NRRD in all combinations of what a header can say, against what a small writer put there."""

import bz2
import gzip

import numpy as np

from autoseg.images.readers import read_image
from tests.images.examples import check_cells, matrix_cells, refused

TYPES = {
    **dict(
        zip(("u1", "i1", "u2", "i2", "u4"), ("uchar", "signed char", "ushort", "int16_t", "unsigned int"), strict=True)
    ),
    **dict(zip(("i4", "i8", "u8", "f4", "f8"), ("int", "long long int", "uint64", "float", "double"), strict=True)),
    "block": "block",
}
ENCODINGS = {
    "raw": lambda array: array.tobytes(),
    "gzip": lambda array: gzip.compress(array.tobytes(), 1),
    "bz2": lambda array: bz2.compress(array.tobytes(), 1),
    "hex": lambda array: array.tobytes().hex().encode(),
    "text": lambda array: " ".join(map(repr, array.ravel().tolist())).encode(),
    "short raw": lambda array: array.tobytes()[:-1],
    "short gzip": lambda array: gzip.compress(array.tobytes()[:-1], 1),
    "short text": lambda array: b"1 " * (array.size - 1),
}
AXES = {  # kinds of the axes, fastest first; the first three of space in the order x, y, z
    "space": ("domain", "domain", "domain"),
    "unsaid": None,
    "channels first": ("vector", "space", "space", "space"),
    "channels last": ("domain", "domain", "domain", "list"),
    "channels in between": ("domain", "RGB-color", "domain", "domain"),
    "time": ("domain", "domain", "domain", "time"),
    "matrices": ("3D-matrix", "domain", "domain", "domain"),
}
SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "RAS": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "scanner-xyz": (1, 1, 1),
    "sheared": (1, 1, 1),
    "spacings": None,
    "nothing": None,
}
UNITS = {None: 1.0, "um": 1e-3, "m": 1e3, "furlong": None}
SKIPS = ("", "line skip: 2", "byte skip: 3", "line skip: 1\nbyte skip: 2")
CELLS = (TYPES, ("little", "big", None), ENCODINGS, AXES, SPACES, UNITS, SKIPS, (False, True))

DIRECTIONS = np.array([[0.0, 2.0, 0.0], [1.5, 0.0, 0.0], [0.0, 0.0, -3.0]])  # rows: x, y, z of the file
SHEAR = np.array([[0.6, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
ORIGIN = np.array([10.0, -20.0, 30.0])
COUNT = 3  # numbers per voxel, where there are several


def header_of(kind, endian, encoding, axes, space, unit, skip):
    kinds = AXES[axes] or ("???",) * 3
    sizes = iter((5, 4, 2))
    in_space = [name in ("domain", "space", "???") for name in kinds]
    lines = ["NRRD0005", "# a comment", f"type: {TYPES[kind]}", f"dimension: {len(kinds)}", "key:=value"]
    lines += [f"sizes: {' '.join(str(next(sizes) if is_space else COUNT) for is_space in in_space)}"]
    lines += [f"endian: {endian}"] if endian else []
    lines += [f"kinds: {' '.join(kinds)}"] if AXES[axes] else []
    lines += [f"encoding: {encoding.removeprefix('short ')}", skip]
    factor = 1 / (UNITS[unit] or 1)
    if SPACES[space]:
        rows = iter((DIRECTIONS + (SHEAR if space == "sheared" else 0)) * factor)
        vectors = [f"({','.join(map(repr, next(rows).tolist()))})" if is_space else "none" for is_space in in_space]
        lines += [f"space: {'LPS' if space == 'sheared' else space}", f"space directions: {' '.join(vectors)}"]
        lines += [f"space origin: ({','.join(map(repr, (ORIGIN * factor).tolist()))})"]
        lines += [f'space units: "{unit}" "{unit}" "{unit}"'] if unit else []
    elif space == "spacings":
        steps = iter((np.array((2.0, 1.5, 3.0)) * factor).tolist())
        lines += [f"spacings: {' '.join(repr(next(steps)) if is_space else 'nan' for is_space in in_space)}"]
        names = [f'"{unit}"' if is_space else '""' for is_space in in_space]
        lines += [f"units: {' '.join(names)}"] if unit else []
    return "\n".join(line for line in lines if line) + "\n", in_space


def reason(kind, endian, encoding, axes, space, unit):
    if kind == "block":
        return "not supported"
    if not endian and encoding.removeprefix("short ") != "text" and np.dtype(kind).itemsize > 1:
        return "byte order"
    if axes == "matrices":
        return "3d-matrix in every voxel"
    if unit == "furlong" and space != "nothing":
        return "not a known unit"
    if space == "sheared":
        return "sheared axes: the cosine between two of them is 0.287"
    return "cut short" if "short" in encoding else "is 4D" if axes == "time" else None


def test_every_combination_is_read_as_it_is_or_refused_for_what_it_is(tmp_path):
    def check(cell):
        kind, endian, encoding, axes, space, unit, skip, is_detached = cell
        header, in_space = header_of(kind, endian, encoding, axes, space, unit, skip)
        sizes = [
            (5, 4, 2)[in_space[:axis].count(True)] if is_space else COUNT for axis, is_space in enumerate(in_space)
        ]
        count = int(np.prod(sizes))
        native = np.dtype("u1" if kind == "block" else kind)
        stored = (np.arange(count) % 120).astype(native.newbyteorder({"little": "<", "big": ">"}.get(endian, "=")))
        lines = b"first\nsecond\n"[: 13 if "line skip: 2" in skip else 6 if "line skip" in skip else 0]
        data = encoded(stored, encoding, b"xyz"[: int(skip[-1]) if "byte" in skip else 0])
        path = tmp_path / "case.nrrd"
        (tmp_path / "case.bin").write_bytes(lines + data)
        path.write_bytes(header.encode() + (b"data file: case.bin\n" if is_detached else b"\n" + lines + data))
        if (why := reason(kind, endian, encoding, axes, space, unit)) is not None:
            return refused(read_image, path, why)
        volume = read_image([path])
        channels = stored.reshape(sizes[::-1])
        position = len(sizes) - 1 - in_space.index(False) if False in in_space else None
        expected = channels[None] if position is None else np.moveaxis(channels, position, 0)
        assert np.array_equal(volume.array, expected.astype(np.float32))
        check_grid(volume.geometry, space)
        return "equal"

    counts = check_cells(matrix_cells(200, *CELLS), check)
    assert len(counts) == 8


def encoded(array, encoding, skipped):
    """The data behind bytes that are skipped: of compressed data, bytes of what was compressed."""
    name = encoding.removeprefix("short ")
    if name not in ("gzip", "bz2"):
        return skipped + ENCODINGS[encoding](array)
    content = skipped + (array.tobytes()[:-1] if "short" in encoding else array.tobytes())
    return gzip.compress(content, 1) if name == "gzip" else bz2.compress(content, 1)


def check_grid(grid, space):
    steps = (1.0, 1.0, 1.0) if space == "nothing" else (3.0, 1.5, 2.0)
    assert np.allclose(grid.spacing_mm, steps, rtol=1e-6)
    assert grid.has_orientation == (space in ("left-posterior-superior", "RAS", "left-anterior-superior"))
    if SPACES[space]:
        index = np.array([[z, y, x] for z in (0, 1) for y in (0, 3) for x in (0, 4)])
        expected = (ORIGIN + index[:, ::-1] @ DIRECTIONS) * SPACES[space]
        assert np.allclose(grid.corners, expected, atol=1e-6)
