"""What the files of a case show in a report: overlay, volumes, confusion; each case in a process of its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from autoseg.core.errors import AutoSegError, GeometryMismatch, MissingInput
from autoseg.core.geometry import Geometry
from autoseg.core.progress import Progress
from autoseg.core.workers import Outcome
from autoseg.data.check import match_labels
from autoseg.data.fingerprint import case_statistics
from autoseg.data.labels import to_training_values, value_counts
from autoseg.data.model import Case, LabelSet
from autoseg.data.naming import label_files, partners
from autoseg.data.outliers import Outlier, properties
from autoseg.evaluation.confusion import Counts, confusion, overlaps_of
from autoseg.evaluation.scores import ClassScores, count_scores, voxel_ml
from autoseg.evaluation.statistics import mean_of
from autoseg.images.formats.files import is_image
from autoseg.images.readers import read_image, read_labels
from autoseg.images.volume import Volume
from autoseg.planning.plan import Plan
from autoseg.report.pictures import overlay, scan_of

PICTURES = 50
"""Cases that get pictures by default, the worst ones."""

TOTAL_PICTURE_BYTES = 13_000_000
"""Of all pictures together: a report stays below 20 MB whatever the images are like."""

_MOST_PICTURE_BYTES = 400_000  # of one case; more is not to be seen on a page
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s:;,()\\/]+[\\/])+")

Labels = NDArray[np.signedinteger]

Supervised = Callable[
    [Callable[["CaseFiles"], "ReportedCase"], Sequence["CaseFiles"]], "Iterator[Outcome[ReportedCase]]"
]
"""What has cases examined in other processes, such as `map_supervised` with a number of jobs, or `Helper.map`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaseFiles:
    """The files of a case, and what is wanted of them.

    Attributes:
        case: image and reference files, absolute or relative to `root`.
        root: folder of the dataset.
        prediction: predicted label map.
        picture_bytes: that its pictures may take; 0 for none.
        wants_properties: whether its properties are to be compared with the training cases.
    """

    case: Case
    root: str
    prediction: str
    picture_bytes: int = 0
    wants_properties: bool = False


@dataclass(frozen=True, slots=True)
class ReportedCase:
    """A case of a report; what is not known, or could not be read, is empty.

    Attributes:
        identifier: of the case.
        fold: that kept it back.
        prediction: its predicted label map.
        scores: class -> scores of `COUNT_METRICS`; empty without a reference.
        volumes: class -> (predicted, reference) in `unit`; the reference is None without one.
        unit: "ml", or "pixels" in pictures.
        confusion: voxels of each pair of values.
        picture: overlay.
        properties: of a new case, as `outliers.properties` gives them.
        outliers: respects in which the case is unlike the training cases.
        remark: why something is missing.
    """

    identifier: str
    fold: int | None = None
    prediction: Path | None = None
    scores: dict[str, ClassScores] = field(default_factory=dict)
    volumes: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    unit: str = "ml"
    confusion: Counts | None = None
    picture: Markup | None = None
    properties: dict[str, tuple[float, str]] = field(default_factory=dict)
    outliers: tuple[Outlier, ...] = ()
    remark: str = ""

    @property
    def dice(self) -> dict[str, float | None]:
        """Class -> Dice."""
        return {name: own["dice"] for name, own in self.scores.items()}

    @property
    def mean_dice(self) -> float | None:
        """Mean over the classes for which it is defined."""
        return mean_of(self.dice.values())


def mean_dice(cases: Sequence[ReportedCase]) -> float | None:
    """Mean over the cases of their mean Dice; None where it is undefined for all."""
    return mean_of(case.mean_dice for case in cases)


def worst_first(cases: Sequence[ReportedCase]) -> tuple[ReportedCase, ...]:
    """The cases by rising mean Dice; those without any come last, in the order of their names."""
    return tuple(sorted(cases, key=lambda case: (2.0 if case.mean_dice is None else case.mean_dice, case.identifier)))


def compared_with(folder: Path, files: Sequence[CaseFiles]) -> list[CaseFiles]:
    """The files with the label maps of another folder where it has them.

    Raises:
        MissingInput: it has none.
    """
    others = label_files(folder)
    names = partners({own.case.identifier for own in files}, others)
    if not names:
        raise MissingInput(
            f"{folder.name} holds no label map named like a validated case", where=str(folder), do="check --references"
        )
    found = {case: str(others[name].resolve()) for case, name in names.items()}
    return [
        replace(own, case=replace(own.case, labels=found.get(own.case.identifier, own.case.labels))) for own in files
    ]


def examine_cases(
    files: Sequence[CaseFiles], plan: Plan, supervised: Supervised, progress: Progress
) -> dict[str, ReportedCase]:
    """What the files of each case show; a case that cannot be read has a remark instead.

    Args:
        files: of the cases.
        plan: channels and classes.
        supervised: has them examined.
        progress: called with the finished cases and their total.
    """
    found = {}
    for done, outcome in enumerate(supervised(partial(examine, plan=plan), files), start=1):
        name = files[outcome.index].case.identifier
        failure = without_folders(outcome.failure or "no reason is known")
        found[name] = outcome.value or ReportedCase(name, remark=failure)
        if found[name].remark:
            _log.warning("%s: %s", name, found[name].remark)
        progress(done, len(files))
    return found


def picture_bytes(pictures: int) -> int:
    """Bytes that the pictures of each of so many cases may take."""
    return min(_MOST_PICTURE_BYTES, TOTAL_PICTURE_BYTES // max(pictures, 1))


def without_folders(text: str) -> str:
    """A sentence with file names only: a report that is passed on says nothing about the machine."""
    return _FOLDERS.sub("", text)


def examine(files: CaseFiles, plan: Plan) -> ReportedCase:
    """What the files of one case show."""
    try:
        return _examined(files, plan)
    except AutoSegError as error:
        return ReportedCase(files.case.identifier, remark=without_folders(error.what))
    except OSError as error:
        return ReportedCase(files.case.identifier, remark=error.strerror or "its files cannot be read")


def _examined(files: CaseFiles, plan: Plan) -> ReportedCase:
    prediction = _label_volume(Path(files.prediction))
    predicted = to_training_values(prediction.array, plan.labels)
    reference = _reference(files, plan, prediction.geometry)
    if not files.picture_bytes and not files.wants_properties:
        return _measured(files, predicted, reference, plan.labels, prediction.geometry)
    image = _image(files, plan)
    turn = plan.turn(image.geometry)  # drawn and compared as the training data were looked at
    image, predicted = turn.apply(image), turn.view(predicted)
    reference = None if reference is None else turn.view(reference)
    found = _measured(files, predicted, reference, plan.labels, image.geometry)  # a label file's format may carry none
    if files.picture_bytes:
        found = replace(
            found,
            picture=overlay(scan_of(image, predicted, reference, plan), files.case.identifier, files.picture_bytes),
        )
    if files.wants_properties:
        statistics, _ = case_statistics(files.case.identifier, image, predicted)
        found = replace(found, properties=properties(statistics, plan.channels, plan.labels))
    return found


def _measured(
    files: CaseFiles, predicted: Labels, reference: Labels | None, labels: LabelSet, geometry: Geometry
) -> ReportedCase:
    """Volumes and, with a reference, scores of a case; these are about the annotated voxels only."""
    one_ml = voxel_ml(geometry.shape, geometry.spacing_mm)
    voxel, unit = (1.0, "pixels") if one_ml is None else (one_ml, "ml")
    found = ReportedCase(files.case.identifier, unit=unit)
    if reference is None:
        seen = value_counts(predicted)
        voxels = {name: sum(seen.get(value, 0) for value in labels.classes[name]) for name in labels.foreground}
        return replace(found, volumes={name: (voxel * own, None) for name, own in voxels.items()})
    counts = confusion(predicted, reference, labels)
    overlaps = overlaps_of(counts, labels)
    return replace(
        found,
        scores={name: count_scores(own) for name, own in overlaps.items()},
        volumes={name: (voxel * own.prediction, voxel * own.reference) for name, own in overlaps.items()},
        confusion=counts,
    )


def _label_volume(path: Path) -> Volume:
    if not is_image(path):
        raise MissingInput(f"{path.name} is missing")
    return read_labels(path)


def _reference(files: CaseFiles, plan: Plan, grid: Geometry) -> Labels | None:
    if files.case.labels is None:
        return None
    read, _ = match_labels(grid, _label_volume(Path(files.root) / files.case.labels), files.case.labels)
    reference = to_training_values(read.array, plan.labels)
    if reference.shape != grid.shape:
        raise GeometryMismatch("prediction and reference have different shapes")
    return reference


def _image(files: CaseFiles, plan: Plan) -> Volume:
    paths = [Path(files.root) / image for image in files.case.images]
    for path in paths:
        if not is_image(path):
            raise MissingInput(f"{path.name} is missing")
    return read_image(paths, plan.four_d)
