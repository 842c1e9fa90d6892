"""Scoring the label file of a prediction against that of its reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoseg.core.errors import AutoSegError, GeometryMismatch
from autoseg.core.geometry import Geometry
from autoseg.data.grids import compare_grids
from autoseg.data.labels import to_training_values
from autoseg.data.model import LabelSet
from autoseg.evaluation.scores import ClassScores, score_case
from autoseg.images.readers import read_labels


@dataclass(frozen=True, slots=True)
class LabelPair:
    """The two label files of a case."""

    case: str
    prediction: Path
    reference: Path


def score_pair(pair: LabelPair, labels: LabelSet, tolerance_mm: float) -> dict[str, ClassScores] | str:
    """Scores of each class, or why there are none."""
    try:
        prediction, reference = read_labels(pair.prediction), read_labels(pair.reference)
        geometry = _common_grid(prediction.geometry, reference.geometry, pair)
        arrays = [to_training_values(volume.array, labels) for volume in (prediction, reference)]
    except AutoSegError as error:
        return str(error)
    return score_case(arrays[0], arrays[1], labels, geometry.spacing_mm, tolerance_mm)


def _common_grid(prediction: Geometry, reference: Geometry, pair: LabelPair) -> Geometry:
    """The grid of both; that of the other where one file's format carries no geometry."""
    difference = compare_grids(reference, prediction, pair.prediction.name)
    if difference is None or difference[1] != "refused":
        return reference
    reverse = compare_grids(prediction, reference, pair.reference.name)
    if reverse is None or reverse[1] != "refused":
        return prediction
    raise GeometryMismatch(
        difference[2].replace("image", "reference").replace("labels", "prediction"),
        where=f"{pair.prediction.name}, {pair.reference.name}",
        do="predict the image that the reference belongs to, or resample one onto the other's grid",
    )
