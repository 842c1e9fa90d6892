"""NIfTI: axes, units, shear, both forms of the grid, kinds of voxels."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK

from autoseg.core.errors import UnreadableFile
from autoseg.core.geometry import Geometry
from autoseg.images.compare import compare_geometry
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from autoseg.images.writers import write_image, write_labels
from tests.images.examples import label_array, nifti_bytes

SHAPE = (4, 5, 6)


def saved(folder, array, affine, kind=nibabel.Nifti1Image, unit=None, name="case.nii.gz"):
    image = kind(np.asarray(array, np.int16).T, affine)
    if unit:
        image.header.set_xyzt_units(unit)
    nibabel.save(image, folder / name)
    return folder / name


def affine_of(shear=0.0):
    affine = np.array([[0.0, -2.0, 0.0, 7.0], [1.0, 0.0, 0.0, -8.0], [0.0, 0.0, 3.0, 9.0], [0.0, 0.0, 0.0, 1.0]])
    affine[0, 0] = shear
    return affine


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_world_positions_are_those_of_the_affine_in_lps(tmp_path, kind):
    labels = label_array(SHAPE)
    found = read_labels(saved(tmp_path, labels, affine_of(), kind))
    assert (found.array == labels).all()
    indices = np.array([[0, 0, 0], [3, 4, 5], [1, 0, 2]])
    expected = (affine_of() @ np.c_[indices[:, ::-1], np.ones(3)].T)[:3].T * (-1, -1, 1)
    assert np.allclose(found.geometry.world(indices), expected, atol=1e-5)
    assert found.geometry.spacing_mm == (3.0, 2.0, 1.0)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3)])
def test_units_of_the_header_become_millimeters(tmp_path, kind, unit, factor):
    found = read_image([saved(tmp_path, label_array(SHAPE), affine_of(), kind, unit)])
    assert np.allclose(found.geometry.spacing_mm, np.array([3.0, 2.0, 1.0]) * factor)
    assert np.allclose(found.geometry.origin_mm, np.array([-7.0, 8.0, 9.0]) * factor)
    assert [f"{factor:g} x {2 * factor:g} x {3 * factor:g} mm" in note for note in found.notes] == [True][
        : unit != "mm"
    ]


@pytest.mark.parametrize("shear", np.geomspace(1e-5, 9.9e-3, 15))
def test_a_tiny_shear_is_straightened_and_written_back_on_the_same_grid(tmp_path, shear):
    labels = label_array(SHAPE)
    found = read_labels(saved(tmp_path, labels, affine_of(shear)))
    axes = np.array(found.geometry.direction).reshape(3, 3)
    assert np.abs(axes @ axes.T - np.eye(3)).max() < 3e-4  # what SimpleITK itself accepts is kept as it is
    assert not found.notes or "sheared" in found.notes[0]
    write_labels(tmp_path / "back.nii.gz", found.array, found.geometry)
    back = read_labels(tmp_path / "back.nii.gz")
    assert compare_geometry(found.geometry, back.geometry) in ("identical", "rounding")
    assert (back.array == labels).all()


@pytest.mark.parametrize("shear", np.geomspace(1.1e-2, 0.3, 15))
def test_a_larger_shear_is_refused(tmp_path, shear):
    with pytest.raises(UnreadableFile, match="sheared axes"):
        read_image([saved(tmp_path, label_array(SHAPE), affine_of(shear))])


def test_a_sheared_sform_beside_a_valid_qform_is_refused(tmp_path):
    image = nibabel.Nifti1Image(label_array(SHAPE).astype(np.uint8).T, None)
    image.set_qform(affine_of(), 1)
    image.set_sform(affine_of(0.2), 4)
    nibabel.save(image, tmp_path / "case.nii.gz")
    with pytest.raises(UnreadableFile, match=r"sheared axes: the cosine between two of them is 0\.196"):
        read_image([tmp_path / "case.nii.gz"])


@pytest.mark.parametrize(
    ("shape", "as_3d", "as_4d"),
    [
        ((6, 5), (1, 1, 5, 6), (1, 1, 5, 6)),
        ((6, 5, 4), (1, 4, 5, 6), (1, 4, 5, 6)),
        ((6, 5, 4, 1), (1, 4, 5, 6), (1, 4, 5, 6)),
        ((6, 5, 4, 1, 1), (1, 4, 5, 6), (1, 4, 5, 6)),
        ((6, 5, 4, 3), None, (3, 4, 5, 6)),
        ((6, 5, 4, 1, 3), None, None),
        ((6, 5, 4, 2, 3), None, None),
    ],
)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_fourth_axis_is_channels_or_refused_and_a_fifth_always_refused(tmp_path, kind, shape, as_3d, as_4d):
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape).T
    path = saved(tmp_path, array, np.diag([1.0, 2.0, 3.0, 1.0]), kind)
    for four_d, expected in ((False, as_3d), (True, as_4d)):
        if expected is None:
            with pytest.raises(UnreadableFile, match=r"4D|5 axes"):
                read_image([path], four_d)
            continue
        volume = read_image([path], four_d)
        assert volume.array.shape == expected
        assert (volume.array.ravel() == array.ravel()).all()
        assert volume.geometry.spacing_mm == ((1998.0, 2.0, 1.0) if len(shape) == 2 else (3.0, 2.0, 1.0))


def test_a_file_of_one_axis_is_refused(tmp_path):
    (tmp_path / "case.nii").write_bytes(nifti_bytes(np.zeros(5, np.uint8)))
    with pytest.raises(UnreadableFile):
        read_image([tmp_path / "case.nii"])


def test_names_are_those_of_the_file_system(tmp_path):
    labels = label_array(SHAPE)
    files = {"case.nii.gz": labels, "case.nii": 0 * labels, "CASE.NII.GZ": labels + 1, "CASE.NII": labels + 2}
    files |= {"Case.Nii.Gz": labels + 3, "case.NII.gz": labels + 4}
    for name, array in files.items():
        content = nifti_bytes(array.astype(np.uint8))
        (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    for name, array in files.items():
        assert (read_labels(tmp_path / name).array == array).all()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("case.nii.gz", lambda content: content, r"not compressed.*-> name it \.nii$"),
        ("case.nii", gzip.compress, r"gzip-compressed.*-> name it \.nii\.gz$"),
        ("case.nii", lambda content: content[:344] + b"ni1\0" + content[348:], r"header of a NIfTI pair"),
        ("case.nii", lambda content: content[:344] + bytes(4) + content[348:], r"ANALYZE"),
        ("case.nii.gz", lambda content: content[4:], r"is not a NIfTI file"),
    ],
)
def test_other_files_of_the_ending_are_named_with_the_remedy_that_helps(tmp_path, name, change, reason):
    (tmp_path / name).write_bytes(change(nifti_bytes(np.zeros(SHAPE, np.uint8))))
    with pytest.raises(UnreadableFile, match=reason):
        read_image([tmp_path / name])


def test_values_on_a_surface_are_named(tmp_path):
    from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ScalarAxis

    surface = BrainModelAxis.from_mask(np.ones((2, 2, 2), bool), affine=np.eye(4), name="other")
    nibabel.save(Cifti2Image(np.zeros((1, 8), np.float32), (ScalarAxis(["a"]), surface)), tmp_path / "a.dscalar.nii")
    with pytest.raises(UnreadableFile, match="CIFTI-2"):
        read_image([tmp_path / "a.dscalar.nii"])


def test_vectors_on_a_fifth_axis_are_named(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((*SHAPE, 1, 3), np.uint8), np.eye(4))
    image.header.set_intent(1007)
    image.header.set_slope_inter(0.5, 0)
    nibabel.save(image, tmp_path / "case.nii")
    with pytest.raises(UnreadableFile, match="vectors of 3 numbers"):
        read_image([tmp_path / "case.nii"], four_d=True)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_color_voxels_become_channels(tmp_path, kind, names):
    colors = np.zeros(SHAPE[::-1], dtype=[(name, "u1") for name in names])
    colors["G"] = 7
    nibabel.save(kind(colors, np.eye(4)), tmp_path / "case.nii.gz")
    volume = read_image([tmp_path / "case.nii.gz"])
    assert volume.array.shape == (len(names), *SHAPE)
    assert volume.array.mean((1, 2, 3)).tolist() == [0.0, 7.0, 0.0, 0.0][: len(names)]


def test_a_rotation_that_is_none_is_refused_where_it_is_used(tmp_path):
    image = nibabel.Nifti2Image(label_array(SHAPE).astype(np.uint8).T, np.eye(4))
    content = bytearray(image.to_bytes())
    content[344:352] = np.array([1, 0], "<i4").tobytes()  # a qform, no sform
    content[352:376] = np.full(3, 9.0, "<f8").tobytes()  # of a quaternion that is none
    (tmp_path / "case.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(UnreadableFile, match="no rotation"):
        read_image([tmp_path / "case.nii.gz"])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".gipl"])
def test_voxels_that_are_not_finite_stay_visible(tmp_path, ending):
    array = np.ones((1, *SHAPE), np.float32)
    array[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    path = tmp_path / f"case{ending}"
    write_image(path, Volume(array, Geometry(SHAPE)))
    assert np.array_equal(read_image([path]).array, array, equal_nan=True)


def test_a_scale_factor_gives_the_same_intensities_as_in_itk(tmp_path):
    image = nibabel.Nifti1Image(label_array(SHAPE, 3000).astype(np.int16).T, affine_of())
    image.header.set_slope_inter(0.37, -12.5)
    nibabel.save(image, tmp_path / "case.nii.gz")
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "case.nii.gz")))
    assert np.allclose(read_image([tmp_path / "case.nii.gz"]).array[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("row", "reason"), [((1e30, 0, 0, 0), "impossible position"), ((2, 0, 0, 0), "sheared axes")])
def test_a_form_that_is_no_grid_is_refused_and_not_computed_with(tmp_path, row, reason):
    image = nibabel.Nifti1Image(label_array(SHAPE).astype(np.uint8).T, np.eye(4))
    image.set_qform(np.eye(4), 1)
    content = bytearray(image.to_bytes())
    content[280:328] = np.array([row, row, (0, 1, 1, 0)], "<f4").tobytes()
    (tmp_path / "case.nii").write_bytes(content)
    with pytest.raises(UnreadableFile, match=reason):
        read_image([tmp_path / "case.nii"])
