"""The same augmentation made of the transforms of the package batchgenerators, as an independent reference.

Where that package offers no equal, the nearest is taken: its scaling draws half of the factors below 1, its Gaussian
blur is cut at four standard deviations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.augmentation import intensity, sharpness, spatial
from autoseg.augmentation.draws import seed
from autoseg.augmentation.first_stage import append_previous, draw_previous
from autoseg.augmentation.mirror import MIRROR_PROBABILITY, apply_mirror, mirror_labels
from autoseg.augmentation.pipeline import apply_mask
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.errors import UsageError


def augment_with_batchgenerators(
    image: Tensor,
    labels: Tensor,
    spec: AugmentationSpec,
    generator: torch.Generator,
    previous: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch augmented on the CPU by batchgenerators; arguments and result as for `pipeline.augment`.

    Raises:
        UsageError: batchgenerators is not installed.
    """
    maps = labels[:, None] if previous is None else torch.stack((labels, previous.to(labels.dtype)), 1)
    data: dict[str, Any] = {
        "data": image.detach().cpu().numpy().astype(np.float32),
        "seg": maps.detach().cpu().numpy().astype(np.float32),
    }
    with _seeded(seed(generator)):
        for transform in transforms(spec):
            data = transform(**data)
    new_image = torch.from_numpy(np.ascontiguousarray(data["data"], dtype=np.float32)).to(image.device)
    new_maps = torch.from_numpy(np.round(data["seg"])).to(labels.device, labels.dtype)
    new_image, new_labels = apply_mask(new_image, new_maps[:, 0], spec.masked_channels)
    if previous is not None:
        changes = [draw_previous(generator, len(spec.previous_values)) for _ in image]
        new_image = append_previous(new_image, new_maps[:, 1], spec.previous_values, changes)
    return new_image, new_labels


def transforms(spec: AugmentationSpec) -> list[Callable[..., dict[str, Any]]]:
    """The transforms in order; each takes and returns a dict of `data` (b, c, *shape) and `seg` (b, 1, *shape).

    Raises:
        UsageError: batchgenerators is not installed.
    """
    try:
        from batchgenerators.transforms.spatial_transforms import MirrorTransform
    except ImportError as error:
        raise UsageError(
            "the augmentation 'batchgenerators' needs a package that is not installed",
            why=str(error),
            do="install it (pip install batchgenerators), or choose the augmentation 'default'",
        ) from error
    spatially = spatial_transform(spec)
    exchanged = tuple(axis for axis in spec.mirror_axes if spec.swap and axis == spec.swap.axis)
    plain = tuple(axis for axis in spec.mirror_axes if axis not in exchanged)
    return [
        partial(_slice_by_slice, spatially) if spec.is_dummy_2d else spatially,
        *intensity_transforms(spec),
        *([MirrorTransform(plain)] if plain else []),
        *(partial(_mirror_laterally, spec) for _ in exchanged),
    ]


def _mirror_laterally(spec: AugmentationSpec, **data: Any) -> dict[str, Any]:
    """Mirrors samples from left to right, where labels change places, with the probability of any other axis."""
    assert spec.swap is not None, "only called where labels change places"
    for image, maps in zip(data["data"], data["seg"], strict=True):
        if random.random() < MIRROR_PROBABILITY:
            axes, dimensions = (spec.swap.axis,), len(spec.patch_size)
            image[...] = apply_mirror(torch.from_numpy(image), axes, dimensions).numpy()
            maps[...] = mirror_labels(torch.from_numpy(maps), axes, dimensions, spec.swap).numpy()
    return data


def _slice_by_slice(transform: Callable[..., dict[str, Any]], **data: Any) -> dict[str, Any]:
    """Applies a 2D transform to 3D samples, all slices along the first axis alike."""
    folded = {name: array.reshape(len(array), -1, *array.shape[3:]) for name, array in data.items()}
    return {name: array.reshape(*data[name].shape[:3], *array.shape[2:]) for name, array in transform(**folded).items()}


def spatial_transform(spec: AugmentationSpec) -> Any:
    """Rotation, scaling and crop."""
    from batchgenerators.transforms.spatial_transforms import SpatialTransform

    angles = (-spec.largest_turn, spec.largest_turn)
    return SpatialTransform(
        spec.patch_size[1:] if spec.is_dummy_2d else spec.patch_size,
        patch_center_dist_from_border=None,
        do_elastic_deform=False,
        angle_x=angles,
        angle_y=angles,
        angle_z=angles,
        scale=spatial.SCALES,
        p_rot_per_sample=spatial.ROTATION_PROBABILITY,
        p_scale_per_sample=spatial.SCALING_PROBABILITY,
        border_mode_data="constant",
        border_cval_data=0,
        order_data=1,
        border_mode_seg="constant",
        border_cval_seg=spatial.OUTSIDE,
        order_seg=1,
        random_crop=False,
    )


def intensity_transforms(spec: AugmentationSpec) -> list[Any]:
    """Noise, blur, brightness, contrast, low resolution, gamma of the inverted image, gamma."""
    from batchgenerators.transforms.color_transforms import (
        BrightnessMultiplicativeTransform,
        ContrastAugmentationTransform,
        GammaTransform,
    )
    from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform

    return [
        GaussianNoiseTransform(intensity.NOISE_DEVIATIONS, p_per_sample=intensity.NOISE_PROBABILITY),
        GaussianBlurTransform(
            sharpness.BLUR_SIGMAS,
            different_sigma_per_channel=True,
            different_sigma_per_axis=True,
            p_per_channel=sharpness.BLUR_PROBABILITY_PER_CHANNEL,
            p_per_sample=sharpness.BLUR_PROBABILITY,
        ),
        BrightnessMultiplicativeTransform(intensity.BRIGHTNESS_FACTORS, p_per_sample=intensity.BRIGHTNESS_PROBABILITY),
        ContrastAugmentationTransform(intensity.CONTRAST_FACTORS, p_per_sample=intensity.CONTRAST_PROBABILITY),
        SimulateLowResolutionTransform(
            sharpness.COARSENING_SCALES,
            per_channel=True,
            p_per_channel=sharpness.COARSENING_PROBABILITY_PER_CHANNEL,
            order_downsample=0,
            order_upsample=1,
            p_per_sample=sharpness.COARSENING_PROBABILITY,
            ignore_axes=(0,) if spec.is_dummy_2d else None,
        ),
        *(
            GammaTransform(intensity.GAMMAS, is_inverted, per_channel=True, retain_stats=True, p_per_sample=p)
            for is_inverted, p in (
                (True, intensity.INVERTED_GAMMA_PROBABILITY),
                (False, intensity.GAMMA_PROBABILITY),
            )
        ),
    ]


@contextmanager
def _seeded(number: int) -> Iterator[None]:
    """Seeds the global generators that batchgenerators draws from, and restores them afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - what the package uses
    np.random.seed(number % 2**32)  # noqa: NPY002
    random.seed(number)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
