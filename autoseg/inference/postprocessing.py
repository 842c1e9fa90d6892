"""Removing what a network invents: pieces of a class that are not its largest, or too small to be true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import SLICE_SPACING_OF_2D, Spacing
from autoseg.data.model import LabelSet
from autoseg.images.components import largest_component, without_small_components


@dataclass(frozen=True, slots=True)
class PostprocessingStep:
    """One thing done to every predicted label map; what is removed becomes background.

    Attributes:
        kind: "largest_component" keeps the largest connected piece of the classes merged; "minimum_volume" removes
            pieces of the classes merged that are smaller than `minimum_mm3`.
        classes: names in the label set.
        minimum_mm3: smallest volume kept, for "minimum_volume"; in pictures, which have no thickness, the smallest
            area in mm² (or whatever unit the spacing has).
    """

    kind: Literal["largest_component", "minimum_volume"]
    classes: tuple[str, ...]
    minimum_mm3: float | None = None

    @property
    def title(self) -> str:
        """What it does, in words."""
        named = " and ".join(self.classes)
        if self.kind == "largest_component":
            return f"keep the largest component of {named}"
        return f"remove components of {named} below {self.minimum_mm3:g} mm3"


def postprocess(
    labels: NDArray[np.integer[Any]], steps: Sequence[PostprocessingStep], label_set: LabelSet, spacing_mm: Spacing
) -> NDArray[np.integer[Any]]:
    """The label map after all steps, in order; the argument is not changed.

    Args:
        labels: training values (z, y, x).
        steps: what to do; unknown classes are not expected, as steps are stored beside their label set.
        label_set: the values of each class.
        spacing_mm: distance of neighboring voxels along z, y, x.

    Source: nnU-Net v2 postprocessing/remove_connected_components.py (largest components).
    """
    for step in steps:
        labels = _apply(labels, step, label_set, voxel_volume(labels.shape, spacing_mm))
    return labels


def voxel_volume(shape: Sequence[int], spacing_mm: Spacing) -> float:
    """Volume of a voxel in mm³; of a pixel in a picture, whose slice has no thickness, the area in mm².

    Args:
        shape: voxels (z, y, x).
        spacing_mm: along z, y, x.
    """
    is_picture = shape[0] == 1 and spacing_mm[0] >= SLICE_SPACING_OF_2D * max(spacing_mm[1:]) * (1 - 1e-6)
    return math.prod(spacing_mm[1:] if is_picture else spacing_mm)


def class_mask(labels: NDArray[np.integer[Any]], classes: Sequence[str], label_set: LabelSet) -> NDArray[np.bool_]:
    """Where a label map holds any value of the classes."""
    values = sorted({value for name in classes for value in label_set.classes[name]})
    if len(values) == 1:
        return np.asarray(labels == values[0])
    return np.isin(labels, values)


def _apply(
    labels: NDArray[np.integer[Any]], step: PostprocessingStep, label_set: LabelSet, voxel_mm3: float
) -> NDArray[np.integer[Any]]:
    mask = class_mask(labels, step.classes, label_set)
    if step.kind == "largest_component":
        kept = largest_component(mask)
    else:
        kept = without_small_components(mask, (step.minimum_mm3 or 0.0) / voxel_mm3)
    return np.where(mask & ~kept, labels.dtype.type(0), labels)
