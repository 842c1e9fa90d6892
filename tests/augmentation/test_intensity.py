"""Noise, brightness, contrast and gamma: formulas, laws and frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.augmentation.draws import around_one
from autoseg.augmentation.transforms.brightness import Brightness
from autoseg.augmentation.transforms.contrast import Contrast
from autoseg.augmentation.transforms.gamma import Gamma
from autoseg.augmentation.transforms.noise import Noise
from tests.augmentation.patches import SPECS, applied


def gamma_by_definition(channel: np.ndarray, exponent: float, is_inverted: bool) -> np.ndarray:
    values = -channel if is_inverted else channel
    extent = values.max() - values.min()
    powered = ((values - values.min()) / extent) ** exponent * extent + values.min()
    powered = (powered - powered.mean()) / powered.std() * values.std() + values.mean()
    return -powered if is_inverted else powered


@settings(max_examples=25, deadline=None)
@given(exponent=st.floats(0.7, 1.5), is_inverted=st.booleans(), number=st.integers(0, 1000))
def test_gamma_equals_its_definition(exponent: float, is_inverted: bool, number: int) -> None:
    image = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    result = applied(Gamma(is_inverted=is_inverted), image, (exponent, exponent))
    for channel, original in zip(result.numpy(), image.numpy(), strict=True):
        np.testing.assert_allclose(channel, gamma_by_definition(original, exponent, is_inverted), atol=1e-9)


@pytest.mark.parametrize("is_inverted", [False, True])
def test_gamma_leaves_a_constant_channel_as_it_is(is_inverted: bool) -> None:
    image = torch.full((1, 4, 4), 3.0)
    torch.testing.assert_close(applied(Gamma(is_inverted=is_inverted), image, (1.4,)), image)


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.75, 1.25))
def test_contrast_stretches_about_the_mean_within_the_old_range(factor: float) -> None:
    image = torch.randn(1, 8, 9)
    result = applied(Contrast(), image, (factor,))
    expected = ((image - image.mean()) * factor + image.mean()).clamp(image.min(), image.max())
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_brightness_multiplies_each_channel() -> None:
    image = applied(Brightness(), torch.ones(2, 3, 3), (0.5, 2.0))
    assert image.mean((1, 2)).tolist() == [0.5, 2.0]


def test_noise_has_the_deviation_drawn_and_repeats() -> None:
    first, second = (applied(Noise(), torch.zeros(1, 2, 60, 60), (0.07, 5)) for _ in range(2))
    assert torch.equal(first, second)
    assert float(first.std()) == pytest.approx(0.07, rel=0.05)
    assert float(first.mean()) == pytest.approx(0, abs=0.005)


def test_factors_lie_on_both_sides_of_one_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = np.array([around_one(generator, 0.7, 1.5) for _ in range(4000)])
    assert (drawn < 1).mean() == pytest.approx(0.5, abs=0.03)
    assert drawn[drawn < 1].mean() == pytest.approx(0.85, abs=0.01)
    assert drawn[drawn > 1].mean() == pytest.approx(1.25, abs=0.02)


@pytest.mark.parametrize("transform", [Noise(), Brightness(), Contrast(), Gamma(), Gamma(probability=0.9)])
def test_each_transform_is_drawn_as_often_as_its_setting_says(transform) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [transform.draw(generator, SPECS["3d"], 2) is not None for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(transform.probability, abs=0.03)
