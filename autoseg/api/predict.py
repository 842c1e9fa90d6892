"""Segmenting image files with a trained model, or saying beforehand what that would take."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg import __version__
from autoseg.api.model import find_model
from autoseg.core.errors import (
    AutoSegError,
    Busy,
    DataRefused,
    Interrupted,
    InterruptedEarly,
    UsageError,
    for_users,
)
from autoseg.core.files import lease, remove_leftovers, sha256_of_file
from autoseg.core.limits import OVERLAP, RAM_GIB
from autoseg.core.machine import BYTES_PER_GIB, available_memory_bytes, keep_freed_memory
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load
from autoseg.core.workers import Helper
from autoseg.core.workspace import WORK_FOLDER_NAME, Workspace
from autoseg.data.inputs import Inputs, find_inputs
from autoseg.data.model import Case, Dataset
from autoseg.images.formats.files import SUPPORTED_ENDINGS
from autoseg.inference.manifest import (
    BEING_WRITTEN,
    LOCK_NAME,
    MANIFEST_VERSION,
    REPORT_NAME,
    CaseOutcome,
    PredictionManifest,
    written_names,
)
from autoseg.inference.outputs import OutputFolder, output_name
from autoseg.inference.reading import CaseSize, MemoryLimit, ReadingTask, image_bytes, read_in, size_in
from autoseg.launch.interrupts import stoppable
from autoseg.models.record import ModelFiles
from autoseg.planning.plan import Plan

if TYPE_CHECKING:
    from autoseg.inference.ensemble import Ensemble
    from autoseg.inference.stream import PredictionStream

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaseForecast:
    """What predicting a case would take, for `--dry-run`.

    Attributes:
        shape: voxels of the file (z, y, x).
        prepared_shape: voxels after cropping and resampling, in the plan's order; of an ensemble its largest.
        windows: tiles of the sliding window, of all configurations that predict.
        memory_gib: estimate: images, accumulated logits and probabilities, and a network's feature maps.
        output: name of the file that would be written.
    """

    shape: tuple[int, ...]
    prepared_shape: tuple[int, ...]
    windows: int
    memory_gib: float
    output: str


@for_users()
def predict(
    model: str | Path,
    inputs: Sequence[str | Path] | str | Path,
    output: str | Path,
    *,
    configuration: str | None = None,
    folds: Sequence[int] = (),
    overlap: float = 0.5,
    mirroring: bool = True,
    probabilities: bool = False,
    max_ram_gib: float | None = None,
    report: bool = True,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> PredictionManifest:
    """Segments every case found in `inputs` and writes the label maps, a manifest and a report into `output`.

    A case that fails does not stop the others: `failures` of the returned manifest names it.

    Args:
        model: a dataset's folder, its work folder, one run, a bundle, or a model of nnU-Net v2.
        inputs: image files or folders of them.
        output: folder; made if needed. Label maps that the same call made of the same images are kept; others that
            AutoSeg wrote are replaced, and removed where a case fails now.
        configuration: this one alone; None for what was selected, else 3d_fullres, else the best.
        folds: these; empty for those selected, else all.
        overlap: fraction of a tile that neighbors share at least, 0 to 0.95.
        mirroring: whether to average over mirrored images; without, prediction is up to 8 times faster.
        probabilities: whether to write the probability of every class as well (<case>.npz, float16).
        max_ram_gib: memory to stay below; what does not fit is kept in a file. None for most of what is free.
        report: whether to write report.html about what was predicted.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        overwrite: whether files in `output` that AutoSeg did not write, or that changed since, may be replaced. If not,
            a case whose label map is such a file is a failure, and the file stays.
        progress: called with finished and all cases, or tiles if there is only one case.

    Raises:
        MissingInput: there is no trained model or no image.
        UsageError: a label map would replace an image; the folder is one of a dataset or of a work folder; the manifest
            or the report are somebody else's files; something is left to predict, and there is no such device.
        Busy: another process predicts into this folder.
        InterruptedEarly: stopped before a case was done.
        Interrupted: stopped later; what is done stays.
    """
    _check_numbers(overlap, max_ram_gib)
    files, output = find_model(Path(model), configuration, folds), Path(output)
    plan = files.record.plan
    _log.info("model: %s", files.record.because)
    found = _cases(inputs, plan)
    _check_place(output)
    _prepare_output(output, found.cases, plan)
    with _lease(output):
        outputs = OutputFolder(output, replace(_manifest(files, mirroring, overlap), notes=found.notes), overwrite)
        if report:
            outputs.check_report(output / REPORT_NAME)
        outputs.keep_done(found.cases, [output_name(case, plan.file_ending) for case in found.cases], probabilities)
        waiting = [case for case in found.cases if case.identifier not in outputs.manifest.cases]
        if not waiting:
            _note_failures(outputs, found)
            if outputs.is_unchanged(has_report=report):
                return outputs.manifest
        with Helper(read_in) as helper:
            if waiting:
                # a device or weights that are refused leave the folder as it was
                stream = _stream(files, outputs, helper, device, probabilities, max_ram_gib)
                _note_failures(outputs, found)
                _predict_all(stream, waiting, outputs, progress)
            _finish(outputs, files, found.cases, helper if report else None)
    return outputs.manifest


def _note_failures(outputs: OutputFolder, found: Inputs) -> None:
    for name, reason in found.failures:
        outputs.finish(name, CaseOutcome("failed", None, 0.0, reason, None))


@for_users()
def forecast(
    model: str | Path,
    inputs: Sequence[str | Path] | str | Path,
    *,
    configuration: str | None = None,
    folds: Sequence[int] = (),
    overlap: float = 0.5,
    device: str = "auto",
) -> tuple[ModelFiles, dict[str, CaseForecast | str]]:
    """The model, and for each case what predicting it would take, or why it cannot be predicted; nothing is written.

    The arguments are those of `predict`. Errors are its own as well.
    """
    _check_numbers(overlap)
    files = find_model(Path(model), configuration, folds)
    found = _cases(inputs, files.record.plan)
    forecasts: dict[str, CaseForecast | str] = dict(found.failures)
    plan = files.record.plan
    with Helper(size_in) as helper:  # starts while torch is imported
        from autoseg.models.model import make_ensemble

        ensemble = make_ensemble(files, "cpu" if device == "auto" else device, overlap)
        limit = MemoryLimit(available_memory_bytes())
        for case in found.cases:
            try:
                size = size_in(helper, ReadingTask(case, plan, ensemble.preparations, limit, Path()))
                forecasts[case.identifier] = _forecast(size, output_name(case, plan.file_ending), plan, ensemble)
            except AutoSegError as error:
                forecasts[case.identifier] = str(error)
    return files, dict(sorted(forecasts.items()))


def _check_numbers(overlap: float, max_ram_gib: float | None = None) -> None:
    OVERLAP.check("--overlap", overlap)
    RAM_GIB.check("--max-ram", max_ram_gib)


def _manifest(files: ModelFiles, mirroring: bool, overlap: float) -> PredictionManifest:
    return PredictionManifest(
        version=MANIFEST_VERSION,
        autoseg=__version__,
        model=files.record.name,
        device="",  # where the last case is computed, once it is known
        mirroring=mirroring,
        overlap=overlap,
        labels=files.record.plan.labels,
    )


def _stream(
    files: ModelFiles,
    outputs: OutputFolder,
    helper: Helper,
    device: str,
    probabilities: bool,
    max_ram_gib: float | None,
) -> PredictionStream:
    """The model ready to predict into a folder; torch is imported here, while the helper starts."""
    from autoseg.inference.stream import PredictionStream
    from autoseg.launch.devices import use_cores
    from autoseg.models.model import make_ensemble

    use_cores()
    keep_freed_memory()
    manifest = outputs.manifest
    ensemble = make_ensemble(files, device, manifest.overlap, manifest.mirroring, outputs.folder)
    return PredictionStream(files.record.plan, ensemble, outputs, helper, probabilities, max_ram_gib)


def _predict_all(stream: PredictionStream, cases: Sequence[Case], outputs: OutputFolder, progress: Progress) -> None:
    """Predicts what is not done; saves the manifest after each case, so that a stop loses only the cases in work."""
    on_case, on_tile = (progress, silent) if len(cases) > 1 else (silent, progress)
    with stoppable() as check:
        try:
            for done, (name, outcome) in enumerate(stream.outcomes(cases, check, on_tile), start=1):
                outputs.manifest = replace(outputs.manifest, device=stream.device, numerics=stream.numerics)
                outputs.finish(name, outcome)
                on_case(done, len(cases))
        except Interrupted as stop:
            raise _explained(stop, outputs.manifest) from stop


def _finish(outputs: OutputFolder, files: ModelFiles, cases: Sequence[Case], examiner: Helper | None) -> None:
    """Saves the manifest with its cases in order, and writes the report, for which the helper examines the cases."""
    outputs.save(replace(outputs.manifest, cases=dict(sorted(outputs.manifest.cases.items()))))
    if examiner is not None:
        _report(outputs, files, cases, examiner)


def _report(outputs: OutputFolder, files: ModelFiles, cases: Sequence[Case], helper: Helper) -> None:
    """Writes report.html; label maps that are done are worth more than a report that cannot be written."""
    from autoseg.report.cases import examine_cases
    from autoseg.report.collect import write_prediction_report

    examine = partial(examine_cases, plan=files.record.plan, supervised=helper.map, progress=silent)
    outputs.note_report(BEING_WRITTEN)
    try:
        path = write_prediction_report(outputs.folder, outputs.manifest, cases, files.record.typical, examine)
    except (AutoSegError, OSError) as error:
        _log.warning("the report could not be written: %s", error)
        if not (outputs.folder / REPORT_NAME).exists():  # otherwise it may be the new one
            outputs.note_report(None)
    else:
        outputs.note_report(sha256_of_file(path))
        _log.info("report: %s", path)


def _cases(inputs: Sequence[str | Path] | str | Path, plan: Plan) -> Inputs:
    """The cases found, those that cannot be used, and what else is to be said."""
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    found = find_inputs(paths, plan.expected_images, written_names)
    for note in found.notes:
        _log.warning(note)
    for name, reason in found.failures:
        _log.warning("%s cannot be used: %s", name, reason)
    if not found.cases:
        several = f"give the channels {', '.join(plan.channels)} of each case as <case>_0000, <case>_0001, ..."
        raise DataRefused(
            "none of the images can be used: " + "; ".join(f"{name}: {reason}" for name, reason in found.failures),
            where=", ".join(map(str, paths)),
            do=several if len(plan.channels) > 1 else f"give one image per case: {', '.join(SUPPORTED_ENDINGS)}",
        )
    return found


_KEPT_FOLDERS = ("runs", "store", "selected", "models", "logs")
"""Of a work folder: what lies there is taken for what AutoSeg wrote itself."""


def _check_place(output: Path) -> None:
    """Refuses a folder in which label maps would be read as something else.

    Raises:
        UsageError: it holds images or labels of a dataset, or is a work folder or one that AutoSeg keeps in it.
    """
    place = output.resolve()
    works = [Workspace(folder) for folder in (place, *place.parents)]
    own = [work.root for work in works if work.plan.is_file() and work.dataset.is_file()]
    if any(place == root or place.relative_to(root).parts[0] in _KEPT_FOLDERS for root in own):
        what = "the output folder is one in which AutoSeg keeps what it knows of a dataset"
    elif place in {*_data_folders(place), *_data_folders(place.parent)}:
        what = "the output folder holds images or labels of a dataset"
    else:
        return
    why = "label maps that lie there would be taken for something else"
    raise UsageError(what, where=str(output), why=why, do="choose another -o")


def _data_folders(root: Path) -> set[Path]:
    """The folders of images and labels of the dataset in a folder, if there is one and it was planned."""
    described = Workspace(root / WORK_FOLDER_NAME).dataset
    if not described.is_file():
        return {root / name for name in ("imagesTr", "labelsTr") if (root / "dataset.json").is_file()}
    cases = load(Dataset, described).cases
    return {(root / file).parent.resolve() for case in cases for file in (*case.images, case.labels) if file}


def _prepare_output(output: Path, cases: Sequence[Case], plan: Plan) -> None:
    """Makes the output folder; refuses one in which a label map would replace an image."""
    images = {Path(image).resolve() for case in cases for image in case.images}
    for case in cases:
        if (output / output_name(case, plan.file_ending)).resolve() in images:
            raise UsageError(
                f"the label map of {case.identifier} would replace its image", where=str(output), do="choose another -o"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            "the output folder cannot be made", where=str(output), why=error.strerror, do="choose another -o"
        ) from error
    remove_leftovers(output)


def _lease(output: Path) -> AbstractContextManager[None]:
    """Holds an output folder: of two processes, each would take what the other writes for the user's."""
    busy = Busy(
        "another process predicts into this folder",
        where=str(output),
        do="choose another -o, or wait for it and run the same command again",
    )
    return lease(output / LOCK_NAME, busy)


def _explained(stop: Interrupted, manifest: PredictionManifest) -> Interrupted:
    done = sum(case.status == "done" for case in manifest.cases.values())
    if not done:
        return InterruptedEarly(stop.what, do="run the same command again")
    return Interrupted(stop.what, why=f"{done} cases are done and stay", do="run the same command again for the others")


def _forecast(size: CaseSize, name: str, plan: Plan, ensemble: Ensemble) -> CaseForecast:
    shapes = {preparation: size.prepared_shape(preparation) for preparation in ensemble.preparations}
    own = [(member.predictor, shapes[member.preparation]) for member in ensemble.every]
    needed = image_bytes(size, list(shapes.values()))
    needed += max(predictor.working_bytes(shape) for predictor, shape in own)
    if len(ensemble.members) > 1:
        needed += 4 * plan.labels.head_count * math.prod(size.cropped_shape)
    windows = sum(len(predictor.tiling(shape).windows) for predictor, shape in own)
    largest = max(shapes.values(), key=math.prod)
    return CaseForecast(size.shape, largest, windows, needed / BYTES_PER_GIB, name)
