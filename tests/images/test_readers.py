"""Reading what files hold: shapes, values, spacings, oddities settled with a note or refused with a reason."""

import numpy as np
import pytest

from autoseg.core.errors import GeometryMismatch, LabelFault, UnreadableFile
from autoseg.core.geometry import Geometry
from autoseg.images.orientation import turn_to
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume, plane_geometry
from autoseg.images.writers import write_image, write_labels
from tests.images.examples import label_array, nifti_bytes, write_gz

SHAPE = (4, 5, 6)


def labels_in(tmp_path, array, **header):
    """A label file of any dtype, with scale factors if asked for."""
    import nibabel

    image = nibabel.Nifti1Image(np.asarray(array).T, np.eye(4), dtype=array.dtype)
    if header:
        image.header.set_slope_inter(**header)
    path = tmp_path / "case.nii.gz"
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.int64])
def test_label_values_are_those_of_the_file_whatever_their_type(tmp_path, dtype):
    labels = label_array(SHAPE)
    found = read_labels(labels_in(tmp_path, labels.astype(dtype)))
    assert found.array.dtype == np.int16
    assert (found.array == labels).all()
    assert found.notes == ()


@pytest.mark.parametrize("values", [(0, 255), (0, 200, 210), (-1, 0, 1), (0, 65535), (0, 3.0000002), (0, 1.00009)])
def test_gaps_negative_and_nearly_whole_values_are_accepted(tmp_path, values):
    labels = np.resize(np.array(values, np.float64), SHAPE)
    assert (read_labels(labels_in(tmp_path, labels)).array == np.rint(labels)).all()


@pytest.mark.parametrize("slope", [2.0, 100.0])
def test_a_scale_factor_that_gives_whole_numbers_is_applied(tmp_path, slope):
    labels = label_array(SHAPE, highest=2)
    path = labels_in(tmp_path, labels.astype(np.uint8), slope=slope, inter=0)
    assert (read_labels(path).array == labels * slope).all()


def test_fractional_labels_are_refused_with_the_most_frequent_values(tmp_path):
    labels = label_array(SHAPE, highest=2).astype(np.float32)
    labels[0] = 0.5
    labels[1, 0] = np.arange(6) + 0.25
    labels[1, 1, :3] = 0.7
    with pytest.raises(LabelFault, match=r"0\.5 \(30 voxels\), 0\.7 \(3 voxels\), .* and 3 more values"):
        read_labels(labels_in(tmp_path, labels))


def test_a_scale_factor_of_one_half_is_refused(tmp_path):
    with pytest.raises(LabelFault, match=r"1\.5"):
        read_labels(labels_in(tmp_path, label_array(SHAPE).astype(np.uint8), slope=0.5, inter=0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_labels_that_are_not_finite_are_refused(tmp_path, value):
    labels = label_array(SHAPE).astype(np.float32)
    labels[0, 0, :2] = value
    with pytest.raises(LabelFault, match="2 of 120"):
        read_labels(labels_in(tmp_path, labels))


def test_labels_too_large_for_any_numbering_are_refused(tmp_path):
    with pytest.raises(LabelFault, match="4294967296"):
        read_labels(labels_in(tmp_path, np.full(SHAPE, 2**32, np.int64)))


def test_four_dimensional_labels_are_refused(tmp_path):
    with pytest.raises(UnreadableFile, match="4D"):
        read_labels(write_gz(tmp_path / "case.nii.gz", nifti_bytes(np.zeros((3, *SHAPE), np.uint8))))


def test_channels_are_stacked_in_the_order_given(tmp_path):
    paths = [tmp_path / f"case_000{channel}.nii.gz" for channel in range(3)]
    for value, path in enumerate(paths):
        write_image(path, Volume(np.full((1, *SHAPE), value, np.int16), Geometry(SHAPE)))
    volume = read_image(paths[::-1])
    assert volume.array.dtype == np.float32
    assert volume.array.shape == (3, *SHAPE)
    assert volume.array[:, 0, 0, 0].tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "other", [Geometry((4, 5, 7)), Geometry(SHAPE, (1.0, 1.0, 1.5)), Geometry(SHAPE, origin_mm=(9.0, 0.0, 0.0))]
)
def test_channels_on_different_grids_are_refused(tmp_path, other):
    for path, geometry in ((tmp_path / "a.nii.gz", Geometry(SHAPE)), (tmp_path / "b.nii.gz", other)):
        write_image(path, Volume(np.zeros((1, *geometry.shape), np.uint8), geometry))
    with pytest.raises(GeometryMismatch, match=r"b\.nii\.gz"):
        read_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])


def test_a_channel_stored_along_other_axes_is_turned_as_the_first_one_with_a_note(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 255, (1, *SHAPE)).astype(np.uint8)
    first = Volume(voxels, Geometry(SHAPE, (3.0, 2.0, 1.0)))
    for codes in ("RAS", "SPL", "AIR"):
        turned = turn_to(first.geometry, codes).apply(first)
        write_image(tmp_path / "a.nrrd", first)
        write_image(tmp_path / f"{codes}.nrrd", turned)
        found = read_image([tmp_path / "a.nrrd", tmp_path / f"{codes}.nrrd"])
        assert found.geometry == first.geometry
        assert np.array_equal(found.array, np.concatenate([voxels, voxels]))
        assert [note for note in found.notes if "turned to L-P-S" in note and codes in note], found.notes


def test_a_channel_on_the_other_form_of_the_first_is_matched(tmp_path):
    import nibabel

    grid, mirrored = np.diag([-1.0, -1.0, 1.0, 1.0]), np.diag([1.0, -1.0, 1.0, 1.0])
    grid[:3, 3] = mirrored[:3, 3] = 40, 30, 20
    for name, forms in {"a.nii": (grid, mirrored), "b.nii": (grid, None)}.items():
        image = nibabel.Nifti1Image(label_array(SHAPE).astype(np.uint8).T, None)
        image.set_qform(forms[0], 1)
        image.set_sform(forms[1], int(forms[1] is not None))
        nibabel.save(image, tmp_path / name)
    volume = read_image([tmp_path / "a.nii", tmp_path / "b.nii"])
    assert np.array_equal(volume.array[0], volume.array[1])
    assert "matched voxel by voxel" in volume.notes[-1]


def test_values_beyond_single_precision_become_infinite_for_the_data_check_to_count(tmp_path):
    path = tmp_path / "case.nii"
    path.write_bytes(nifti_bytes(np.full(SHAPE, 1e300)))
    assert np.isinf(read_image([path]).array).all()


def test_lossy_pictures_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "photo.png").write_bytes(b"\xff\xd8\xff")
    for read in (read_labels, lambda path: read_image([path])):
        with pytest.raises(UnreadableFile, match="PNG"):
            read(tmp_path / "photo.jpg")
        with pytest.raises(UnreadableFile, match="JPEG"):
            read(tmp_path / "photo.png")


def test_overlapping_segments_are_refused_as_labels_but_gray_colors_are_not(tmp_path):
    array = np.stack([label_array(SHAPE)] * 3).astype(np.uint8)
    path = tmp_path / "case.nrrd"
    write_image(path, Volume(array, Geometry(SHAPE)))
    labels = read_labels(path)
    assert (labels.array == array[0]).all()
    assert "gray colors" in labels.notes[0]
    array[1, 0, 0, 0] += 1
    write_image(path, Volume(array, Geometry(SHAPE)))
    with pytest.raises(LabelFault, match="3 channels"):
        read_labels(path)


def test_pictures_have_the_spacing_that_marks_two_dimensions(tmp_path):
    path = tmp_path / "case.png"
    write_labels(path, label_array((1, 5, 6)), plane_geometry((5, 6)))
    assert read_image([path]).geometry == plane_geometry((5, 6))


def test_complex_voxels_are_refused(tmp_path):
    import SimpleITK

    path = tmp_path / "case.nrrd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones(SHAPE, np.complex64), isVector=False), str(path))
    with pytest.raises(UnreadableFile):
        read_image([path])


@pytest.mark.parametrize(
    ("ending", "true", "false"),
    [(".mha", b"Offset = 0 0 0", b"Offset = nan 0 0"), (".nrrd", b"origin: (0,0,0)", b"origin: (0,inf,0)")],
)
def test_a_position_that_is_not_a_number_is_refused(tmp_path, ending, true, false):
    path = tmp_path / f"case{ending}"
    write_image(path, Volume(np.zeros((1, *SHAPE), np.uint8), Geometry(SHAPE)))
    path.write_bytes(path.read_bytes().replace(true, false))
    with pytest.raises(UnreadableFile, match="position"):
        read_image([path])


@pytest.mark.parametrize(
    "texts", [("DICOM:0010:=a", "DICOM:0020:=b"), ("A:=Å: 1", "B:=Å: 2"), ("sizes:=2 2", "a:b:=c: d")]
)
def test_free_text_of_nrrd_is_no_field(tmp_path, texts):
    fields = ["NRRD0005", "type: uint8", "dimension: 3", "sizes: 6 5 4", "spacings: 1 2 3", *texts, "encoding: raw"]
    labels = label_array(SHAPE).astype(np.uint8)
    (tmp_path / "case.nrrd").write_bytes("\n".join([*fields, "", ""]).encode() + labels.tobytes())
    found = read_labels(tmp_path / "case.nrrd")
    assert (found.array == labels).all()
    assert found.geometry.spacing_mm == (3.0, 2.0, 1.0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "pointer of Git LFS", "git lfs pull"),
        (b"/annex/objects/SHA256E-s9--00.nii.gz\n", "git-annex", "datalad get"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page", "download it again"),
        (bytes(128) + b"DICM" + bytes(300), "DICOM", "dcm2niix"),
        (b"PK\x03\x04" + bytes(400), "zip", "unpack"),
    ],
)
def test_a_file_that_is_something_else_is_named_as_what_it_is(tmp_path, ending, content, what, remedy):
    path = tmp_path / f"case{ending}"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=what) as error:
        read_image([path])
    assert remedy in error.value.do


@pytest.mark.parametrize("ending", [".nii", ".mha", ".gipl", ".png", ".tif"])
def test_an_image_with_the_ending_of_another_kind_is_named(tmp_path, ending):
    write_labels(tmp_path / "case.nrrd", label_array(SHAPE), Geometry(SHAPE))
    path = (tmp_path / "case.nrrd").rename(tmp_path / f"case{ending}")
    with pytest.raises(UnreadableFile, match="is NRRD"):
        read_labels(path)


@pytest.mark.parametrize("count", [17, 65, 1000])
def test_nrrd_with_more_axes_than_the_format_allows_is_refused(tmp_path, count):
    header = f"NRRD0004\ntype: uint8\ndimension: {count}\nsizes: {'1 ' * count}\nencoding: raw\n\n"
    (tmp_path / "case.nrrd").write_bytes(header.encode() + bytes(1))
    with pytest.raises(UnreadableFile, match=f"{count} dimensions"):
        read_image([tmp_path / "case.nrrd"])


@pytest.mark.parametrize(
    ("factor", "offset", "word"),
    [
        (1, 0, None),
        (1, 40_000, None),
        (1e-6, 0, None),
        (1, 2**30, "rounded to steps of 128"),
        (1, -(2**26), "rounded to steps of 8"),
        (0, 2**30, None),
        (1e-11, 0, "normalization flattens them"),
    ],
)
def test_numbers_too_close_together_to_be_told_apart_are_noted(tmp_path, factor, offset, word):
    array = np.random.default_rng(0).integers(1, 120, SHAPE) * factor + offset
    found = read_image([labels_in(tmp_path, array.astype(np.float64))])
    assert [word in note for note in found.notes] == ([] if word is None else [True])
