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

from autoseg.report.pictures import Scan, overlay

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
