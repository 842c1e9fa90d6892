"""What is written can be read back: values, grid, format."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.core.errors import GeometryMismatch, NotEnoughResources, UsageError
from autoseg.core.files import TEMPORARY_MARK
from autoseg.core.geometry import Geometry
from autoseg.images.compare import compare_geometry
from autoseg.images.formats.files import verify_file
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume, plane_geometry
from autoseg.images.writers import write_image, write_labels
from tests.images.examples import OBLIQUE, geometries, label_array

MEDICAL = [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"]
VOLUMES = [*MEDICAL, ".gipl", ".tif", ".tiff"]
PICTURES = [".png", ".bmp", ".tif", ".tiff"]
HIGHEST = {".gipl": 255, ".bmp": 255}
IDENTITY = Geometry((1, 1, 1)).direction


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(MEDICAL), geometries(), st.sampled_from([3, 255, 65535, 10**6]), st.booleans())
def test_labels_survive_writing_and_reading_on_any_grid(tmp_path_factory, ending, geometry, highest, has_negative):
    path = tmp_path_factory.mktemp("labels") / f"case{ending}"
    labels = label_array(geometry.shape, highest) - int(has_negative)
    write_labels(path, labels, geometry)
    found = read_labels(path)
    assert (found.array == labels).all()
    assert np.allclose(found.geometry.direction, geometry.direction, atol=1e-7)
    assert found.geometry.spacing_mm == geometry.spacing_mm
    assert compare_geometry(geometry, found.geometry) in ("identical", "rounding")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MEDICAL), geometries(smallest=1))
def test_a_grid_once_read_is_written_back_exactly(tmp_path_factory, ending, geometry):
    folder = tmp_path_factory.mktemp("labels")
    write_labels(folder / f"a{ending}", label_array(geometry.shape), geometry)
    first = read_labels(folder / f"a{ending}")
    write_labels(folder / f"b{ending}", first.array, first.geometry)
    second = read_labels(folder / f"b{ending}")
    assert compare_geometry(first.geometry, second.geometry) in ("identical", "rounding")
    assert first.geometry.shape == second.geometry.shape
    assert np.allclose(first.geometry.direction, second.geometry.direction, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(VOLUMES), geometries(direction=st.just(IDENTITY)))
def test_stacks_keep_values_and_spacing_in_every_format(tmp_path_factory, ending, geometry):
    path = tmp_path_factory.mktemp("stack") / f"case{ending}"
    labels = label_array(geometry.shape, HIGHEST.get(ending, 300))
    write_labels(path, labels, geometry)
    found = read_labels(path)
    assert (found.array == labels).all()
    assert found.geometry.spacing_mm == geometry.spacing_mm


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([*PICTURES, *MEDICAL]), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 255, 256]))
def test_pictures_stay_pictures_in_every_format(tmp_path_factory, ending, height, width, highest):
    path = tmp_path_factory.mktemp("plane") / f"case{ending}"
    labels = label_array((1, height, width), min(highest, HIGHEST.get(ending, highest)))
    write_labels(path, labels, plane_geometry((height, width)))
    found = read_labels(path)
    assert (found.array == labels).all()
    assert found.geometry == plane_geometry((height, width))


def test_a_plane_is_written_as_a_two_dimensional_file(tmp_path):
    import SimpleITK

    turned = (0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    geometry = Geometry((1, 5, 6), (999 * 0.5, 0.25, 0.5), (3.0, 4.0, 0.0), turned)
    for ending in MEDICAL:
        path = tmp_path / f"case{ending}"
        write_labels(path, label_array((1, 5, 6)), geometry)
        image = SimpleITK.ReadImage(str(path))
        assert image.GetDimension() == 2
        assert image.GetSpacing() == (0.5, 0.25)
        assert read_labels(path).geometry == geometry


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(VOLUMES), st.sampled_from([np.uint8, np.int16, np.float32]), st.integers(1, 4))
def test_images_survive_writing_and_reading_with_all_channels(tmp_path_factory, ending, dtype, channels):
    if ending == ".gipl" and channels > 1:
        return
    path = tmp_path_factory.mktemp("image") / f"case{ending}"
    array = np.random.default_rng(channels).normal(100, 20, (channels, 3, 5, 6)).astype(dtype)
    geometry = Geometry((3, 5, 6), (2.5, 0.5, 0.75))
    write_image(path, Volume(array, geometry))
    found = read_image([path], four_d=True)
    assert (found.array == array).all()
    assert found.geometry == geometry


@pytest.mark.parametrize(("ending", "channels"), [(".png", 3), (".png", 4), (".bmp", 3), (".tif", 3), (".tif", 4)])
def test_color_pictures_survive_writing_and_reading(tmp_path, ending, channels):
    array = label_array((channels, 1, 5, 6), 255).astype(np.float32 if ending == ".png" else np.uint8)
    path = tmp_path / f"case{ending}"
    write_image(path, Volume(array, plane_geometry((5, 6))))
    assert (read_image([path]).array == array).all()


@pytest.mark.parametrize(("dtype", "channels"), [(np.float32, 2), (np.float32, 1), (np.int32, 1), (np.uint16, 5)])
def test_planes_of_any_type_and_channel_count_survive_as_tiff_and_nifti(tmp_path, dtype, channels):
    array = label_array((channels, 1, 5, 6), 300).astype(dtype)
    for name in ("case.tif", "case.nii.gz"):
        write_image(tmp_path / name, Volume(array, plane_geometry((5, 6))))
        found = read_image([tmp_path / name], four_d=True)
        assert (found.array == array).all()
        assert found.geometry == plane_geometry((5, 6))


def test_the_same_labels_give_the_same_bytes(tmp_path):
    geometry = Geometry((4, 5, 6), (3.0, 1.0, 1.0), direction=OBLIQUE)
    for ending in (".nii.gz", ".nrrd", ".mha", ".tif"):
        contents = []
        for folder in ("a", "b"):
            path = tmp_path / folder / f"case{ending}"
            write_labels(path, label_array((4, 5, 6)), geometry)
            contents.append(path.read_bytes())
        assert contents[0] == contents[1]


def test_the_smallest_type_that_holds_the_values_is_written(tmp_path):
    import SimpleITK

    path = tmp_path / "case.nii.gz"
    for value, kind in (
        (255, "8-bit unsigned"),
        (256, "16-bit unsigned"),
        (65536, "32-bit signed"),
        (-1, "32-bit sig"),
    ):
        write_labels(path, np.full((2, 3, 4), value), Geometry((2, 3, 4)))
        assert kind in SimpleITK.ReadImage(str(path)).GetPixelIDTypeAsString()


def test_many_instances_fit_a_picture(tmp_path):
    labels = np.array([[[0, 255, 256, 65535]]])
    write_labels(tmp_path / "case.png", labels, plane_geometry((1, 4)))
    assert (read_labels(tmp_path / "case.png").array == labels).all()


def test_a_stack_carries_its_spacing_for_imagej_and_beside_it(tmp_path):
    import tifffile

    path = tmp_path / "case_0000.tif"
    write_image(path, Volume(np.zeros((1, 3, 5, 6), np.uint8), Geometry((3, 5, 6), (2.5, 0.5, 0.1))))
    assert json.loads((tmp_path / "case_0000.json").read_text()) == {"spacing": [2.5, 0.5, 0.1]}
    with tifffile.TiffFile(path) as file:
        assert file.imagej_metadata["spacing"] == 2.5
        assert file.imagej_metadata["unit"] == "mm"
    (tmp_path / "case_0000.json").unlink()
    assert np.allclose(read_image([path]).geometry.spacing_mm, (2.5, 0.5, 0.1))


def test_numbered_stacks_have_a_spacing_each(tmp_path):
    spacings = {"s_0001.tif": (1.5, 1.0, 1.0), "s_0002.tif": (4.0, 2.0, 2.0), "s_0010.tiff": (1 / 3, 0.5, 0.1)}
    for name, spacing_mm in spacings.items():
        write_labels(tmp_path / name, label_array((3, 5, 6)), Geometry((3, 5, 6), spacing_mm))
    assert {name: read_labels(tmp_path / name).geometry.spacing_mm for name in spacings} == spacings


def test_overwriting_replaces_the_whole_file_and_leaves_nothing_behind(tmp_path):
    for ending in (*VOLUMES,):
        path = tmp_path / "deep" / f"case{ending}"
        for highest in (200, 3):
            labels = label_array((3, 5, 6), highest)
            write_labels(path, labels, Geometry((3, 5, 6)))
            assert (read_labels(path).array == labels).all()
    assert not [entry for entry in path.parent.iterdir() if TEMPORARY_MARK in entry.name]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "case.png"
    write_labels(path, label_array((1, 5, 6)), plane_geometry((5, 6)))
    before = path.read_bytes()
    with pytest.raises(UsageError):
        write_labels(path, label_array((1, 5, 6)) - 1, plane_geometry((5, 6)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["case.png"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".tif", ".png", ".bmp"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, ending):
    is_picture = ending in (".png", ".bmp")
    shape = (1, 120, 120) if is_picture else (20, 30, 30)
    geometry = plane_geometry((120, 120)) if is_picture else Geometry(shape)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writing beyond fails as on a full disk
    try:
        with pytest.raises(NotEnoughResources, match="case"):
            write_labels(tmp_path / f"case{ending}", label_array(shape, 255), geometry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*case*[!n]"))


@pytest.mark.parametrize(
    ("name", "array", "geometry"),
    [
        ("case.txt", np.zeros((1, 2, 5, 6)), Geometry((2, 5, 6))),
        ("case.png", np.zeros((1, 2, 5, 6)), Geometry((2, 5, 6))),
        ("case.png", np.zeros((2, 1, 5, 6)), plane_geometry((5, 6))),
        ("case.bmp", np.zeros((4, 1, 5, 6)), plane_geometry((5, 6))),
        ("case.png", np.full((1, 1, 5, 6), 0.5), plane_geometry((5, 6))),
        ("case.png", np.full((1, 1, 5, 6), np.nan), plane_geometry((5, 6))),
        ("case.png", np.full((1, 1, 5, 6), 70000), plane_geometry((5, 6))),
        ("case.png", np.full((3, 1, 5, 6), 256), plane_geometry((5, 6))),
        ("case.bmp", np.full((1, 1, 5, 6), 256), plane_geometry((5, 6))),
        ("case.gipl", np.zeros((1, 2, 5, 6), np.uint8), Geometry((2, 5, 6), direction=OBLIQUE)),
        ("case.gipl", np.zeros((2, 2, 5, 6), np.uint8), Geometry((2, 5, 6))),
        ("case.gipl", np.zeros((1, 2, 5, 6), np.int32), Geometry((2, 5, 6))),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, array, geometry):
    with pytest.raises(UsageError, match="case"):
        write_image(tmp_path / name, Volume(array, geometry))
    assert list(tmp_path.iterdir()) == []


def test_labels_that_are_no_integers_or_do_not_fit_the_grid_are_refused(tmp_path):
    with pytest.raises(UsageError, match="float32"):
        write_labels(tmp_path / "case.nii", np.zeros((2, 3, 4), np.float32), Geometry((2, 3, 4)))
    with pytest.raises(GeometryMismatch):
        write_labels(tmp_path / "case.nii", np.zeros((2, 3, 5), np.uint8), Geometry((2, 3, 4)))
    with pytest.raises(GeometryMismatch):
        write_labels(tmp_path / "case.nii", np.zeros((3, 4), np.uint8), Geometry((1, 3, 4)))


def test_every_written_file_passes_verification(tmp_path):
    for ending in VOLUMES:
        path = Path(tmp_path / f"case{ending}")
        write_labels(path, label_array((3, 5, 6)), Geometry((3, 5, 6)))
        verify_file(path)
