"""The record of a prediction in its output folder: what was predicted, from what, and every file that was written."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.files import sha256_of_file
from autoseg.core.limits import FileName
from autoseg.core.records import content_hash, load, record
from autoseg.data.model import Case, LabelSet
from autoseg.images.formats.files import files_of

MANIFEST_NAME = "manifest.json"
REPORT_NAME = "report.html"
MANIFEST_VERSION = 2
"""Since 2 it holds every file that was written; of 1 only the label maps are known."""

BEING_WRITTEN = ""
"""Stands for the hash of a file while it is written."""


@record
class CaseOutcome:
    """What became of one case.

    Attributes:
        status: whether there is a label map.
        output: name of the label file in the output folder, or None. With a failed case it is one that was corrected
            by hand since it was written.
        seconds: of reading, computing and writing.
        error: what went wrong, or None.
        input: hash of the bytes of all its image files, or None if they could not be read.
        written: SHA-256 of the label file as it was written, or None if there is none.
        notes: what was settled while its images were read, and how they were turned.
        beside: SHA-256 of every other file that was written for the case, by its name.
    """

    status: Literal["done", "failed"]
    output: FileName | None
    seconds: float
    error: str | None
    input: str | None
    written: str | None = None
    notes: tuple[str, ...] = ()
    beside: dict[FileName, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """Every file that was written for the case, by its name, and its SHA-256."""
        own = {} if self.output is None or self.written is None else {self.output: self.written}
        return {**own, **self.beside}


@record
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
        notes: what lay among the images and was not segmented.
        earlier: outcomes of cases that earlier predictions wrote into the same folder, and this one was not about.
        report: SHA-256 of report.html, or None if it was not written.
    """

    version: int
    autoseg: str
    model: str
    device: str
    mirroring: bool
    overlap: float
    labels: LabelSet
    cases: dict[str, CaseOutcome] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    earlier: dict[str, CaseOutcome] = field(default_factory=dict)
    report: str | None = None

    @property
    def failures(self) -> dict[str, str]:
        """Why cases failed, by name."""
        return {name: str(case.error) for name, case in self.cases.items() if case.status == "failed"}


def hash_of_images(case: Case) -> str:
    """Changes with any byte of the files that are read for the images of a case."""
    return content_hash([sha256_of_file(file) for image in case.images for file in files_of(Path(image))])


def written_names(folder: Path) -> frozenset[str]:
    """Names of all files that earlier predictions wrote for cases into a folder."""
    try:
        before = load(PredictionManifest, folder / MANIFEST_NAME)
    except (MissingInput, RecordFault):
        return frozenset()
    return frozenset(name for case in (*before.earlier.values(), *before.cases.values()) for name in case.files)
