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

from autoseg.augmentation.draws import seed
from autoseg.augmentation.pipeline import Sample, finish
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.augmentation.transforms.blur import Blur
from autoseg.augmentation.transforms.brightness import Brightness
from autoseg.augmentation.transforms.contrast import Contrast
from autoseg.augmentation.transforms.first_stage import FirstStage
from autoseg.augmentation.transforms.gamma import DEFAULT_GAMMAS
from autoseg.augmentation.transforms.low_resolution import LowResolution
from autoseg.augmentation.transforms.mirror import Mirror, mirror, mirror_labels
from autoseg.augmentation.transforms.noise import Noise
from autoseg.augmentation.transforms.spatial import OUTSIDE, Spatial
from autoseg.core.errors import UsageError


def augment_with_batchgenerators(
    image: Tensor,
    labels: Tensor,
    spec: AugmentationSpec,
    generator: torch.Generator,
    first_stage: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch augmented on the CPU by batchgenerators; arguments and result as for `pipeline.Pipeline`.

    Raises:
        UsageError: batchgenerators is not installed.
    """
    maps = labels[:, None] if first_stage is None else torch.stack((labels, first_stage.to(labels.dtype)), 1)
    data: dict[str, Any] = {
        "data": image.detach().cpu().numpy().astype(np.float32),
        "seg": maps.detach().cpu().numpy().astype(np.float32),
    }
    with _seeded(seed(generator)):
        for transform in transforms(spec):
            data = transform(**data)
    new_image = torch.from_numpy(np.ascontiguousarray(data["data"], dtype=np.float32)).to(image.device)
    new_maps = torch.from_numpy(np.round(data["seg"])).to(labels.device, labels.dtype)
    samples = [Sample(own, *maps) for own, maps in zip(new_image, new_maps, strict=True)]
    worsen = FirstStage()  # which the package does not have
    drawn = [worsen.draw(generator, spec, image.shape[1]) for _ in samples]
    for sample, changes in zip(samples, drawn, strict=True):
        if changes is not None:
            worsen.apply(sample, changes, spec)
    return finish(samples, spec)


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
        if random.random() < Mirror().probability:
            axes, dimensions = (spec.swap.axis,), len(spec.patch_size)
            image[...] = mirror(torch.from_numpy(image), axes, dimensions).numpy()
            maps[...] = mirror_labels(torch.from_numpy(maps), axes, dimensions, spec.swap).numpy()
    return data


def _slice_by_slice(transform: Callable[..., dict[str, Any]], **data: Any) -> dict[str, Any]:
    """Applies a 2D transform to 3D samples, all slices along the first axis alike."""
    folded = {name: array.reshape(len(array), -1, *array.shape[3:]) for name, array in data.items()}
    return {name: array.reshape(*data[name].shape[:3], *array.shape[2:]) for name, array in transform(**folded).items()}


def spatial_transform(spec: AugmentationSpec) -> Any:
    """Rotation, scaling and crop."""
    from batchgenerators.transforms.spatial_transforms import SpatialTransform

    own = Spatial()
    angles = (-spec.largest_turn, spec.largest_turn)
    return SpatialTransform(
        spec.patch_size[1:] if spec.is_dummy_2d else spec.patch_size,
        patch_center_dist_from_border=None,
        do_elastic_deform=False,
        angle_x=angles,
        angle_y=angles,
        angle_z=angles,
        scale=own.scales,
        p_rot_per_sample=own.rotation_probability,
        p_scale_per_sample=own.scaling_probability,
        border_mode_data="constant",
        border_cval_data=0,
        order_data=1,
        border_mode_seg="constant",
        border_cval_seg=OUTSIDE,
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

    noise, blur, brightness, contrast, coarse = Noise(), Blur(), Brightness(), Contrast(), LowResolution()
    return [
        GaussianNoiseTransform(noise.deviations, p_per_sample=noise.probability),
        GaussianBlurTransform(
            blur.sigmas,
            different_sigma_per_channel=True,
            different_sigma_per_axis=True,
            p_per_channel=blur.probability_per_channel,
            p_per_sample=blur.probability,
        ),
        BrightnessMultiplicativeTransform(brightness.factors, p_per_sample=brightness.probability),
        ContrastAugmentationTransform(contrast.factors, p_per_sample=contrast.probability),
        SimulateLowResolutionTransform(
            coarse.scales,
            per_channel=True,
            p_per_channel=coarse.probability_per_channel,
            order_downsample=0,
            order_upsample=1,
            p_per_sample=coarse.probability,
            ignore_axes=(0,) if spec.is_dummy_2d else None,
        ),
        *(
            GammaTransform(
                gamma.exponents,
                gamma.is_inverted,
                per_channel=True,
                retain_stats=True,
                p_per_sample=gamma.probability,
            )
            for gamma in DEFAULT_GAMMAS
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
