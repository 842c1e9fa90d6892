"""Small grids and files for the tests of readers and writers."""

import gzip
import itertools
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from autoseg.core.errors import UnreadableFile
from autoseg.core.geometry import Geometry

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]
"""The 48 ways in which array axes can lie along world axes."""

CODES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*order)
]
"""The same 48 ways, by the directions that the axes x, y, z run to."""

OBLIQUE = (0.0, 0.6, 0.8, 0.0, -0.8, 0.6, 1.0, 0.0, 0.0)


def oriented(order, signs):
    """Direction of a grid whose array axes z, y, x lie along world axes `order` with `signs`."""
    rows = np.zeros((3, 3))
    for row, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        rows[row, axis] = sign
    return tuple(rows.ravel().tolist())


directions = st.sampled_from([*(oriented(*orientation) for orientation in ORIENTATIONS), OBLIQUE])


def geometries(direction=directions, smallest=2):
    """Grids whose numbers single precision holds, so that no format rounds them."""
    return st.builds(
        Geometry,
        shape=st.tuples(*[st.integers(smallest, 6)] * 3),
        spacing_mm=st.tuples(*[st.sampled_from([0.25, 0.5, 0.75, 1.0, 3.0, 6.5])] * 3),
        origin_mm=st.tuples(*[st.integers(-100, 100).map(float)] * 3),
        direction=direction,
    )


def forget_orientation(file: Path) -> None:
    """Takes qform and sform from a NIfTI file."""
    import nibabel

    volume = nibabel.load(file)
    volume = nibabel.Nifti1Image(np.asarray(volume.dataobj), None, volume.header)
    volume.set_qform(None, 0)
    volume.set_sform(None, 0)
    volume.to_filename(file)


def label_array(shape, highest=5, seed=0):
    return np.random.default_rng(seed).integers(0, highest + 1, shape).astype(np.int32)


def truncations(content: bytes, count: int):
    """The file cut at `count` places spread over its length, the last byte among them."""
    lengths = np.unique(np.linspace(1, len(content) - 1, count).astype(int))
    return [content[:length] for length in lengths]


def bit_flips(content: bytes, count: int, start: int = 0, seed: int = 0):
    """The file with one bit changed, at `count` random places from byte `start` on."""
    generator = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(content)
        damaged[generator.randrange(start, len(content))] ^= 1 << generator.randrange(8)
        yield bytes(damaged)


def nifti_bytes(array, spacing=(1.0, 1.0, 1.0)) -> bytes:
    """An uncompressed NIfTI-1 file of a (z, y, x) array."""
    import nibabel

    return nibabel.Nifti1Image(np.asarray(array).T, np.diag([*spacing[::-1], 1.0])).to_bytes()


def write_gz(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, mtime=0))
    return path


def matrix_cells(share: int, *axes):
    """Each `share`-th combination of the values of some axes; AUTOSEG_MATRIX_SHARE=1 gives all of them.

    They are shuffled, always alike, so that a share holds every pair of values.
    """
    cells = list(itertools.product(*axes))
    random.Random(0).shuffle(cells)
    return cells[:: int(os.environ.get("AUTOSEG_MATRIX_SHARE", share))]


def check_cells(cells, check):
    """Checks every cell of a matrix: `check` returns "equal" or why the file has to be refused, and was.

    Returns how many there are of each; fails with the first cells that are wrong.
    """
    counts, wrong = Counter(), []
    for cell in cells:
        try:
            counts[check(cell)] += 1
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"{cell}: {type(error).__name__}: {error}"[:400])
    assert not wrong, f"{len(wrong)} of {len(cells)} cells are wrong:\n" + "\n".join(wrong[:8])
    assert counts.total() == len(cells)
    return counts


def refused(read, path, reason):
    """The reason, once a file was refused with it."""
    with pytest.raises(UnreadableFile, match=re.escape(reason)) as error:
        read([path])
    assert error.value.do
    return reason
