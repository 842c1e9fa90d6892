"""Headers whose numbers pass each check alone and cannot be true together; all of them were found by fuzzing."""

from __future__ import annotations

import io
import struct

import nibabel
import numpy as np
import pytest
import tifffile

from autoseg.core.errors import UnreadableFile
from autoseg.images.readers import read_image

SHAPE = (5, 4, 3)
VOXELS = np.arange(60, dtype=np.int16).reshape(SHAPE)


def read(folder, name: str, content: bytes):
    path = folder / name
    path.write_bytes(content)
    return read_image([path])


def with_sform(kind, rows) -> bytes:
    """A NIfTI file with a sound qform, and these rows as its sform; nibabel would write neither as it is asked to."""
    content = bytearray(kind(VOXELS, np.eye(4)).to_bytes())
    if kind is nibabel.Nifti2Image:
        struct.pack_into("<2i", content, 344, 1, 1)
        struct.pack_into("<12d", content, 400, *np.ravel(rows))
    else:
        struct.pack_into("<2h", content, 252, 1, 1)
        struct.pack_into("<12f", content, 280, *np.ravel(rows))
    return bytes(content)


def test_a_transform_of_numbers_too_large_for_a_spacing_is_refused(tmp_path):
    rows = [(1, 0, 0, 0), (0, 1e270, 0, 0), (0, 0, 1, 0)]
    with pytest.raises(UnreadableFile, match="impossible"):
        read(tmp_path, "x.nii", with_sform(nibabel.Nifti2Image, rows))


def test_a_transform_whose_axes_lie_in_a_plane_is_refused_beside_a_sound_one(tmp_path):
    rows = [(1, 0, 1, 0), (0, 1, 0, 0), (1, 0, 1, 0)]
    with pytest.raises(UnreadableFile, match="sheared"):
        read(tmp_path, "x.nii", with_sform(nibabel.Nifti1Image, rows))


def test_directions_and_units_that_overflow_are_refused(tmp_path):
    nrrd = (
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\n"
        "space: RAS\nspace directions: (1e308,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,1e307)\n"
        'space units: "m" "m" "m"\n\n'
    )
    with pytest.raises(UnreadableFile, match="impossible"):
        read(tmp_path, "x.nrrd", nrrd.encode() + VOXELS.tobytes("F"))
    place = nrrd.replace("1e308", "1").replace("1e307", "1e307 ")
    with pytest.raises(UnreadableFile, match="impossible"):
        read(tmp_path, "x.nrrd", place.encode() + VOXELS.tobytes("F"))
    meta = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1e300 0 0 0 1 0 0 0 1\nDimSize = 5 4 3\n"
        "ElementSpacing = 1e300 1 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    with pytest.raises(UnreadableFile, match="impossible"):
        read(tmp_path, "x.mha", meta.encode() + VOXELS.tobytes("F"))


@pytest.mark.parametrize("sizes", [(0, 4, 3), (5, 0, 3)])
def test_a_gipl_without_columns_or_rows_is_refused(tmp_path, sizes):
    header = bytearray(256)
    struct.pack_into(">5H", header, 0, *sizes, 1, 15)
    struct.pack_into(">4f", header, 10, 1, 1, 1, 1)
    struct.pack_into(">I", header, 252, 0xEFFFE9B0)
    with pytest.raises(UnreadableFile, match="sizes"):
        read(tmp_path, "x.gipl", bytes(header) + VOXELS.tobytes())


def test_tiles_without_rows_are_refused(tmp_path):
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((16, 16), np.uint8), tile=(16, 16))
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        place = file.pages[0].tags["TileLength"].valueoffset
    content = bytearray(stream.getvalue())
    content[place : place + 2] = bytes(2)
    with pytest.raises(UnreadableFile, match="damaged"):
        read(tmp_path, "x.tif", bytes(content))
