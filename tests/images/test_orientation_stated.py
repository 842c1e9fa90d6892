"""Whether a file says which way its axes run: the state of its own that images without orientation have."""

import nibabel
import numpy as np
import pytest

from autoseg.core.geometry import Geometry
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image

ARRAY = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
DIRECTIONS = "space directions: (1,0,0) (0,2,0) (0,0,3)\n"
MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1\n"


def states(path):
    found = {read_image([path]).geometry.has_orientation, read_labels(path).geometry.has_orientation}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 4)])
def test_nifti_states_an_orientation_with_either_code(tmp_path, kind, codes):
    image = kind(ARRAY.T, None)
    for code, state in zip(codes, (image.set_qform, image.set_sform), strict=True):
        state(np.diag([-1.0, -1, 1, 1]), code)
    nibabel.save(image, tmp_path / "case.nii.gz")
    assert states(tmp_path / "case.nii.gz") == any(codes)


@pytest.mark.parametrize(
    ("fields", "is_stated"),
    [
        ("space: left-posterior-superior\n" + DIRECTIONS, True),
        ("space: RAS\n" + DIRECTIONS, True),
        ("space: scanner-xyz\n" + DIRECTIONS, False),
        ("space dimension: 3\n" + DIRECTIONS, False),
        ("spacings: 1 2 3\n", False),
        ("", False),
    ],
)
def test_nrrd_states_an_orientation_with_a_space_of_the_body(tmp_path, fields, is_stated):
    header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n{fields}\n"
    (tmp_path / "case.nrrd").write_bytes(header.encode() + ARRAY.tobytes())
    assert states(tmp_path / "case.nrrd") == is_stated


@pytest.mark.parametrize(
    ("fields", "is_stated"),
    [(MATRIX, True), (MATRIX + "AnatomicalOrientation = ???\n", True), ("AnatomicalOrientation = RAI\n", False)],
)
def test_metaimage_states_an_orientation_with_a_matrix(tmp_path, fields, is_stated):
    header = f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{fields}DimSize = 6 5 4\nElementType = MET_SHORT\n"
    (tmp_path / "case.mha").write_bytes(header.encode() + b"ElementDataFile = LOCAL\n" + ARRAY.tobytes())
    assert states(tmp_path / "case.mha") == is_stated


def test_gipl_never_states_an_orientation(tmp_path):
    write_image(tmp_path / "case.gipl", Volume(ARRAY[None], Geometry(ARRAY.shape)))
    assert not states(tmp_path / "case.gipl")
