"""What an earlier prediction into the same folder leaves to do: what is missing, changed, or was done otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.files import sha256_of_file
from autoseg.core.records import content_hash, load
from autoseg.data.model import Case
from autoseg.images.formats.files import files_of, hash_of_written
from autoseg.inference.manifest import MANIFEST_NAME, CaseOutcome, PredictionManifest

_log = logging.getLogger(__name__)


def hash_of_images(case: Case) -> str:
    """Changes with any byte of the files that are read for the images of a case."""
    return content_hash([sha256_of_file(file) for image in case.images for file in files_of(Path(image))])


def done_before(
    output: Path, manifest: PredictionManifest, cases: Iterable[Case], *, has_probabilities: bool
) -> dict[str, CaseOutcome]:
    """Outcomes of the cases whose label map in `output` is what predicting them again would give.

    The same model, options and program have made it from the same images, and nobody has touched it since.

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
    if replace(before, device=manifest.device, cases=manifest.cases) != manifest:
        return {}
    kept = {}
    for case in cases:
        outcome = before.cases.get(case.identifier)
        npz = output / f"{case.identifier}.npz"
        if outcome is not None and _is_intact(output, outcome, case) and (npz.is_file() or not has_probabilities):
            kept[case.identifier] = outcome
    if kept:
        _log.info("%d cases were done before and are kept", len(kept))
    return kept


def _is_intact(output: Path, outcome: CaseOutcome, case: Case) -> bool:
    if outcome.status != "done" or outcome.output is None or outcome.written is None:
        return False
    path = output / Path(outcome.output).name
    return path.exists() and hash_of_written(path) == outcome.written and hash_of_images(case) == outcome.input
