"""The record of a prediction in its output folder: what was predicted, from what, and every file that was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.files import sha256_of_file
from autoseg.core.limits import FileName
from autoseg.core.records import content_hash, load, record
from autoseg.data.model import Case, LabelSet
from autoseg.data.naming import image_files, name_of
from autoseg.images.formats.files import files_of, hash_of_written, is_image

MANIFEST_NAME = "manifest.json"
REPORT_NAME = "report.html"
LOCK_NAME = ".predict.lock"
MANIFEST_VERSION = 2
"""Since 2 it holds every file that was written; of 1 only the label maps are known."""

BEING_WRITTEN = ""
"""Stands for the hash of a file that is AutoSeg's whatever is in it: a report while it is written, a damaged file."""


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
        beside: SHA-256 of every other file that was written for the case, by its name. While a file is put into its
            place: of what lies there, a space, and of what replaces it.
        made_by: `PredictionManifest.made_by` of the prediction that it is of; earlier versions did not note it.
    """

    status: Literal["done", "failed"]
    output: FileName | None
    seconds: float
    error: str | None
    input: str | None
    written: str | None = None
    notes: tuple[str, ...] = ()
    beside: dict[FileName, str] = field(default_factory=dict)
    made_by: str = ""

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
        numerics: precision and memory format in which each configuration computed the last case.
        reported: what the report is about, as `subject` was when it was written; empty where that is not known.
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
    numerics: dict[str, str] = field(default_factory=dict)
    reported: str = ""

    @property
    def subject(self) -> str:
        """Changes with all that a report about this prediction shows."""
        return content_hash(self.made_by, self.cases, list(self.notes))

    @property
    def made_by(self) -> str:
        """Changes with all that decides which label map an image gets: program, model, options and classes."""
        return content_hash(self.autoseg, self.model, self.mirroring, self.overlap, self.labels)

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


@dataclass(frozen=True, slots=True)
class Predictions:
    """The label maps of a folder.

    Attributes:
        files: label map of each case.
        failures: why cases have none, by case.
        notes: on label maps that are not what a prediction made.
    """

    files: dict[str, Path]
    failures: dict[str, str]
    notes: tuple[str, ...]


def find_predictions(folder: Path) -> Predictions:
    """The label map of each case, and why cases have none.

    A case that failed has none, whatever lies there under its name. One that was corrected by hand since is used, with
    a note; so is a label map of a case that no prediction was about. Of several for one case, none is used.

    Raises:
        RecordFault: the manifest is damaged.
    """
    try:
        manifest = load(PredictionManifest, folder / MANIFEST_NAME)
    except MissingInput:
        return _by_name(folder, {})
    outcomes = {**manifest.earlier, **manifest.cases}
    files: dict[str, Path] = {}
    failures: dict[str, str] = {}
    notes: list[str] = []
    for name, outcome in outcomes.items():
        if outcome.output is None:
            failures[name] = str(outcome.error)
        elif not is_image(file := folder / outcome.output):
            failures[name] = f"{outcome.output} is not there any more"
        else:
            files[name] = file
            notes += [f"{file.name} was changed since it was predicted"] * (hash_of_written(file) != outcome.written)
        if outcome.output is not None and outcome.made_by not in ("", manifest.made_by):
            notes.append(f"{outcome.output} is of another model, or of other options, than the last prediction")
    others = _by_name(folder, outcomes)
    notes += [f"{file.name} is in no manifest of a prediction" for file in others.files.values()]
    return Predictions(files | others.files, failures | others.failures, tuple(notes))


def _by_name(folder: Path, outcomes: Mapping[str, CaseOutcome]) -> Predictions:
    """Label maps of the cases that no prediction was about."""
    found: dict[str, list[Path]] = {}
    for file in image_files(folder):
        if name_of(file) not in outcomes:
            found.setdefault(name_of(file), []).append(file)
    failures = {
        name: f"several label maps are named so: {', '.join(file.name for file in files)}; keep one of them"
        for name, files in found.items()
        if len(files) > 1
    }
    return Predictions({name: files[0] for name, files in found.items() if len(files) == 1}, failures, ())
