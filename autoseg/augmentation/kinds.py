"""The augmentations that a recipe can name."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from autoseg.augmentation.batchgenerators_backend import augment_with_batchgenerators
from autoseg.augmentation.pipeline import augment, crop_only
from autoseg.augmentation.spec import AugmentationSpec


class Augment(Protocol):
    """(image (b, c, *initial patch), labels (b, *initial patch), spec, CPU generator) -> the same, cut to the patch.

    In a cascade `previous` holds the label map of the first stage (b, *initial patch); it is transformed like labels
    and comes back as channels behind those of the image.
    """

    def __call__(
        self,
        image: Tensor,
        labels: Tensor,
        spec: AugmentationSpec,
        generator: torch.Generator,
        previous: Tensor | None = None,
        /,
    ) -> tuple[Tensor, Tensor]:
        """The augmented batch."""


AUGMENTATIONS: dict[str, Augment] = {
    "default": augment,
    "none": crop_only,
    "batchgenerators": augment_with_batchgenerators,
}
"""Kinds of augmentation by the name used in recipes."""
