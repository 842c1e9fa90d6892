"""Scores of label maps: per case and class, and their means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.core.geometry import SLICE_SPACING_OF_2D
from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import Counts, confusion
from autoseg.evaluation.metrics import Mask, Overlap, surface_distances

DEFAULT_TOLERANCE_MM = 1.0
"""Of the normalized surface Dice; assumption. In pictures without physical size it is one pixel."""

_MM3_PER_ML = 1000.0

Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of one class in one case, or their means; see `metrics.DEFINITIONS`. None where undefined."""

    dice: float | None
    iou: float | None
    nsd: float | None
    hd95_mm: float | None
    assd_mm: float | None
    volume_ml: float | None
    reference_volume_ml: float | None

    def to_dict(self) -> dict[str, float | None]:
        """The scores by name."""
        return asdict(self)


SCORE_NAMES: tuple[str, ...] = tuple(ClassScores.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of many cases.

    Attributes:
        cases: case -> class -> scores.
        mean: class -> mean over the cases in which a score is defined.
        foreground_mean: mean of `mean` over the classes for which it is defined.
    """

    cases: dict[str, dict[str, ClassScores]]
    mean: dict[str, ClassScores]
    foreground_mean: ClassScores


def score_case(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    labels: LabelSet,
    spacing_mm: Sequence[float],
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> dict[str, ClassScores]:
    """Scores of each foreground class of one case.

    Args:
        prediction: training values (z, y, x); a single slice is measured in its plane.
        reference: training values on the same grid; where it holds the ignore value nothing is compared.
        labels: classes, regions and the ignore value.
        spacing_mm: distance of neighboring voxels along z, y, x.
        tolerance_mm: of the normalized surface Dice.
    """
    one_ml = voxel_ml(prediction.shape, spacing_mm)
    kept = [axis for axis, length in enumerate(prediction.shape) if length > 1] or [0]
    spacing_mm, shape = [spacing_mm[axis] for axis in kept], [prediction.shape[axis] for axis in kept]
    prediction, reference = without_ignored(prediction.reshape(shape), reference.reshape(shape), labels)
    counts = overlaps(prediction, reference, labels)
    boxes = _boxes(prediction, reference)
    scores = {}
    for name in labels.foreground:
        values = labels.classes[name]
        box = _union([boxes[value] for value in values if value in boxes], prediction.ndim)
        distances = surface_distances(_mask(prediction[box], values), _mask(reference[box], values), spacing_mm)
        scores[name] = ClassScores(
            dice=counts[name].dice,
            iou=counts[name].iou,
            nsd=distances.within(tolerance_mm),
            hd95_mm=distances.hausdorff(),
            assd_mm=distances.average,
            volume_ml=None if one_ml is None else counts[name].prediction * one_ml,
            reference_volume_ml=None if one_ml is None else counts[name].reference * one_ml,
        )
    return scores


def overlaps(prediction: NDArray[np.integer], reference: NDArray[np.integer], labels: LabelSet) -> dict[str, Overlap]:
    """Voxels that prediction and reference share, for each foreground class, in one pass over the voxels.

    Args:
        prediction: training values, any shape.
        reference: training values of the same shape; where it holds the ignore value nothing is compared.
        labels: classes, regions and the ignore value.
    """
    return overlaps_of(confusion(prediction, reference, labels), labels)


def overlaps_of(pairs: Counts, labels: LabelSet) -> dict[str, Overlap]:
    """Voxels that prediction and reference share, for each foreground class, from a table of `confusion`."""
    found = {}
    for name in labels.foreground:
        values = list(labels.classes[name])
        both = pairs[np.ix_(values, values)].sum()
        found[name] = Overlap(int(both), int(pairs[:, values].sum()), int(pairs[values].sum()))
    return found


def without_ignored(
    prediction: NDArray[np.integer], reference: NDArray[np.integer], labels: LabelSet
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Both label maps with background wherever the reference is not annotated."""
    if labels.ignore is None:
        return prediction, reference
    annotated = reference != labels.ignore
    return np.where(annotated, prediction, 0), np.where(annotated, reference, 0)


def summarize(cases: Mapping[str, Mapping[str, ClassScores]]) -> Scores:
    """The scores with their means; undefined scores are left out of a mean, and a mean of nothing is undefined."""
    names = list(dict.fromkeys(name for case in cases.values() for name in case))
    mean = {name: _mean(case[name] for case in cases.values() if name in case) for name in names}
    return Scores({case: dict(scores) for case, scores in cases.items()}, mean, _mean(mean.values()))


def voxel_ml(shape: Sequence[int], spacing_mm: Sequence[float]) -> float | None:
    """Volume of a voxel in milliliters, or None in a picture, whose slice has no thickness."""
    if shape[0] == 1 and spacing_mm[0] >= SLICE_SPACING_OF_2D * max(spacing_mm[1:]) * (1 - 1e-6):
        return None
    return float(np.prod(spacing_mm)) / _MM3_PER_ML


def _mean(scores: Iterable[ClassScores]) -> ClassScores:
    scores = list(scores)
    means = {}
    for name in SCORE_NAMES:
        defined = [value for value in (getattr(score, name) for score in scores) if value is not None]
        means[name] = float(np.mean(defined)) if defined else None
    return ClassScores(**means)


def _mask(array: NDArray[np.integer], values: Sequence[int]) -> Mask:
    if len(values) == 1:
        return np.asarray(array == values[0])
    return np.isin(array, values)


def _boxes(*label_maps: NDArray[np.integer]) -> dict[int, Box]:
    """For each value above 0, the smallest box that holds it in all of the label maps."""
    from scipy.ndimage import find_objects

    found: dict[int, list[Box]] = {}
    for label_map in label_maps:
        for value, box in enumerate(find_objects(label_map.astype(np.int32, copy=False)), start=1):
            if box is not None:
                found.setdefault(value, []).append(box)
    return {value: _union(boxes, label_maps[0].ndim) for value, boxes in found.items()}


def _union(boxes: Sequence[Box], dimensions: int) -> Box:
    if not boxes:
        return (slice(0, 0),) * dimensions
    return tuple(
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(dimensions)
    )
