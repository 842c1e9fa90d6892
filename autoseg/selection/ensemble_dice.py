"""How good every ensemble is on one case, in one pass over its out-of-fold predictions.

Wherever all configurations agree on a label, every ensemble of them does too: the mean of probabilities that are all
largest for one class is largest for it. So ensembles are computed at the few voxels where label maps differ, and
everything else is counted once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.core.errors import GeometryMismatch, MissingInput
from autoseg.core.geometry import Geometry
from autoseg.data.check import match_labels
from autoseg.data.labels import to_training_values
from autoseg.data.model import LabelSet
from autoseg.evaluation.confusion import confusion, overlaps_of
from autoseg.images.readers import read_labels
from autoseg.inference.out_of_fold import CERTAIN, kept_heads, probabilities_at
from autoseg.selection.candidates import EnsembleWeights

_VOXELS_AT_ONCE = 1 << 18

LabelMap = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class OutOfFoldFiles:
    """Where the out-of-fold predictions of a case are.

    Attributes:
        identifier: of the case.
        fold: that kept it back.
        reference: label file of the dataset.
        predictions: label map of each configuration.
        probabilities: kept probabilities of each configuration, or None where they were not kept.
    """

    identifier: str
    fold: int
    reference: Path
    predictions: tuple[Path, ...]
    probabilities: tuple[Path | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFoldMaps:
    """Label maps of a case in training values (z, y, x), all on the grid of its reference.

    Attributes:
        files: where they come from.
        reference: of the dataset.
        predictions: of each configuration.
        geometry: their grid.
    """

    files: OutOfFoldFiles
    reference: LabelMap
    predictions: tuple[LabelMap, ...]
    geometry: Geometry


def read_maps(files: OutOfFoldFiles, labels: LabelSet) -> OutOfFoldMaps:
    """The label maps of a case.

    Raises:
        MissingInput: a label map is gone.
        GeometryMismatch: a label map is on another grid than the reference.
    """
    read = read_labels(files.reference)
    reference, predictions = read, []
    for path in files.predictions:
        if not path.exists():
            raise MissingInput(
                f"the out-of-fold label map of {files.identifier} is gone",
                where=str(path),
                do="train this fold again with --fresh",
            )
        predicted = read_labels(path)
        reference, _ = match_labels(predicted.geometry, read, files.reference.name)
        if predicted.array.shape != reference.array.shape:
            raise GeometryMismatch(
                f"{files.identifier}: the prediction is {predicted.array.shape} voxels, the reference "
                f"{reference.array.shape}",
                where=str(path),
                do="if the reference was changed, plan and train again",
            )
        predictions.append(to_training_values(predicted.array, labels))
    truth = to_training_values(reference.array, labels)
    return OutOfFoldMaps(files, truth, tuple(predictions), reference.geometry)


def ensemble_dice(maps: OutOfFoldMaps, labels: LabelSet, ensembles: Sequence[EnsembleWeights]) -> NDArray[np.float64]:
    """Dice (ensembles, classes) of every ensemble, NaN where undefined; ignored voxels do not count.

    Args:
        maps: of a case.
        labels: classes of the plan.
        ensembles: weights of the configurations, in the order of the predictions.
    """
    voxels = np.flatnonzero(_differs(maps))
    truth = maps.reference.reshape(-1)[voxels]
    own_labels = [prediction.reshape(-1)[voxels] for prediction in maps.predictions]
    # what all configurations agree on is counted once: the whole case without the voxels that differ
    agreed = confusion(maps.predictions[0], maps.reference, labels) - confusion(own_labels[0], truth, labels)
    probabilities = _probabilities(maps, labels, voxels)
    found = []
    for weights in ensembles:
        decided = own_labels[weights.index(1)] if sum(weights) == 1 else _decided(probabilities, weights, labels)
        overlaps = overlaps_of(agreed + confusion(decided, truth, labels), labels)
        found.append([own.dice for own in overlaps.values()])
    return np.array(found, np.float64)  # None becomes NaN


def ensemble_labels(maps: OutOfFoldMaps, labels: LabelSet, weights: EnsembleWeights) -> LabelMap:
    """The label map (z, y, x) of an ensemble in training values."""
    first = maps.predictions[weights.index(1)] if sum(weights) == 1 else maps.predictions[0]
    decided = first.copy()
    if sum(weights) > 1:
        voxels = np.flatnonzero(_differs(maps))
        decided.reshape(-1)[voxels] = _decided(_probabilities(maps, labels, voxels), weights, labels)
    return decided


def _differs(maps: OutOfFoldMaps) -> NDArray[np.bool_]:
    first, *others = maps.predictions
    differs = np.zeros(first.shape, bool)
    for other in others:
        differs |= other != first
    return differs


def _probabilities(maps: OutOfFoldMaps, labels: LabelSet, voxels: NDArray[np.integer[Any]]) -> list[NDArray[np.uint8]]:
    """For each configuration its probabilities (kept heads, n) times 255; label maps where none were kept."""
    probabilities = []
    for prediction, kept in zip(maps.predictions, maps.files.probabilities, strict=True):
        if kept is not None:
            probabilities.append(probabilities_at(kept, labels, voxels))
        else:
            probabilities.append(_one_hot(prediction.reshape(-1)[voxels], labels))
    return probabilities


def _one_hot(values: LabelMap, labels: LabelSet) -> NDArray[np.uint8]:
    """A label map as probabilities of 0 and 1 of the kept heads."""
    if labels.has_regions:
        heads = [np.isin(values, labels.classes[name]) for name in labels.foreground]
    else:
        heads = [values == head for head in range(1, labels.head_count)]
    return np.stack(heads).astype(np.uint8) * np.uint8(CERTAIN)


def _decided(probabilities: Sequence[NDArray[np.uint8]], weights: EnsembleWeights, labels: LabelSet) -> LabelMap:
    """Training values (n,) of the mean probabilities, in whole numbers, as rounding would decide ties."""
    count = probabilities[0].shape[1]
    decided = np.zeros(count, np.int32)
    certain = CERTAIN * sum(weights)
    for start in range(0, count, _VOXELS_AT_ONCE):
        block = slice(start, start + _VOXELS_AT_ONCE)
        total = np.zeros((kept_heads(labels), len(decided[block])), np.int32)
        for own, weight in zip(probabilities, weights, strict=True):
            if weight:
                total += weight * own[:, block].astype(np.int32)
        if labels.has_regions:
            for value, head in zip(labels.regions_class_order, total, strict=True):
                decided[block][2 * head > certain] = value
        else:
            # the background is not kept: its probability is what the others leave, as softmax adds up to one
            background = certain - total.sum(0, keepdims=True)
            decided[block] = np.concatenate([background, total]).argmax(0)
    return decided
