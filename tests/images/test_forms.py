"""What is written for an image states its place as the image's own file does, in every way that programs read."""

import gzip
import struct
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK

from autoseg.core.geometry import Geometry
from autoseg.core.records import from_data, to_data
from autoseg.images.compare import compare_geometry
from autoseg.images.readers import read_image, read_labels
from autoseg.images.writers import write_labels
from tests.images.examples import OBLIQUE, label_array

SHAPE = (4, 5, 6)
GRID = np.array([[-0.8, 0, 0, 12], [0, -1, 0, 7], [0, 0, 2, -30], [0, 0, 0, 1.0]])
TURNED = np.array([[0.96, -0.28, 0, 5], [0.28, 0.96, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ GRID


def saved(path, codes, unit="mm", kind=nibabel.Nifti1Image, shape=SHAPE):
    image = kind(label_array(shape).astype(np.uint8).T, None)
    image.header["pixdim"][1 : 1 + len(shape)] = (0.8, 1.0, 2.0)[: len(shape)]
    for code, state, affine in zip(codes, (image.set_qform, image.set_sform), (GRID, TURNED), strict=True):
        state(affine if code else None, code)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("unit", ["mm", "micron", "unknown"])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 4), (1, 2), (3, 3)])
@pytest.mark.parametrize("shape", [SHAPE, (5, 6)])
def test_a_label_map_keeps_codes_forms_pixdim_and_unit_of_its_image(tmp_path, kind, unit, codes, shape):
    image = read_image([saved(tmp_path / "image.nii.gz", codes, unit, kind, shape)])
    write_labels(tmp_path / "labels.nii.gz", label_array(image.geometry.shape), image.geometry)
    first, second = nibabel.load(tmp_path / "image.nii.gz"), nibabel.load(tmp_path / "labels.nii.gz")
    assert first.shape == second.shape
    for form in ("get_qform", "get_sform"):
        (one, code), (other, its) = (getattr(file, form)(coded=True) for file in (first, second))
        assert code == its
        assert not code or np.allclose(one, other, atol=1e-5)
    assert first.header.get_xyzt_units()[0] == second.header.get_xyzt_units()[0]
    assert np.allclose(first.header["pixdim"][:4], second.header["pixdim"][:4])
    assert np.allclose(first.affine, second.affine, atol=1e-5)  # as nibabel lays out the axes
    again = read_labels(tmp_path / "labels.nii.gz").geometry
    assert compare_geometry(image.geometry, again) in ("identical", "rounding")
    assert again.has_orientation == image.geometry.has_orientation == any(codes)


@pytest.mark.parametrize("degrees", [5, 20, 33.3, 71])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_qform_tilted_about_one_axis_is_as_exact_as_nibabel_has_it(tmp_path, degrees, axes):
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    tilted = np.array([[-1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])[np.ix_(axes, axes)]
    image = nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), None)
    image.set_qform(nibabel.affines.from_matvec(tilted * (0.5, 0.5, 2), (10, 20, 30)), 1)
    nibabel.save(image, tmp_path / "image.nii")
    found, expected = read_image([tmp_path / "image.nii"]).geometry, nibabel.load(tmp_path / "image.nii").affine
    to_ras = np.array([[-1.0], [-1.0], [1.0]])
    assert np.allclose(found.columns * found.spacing_mm[::-1] * to_ras, expected[:3, :3], atol=1e-5)


def test_a_grid_that_was_moved_since_is_written_as_it_is_now(tmp_path):
    geometry = read_image([saved(tmp_path / "image.nii.gz", (1, 2))]).geometry
    moved = replace(geometry, origin_mm=(1.0, 2.0, 3.0))
    write_labels(tmp_path / "labels.nii.gz", label_array(SHAPE), moved)
    assert compare_geometry(moved, read_labels(tmp_path / "labels.nii.gz").geometry) in ("identical", "rounding")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("unit_mm", [1.0, 1e-3, 10.0])
@pytest.mark.parametrize("has_orientation", [True, False])
def test_unit_and_missing_orientation_are_written_and_read_again(tmp_path, ending, unit_mm, has_orientation):
    direction = OBLIQUE if has_orientation else Geometry(SHAPE).direction
    grid = Geometry(SHAPE, (2.0, 0.6, 0.5), (0.0, 0.0, 0.0), direction, has_orientation, unit_mm)
    write_labels(tmp_path / f"case{ending}", label_array(SHAPE), grid)
    found = read_labels(tmp_path / f"case{ending}").geometry
    assert compare_geometry(grid, found) in ("identical", "rounding")
    assert found.has_orientation == has_orientation
    assert ending == ".nii.gz" or found.unit_mm == unit_mm
    if unit_mm == 1.0:  # SimpleITK knows no units
        image = SimpleITK.ReadImage(str(tmp_path / f"case{ending}"))
        assert np.allclose(image.GetSpacing(), (0.5, 0.6, 2.0))
        assert (SimpleITK.GetArrayFromImage(image) == label_array(SHAPE)).all()
        assert np.allclose(np.array(image.GetDirection()).reshape(3, 3), grid.columns, atol=1e-6)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".gipl", ".nii"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32])
def test_simpleitk_and_autoseg_read_each_other(tmp_path, ending, kind):
    array = label_array(SHAPE, 200).astype(kind)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.6, 2.0))
    image.SetOrigin((1.0, -2.0, 3.0))
    SimpleITK.WriteImage(image, str(tmp_path / f"a{ending}"), useCompression=False)
    found = read_image([tmp_path / f"a{ending}"])
    assert np.array_equal(found.array[0], array)
    assert np.allclose(found.geometry.spacing_mm, (2.0, 0.6, 0.5))
    assert np.allclose(found.geometry.origin_mm, (1.0, -2.0, 3.0))
    write_labels(tmp_path / f"b{ending}", array.astype(np.uint8), found.geometry)
    back = SimpleITK.ReadImage(str(tmp_path / f"b{ending}"))
    assert np.allclose([*back.GetSpacing(), *back.GetOrigin()], [0.5, 0.6, 2.0, 1.0, -2.0, 3.0])
    assert np.array_equal(SimpleITK.GetArrayFromImage(back), array.astype(np.uint8))


def test_the_forms_of_a_grid_survive_a_record(tmp_path):
    geometry = read_image([saved(tmp_path / "image.nii.gz", (1, 2), "micron")]).geometry
    data = to_data(geometry)
    found = from_data(Geometry, data, "case.json")
    assert (found, found.forms, found.unit_mm) == (geometry, geometry.forms, 1e-3)
    former = {name: data[name] for name in ("shape", "spacing_mm", "origin_mm", "direction")}
    assert from_data(Geometry, former, "case.json").forms is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e20])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 0)])
def test_numbers_of_a_form_that_is_not_meant_do_not_count(tmp_path, codes, number):
    whole = read_image([saved(tmp_path / "whole.nii.gz", codes)])
    content = bytearray(gzip.decompress((tmp_path / "whole.nii.gz").read_bytes()))
    for place in ([] if codes[0] else [256, 268]) + ([] if codes[1] else [280, 308]):
        struct.pack_into("<f", content, place, number)
    (tmp_path / "case.nii").write_bytes(content)
    found = read_image([tmp_path / "case.nii"])
    assert (found.geometry, found.notes) == (whole.geometry, whole.notes)
    write_labels(tmp_path / "labels.nii.gz", label_array(SHAPE), found.geometry)
    assert read_labels(tmp_path / "labels.nii.gz").geometry == whole.geometry


@pytest.mark.parametrize("space", ["space dimension: 3", "space: 3D-right-handed", "space: scanner-xyz"])
def test_labels_lie_where_an_nrrd_image_without_orientation_lies(tmp_path, space):
    header = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: {' '.join(map(str, SHAPE[::-1]))}\nencoding: raw\n{space}\n"
    header += "space directions: (0,0.5,0) (0.6,0,0) (0,0,-2)\nspace origin: (3,4,5)\n\n"
    (tmp_path / "image.nrrd").write_bytes(header.encode() + bytes(label_array(SHAPE).astype(np.uint8)))
    found = read_image([tmp_path / "image.nrrd"]).geometry
    write_labels(tmp_path / "labels.nrrd", label_array(SHAPE), found)
    again = read_labels(tmp_path / "labels.nrrd").geometry
    assert (found.has_orientation, again.has_orientation) == (False, False)
    assert compare_geometry(found, again) in ("identical", "rounding")
    image, labels = (SimpleITK.ReadImage(str(tmp_path / f"{name}.nrrd")) for name in ("image", "labels"))
    assert np.allclose([*image.GetOrigin(), *image.GetDirection()], [*labels.GetOrigin(), *labels.GetDirection()])
