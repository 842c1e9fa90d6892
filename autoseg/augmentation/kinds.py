"""The augmentations and transforms that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoseg.augmentation.batchgenerators_backend import augment_with_batchgenerators
from autoseg.augmentation.pipeline import Pipeline, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.augmentation.transforms.blur import Blur
from autoseg.augmentation.transforms.brightness import Brightness
from autoseg.augmentation.transforms.contrast import Contrast
from autoseg.augmentation.transforms.first_stage import FirstStage
from autoseg.augmentation.transforms.gamma import DEFAULT_GAMMAS, Gamma
from autoseg.augmentation.transforms.low_resolution import LowResolution
from autoseg.augmentation.transforms.mirror import Mirror
from autoseg.augmentation.transforms.noise import Noise
from autoseg.augmentation.transforms.spatial import Spatial
from autoseg.core.records import from_data
from autoseg.core.registry import choose

Augment = Callable[[Tensor, Tensor, AugmentationSpec, torch.Generator, Tensor | None], tuple[Tensor, Tensor]]
"""(image, labels, spec, CPU generator, first stage) -> image, labels; as `pipeline.Pipeline` has it."""

TRANSFORMS: dict[str, type[Transform]] = {
    "spatial": Spatial,
    "noise": Noise,
    "blur": Blur,
    "brightness": Brightness,
    "contrast": Contrast,
    "low_resolution": LowResolution,
    "gamma": Gamma,
    "mirror": Mirror,
    "first_stage": FirstStage,
}
"""Kinds of transforms by the name used in recipes."""

DEFAULT = Pipeline(
    (
        Spatial(),
        Noise(),
        Blur(),
        Brightness(),
        Contrast(),
        LowResolution(),
        *DEFAULT_GAMMAS,
        Mirror(),
        FirstStage(),
    )
)
"""Source: nnU-Net v2, `nnUNetTrainer.get_training_transforms`."""

AUGMENTATIONS: dict[str, Augment] = {
    "default": DEFAULT,
    "none": Pipeline(),
    "batchgenerators": augment_with_batchgenerators,
}
"""Whole augmentations by the name used in recipes."""


def make_augmentation(asked: str | Sequence[Mapping[str, Any]]) -> Augment:
    """The augmentation that a recipe asks for: the name of a whole one, or its transforms in order.

    Args:
        asked: a key of `AUGMENTATIONS`, or for each transform its `name`, a key of `TRANSFORMS`, and its settings.

    Raises:
        UsageError: there is no augmentation or transform of that name.
        RecordFault: a transform does not have this setting, or it makes no sense.
    """
    if isinstance(asked, str):
        return choose(asked, AUGMENTATIONS, "augmentation")
    transforms = []
    for settings in asked:
        own = dict(settings)
        name = str(own.pop("name", ""))
        transforms.append(from_data(choose(name, TRANSFORMS, "transform"), own, f"the transform {name!r} of a recipe"))
    return Pipeline(tuple(transforms))
