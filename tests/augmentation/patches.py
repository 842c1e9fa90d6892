"""Specs of augmentation, and a transform applied to an image by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec

SPECS = {
    "3d": AugmentationSpec((6, 8, 7), (11, 12, 10), math.radians(30), False, (0, 1, 2), (1,)),
    "dummy 2d": AugmentationSpec((2, 8, 8), (2, 12, 12), math.pi, True, (0, 1, 2), ()),
    "2d": AugmentationSpec((8, 9), (13, 13), math.pi, False, (0, 1), (0, 1)),
}


def applied(transform: Transform, image: Tensor, drawn: Any, spec: AugmentationSpec = SPECS["3d"]) -> Tensor:
    """The image (c, *shape) after the transform with these parameters; the argument is not modified."""
    sample = Sample(image.clone(), torch.zeros(image.shape[1:], dtype=torch.int8))
    transform.apply(sample, drawn, spec)
    return sample.image
