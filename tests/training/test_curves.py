"""Curves of a run: drawn for any number of epochs, with a color per class."""

import numpy as np
import pytest
from skimage.io import imread

from autoseg.data.model import CLASS_COLORS
from autoseg.training.callbacks.curves import draw_curves


def _has_color(path, color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(imread(path)[..., :3].astype(int) - rgb).max(-1) < 12).sum() > 20


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
