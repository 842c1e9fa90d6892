"""The augmentations that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoseg.augmentation.batchgenerators_backend import augment_with_batchgenerators
from autoseg.augmentation.pipeline import augment, crop_only
from autoseg.augmentation.spec import AugmentationSpec

Augment = Callable[[Tensor, Tensor, AugmentationSpec, torch.Generator], tuple[Tensor, Tensor]]
"""(image (b, c, *initial patch), labels (b, *initial patch), spec, CPU generator) -> the same, cut to the patch."""

AUGMENTATIONS: dict[str, Augment] = {
    "default": augment,
    "none": crop_only,
    "batchgenerators": augment_with_batchgenerators,
}
"""Kinds of augmentation by the name used in recipes."""
