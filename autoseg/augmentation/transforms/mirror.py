"""Mirroring along the axes that allow it."""

from __future__ import annotations

import torch
from torch import Tensor

from autoseg.augmentation.draws import Probability, happens
from autoseg.augmentation.pipeline import Sample, Transform
from autoseg.augmentation.spec import AugmentationSpec
from autoseg.core.records import record
from autoseg.planning.lateral import LateralSwap


@record
class Mirror(Transform):
    """Mirrors along each axis of the plan's mirror axes by itself with this probability."""

    probability: Probability = 0.5

    def draw(self, generator: torch.Generator, spec: AugmentationSpec, _channels: int) -> tuple[int, ...] | None:
        """The axes to mirror along."""
        return tuple(axis for axis in spec.mirror_axes if happens(generator, self.probability)) or None

    def apply(self, sample: Sample, drawn: tuple[int, ...], spec: AugmentationSpec) -> None:
        """Mirrors image and labels; lateral labels change places."""
        dimensions = len(spec.patch_size)
        sample.image = mirror(sample.image, drawn, dimensions)
        sample.labels = mirror_labels(sample.labels, drawn, dimensions, spec.swap)
        if sample.first_stage is not None:
            sample.first_stage = mirror_labels(sample.first_stage, drawn, dimensions, spec.swap)


def mirror(array: Tensor, axes: tuple[int, ...], dimensions: int) -> Tensor:
    """The array (..., *shape) mirrored along spatial axes (0 = first of the last `dimensions`)."""
    return array.flip([axis - dimensions for axis in axes]) if axes else array


def mirror_labels(labels: Tensor, axes: tuple[int, ...], dimensions: int, swap: LateralSwap | None) -> Tensor:
    """Labels (..., *shape) mirrored along spatial axes; lateral ones change places where left becomes right.

    Args:
        labels: training values of any integer or float type; negative ones stay as they are.
        axes: spatial axes (0 = first of the last `dimensions`).
        dimensions: number of spatial axes.
        swap: what changes places, or None.
    """
    mirrored = mirror(labels, axes, dimensions)
    if swap is None or swap.axis not in axes:
        return mirrored
    table = torch.tensor(swap.values, device=labels.device).to(labels.dtype)
    return table[mirrored.clamp(min=0).long()].where(mirrored >= 0, mirrored)
