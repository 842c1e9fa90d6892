"""What the files of a case show for a report: overlay, volumes, confusion; each case in a process of its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, GeometryMismatch, MissingInput
from autoseg.core.geometry import Geometry
from autoseg.core.progress import Progress
from autoseg.core.workers import map_supervised
from autoseg.data.fingerprint import case_statistics
from autoseg.data.labels import to_training_values, value_counts
from autoseg.data.model import Case, LabelSet
from autoseg.data.outliers import properties
from autoseg.evaluation.confusion import Counts, confusion, overlaps_of
from autoseg.evaluation.scores import voxel_ml
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from autoseg.report.pictures import Scan, overlay

PICTURES = 50
"""Cases that get pictures by default, the worst ones."""

TOTAL_PICTURE_BYTES = 13_000_000
"""Of all pictures together: a report stays below 20 MB whatever the images are like."""

_MOST_PICTURE_BYTES = 400_000  # of one case; more is not to be seen on a page
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s:;,()\\/]+[\\/])+")

Labels = NDArray[np.signedinteger]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaseTask:
    """A case to look at.

    Attributes:
        case: its files, relative to `root`.
        root: folder of the dataset.
        prediction: its predicted label map, or None.
        labels: classes.
        channels: their names.
        four_d: whether a fourth axis of the image files holds the channels.
        picture_bytes: that its pictures may take; 0 for none.
        windows: for each channel the intensities drawn black and white, as `Scan` has it.
        is_new: whether its properties are wanted, to compare them with the training cases.
    """

    case: Case
    root: str
    prediction: str | None
    labels: LabelSet
    channels: tuple[str, ...]
    four_d: bool
    picture_bytes: int
    windows: tuple[tuple[float, float] | None, ...] = ()
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of a case; what could not be seen is empty.

    Attributes:
        volumes: class -> (predicted, reference) in `unit`.
        unit: "ml", or "pixels" in pictures.
        dice: class -> Dice, None where undefined; empty without a reference.
        confusion: voxels of each pair of values.
        picture: overlay.
        properties: of a new case.
        remark: why something is missing.
    """

    volumes: dict[str, tuple[float, float | None]]
    unit: str = "ml"
    dice: dict[str, float | None] = field(default_factory=dict)
    confusion: Counts | None = None
    picture: Markup | None = None
    properties: dict[str, tuple[float, str]] | None = None
    remark: str = ""


def look_at(tasks: Sequence[CaseTask], jobs: int, progress: Progress) -> dict[str, Evidence]:
    """What the files of each case show; a case that cannot be read has a remark instead.

    Args:
        tasks: the cases.
        jobs: worker processes; 0 to do it here.
        progress: told about every case.
    """
    found = {}
    for done, outcome in enumerate(map_supervised(examine, tasks, jobs), start=1):
        name = tasks[outcome.index].case.identifier
        found[name] = outcome.value or Evidence({}, remark=without_folders(outcome.failure or "no reason is known"))
        if found[name].remark:
            _log.warning("%s: %s", name, found[name].remark)
        progress(done, len(tasks))
    return found


def picture_bytes(pictures: int) -> int:
    """Bytes that the pictures of each of so many cases may take."""
    return min(_MOST_PICTURE_BYTES, TOTAL_PICTURE_BYTES // max(pictures, 1))


def without_folders(text: str) -> str:
    """A sentence with file names only: a report that is passed on tells nothing about the machine."""
    return _FOLDERS.sub("", text)


def examine(task: CaseTask) -> Evidence:
    """What the files of one case show."""
    try:
        return _seen(task)
    except AutoSegError as error:
        return Evidence({}, remark=without_folders(error.what))
    except OSError as error:
        return Evidence({}, remark=error.strerror or "its files cannot be read")


def _seen(task: CaseTask) -> Evidence:
    if task.prediction is None:
        return Evidence({}, remark="there is no predicted label map")
    root = Path(task.root)
    predicted, geometry = _labels(Path(task.prediction), task.labels)
    reference = None if task.case.labels is None else _labels(root / task.case.labels, task.labels)[0]
    if reference is not None and reference.shape != predicted.shape:
        raise GeometryMismatch("prediction and reference have different shapes")
    volume = _volume(task) if task.picture_bytes or task.is_new else None
    if volume is not None:
        geometry = volume.geometry  # a label file's format may carry none
    counts = None if reference is None else confusion(predicted, reference, task.labels)
    volumes, unit = _volumes(task.labels, predicted, counts, geometry)
    return Evidence(
        volumes=volumes,
        unit=unit,
        dice={} if counts is None else {name: own.dice for name, own in overlaps_of(counts, task.labels).items()},
        confusion=counts,
        picture=None if volume is None else _picture(task, volume, predicted, reference),
        properties=_properties(task, volume, predicted) if task.is_new and volume is not None else None,
    )


def _labels(path: Path, labels: LabelSet) -> tuple[Labels, Geometry]:
    if not path.is_file():
        raise MissingInput(f"{path.name} is missing")
    volume = read_labels(path)
    return to_training_values(volume.array, labels), volume.geometry


def _volume(task: CaseTask) -> Volume:
    files = [Path(task.root) / image for image in task.case.images]
    for file in files:
        if not file.is_file():
            raise MissingInput(f"{file.name} is missing")
    return read_image(files, task.four_d)


def _volumes(
    labels: LabelSet, predicted: Labels, counts: Counts | None, geometry: Geometry
) -> tuple[dict[str, tuple[float, float | None]], str]:
    """Predicted and reference volume of each class; both of the annotated voxels only."""
    one_ml = voxel_ml(geometry.shape, geometry.spacing_mm)
    size, unit = (1.0, "pixels") if one_ml is None else (one_ml, "ml")
    if counts is None:
        seen = value_counts(predicted)
        alone = {name: sum(seen.get(value, 0) for value in labels.classes[name]) for name in labels.foreground}
        return {name: (size * voxels, None) for name, voxels in alone.items()}, unit
    compared = overlaps_of(counts, labels).items()
    return {name: (size * own.prediction, size * own.reference) for name, own in compared}, unit


def _picture(task: CaseTask, volume: Volume, predicted: Labels, reference: Labels | None) -> Markup | None:
    if not task.picture_bytes:
        return None
    scan = Scan(
        image=volume.array,
        predicted=predicted,
        reference=reference,
        spacing_mm=volume.geometry.spacing_mm,
        classes={name: task.labels.classes[name] for name in task.labels.foreground},
        channels=task.channels,
        windows=task.windows,
    )
    return overlay(scan, task.case.identifier, task.picture_bytes)


def _properties(task: CaseTask, volume: Volume, predicted: Labels) -> dict[str, tuple[float, str]]:
    statistics, _ = case_statistics(task.case.identifier, volume, predicted)
    return properties(statistics, task.channels, task.labels)
