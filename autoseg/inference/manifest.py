"""Records of a prediction: what the user chose, what became of each case, and how cases are read and named."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autoseg.core.errors import UnreadableFile
from autoseg.data.check import REFUSED_NON_FINITE_SHARE
from autoseg.data.model import Case, LabelSet
from autoseg.images.formats.files import file_ending, find_format
from autoseg.images.readers import read_image
from autoseg.images.volume import Volume

_log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """What became of one case.

    Attributes:
        status: "done" or "failed".
        output: name of the label file in the output folder, or None.
        seconds: of reading, computing and writing.
        error: what went wrong, or None.
        input: hash of the bytes of its image files, or None if they could not be read.
        written: SHA-256 of the label file, or None if there is none.
    """

    status: str
    output: str | None
    seconds: float
    error: str | None
    input: str | None
    written: str | None = None


@dataclass(frozen=True, slots=True)
class PredictionManifest:
    """manifest.json in the output folder: what was predicted, from what and by what.

    Attributes:
        version: of this record.
        autoseg: version of the program.
        model: dataset, configurations, folds and a hash of plan and weights.
        device: that the last case was computed on.
        mirroring: whether logits were averaged over mirrored images.
        overlap: of neighboring tiles.
        labels: classes, and the values in the label files.
        cases: outcome of each case.
    """

    version: int
    autoseg: str
    model: str
    device: str
    mirroring: bool
    overlap: float
    labels: LabelSet
    cases: dict[str, CaseOutcome] = field(default_factory=dict)

    @property
    def has_failures(self) -> bool:
        """Whether any case failed."""
        return any(case.status == "failed" for case in self.cases.values())


@dataclass(frozen=True, slots=True)
class PredictorOptions:
    """How a model is applied.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        overlap: fraction of a tile that neighbors share at least.
        mirroring: whether to average over mirrored images.
        max_ram_bytes: memory that the accumulated logits may take; more goes to a file. None for no limit.
        scratch: folder for that file; None for the system's.
    """

    device: str = "auto"
    overlap: float = 0.5
    mirroring: bool = True
    max_ram_bytes: int | None = None
    scratch: Path | None = None


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """What the user chose.

    Attributes:
        configuration: None for what was selected, or else the model's best.
        folds: empty for those selected, or all.
        predictor: device, overlap, mirroring.
        max_ram_gib: None for most of what is free.
        probabilities: whether to write them too.
        report: whether to write report.html about what was predicted.
    """

    configuration: str | None = None
    folds: tuple[int, ...] = ()
    predictor: PredictorOptions = field(default_factory=PredictorOptions)
    max_ram_gib: float | None = None
    probabilities: bool = False
    report: bool = False


def output_name(case: Case, planned: str) -> str:
    """Name of a case's label map: with the image's own ending where that can be written, else with the model's.

    Where the two differ in compression only (.nii and .nii.gz), it is the model's as well.
    """
    image = Path(case.images[0])
    own = find_format(image)
    is_planned = own is None or own.write is None or (own.ending_is_compression and planned in own.endings)
    return f"{case.identifier}{planned if is_planned else file_ending(image)}"


def read_case(case: Case, four_d: bool) -> Volume:
    """The image of a case with finite voxels only.

    Raises:
        UnreadableFile: a file is damaged, or too many voxels are NaN or infinite.
        GeometryMismatch: its channels are not on the same grid.
    """
    return _finite(read_image([Path(image) for image in case.images], four_d), case.identifier)


def _finite(volume: Volume, name: str) -> Volume:
    """The volume with its few NaN and infinite voxels replaced by the smallest finite value of their channel."""
    array = volume.array
    for index, channel in enumerate(array):
        wrong = ~np.isfinite(channel)
        count = int(np.count_nonzero(wrong))
        if not count:
            continue
        if count >= REFUSED_NON_FINITE_SHARE * channel.size:
            raise UnreadableFile(
                f"{count} voxels of channel {index} ({count / channel.size:.2%}) are NaN or infinite",
                where=name,
                do="repair the image: these voxels have no intensity",
            )
        _log.warning("%s: %d NaN or infinite voxels of channel %d are replaced", name, count, index)
        array = array.copy() if array is volume.array else array
        array[index][wrong] = channel[~wrong].min()
    return replace(volume, array=array)
