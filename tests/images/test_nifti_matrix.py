"""NIfTI in all combinations of what a header can say, against nibabel's voxels and an affine worked out here."""

import gzip

import nibabel
import numpy as np

from autoseg.core.geometry import SLICE_SPACING_OF_2D
from autoseg.images.readers import read_image
from tests.images.examples import check_cells, matrix_cells, refused

KINDS = {
    **dict(zip(("u1", "i2", "i4", "f4", "f8", "i1", "u2", "u4"), (2, 4, 8, 16, 64, 256, 512, 768), strict=True)),
    **dict(zip(("i8", "u8", "rgb", "rgba", "complex", "bits"), (1024, 1280, 128, 2304, 32, 1), strict=True)),
}
SIZES = {"2D": (5, 4), "3D": (5, 4, 3), "4D of one": (5, 4, 3, 1), "4D": (5, 4, 3, 2), "5D": (5, 4, 3, 1, 3)}
SCALINGS = {"none": (0, 0), "nan": (np.nan, 0), "one": (1, 0), "linear": (0.37, -12.5), "bad": (2, np.nan)}
COLORS = ("rgb", "rgba")
FORMS = ("neither", "qform", "sform", "both", "different", "pixdim differs", "sheared")
UNITS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
FACTOR = {0: 1.0, 1: 1e-3, 2: 1.0, 3: 1e3}  # so that all files are of the same size
CELLS = (KINDS, "<>", SCALINGS, FORMS, UNITS, SIZES, (1, 2), (".nii", ".nii.gz"))

AFFINE = np.array([[0.0, -2.0, 0.0, 7.0], [1.0, 0.0, 0.0, -8.0], [0.0, 0.0, 3.0, 9.0], [0.0, 0.0, 0.0, 1.0]])
OTHER = np.diag([-1.0, 1.0, 1.0, 1.0]) @ AFFINE
SHEARED = AFFINE + np.array([[0.4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def written(path, kind, endian, scaling, forms, unit, sizes, version):
    """A file of a cell, byte by byte; returns its header."""
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=endian)
    header["dim"] = (len(sizes), *sizes, *[1] * (7 - len(sizes)))
    header["datatype"], header["vox_offset"] = KINDS[kind], 352 if version == 1 else 544
    header["bitpix"] = {"rgb": 24, "rgba": 32, "complex": 64, "bits": 1}.get(kind) or 8 * np.dtype(kind).itemsize
    header["scl_slope"], header["scl_inter"] = SCALINGS[scaling]
    affine, factor = AFFINE.copy(), FACTOR[unit]
    header["pixdim"][1:4] = np.array((1.0, 2.0, 3.0)) * factor * (1.5 if forms == "pixdim differs" else 1)
    header["xyzt_units"] = unit + 8
    sform = {"different": OTHER, "sheared": SHEARED}.get(forms, affine)
    if forms in ("qform", "both", "different", "sheared"):
        header.set_qform(np.diag([factor] * 3 + [1]) @ affine, 1)
    if forms not in ("neither", "qform"):
        header.set_sform(np.diag([factor] * 3 + [1]) @ sform, 2)
    count = int(np.prod(sizes))
    if kind in COLORS:
        data = np.arange(count * len(kind)).astype("u1")
    else:
        data = (np.arange(count) % 120).astype(
            np.dtype({"complex": "c8", "bits": "u1"}.get(kind, kind)).newbyteorder(endian)
        )
    content = header.binaryblock + bytes(4) + data.tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return header


def reason(kind, scaling, forms, dims):
    """Why a file of a cell has to be refused; None if it has not."""
    if kind in ("complex", "bits"):
        return {"complex": "complex numbers", "bits": "single bits"}[kind]
    if dims == "5D" or (dims == "4D" and kind in COLORS):
        return "axes"
    if dims == "4D":
        return "is 4D"
    if scaling == "bad" and kind not in COLORS:
        return "scl_inter"
    return "sheared axes: the cosine between two of them is 0.371" if forms == "sheared" else None


def test_every_combination_is_read_as_it_is_or_refused_for_what_it_is(tmp_path):
    def check(cell):
        kind, endian, scaling, forms, unit, dims, version, ending = cell
        path = tmp_path / f"case{ending}"
        header = written(path, kind, endian, scaling, forms, unit, SIZES[dims], version)
        if (why := reason(kind, scaling, forms, dims)) is not None:
            return refused(read_image, path, why)
        volume = read_image([path])
        check_voxels(volume.array, path, SIZES[dims], kind if kind in COLORS else None)
        check_grid(volume.geometry, header, dims, forms)
        assert any("two different grids" in note for note in volume.notes) == (forms == "different")
        assert any("pixdim" in note for note in volume.notes) == (forms == "pixdim differs")
        return "equal"

    counts = check_cells(matrix_cells(40, *CELLS), check)
    assert len(counts) == 7


def check_voxels(array, path, sizes, colors):
    z_y_x = (*sizes, 1)[:3][::-1]
    if colors is None:
        expected = np.asarray(nibabel.load(path).dataobj).T.reshape(1, *z_y_x)
    else:  # which nibabel cannot scale, and the standard says they never are
        expected = np.moveaxis(np.arange(np.prod(sizes) * len(colors)).reshape(*z_y_x, -1) % 256, -1, 0)
    assert np.array_equal(array, expected.astype(np.float32))


def check_grid(grid, header, dims, forms):
    unit = UNITS[int(header["xyzt_units"]) % 8]
    code = int(header["sform_code"]), int(header["qform_code"])
    assert grid.has_orientation == any(code)
    affine = header.get_sform() if code[0] else header.get_qform() if code[1] else None
    steps = header["pixdim"][1:4] * unit if affine is None else np.linalg.norm(affine[:3, :3], axis=0) * unit
    assert np.allclose(steps, (1.0, 2.0, 3.0) if forms != "pixdim differs" or any(code) else (1.5, 3.0, 4.5), rtol=1e-5)
    if dims == "2D":
        assert np.allclose(grid.spacing_mm, (SLICE_SPACING_OF_2D * 2, 2, 1), rtol=1e-5)
        return
    assert np.allclose(grid.spacing_mm, steps[::-1], rtol=1e-5)
    if affine is not None:
        corners = np.array([(x, y, z, 1) for z in (0, 2) for y in (0, 3) for x in (0, 4)])
        assert np.allclose(grid.corners, (corners @ affine.T)[:, :3] * unit * (-1, -1, 1), atol=1e-4)
