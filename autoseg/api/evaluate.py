"""Scoring a folder of predictions against a folder of references."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from autoseg.core.errors import DataRefused, MissingInput, for_users
from autoseg.core.files import write_atomic
from autoseg.core.limits import TOLERANCE_MM, csv_cell
from autoseg.core.progress import Progress, silent
from autoseg.core.records import load, read_json, save
from autoseg.core.workers import map_supervised
from autoseg.core.workspace import WORK_FOLDER_NAME, RunFolder, Workspace
from autoseg.data.labels import INSTANCE_VALUES, LabelCounts, count_label_files, find_classes
from autoseg.data.layouts.description import describe_nnunet
from autoseg.data.layouts.detect import detect_dataset
from autoseg.data.model import BACKGROUND, Dataset, LabelSet, label_set_of
from autoseg.data.naming import image_files, label_files, partners
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import DEFAULT_TOLERANCE_MM, ClassScores, mean_scores, score_files
from autoseg.images.formats.files import is_as_written
from autoseg.inference.manifest import MANIFEST_NAME, PredictionManifest, find_predictions
from autoseg.planning.plan import Plan
from autoseg.report.written import check_own, writing
from autoseg.runs.run import SCORES_FILE, FoldScores
from autoseg.selection.record import Selection
from autoseg.selection.trained import other_networks

_log = logging.getLogger(__name__)

DESCRIPTION_NAME = "dataset.json"

_NAMED_CASES = 5
"""A note names so many cases."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """evaluation.json: scores of a folder of predictions.

    Attributes:
        mean: class -> mean over the cases in which a score is defined.
        foreground_mean: mean of `mean` over the classes.
        cases: case -> class -> scores.
        failures: case -> why it has no scores.
        tolerance_mm: of the normalized surface Dice.
        classes: where their names come from.
        definitions: each score in words.
        notes: on label maps that were changed by hand since they were predicted, or that no prediction made, and on
            files that could be read or compared in two ways.
    """

    mean: dict[str, ClassScores]
    foreground_mean: ClassScores
    cases: dict[str, dict[str, ClassScores]]
    failures: dict[str, str]
    tolerance_mm: float
    classes: str
    definitions: dict[str, str]
    notes: tuple[str, ...] = ()


@for_users()
def evaluate(
    predictions: str | Path,
    references: str | Path,
    *,
    dataset: str | Path | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    jobs: int = 1,
    progress: Progress = silent,
) -> Evaluation:
    """Scores every prediction that has a reference of the same case name, per class; writes nothing.

    Where the folder has a manifest of `predict`, that says which file is the label map of which case: cases that failed
    have no score, and label maps that were changed by hand since are scored with a note.

    Args:
        predictions: folder of label maps.
        references: folder of label maps named alike (or `<case>_masks`; label0001 of img0001), or a dataset's folder.
        dataset: declares the classes: a dataset's folder or an nnU-Net dataset.json. By default they are looked for
            beside the predictions and the references, and else taken from the values in the references.
        tolerance_mm: of the normalized surface Dice.
        jobs: worker processes; 0 scores in this process.
        progress: called with the finished cases and their total.

    Returns:
        Means and cases; a reference without prediction, or a file that cannot be compared, is among the failures.

    Raises:
        MissingInput: a folder does not exist.
        DataRefused: there is no reference, or no prediction of any of them.
    """
    TOLERANCE_MM.check("--tolerance", tolerance_mm)
    predictions, references = _folder(predictions), _folder(references)
    found = find_predictions(predictions)
    predicted, expected = _named_alike(found.files, references)
    pairs = {case: (predicted[case], path) for case, path in sorted(expected.items()) if case in predicted}
    if not pairs:
        raise DataRefused(
            f"no prediction has the name of a reference ({_some(predicted)}; {_some(expected)})",
            where=f"{predictions}, {references}",
            why="; ".join(f"{case}: {reason}" for case, reason in found.failures.items()) or None,
            do="name predictions after the cases: <case> with the ending of an image format",
        )
    labels, source = _find_labels(predictions, references, dataset, list(pairs.values()), jobs)
    _log.info("classes: %s", source)
    cases, failures, readings = _scored(pairs, labels, tolerance_mm, jobs, progress)
    failures.update(found.failures)
    failures |= {case: "there is no prediction" for case in expected if case not in predicted | failures}
    for case in sorted(set(predicted) - set(expected)):
        _log.info("%s has no reference and is left out", case)
    mean, foreground_mean = mean_scores(cases, METRICS)
    definitions = {name: metric.definition.format(tolerance_mm=tolerance_mm) for name, metric in METRICS.items()}
    notes = (*found.notes, *_changed_since_scored(predictions), *_by_case(readings))
    return Evaluation(
        mean, foreground_mean, cases, dict(sorted(failures.items())), tolerance_mm, source, definitions, notes
    )


def _changed_since_scored(folder: Path) -> tuple[str, ...]:
    """Notes on what changed since the label maps of a fold's validation, or of the selected model, were scored.

    Raises:
        RecordFault: the record of the scores is damaged.
    """
    run, workspace = RunFolder(folder.parent), Workspace(folder.parent)
    if folder.name == run.validation.name and run.plan.is_file() and (folder / SCORES_FILE).is_file():
        return _changed_maps(folder, load(FoldScores, folder / SCORES_FILE).maps)
    if folder.name == workspace.selected.name and workspace.selection.is_file():
        selection = load(Selection, workspace.selection)
        others = other_networks(workspace, selection)
        notes = (f"{key} was trained again, or is gone, since these label maps were selected" for key in others)
        return (*notes, *_changed_maps(folder, selection.maps))
    return ()


def _changed_maps(folder: Path, maps: Mapping[str, str]) -> tuple[str, ...]:
    changed = [name for name, own in maps.items() if (folder / name).exists() and not is_as_written(folder / name, own)]
    return tuple(f"{name} was changed since it was scored" for name in changed)


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise MissingInput(f"there is no folder {folder.name}", where=str(folder), do="check the path")
    return folder


def _find_labels(
    predictions: Path, references: Path, dataset: str | Path | None, pairs: Sequence[tuple[Path, Path]], jobs: int
) -> tuple[LabelSet, str]:
    """The classes to score, and where they were found, in words."""
    if dataset is not None:
        return _labels_of_dataset(Path(dataset)), f"of {Path(dataset).name}, as asked for"
    if (predictions / MANIFEST_NAME).is_file():
        return load(PredictionManifest, predictions / MANIFEST_NAME).labels, f"of {MANIFEST_NAME} of the predictions"
    run = RunFolder(predictions.parent)
    if predictions.name == run.validation.name and run.plan.is_file():
        return load(Plan, run.plan).labels, "of the plan of the run"
    for folder in (predictions, predictions.parent, references, references.parent):
        if (folder / DESCRIPTION_NAME).is_file() or (folder / WORK_FOLDER_NAME / DESCRIPTION_NAME).is_file():
            return _labels_of_dataset(folder), f"of the dataset {folder.name}"
    return _labels_by_value(pairs, jobs)


def _labels_by_value(pairs: Sequence[tuple[Path, Path]], jobs: int) -> tuple[LabelSet, str]:
    """A class for each value in the (prediction, reference) files, named by it; and how it was found, in words.

    Raises:
        DataRefused: there is nothing to compare.
    """
    predicted, expected = (count_label_files(files, jobs) for files in zip(*pairs, strict=True))
    own, others = _above_0(expected.values), _above_0(predicted.values)
    _check_comparable(predicted, expected)
    found, sentence = find_classes(expected.voxels if own else predicted.voxels)
    values, absent = {*found.file_values, *others}, others - own
    if found.has_instances or len(values) > INSTANCE_VALUES:
        values, absent = set(found.file_values), set()
    names = {str(value) if value else BACKGROUND: (value,) for value in sorted(values)}
    labels = found if found.has_instances else label_set_of(names)
    return labels, f"named by value: {sentence}" + (f"; no reference holds {_listed(absent)}" if absent else "")


def _check_comparable(predicted: LabelCounts, expected: LabelCounts) -> None:
    for counts in (expected, predicted):
        if not counts.voxels:
            why, do = counts.grouped_faults, "correct these files"
            raise DataRefused("none of the label maps can be read", why=why, do=do)
    own, others = _above_0(expected.values), _above_0(predicted.values)
    if not own | others:
        do = "check that these are the right folders, or name the classes with --dataset"
        raise DataRefused("nothing to score: all label maps are empty", do=do)
    if own and others and own.isdisjoint(others):
        held = f"the predictions hold {_listed(predicted.values)}; the references {_listed(expected.values)}"
        do = "give both the same values, or name the classes with --dataset"
        raise DataRefused(f"predictions and references have no label value in common: {held}", do=do)


def _above_0(values: Iterable[int]) -> set[int]:
    return {value for value in values if value > 0}


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def check_evaluation(folder: Path) -> None:
    """Refuses a folder into which `write_evaluation` will not write without `overwrite`; scoring may take hours.

    Raises:
        UsageError: files of its names are there that AutoSeg did not write, or that changed since.
    """
    check_own(*_evaluation_files(folder))


def _evaluation_files(folder: Path) -> tuple[Path, Path]:
    return folder / "evaluation.json", folder / "evaluation.csv"


def write_evaluation(evaluation: Evaluation, folder: Path, *, overwrite: bool = False) -> tuple[Path, Path]:
    """Writes evaluation.json and evaluation.csv (one row per case and class) into the folder; returns their paths.

    Raises:
        UsageError: files of these names are there that AutoSeg did not write, or that changed since.
    """
    as_json, as_csv = _evaluation_files(folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "class", *METRICS))
    for case, classes in evaluation.cases.items():
        for name, scores in classes.items():
            writer.writerow((csv_cell(case), csv_cell(name), *(scores[metric] for metric in METRICS)))
    with writing(as_json, as_csv, overwrite=overwrite):
        save(evaluation, as_json)
        write_atomic(as_csv, text.getvalue())
    return as_json, as_csv


def _scored(
    pairs: Mapping[str, tuple[Path, Path]], labels: LabelSet, tolerance_mm: float, jobs: int, progress: Progress
) -> tuple[dict[str, dict[str, ClassScores]], dict[str, str], dict[str, tuple[str, ...]]]:
    """Scores, failures and notes by case."""
    scored, failures, notes = {}, {}, {}
    score, names = partial(score_files, labels=labels, tolerance_mm=tolerance_mm), list(pairs)
    for done, outcome in enumerate(map_supervised(score, list(pairs.values()), jobs), start=1):
        case = names[outcome.index]
        if outcome.value is None or outcome.value.failure:
            failures[case] = outcome.failure or "no reason is known" if outcome.value is None else outcome.value.failure
            _log.warning("%s has no scores: %s", case, failures[case])
        else:
            scored[case], notes[case] = outcome.value.scores, outcome.value.notes
        progress(done, len(pairs))
    return dict(sorted(scored.items())), failures, notes


def _by_case(notes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Each note once, with the cases that it is about."""
    cases: dict[str, list[str]] = {}
    for case in sorted(notes):
        for note in notes[case]:
            cases.setdefault(note.partition(": ")[2] or note, []).append(case)
    for note, same in cases.items():
        more = f" and {len(same) - _NAMED_CASES} more" if len(same) > _NAMED_CASES else ""
        yield f"{', '.join(same[:_NAMED_CASES])}{more}: {note}"


def _named_alike(predicted: Mapping[str, Path], folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Case -> file of the predictions and of the references, where these are named alike or go together by their names.

    A dataset names its cases; otherwise the predictions do (`img0001`, whose reference is called `label0001`).
    """
    dataset = _dataset_of(folder)
    if dataset is not None:
        root = Path(dataset.root)
        expected = {case.identifier: root / case.labels for case in dataset.cases if case.labels is not None}
        return _renamed(predicted, partners(expected, predicted)), expected
    expected = label_files(folder)
    if not expected:
        raise DataRefused("there is no reference", where=str(folder), do="give a folder of label maps, or a dataset")
    return dict(predicted), _renamed(expected, partners(predicted, expected))


def _renamed(files: Mapping[str, Path], names: Mapping[str, str]) -> dict[str, Path]:
    """The files, called by the new name where `names` (new -> own) has one."""
    new = {own: case for case, own in names.items()}
    return {new.get(name, name): file for name, file in files.items()}


def _dataset_of(folder: Path) -> Dataset | None:
    """The dataset in a folder, if it is a dataset's folder and not one of label maps."""
    described = Workspace(folder / WORK_FOLDER_NAME).dataset
    if described.is_file():
        return replace(load(Dataset, described), root=str(folder))
    if (folder / DESCRIPTION_NAME).is_file() or not image_files(folder):
        try:
            return detect_dataset(folder)
        except DataRefused:
            return None
    return None


def _labels_of_dataset(path: Path) -> LabelSet:
    if path.is_file():
        return describe_nnunet(read_json(path), path.parent.name).labels
    for work in (Workspace(path / WORK_FOLDER_NAME), Workspace(path)):
        if work.plan.is_file():
            return load(Plan, work.plan).labels
    if (path / DESCRIPTION_NAME).is_file():
        return describe_nnunet(read_json(path / DESCRIPTION_NAME), path.name).labels
    return detect_dataset(path).labels


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "nothing"
