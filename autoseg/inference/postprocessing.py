"""Removing what a network invents: pieces of a class that are not its largest, or too small to be true.

A kind of postprocessing is an entry of `POSTPROCESSING`: what it keeps of a mask, and which steps of it the selection
tries on out-of-fold predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from autoseg.core.geometry import Shape, Spacing, is_picture
from autoseg.core.records import record
from autoseg.data.model import LabelSet
from autoseg.evaluation.scores import value_mask

LARGEST_MINIMUM_SHARE = 0.1
"""Largest minimum volume that is tried, as a share of a class's median volume in the references (assumption: what is
smaller than a tenth of the usual object is an invention or does not matter)."""

LabelMap = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]


def _known(kind: str) -> str:
    if kind not in POSTPROCESSING:
        raise ValueError(f"unknown postprocessing {kind!r}; this version knows {', '.join(POSTPROCESSING)}")
    return kind


@record
class PostprocessingStep:
    """One thing done to every predicted label map; what is removed becomes background.

    Attributes:
        kind: a key of `POSTPROCESSING`; "largest_component" keeps the largest connected piece of the classes merged,
            "minimum_volume" removes pieces of the classes merged that are smaller than `minimum_mm3`.
        classes: names in the label set.
        minimum_mm3: smallest volume kept, for "minimum_volume"; in pictures, which have no thickness, the smallest
            area in mm² (or whatever unit the spacing has).
    """

    kind: Annotated[str, AfterValidator(_known)]
    classes: tuple[str, ...]
    minimum_mm3: Annotated[float, Field(ge=0)] | None = None

    @property
    def title(self) -> str:
        """What it does, in words."""
        return POSTPROCESSING[self.kind].title(self)


@dataclass(frozen=True, slots=True)
class ObjectSizes:
    """How large the objects of some classes are in the references.

    Attributes:
        volumes_mm3: of these classes in each case that has any; areas in mm² in pictures.
        voxel_mm3: of the median case.
    """

    volumes_mm3: tuple[float, ...]
    voxel_mm3: float


@dataclass(frozen=True, slots=True)
class PostprocessingKind:
    """A way to clean label maps.

    Attributes:
        title: what a step does, in words.
        analyze: takes the mask of a step's classes and the volume of a voxel in mm³; gives what of the mask a step
            keeps. Analyzing comes first and once, as the selection tries many steps on the same mask.
        proposals: steps worth trying on classes merged, given the sizes of their objects.
        is_for_foreground: whether it is tried on the whole foreground as well as on each class.
    """

    title: Callable[[PostprocessingStep], str]
    analyze: Callable[[Mask, float], Callable[[PostprocessingStep], Mask]]
    proposals: Callable[[tuple[str, ...], ObjectSizes], Sequence[PostprocessingStep]]
    is_for_foreground: bool = False


def postprocess(
    labels: LabelMap, steps: Sequence[PostprocessingStep], label_set: LabelSet, spacing_mm: Spacing
) -> LabelMap:
    """The label map after all steps, in order; the argument is not changed.

    Args:
        labels: training values (z, y, x).
        steps: what to do; their classes are those of the label set, as steps are stored beside it.
        label_set: the values of each class.
        spacing_mm: distance of neighboring voxels along z, y, x.
    """
    voxel_mm3 = voxel_volume(labels.shape, spacing_mm)
    for step in steps:
        mask = class_mask(labels, step.classes, label_set)
        kept = POSTPROCESSING[step.kind].analyze(mask, voxel_mm3)(step)
        labels = np.where(mask & ~kept, labels.dtype.type(0), labels)
    return labels


def voxel_volume(shape: Shape, spacing_mm: Spacing) -> float:
    """Volume of a voxel in mm³; of a pixel in a picture, whose slice has no thickness, the area in mm².

    Args:
        shape: voxels (z, y, x).
        spacing_mm: along z, y, x.
    """
    return math.prod(spacing_mm[1:] if is_picture(shape, spacing_mm) else spacing_mm)


def class_mask(labels: LabelMap, classes: Sequence[str], label_set: LabelSet) -> Mask:
    """Where a label map holds any value of the classes."""
    return value_mask(labels, sorted({value for name in classes for value in label_set.classes[name]}))


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """The connected pieces of a mask; voxels that touch by a face, an edge or a corner belong together.

    Attributes:
        numbers: 1 to n inside the bounding box of the mask, 0 outside the mask.
        box: of the mask in the whole array.
        sizes: voxels of each piece, in the order of the numbers.
    """

    numbers: NDArray[np.int32]
    box: tuple[slice, ...]
    sizes: NDArray[np.int64]


def components(mask: Mask) -> Components:
    """The pieces of a mask of any number of axes.

    Source: nnU-Net v2 postprocessing/remove_connected_components.py (neighbors by faces, edges and corners).
    """
    from scipy import ndimage  # 0.2 s of imports that not every prediction needs

    box = next(iter(ndimage.find_objects(mask.astype(np.uint8))), None)
    if box is None:
        nothing = (slice(0, 0),) * mask.ndim
        return Components(np.zeros((0,) * mask.ndim, np.int32), nothing, np.zeros(0, np.int64))
    numbers, count = ndimage.label(mask[box], np.ones((3,) * mask.ndim), output=np.int32)
    sizes = np.bincount(numbers.reshape(-1), minlength=count + 1)[1:]
    return Components(numbers, box, sizes.astype(np.int64))


def keep_components(mask: Mask, found: Components, is_kept: NDArray[np.bool_]) -> Mask:
    """The mask with only some of its pieces.

    Args:
        mask: that the pieces were found in.
        found: its pieces.
        is_kept: (pieces,), in the order of their numbers.
    """
    if is_kept.all():
        return mask
    kept = np.zeros_like(mask)
    kept[found.box] = np.concatenate([[False], is_kept])[found.numbers]
    return kept


def _largest_component(mask: Mask, _voxel_mm3: float) -> Callable[[PostprocessingStep], Mask]:
    found = components(mask)
    return lambda _step: keep_components(mask, found, found.sizes == found.sizes.max(initial=0))


def _minimum_volume(mask: Mask, voxel_mm3: float) -> Callable[[PostprocessingStep], Mask]:
    found = components(mask)
    return lambda step: keep_components(mask, found, found.sizes >= (step.minimum_mm3 or 0.0) / voxel_mm3)


def _minimum_volumes(classes: tuple[str, ...], sizes: ObjectSizes) -> list[PostprocessingStep]:
    """Minimum volumes of 2, 4, 8, ... voxels, up to a share of the median volume in the references."""
    most = LARGEST_MINIMUM_SHARE * float(np.median(sizes.volumes_mm3)) if sizes.volumes_mm3 else 0.0
    steps, volume = [], 2 * sizes.voxel_mm3
    while volume <= most:
        steps.append(PostprocessingStep("minimum_volume", classes, round(volume, 6)))
        volume *= 2
    return steps


POSTPROCESSING: Mapping[str, PostprocessingKind] = {
    "largest_component": PostprocessingKind(  # nnU-Net v2 postprocessing/remove_connected_components.py
        title=lambda step: f"keep the largest component of {' and '.join(step.classes)}",
        analyze=_largest_component,
        proposals=lambda classes, _sizes: [PostprocessingStep("largest_component", classes)],
        is_for_foreground=True,
    ),
    "minimum_volume": PostprocessingKind(
        title=lambda step: f"remove components of {' and '.join(step.classes)} below {step.minimum_mm3:g} mm3",
        analyze=_minimum_volume,
        proposals=_minimum_volumes,
    ),
}
"""Every kind, in the order in which the selection tries them."""
