"""The record of a prediction in its output folder, and what an earlier one leaves to do."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.files import sha256_of_file
from autoseg.core.records import content_hash, load, record
from autoseg.data.model import Case, LabelSet
from autoseg.images.formats.files import files_of, hash_of_written

_log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


@record
class CaseOutcome:
    """What became of one case.

    Attributes:
        status: whether there is a label map.
        output: name of the label file in the output folder, or None.
        seconds: of reading, computing and writing.
        error: what went wrong, or None.
        input: hash of the bytes of its image files, or None if they could not be read.
        written: SHA-256 of the label file, or None if there is none.
        notes: what was settled while its images were read, and how they were turned.
    """

    status: Literal["done", "failed"]
    output: str | None
    seconds: float
    error: str | None
    input: str | None
    written: str | None = None
    notes: tuple[str, ...] = ()


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

    @property
    def failures(self) -> dict[str, str]:
        """Why cases failed, by name."""
        return {name: str(case.error) for name, case in self.cases.items() if case.status == "failed"}


def hash_of_images(case: Case) -> str:
    """Changes with any byte of the files that are read for the images of a case."""
    return content_hash([sha256_of_file(file) for image in case.images for file in files_of(Path(image))])


def written_names(folder: Path) -> frozenset[str]:
    """Names of the label maps and probabilities that an earlier prediction wrote into a folder."""
    try:
        before = load(PredictionManifest, folder / MANIFEST_NAME)
    except (MissingInput, RecordFault):
        return frozenset()
    done = {name: case.output for name, case in before.cases.items() if case.output is not None}
    return frozenset([*done.values(), *(f"{name}.npz" for name in done)])


def done_before(
    output: Path, manifest: PredictionManifest, cases: Iterable[Case], *, has_probabilities: bool
) -> dict[str, CaseOutcome]:
    """Outcomes of the cases whose label map in `output` is what predicting them again would give.

    The same model, options and program have made it from the same images, and nobody has changed it since: the hashes
    of the images and of the label file are those that were noted.

    Args:
        output: folder of an earlier prediction, or not.
        manifest: of the prediction to come.
        cases: to be predicted.
        has_probabilities: whether these are asked for, and so must be there too.
    """
    try:
        before = load(PredictionManifest, output / MANIFEST_NAME)
    except (MissingInput, RecordFault):
        return {}
    if replace(before, device=manifest.device, cases=manifest.cases, notes=manifest.notes) != manifest:
        return {}
    kept = {}
    for case in cases:
        outcome = before.cases.get(case.identifier)
        has_files = (output / f"{case.identifier}.npz").is_file() or not has_probabilities
        if outcome is not None and has_files and _is_intact(output, outcome, case):
            kept[case.identifier] = outcome
    if kept:
        _log.info("%d cases were done before and are kept", len(kept))
    return kept


def _is_intact(output: Path, outcome: CaseOutcome, case: Case) -> bool:
    if outcome.output is None or outcome.written is None:
        return False
    path = output / Path(outcome.output).name
    return path.exists() and hash_of_written(path) == outcome.written and hash_of_images(case) == outcome.input
