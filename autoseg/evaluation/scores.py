"""Scores of label maps and label files: per case and class, and their means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, GeometryMismatch, LabelFault
from autoseg.core.geometry import Geometry, Shape, Spacing, is_picture
from autoseg.data.check import match_labels
from autoseg.data.labels import count_label_files, misnamed_values, to_training_values
from autoseg.data.model import LabelSet
from autoseg.data.problems import PROBLEM_CODES
from autoseg.evaluation.confusion import Overlap, overlaps
from autoseg.evaluation.metrics import COUNT_METRICS, MASK_METRICS, ClassMasks, Mask
from autoseg.evaluation.statistics import mean_of
from autoseg.images.readers import read_labels
from autoseg.images.volume import Volume

DEFAULT_TOLERANCE_MM = 1.0
"""Of the normalized surface Dice; assumption. In pictures without physical size it is one pixel."""

_MM3_PER_ML = 1000.0
_SHOWN_VALUES = 10

Box = tuple[slice, ...]


ClassScores = dict[str, float | None]
"""Score of one class in one case, or its mean over cases, by the names of `METRICS`; None where undefined."""


@dataclass(frozen=True, slots=True)
class ScoredFiles:
    """What a predicted and a reference label file give.

    Attributes:
        scores: of each class; empty where there are none.
        failure: why there are none.
        notes: where the files could be read or compared in two ways, which one was taken.
    """

    scores: dict[str, ClassScores]
    failure: str = ""
    notes: tuple[str, ...] = ()


def score_files(files: tuple[Path, Path], labels: LabelSet, tolerance_mm: float) -> ScoredFiles:
    """Scores of each class of a predicted and a reference label file, or why there are none."""
    try:
        prediction, reference = (read_labels(file) for file in files)
        for file, read in zip(files, (prediction, reference), strict=True):
            if wrong := misnamed_values(read.value_names, labels):
                return ScoredFiles({}, f"{file.name}: classes would be exchanged: {'; '.join(wrong)} in the dataset")
        pair = _on_one_grid(prediction, reference, (files[0].name, files[1].name))
        arrays = [to_training_values(volume.array, labels) for volume in (pair.prediction, pair.reference)]
    except LabelFault as error:
        return ScoredFiles({}, f"{error}; {_held(files)}")
    except AutoSegError as error:
        return ScoredFiles({}, str(error))
    scores = score_case(arrays[0], arrays[1], labels, pair.geometry.spacing_mm, tolerance_mm)
    return ScoredFiles(scores, notes=(*pair.notes, *prediction.notes, *reference.notes))


def _held(files: tuple[Path, Path]) -> str:
    """Which values a predicted and a reference label file hold, in words; nothing of a file that cannot be read."""
    shown = []
    for noun, file in zip(("prediction", "reference"), files, strict=True):
        values = sorted(count_label_files([file], jobs=0).values)
        more = ", ..." if len(values) > _SHOWN_VALUES else ""
        shown += [f"the {noun} holds {', '.join(map(str, values[:_SHOWN_VALUES]))}{more}"] if values else []
    return "; ".join(shown)


class _Pair(NamedTuple):
    prediction: Volume
    reference: Volume
    geometry: Geometry
    notes: tuple[str, ...]


def _on_one_grid(prediction: Volume, reference: Volume, names: tuple[str, str]) -> _Pair:
    """Prediction and reference voxel by voxel, one turned as the other is stored, and their grid.

    Where one file's format carries no geometry, that is the other's.
    """
    turned, difference = match_labels(reference.geometry, prediction, names[0])
    if difference is None or PROBLEM_CODES[difference[0]].severity != "refused":
        return _Pair(turned, reference, reference.geometry, _matched(difference, "reference", "prediction"))
    turned, reverse = match_labels(prediction.geometry, reference, names[1])
    if reverse is None or PROBLEM_CODES[reverse[0]].severity != "refused":
        return _Pair(prediction, turned, prediction.geometry, _matched(reverse, "prediction", "reference"))
    raise GeometryMismatch(
        _said(difference[1], "reference", "prediction"),
        where=", ".join(names),
        do="predict the image that the reference belongs to, or resample one onto the other's grid",
    )


def _matched(difference: tuple[str, str] | None, image: str, labels: str) -> tuple[str, ...]:
    """A note on a pair that was matched although the files do not say that it lies in one place."""
    return (_said(difference[1], image, labels),) if difference is not None and difference[0] == "E0218" else ()


def _said(sentence: str, image: str, labels: str) -> str:
    """What is said of an image and its labels, said of the two."""
    words = {"labels lie ": f"{labels} lies ", "image and labels": "the two", "label file": labels}
    for word, own in {**words, "labels": labels, "image": image}.items():
        sentence = sentence.replace(word, own)
    return sentence


def score_case(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    labels: LabelSet,
    spacing_mm: Spacing,
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
    spacing_mm, shape = tuple(spacing_mm[axis] for axis in kept), [prediction.shape[axis] for axis in kept]
    prediction, reference = without_ignored(prediction.reshape(shape), reference.reshape(shape), labels)
    counts = overlaps(prediction, reference, labels)
    boxes = _boxes(prediction, reference)
    scores = {}
    for name in labels.foreground:
        values = labels.classes[name]
        # distances are found in the box of both objects: the rest of the image has no surface of this class
        box = _union([boxes[value] for value in values if value in boxes], prediction.ndim)
        cut = (value_mask(prediction[box], values), value_mask(reference[box], values))
        masks = ClassMasks(*cut, counts[name], spacing_mm, one_ml, tolerance_mm)
        scores[name] = count_scores(counts[name]) | {key: own.compute(masks) for key, own in MASK_METRICS.items()}
    return scores


def count_scores(counts: Overlap) -> ClassScores:
    """The scores of a class that numbers of voxels are enough for."""
    return {name: metric.compute(counts) for name, metric in COUNT_METRICS.items()}


def without_ignored(
    prediction: NDArray[np.integer], reference: NDArray[np.integer], labels: LabelSet
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Both label maps with background wherever the reference is not annotated."""
    if labels.ignore is None:
        return prediction, reference
    annotated = reference != labels.ignore
    return np.where(annotated, prediction, 0), np.where(annotated, reference, 0)


def mean_scores(
    cases: Mapping[str, Mapping[str, ClassScores]], names: Iterable[str]
) -> tuple[dict[str, ClassScores], ClassScores]:
    """Class -> mean over the cases, and the mean of these means over the classes; undefined scores are left out.

    Args:
        cases: case -> class -> scores.
        names: of the scores to average.
    """
    by_class: dict[str, list[ClassScores]] = {}
    for case in cases.values():
        for label, scores in case.items():
            by_class.setdefault(label, []).append(scores)
    mean = {label: _means(scores, names) for label, scores in by_class.items()}
    return mean, _means(mean.values(), names)


def _means(scores: Iterable[ClassScores], names: Iterable[str]) -> ClassScores:
    scores = list(scores)
    return {name: mean_of(own[name] for own in scores) for name in names}


def voxel_ml(shape: Shape, spacing_mm: Spacing) -> float | None:
    """Volume of a voxel in milliliters, or None in a picture, whose slice has no thickness."""
    return None if is_picture(shape, spacing_mm) else float(np.prod(spacing_mm)) / _MM3_PER_ML


def value_mask(array: NDArray[np.integer], values: Sequence[int]) -> Mask:
    """Where a label map holds any of the values."""
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
