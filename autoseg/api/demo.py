"""`autoseg demo`: the whole walk on a synthetic dataset, from nothing to scores and pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.api.evaluate import Evaluation, evaluate, write_evaluation
from autoseg.api.plan import plan_dataset
from autoseg.api.predict import predict
from autoseg.api.train import trained_candidates
from autoseg.core.errors import AutoSegError, TrainingStopped, for_users
from autoseg.core.records import load
from autoseg.core.workspace import WORK_FOLDER_NAME, Workspace
from autoseg.data.labels import to_training_values
from autoseg.data.synthetic import write_synthetic_dataset
from autoseg.images.readers import read_image, read_labels
from autoseg.planning.plan import Plan
from autoseg.planning.planner import PlanOptions
from autoseg.report.collect import write_report
from autoseg.report.pictures import draw_overlay, scan_of
from autoseg.runs.queue import TrainOptions
from autoseg.runs.train import TrainListeners, train_queue
from autoseg.selection.record import Selection
from autoseg.selection.select import SelectionOptions, select_model
from autoseg.training.splits import USER_FILES, make_folds, save_folds

CONFIGURATIONS = ("2d", "3d_fullres")
FOLDS = 3

_INLINE = 0  # worker processes: four small cases are scored before one has started

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came out.

    Attributes:
        dataset: folder of the synthetic dataset; its work folder is inside.
        predictions: folder of the label maps of the held-out cases.
        overlays: a picture of each held-out case.
        scores: of the held-out cases.
        selection: what was chosen from cross-validation.
        report: HTML file about all of it.
        seconds: of each stage.
    """

    dataset: Path
    predictions: Path
    overlays: tuple[Path, ...]
    scores: Evaluation
    selection: Selection
    report: Path
    seconds: dict[str, float] = field(default_factory=dict)


@for_users()
def run_demo(
    folder: Path,
    options: TrainOptions,
    check_stop: Callable[[], None],
    listeners: TrainListeners | None = None,
    training_cases: int = 16,
    test_cases: int = 4,
) -> DemoResult:
    """Draws phantoms, plans, trains two configurations with three folds each, chooses, segments, scores, reports.

    A second call goes on where the first was stopped; what is done is not done again.

    Args:
        folder: everything goes there.
        options: of the training; its seed, device and jobs hold for all stages.
        check_stop: raises Interrupted when the user wants to stop.
        listeners: called with the progress of the training.
        training_cases: phantoms to learn from.
        test_cases: phantoms held out.

    Raises:
        AutoSegError: what stopped the training, the choice or the prediction.
    """
    dataset, predictions = folder / "synthetic", folder / "predictions"
    workspace = Workspace(dataset / WORK_FOLDER_NAME)
    seconds: dict[str, float] = {}
    with _stage("synthetic dataset", seconds):
        write_synthetic_dataset(dataset, training_cases, test_cases, options.seed)
    check_stop()
    with _stage("plan", seconds):
        planned = plan_dataset(dataset, workspace, PlanOptions("cpu", configurations=CONFIGURATIONS), jobs=options.jobs)
        names = [case.identifier for case in planned.survey.fingerprint.cases]
        save_folds(make_folds(names, FOLDS), dataset / USER_FILES[0])
    with _stage("train", seconds):
        trained = train_queue(workspace, options, check_stop, listeners or TrainListeners())
        if trained.stop is not None:
            raise trained.stop
        if trained.exit_code:
            raise TrainingStopped("the training of the demo failed", where=str(workspace.logs), do="read the log")
    with _stage("select", seconds):
        candidates = trained_candidates(CONFIGURATIONS, trained.left_out, SelectionOptions(seed=options.seed))
        selection = select_model(workspace, candidates, jobs=options.jobs)
    check_stop()
    with _stage("predict", seconds):
        manifest = predict(workspace.root, dataset / "imagesTs", predictions, device=options.device)
        if manifest.failures:
            name, why = next(iter(manifest.failures.items()))
            raise AutoSegError(f"{len(manifest.failures)} of {len(manifest.cases)} cases failed", where=name, why=why)
    with _stage("evaluate", seconds):
        scores = evaluate(predictions, dataset / "labelsTs", jobs=_INLINE)
        write_evaluation(scores, predictions)
    with _stage("report", seconds):
        overlays = _draw(load(Plan, workspace.plan), dataset, predictions, folder / "overlays", scores)
        report = write_report(workspace)
    return DemoResult(dataset, predictions, overlays, scores, selection, report, seconds)


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    _log.info("--- %s", name)
    begin = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begin, 1)


def _draw(plan: Plan, dataset: Path, predictions: Path, overlays: Path, scores: Evaluation) -> tuple[Path, ...]:
    """A picture of every held-out case."""
    drawn = []
    for name, classes in scores.cases.items():
        ending = plan.file_ending
        volume = read_image(
            [dataset / "imagesTs" / f"{name}_{index:04d}{ending}" for index in range(len(plan.channels))]
        )
        predicted, reference = (
            to_training_values(read_labels(folder / f"{name}{ending}").array, plan.labels)
            for folder in (predictions, dataset / "labelsTs")
        )
        dice = " · ".join(f"{label} {_two_digits(own['dice'])}" for label, own in classes.items())
        drawn.append(overlays / f"{name}.png")
        scan = scan_of(volume, predicted, reference, plan)
        draw_overlay(drawn[-1], scan, f"{name}: Dice {dice}")
    return tuple(drawn)


def _two_digits(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
