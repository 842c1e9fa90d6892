"""Pictures: written whole, in true proportions, with every class and the reference to be seen."""

import numpy as np
import pytest
from skimage.io import imread

from autoseg.report.figures import CLASS_COLORS, draw_overlay
from autoseg.training.callbacks.curves import draw_curves

CLASSES = {"background": (0,), "ball": (1,), "core": (2,)}


@pytest.fixture
def ball():
    z, y, x = np.mgrid[:12, :40, :32]
    radius = np.sqrt(((z - 6) * 3.0) ** 2 + (y - 20) ** 2 + (x - 12) ** 2)
    labels = np.where(radius < 5, 2, np.where(radius < 10, 1, 0))
    image = np.stack([radius, 30 - radius]).astype(np.float32)
    return image, labels


def _has_color(path, color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(imread(path)[..., :3].astype(int) - rgb).max(-1) < 12).sum() > 20


def test_an_overlay_shows_every_class_in_its_color(tmp_path, ball):
    image, labels = ball
    draw_overlay(tmp_path / "a.png", image, labels, (3.0, 1.0, 1.0), CLASSES, reference=np.roll(labels, 2, 1))
    assert _has_color(tmp_path / "a.png", CLASS_COLORS[0])
    assert _has_color(tmp_path / "a.png", CLASS_COLORS[1])
    assert not _has_color(tmp_path / "a.png", CLASS_COLORS[2])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_one_channel_gives_one_row_and_two_give_two(tmp_path, ball):
    image, labels = ball
    draw_overlay(tmp_path / "one.png", image[:1], labels, (3.0, 1.0, 1.0), CLASSES)
    draw_overlay(tmp_path / "two.png", image, labels, (3.0, 1.0, 1.0), CLASSES, channels=("a", "b"))
    one, two = (imread(tmp_path / name).shape for name in ("one.png", "two.png"))
    assert one[1] == two[1]
    assert 1.5 < two[0] / one[0] < 2


def test_spacing_sets_the_proportions(tmp_path, ball):
    image, labels = ball
    for name, z_mm in (("thin", 1.0), ("thick", 6.0)):
        draw_overlay(tmp_path / name, image[:1], labels, (z_mm, 1.0, 1.0), CLASSES)
    thin, thick = (imread(tmp_path / name).shape for name in ("thin", "thick"))
    assert thick[0] / thick[1] > 1.1 * thin[0] / thin[1]


def test_a_single_slice_with_three_channels_is_drawn_in_color(tmp_path):
    image = np.zeros((3, 1, 30, 50), dtype=np.float32)
    image[0] = np.linspace(0, 255, 50)
    labels = np.zeros((1, 30, 50), dtype=np.uint8)
    draw_overlay(tmp_path / "a.png", image, labels, (999.0, 1.0, 1.0), CLASSES, title="nothing found")
    picture = imread(tmp_path / "a.png")[..., :3].astype(int)
    assert ((picture[..., 0] > 200) & (picture[..., 1] < 20)).any()


def test_many_classes_share_the_palette(tmp_path):
    classes = {"background": (0,), **{f"c{value}": (value,) for value in range(1, 12)}, "all": tuple(range(1, 12))}
    labels = np.arange(4 * 12 * 12).reshape(4, 12, 12) % 12
    draw_overlay(tmp_path / "a.png", np.zeros((1, 4, 12, 12), np.float32), labels, (1.0, 1.0, 1.0), classes)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_voxels_that_are_no_numbers_are_drawn_as_zero(tmp_path, ball):
    image, labels = ball
    image[0, 0, 0, 0] = np.nan
    draw_overlay(tmp_path / "a.png", image, labels, (3.0, 1.0, 1.0), CLASSES)
    assert (tmp_path / "a.png").exists()


def _entry(epoch, **values):
    dice = {"ball": 0.5 + epoch / 20, "core": None if epoch < 2 else epoch / 10}
    return {"epoch": epoch, "loss": -epoch / 10, "validation_loss": None, "dice": dice, "ema_dice": epoch / 10} | values


@pytest.mark.parametrize("epochs", [0, 1, 9, 60])
def test_curves_are_drawn_of_any_number_of_epochs(tmp_path, epochs):
    draw_curves(tmp_path / "a.png", [_entry(epoch) for epoch in range(epochs)])
    assert imread(tmp_path / "a.png").shape[:2] == (440, 1100)


def test_a_run_without_validation_has_no_dice_curves(tmp_path):
    draw_curves(tmp_path / "a.png", [_entry(0, dice=None, ema_dice=None), _entry(1, dice=None, ema_dice=None)])
    assert not _has_color(tmp_path / "a.png", CLASS_COLORS[0])
