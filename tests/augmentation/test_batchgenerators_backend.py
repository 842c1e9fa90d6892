"""The default augmentation against batchgenerators, transform by transform: how often it acts, and what comes out."""

from __future__ import annotations

import math
import random
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from autoseg.augmentation.batchgenerators_backend import (
    augment_with_batchgenerators,
    intensity_transforms,
    spatial_transform,
)
from autoseg.augmentation.pipeline import Pipeline, Transform, center_crop
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.augmentation.transforms.blur import Blur
from autoseg.augmentation.transforms.brightness import Brightness
from autoseg.augmentation.transforms.contrast import Contrast
from autoseg.augmentation.transforms.gamma import DEFAULT_GAMMAS
from autoseg.augmentation.transforms.low_resolution import LowResolution
from autoseg.augmentation.transforms.noise import Noise
from autoseg.augmentation.transforms.spatial import Spatial
from autoseg.core.errors import UsageError
from tests.augmentation.patches import applied

pytest.importorskip("batchgenerators")

SPEC = AugmentationSpec((8, 9, 7), (14, 15, 13), math.radians(30), False, (0, 1, 2), ())
DRAWS = 1200
CHANNELS = 2
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)

MINE: dict[str, Transform] = {
    "noise": Noise(),
    "blur": Blur(),
    "brightness": Brightness(),
    "contrast": Contrast(),
    "low resolution": LowResolution(),
    "inverted gamma": DEFAULT_GAMMAS[0],
    "gamma": DEFAULT_GAMMAS[1],
}
"""In the order of `intensity_transforms`."""

TOLERANCES = {"blur": 0.03, "low resolution": 0.03}
"""Allowed beyond chance, in standard deviations of the image: the package cuts kernels and centers voxels otherwise."""


def smooth_image(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, CHANNELS, *shape, generator=generator)
    smooth = torch.nn.functional.avg_pool3d(noise, 3, 1, 1, count_include_pad=False)[0]
    mean, deviation = smooth.mean((1, 2, 3), keepdim=True), smooth.std((1, 2, 3), keepdim=True)
    return (smooth - mean) / deviation + 0.3


def framed_image() -> Tensor:
    """An image that is constant near its border, which filters of the two packages continue differently."""
    image = smooth_image((12, 11, 13))
    frame = torch.ones_like(image, dtype=torch.bool)
    frame[:, 3:-3, 3:-3, 3:-3] = False
    return image.masked_fill(frame, -0.5)


def features(results: np.ndarray, original: np.ndarray) -> tuple[float, np.ndarray]:
    """Share of the (draws, channels) that changed, and per changed channel: quantiles, mean, deviation, change."""
    flat, before = results.reshape(-1, results[0, 0].size), np.tile(original.reshape(CHANNELS, -1), (len(results), 1))
    changed = np.abs(flat - before).max(1) > 1e-6
    flat, before = flat[changed], before[changed]
    columns = [*np.quantile(flat, QUANTILES, axis=1), flat.mean(1), flat.std(1), np.abs(flat - before).mean(1)]
    return float(changed.mean()), np.stack(columns, 1)


@pytest.mark.parametrize("name", MINE)
def test_each_intensity_transform_agrees_with_batchgenerators(name: str) -> None:
    image = framed_image()
    generator = torch.Generator().manual_seed(11)
    mine = []
    for _ in range(DRAWS):
        drawn = MINE[name].draw(generator, SPEC, CHANNELS)
        mine.append((image if drawn is None else applied(MINE[name], image, drawn, SPEC)).numpy())
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    transform = intensity_transforms(SPEC)[list(MINE).index(name)]
    theirs = transform(data=np.tile(image.numpy(), (DRAWS, 1, 1, 1, 1)))["data"]
    my_share, my_features = features(np.stack(mine), image.numpy())
    their_share, their_features = features(theirs, image.numpy())
    assert my_share == pytest.approx(their_share, abs=5 * math.sqrt(2 * 0.25 / DRAWS))
    errors = np.sqrt(my_features.var(0) / len(my_features) + their_features.var(0) / len(their_features))
    difference = np.abs(my_features.mean(0) - their_features.mean(0))
    assert (difference <= 5 * errors + TOLERANCES.get(name, 1e-3)).all(), (difference, errors)


def test_the_spatial_transform_agrees_with_batchgenerators() -> None:
    draws = 400
    image = smooth_image(SPEC.initial_patch_size)
    labels = (image[0] > 0.5).to(torch.int8) + (image[1] > 0.8).to(torch.int8)
    generator = torch.Generator().manual_seed(2)
    my_images, my_labels = [], []
    only_spatial = Pipeline((Spatial(),))
    for _ in range(draws):
        new_image, new_labels = only_spatial(image[None], labels[None], SPEC, generator)
        my_images.append(new_image[0].numpy())
        my_labels.append(new_labels[0].numpy())
    np.random.seed(5)  # noqa: NPY002
    data = {"data": np.tile(image.numpy(), (draws, 1, 1, 1, 1)), "seg": np.tile(labels.numpy(), (draws, 1, 1, 1, 1))}
    theirs = spatial_transform(SPEC)(**{name: array.astype(np.float32) for name, array in data.items()})
    original = center_crop(image, SPEC.patch_size).numpy()
    my_share, my_features = features(np.stack(my_images), original)
    their_share, their_features = features(theirs["data"], original)
    assert my_share == pytest.approx(their_share, abs=0.12)
    # Half of the package's factors lie below 1, a little more than of ours: hence the tolerance
    assert np.abs(my_features.mean(0) - their_features.mean(0)).max() < 0.12
    for value in (0, 1, 2):
        mine = np.mean([(one == value).mean() for one in my_labels])
        assert mine == pytest.approx((theirs["seg"] == value).mean(), abs=0.02)


def test_global_random_states_are_left_as_they_were() -> None:
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = np.random.rand(), random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    image, labels = smooth_image(SPEC.initial_patch_size)[None], torch.zeros(1, *SPEC.initial_patch_size).char()
    augment_with_batchgenerators(image, labels, SPEC, torch.Generator())
    assert (np.random.rand(), random.random()) == expected  # noqa: NPY002


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "batchgenerators.transforms.spatial_transforms", None)
    image, labels = torch.zeros(1, 2, *SPEC.initial_patch_size), torch.zeros(1, *SPEC.initial_patch_size).char()
    with pytest.raises(UsageError, match="pip install batchgenerators"):
        augment_with_batchgenerators(image, labels, SPEC, torch.Generator())
