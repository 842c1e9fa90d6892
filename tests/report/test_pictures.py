"""Overlays: in proportion, at the right place, within their bytes."""

import re
from base64 import b64decode
from io import BytesIO
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.io import imread

from autoseg.data.model import CLASS_COLORS
from autoseg.report.pictures import Scan, draw_overlay, overlay

CLASSES = {"ball": (1,), "core": (2,)}


def _drawings(markup):
    return list(fromstring(f"<div>{markup}</div>"))


def _scan(predicted, reference=None, spacing=(1.0, 1.0, 1.0), channels=1, classes=CLASSES):
    image = np.random.default_rng(0).normal(size=(channels, *predicted.shape)).astype(np.float32)
    return Scan(image, predicted, reference, spacing, classes)


def _cube(shape=(20, 24, 28), box=(slice(5, 9), slice(6, 12), slice(7, 15)), value=1):
    labels = np.zeros(shape, np.int8)
    labels[box] = value
    return labels


def _places(drawing, style):
    """All points of the contours of a style, (n, 2) x and y, in units of the drawing."""
    paths = [node.get("d") for node in drawing if node.tag == "path" and node.get("class").startswith(style)]
    return np.array([[float(n) for n in pair] for path in paths for pair in re.findall(r"([\d.]+) ([\d.]+)", path)])


def test_every_channel_and_plane_is_drawn_and_named():
    drawn = _drawings(overlay(_scan(_cube(), channels=2), "case_1", 200_000))
    names = [drawing.get("aria-label") for drawing in drawn]
    assert len(names) == 6
    assert names[0] == "case_1: axial plane 6 of 20, channel 0"
    assert {name.split(":")[1].split()[0] for name in names} == {"axial", "coronal", "sagittal"}


def test_a_color_picture_is_one_drawing_in_color():
    labels = np.zeros((1, 30, 40), np.int8)
    labels[0, 5:10, 6:20] = 1
    (drawn,) = _drawings(overlay(_scan(labels, channels=3), "picture", 200_000))
    png = Image.open(BytesIO(b64decode(drawn.find("image").get("href").split(",")[1])))
    assert np.ptp(np.asarray(png.convert("RGB")).astype(int), axis=-1).max() > 50
    assert drawn.get("aria-label") == "picture"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 0.5)])
def test_contours_lie_on_the_borders_of_the_objects(spacing):
    labels = _cube()
    axial, coronal, _ = _drawings(overlay(_scan(labels, spacing=spacing), "a", 200_000))
    for drawing, extent_mm in ((axial, (6 * spacing[1], 8 * spacing[2])), (coronal, (4 * spacing[0], 8 * spacing[2]))):
        points = _places(drawing, "predicted")
        units_per_mm = np.ptp(points[:, 0]) / extent_mm[1]
        assert np.ptp(points[:, 1]) / units_per_mm == pytest.approx(extent_mm[0], rel=0.05)
        width = float(drawing.get("viewBox").split()[2])
        assert 0 < points[:, 0].min() < points[:, 0].max() < width


def test_z_points_upwards_in_coronal_planes():
    labels = np.zeros((20, 20, 20), np.int8)
    labels[15:18, 8:12, 8:12] = 1  # near the upper end
    labels[2:4, 8:12, 8:12] = 2
    _, coronal, _ = _drawings(overlay(_scan(labels), "a", 200_000))
    ball, core = (_places(coronal, f"predicted k{index}")[:, 1].mean() for index in (0, 1))
    assert ball < core


def test_planes_are_those_with_most_differences():
    reference = _cube()
    predicted = reference.copy()
    predicted[8] = 0
    (axial, *_) = _drawings(overlay(_scan(predicted, reference), "a", 200_000))
    assert "plane 9 of 20" in axial.get("aria-label")
    assert len(_places(axial, "predicted")) == 0
    assert len(_places(axial, "reference")) > 0


def test_what_is_not_annotated_does_not_count_as_a_difference():
    reference = np.full((20, 24, 28), 3, np.int8)  # 3 is not a class
    reference[4, 6:9, 7:12] = 1
    predicted = np.zeros_like(reference)
    predicted[12:] = 1
    (axial, *_) = _drawings(overlay(_scan(predicted, reference), "a", 200_000))
    assert "plane 5 of 20" in axial.get("aria-label")


def test_a_perfect_prediction_and_an_empty_case_are_drawn_too():
    labels = _cube()
    assert len(_drawings(overlay(_scan(labels, labels), "a", 200_000))) == 3
    empty = np.zeros((9, 9, 9), np.int8)
    drawn = _drawings(overlay(_scan(empty, empty), "a", 200_000))
    assert "plane 5 of 9" in drawn[0].get("aria-label")
    assert drawn[0].find("path") is None
    assert len(_drawings(overlay(Scan(np.zeros((1, 5, 5, 5), np.float32), None, None, (1, 1, 1), {}), "a", 9000))) == 3


@given(st.integers(40_000, 120_000))
@settings(max_examples=8, deadline=None)
def test_pictures_of_noise_keep_to_their_bytes(most):
    noise = np.random.default_rng(1).integers(0, 3, (30, 60, 60)).astype(np.int8)
    drawn = overlay(_scan(noise, np.roll(noise, 1, 0)), "noise", most)
    assert len(drawn) <= 1.1 * most + 4000  # what frames the pictures does not count


def test_regions_are_outlined_whole():
    labels = _cube(value=1) + _cube(box=(slice(6, 8), slice(7, 9), slice(8, 10)))
    drawn = _drawings(overlay(_scan(labels, classes={"whole": (1, 2), "core": (2,)}), "a", 200_000))
    hints = [node.find("title").text for node in drawn[0] if node.tag == "path"]
    assert hints == ["whole, predicted", "core, predicted"]


def test_a_window_sets_black_and_white():
    labels = _cube((8, 8, 8), (slice(2, 6),) * 3)
    image = np.full((1, 8, 8, 8), 50.0, np.float32)
    for window, shade in (((0.0, 100.0), 128), ((60.0, 100.0), 0), ((0.0, 40.0), 255)):
        (drawn, *_) = _drawings(overlay(Scan(image, labels, None, (1, 1, 1), CLASSES, windows=(window,)), "a", 9000))
        png = Image.open(BytesIO(b64decode(drawn.find("image").get("href").split(",")[1])))
        assert abs(int(np.asarray(png.convert("L")).mean()) - shade) <= 2


# ---- PNG files


@pytest.fixture
def ball():
    z, y, x = np.mgrid[:12, :40, :32]
    radius = np.sqrt(((z - 6) * 3.0) ** 2 + (y - 20) ** 2 + (x - 12) ** 2)
    labels = np.where(radius < 5, 2, np.where(radius < 10, 1, 0))
    image = np.stack([radius, 30 - radius]).astype(np.float32)
    return image, labels


def _has_color(path, color, rows=slice(None)):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(imread(path)[rows, :, :3].astype(int) - rgb).max(-1) < 12).sum() > 20


def test_an_overlay_shows_every_class_in_its_color(tmp_path, ball):
    image, labels = ball
    scan = Scan(image, labels, np.roll(labels, 2, 1), (3.0, 1.0, 1.0), CLASSES)
    draw_overlay(tmp_path / "a.png", scan, "case: Dice 0.9")
    below_the_legend = slice(60, None)
    assert _has_color(tmp_path / "a.png", CLASS_COLORS[0], below_the_legend)
    assert _has_color(tmp_path / "a.png", CLASS_COLORS[1], below_the_legend)
    assert not _has_color(tmp_path / "a.png", CLASS_COLORS[2])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_one_channel_gives_one_row_and_two_give_two(tmp_path, ball):
    image, labels = ball
    draw_overlay(tmp_path / "one.png", Scan(image[:1], labels, None, (3.0, 1.0, 1.0), CLASSES), "one")
    draw_overlay(tmp_path / "two.png", Scan(image, labels, None, (3.0, 1.0, 1.0), CLASSES, ("a", "b")), "two")
    one, two = (imread(tmp_path / name).shape for name in ("one.png", "two.png"))
    assert one[1] == two[1]
    assert 1.5 < two[0] / one[0] < 2


def test_spacing_sets_the_proportions(tmp_path):
    labels = _cube((20, 20, 20), (slice(2, 18),) * 3)
    for name, z_mm in (("thin", 1.0), ("thick", 6.0)):
        scan = Scan(labels[None].astype(np.float32), labels, None, (z_mm, 1.0, 1.0), CLASSES)
        draw_overlay(tmp_path / name, scan, name)
    thin, thick = (imread(tmp_path / name).shape for name in ("thin", "thick"))
    assert thick[0] / thick[1] > 1.1 * thin[0] / thin[1]


def test_a_single_slice_with_three_channels_is_written_in_color(tmp_path):
    image = np.zeros((3, 1, 30, 50), dtype=np.float32)
    image[0] = np.linspace(0, 255, 50)
    labels = np.zeros((1, 30, 50), dtype=np.uint8)
    draw_overlay(tmp_path / "a.png", Scan(image, labels, None, (999.0, 1.0, 1.0), CLASSES), "nothing found")
    picture = imread(tmp_path / "a.png")[..., :3].astype(int)
    assert ((picture[..., 0] > 200) & (picture[..., 1] < 20)).any()


def test_many_classes_share_the_palette(tmp_path):
    classes = {**{f"c{value}": (value,) for value in range(1, 12)}, "all": tuple(range(1, 12))}
    labels = np.arange(4 * 12 * 12).reshape(4, 12, 12) % 12
    draw_overlay(tmp_path / "a.png", Scan(np.zeros((1, 4, 12, 12), np.float32), labels, None, (1, 1, 1), classes), "a")
    assert all(_has_color(tmp_path / "a.png", color) for color in CLASS_COLORS)


def test_voxels_that_are_no_numbers_are_drawn_as_zero(tmp_path, ball):
    image, labels = ball
    scan = Scan(image.copy(), labels, None, (3.0, 1.0, 1.0), CLASSES)
    scan.image[0, 6, 20, 12] = np.nan
    draw_overlay(tmp_path / "nan.png", scan, "a")
    scan.image[0, 6, 20, 12] = 0
    draw_overlay(tmp_path / "zero.png", scan, "a")
    assert (imread(tmp_path / "nan.png") == imread(tmp_path / "zero.png")).all()
