"""Whole-case validation of a finished fold: the predictor that users get, on the cases kept back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from autoseg.core.errors import MissingInput, RecordFault
from autoseg.core.records import load, save
from autoseg.datasets.labels import to_file_values, to_training_values
from autoseg.datasets.model import Dataset
from autoseg.evaluation.scores import overlaps
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import predict_case
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.store import StoredCase

LARGEST_VALIDATION_SHARE = 0.25
"""Share of a time budget that validation may take (assumption: training has to learn something to validate)."""

SECONDS_PER_VOXEL_AND_HEAD = 6e-8
"""Resampling, deciding, compressing and comparing one voxel of the file's grid, per head; assumption for one core."""

SECONDS_PER_CASE = 0.1
"""Opening and closing files; assumption."""

VALIDATION_RESERVE = 1.1
"""Time kept for the validation / time expected for it."""

SCORES_FILE = "scores.json"


@dataclass(frozen=True, slots=True)
class FoldScores:
    """validation/scores.json; a score that is undefined (class neither there nor predicted) is null.

    Attributes:
        cases: case -> class -> "dice", "iou", and the voxels of prediction and reference.
        mean: class -> mean over the cases in which the score is defined.
        foreground_mean: mean of `mean` over the classes.
        left_out: validation cases that the time budget left no time for.
        mirror_axes: axes along which the prediction was averaged over mirrored images.
    """

    cases: dict[str, dict[str, dict[str, float | None]]]
    mean: dict[str, dict[str, float | None]]
    foreground_mean: dict[str, float | None]
    left_out: tuple[str, ...]
    mirror_axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ValidationPlan:
    """What of the validation fits into the time.

    Attributes:
        cases: to be predicted.
        left_out: not to be predicted.
        mirror_axes: to average over.
        expected_seconds: of each case; empty where there is no limit.
        notes: sentences about what was left out.
    """

    cases: tuple[str, ...]
    left_out: tuple[str, ...]
    mirror_axes: tuple[int, ...]
    expected_seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Expected for all cases."""
        return sum(self.expected_seconds.values())


@dataclass(frozen=True, slots=True)
class CaseSize:
    """What the time of a case depends on: tiles of the sliding window and voxels of the file."""

    tiles: int
    voxels: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast cases are predicted here.

    Attributes:
        tile_seconds: of one tile, one mirroring.
        voxel_seconds: of one voxel of the file's grid: restoring, writing, comparing.
    """

    tile_seconds: float
    voxel_seconds: float

    def case_seconds(self, size: CaseSize, mirrorings: int) -> float:
        """Expected time of a case."""
        return SECONDS_PER_CASE + size.tiles * mirrorings * self.tile_seconds + size.voxels * self.voxel_seconds


def measure_pace(predictor: Predictor, channels: int) -> Pace:
    """Times a few tiles of noise with one mirroring; the first does not count."""
    plain = replace(predictor, mirror_axes=())
    tile = np.zeros((channels, *predictor.patch_size), np.float32)
    plain.logits(tile)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        plain.logits(tile)
        times.append(time.perf_counter() - begin)
    return Pace(min(times), SECONDS_PER_VOXEL_AND_HEAD * (predictor.heads + 1))


def case_size(stored: StoredCase, predictor: Predictor) -> CaseSize:
    """Tiles and voxels of a case."""
    tiles = len(predictor.tiling(stored.image.shape[1:]).windows)
    return CaseSize(tiles, math.prod(stored.placement.geometry.shape))


def plan_validation(
    sizes: Mapping[str, CaseSize], mirror_axes: tuple[int, ...], pace: Pace, seconds: float
) -> ValidationPlan:
    """Everything, mirrored along as many axes as time allows; if too little for none, only some cases, evenly spread.

    Args:
        sizes: of the validation cases.
        mirror_axes: of the configuration.
        pace: measured.
        seconds: that validation may take.
    """
    names = tuple(sorted(sizes))
    for count in range(len(mirror_axes), -1, -1):
        axes = mirror_axes[:count]
        expected = {name: pace.case_seconds(size, 2 ** len(axes)) for name, size in sizes.items()}
        if sum(expected.values()) <= seconds:
            told = f"validated with mirroring along {count} of {len(mirror_axes)} axes, for lack of time"
            notes = () if axes == mirror_axes else (told,)
            return ValidationPlan(names, (), axes, expected, notes)
    count = len(names)
    while count > 1 and sum(expected[name] for name in _spread(names, count)) > seconds:
        count -= 1
    kept = _spread(names, count)
    note = f"validated on {count} of {len(names)} cases and without mirroring, for lack of time"
    left_out = tuple(name for name in names if name not in kept)
    return ValidationPlan(kept, left_out, (), {name: expected[name] for name in kept}, (note,))


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long validation will take, given how fast training steps are.

    Attributes:
        sizes: of the validation cases.
        mirror_axes: of the configuration.
        pace: measured at the start of the run.
        step_seconds: of a training step at the same moment; load slows both alike.
        most_seconds: that validation may take.
    """

    sizes: dict[str, CaseSize]
    mirror_axes: tuple[int, ...]
    pace: Pace
    step_seconds: float
    most_seconds: float

    def reserve(self, step_seconds: float) -> float:
        """Seconds to keep for the validation when a training step takes `step_seconds`."""
        slowness = step_seconds / self.step_seconds
        pace = Pace(self.pace.tile_seconds * slowness, self.pace.voxel_seconds)
        return VALIDATION_RESERVE * self.plan(pace, self.most_seconds).seconds

    def plan(self, pace: Pace, seconds: float) -> ValidationPlan:
        """What fits into `seconds`."""
        return plan_validation(self.sizes, self.mirror_axes, pace, seconds)


def validate_fold(
    predictor: Predictor,
    plan: Plan,
    dataset: Dataset,
    open_case: Callable[[str], StoredCase],
    folder: Path,
    planned: ValidationPlan,
    *,
    may_start: Callable[[str], bool],
) -> FoldScores:
    """Predicts and scores the validation cases; writes each label map and, after each case, scores.json.

    Cases that an interrupted validation of the same weights finished are not predicted again.

    Args:
        predictor: with the trained network.
        plan: classes, file ending.
        dataset: knows the reference label files.
        open_case: gives a stored case.
        folder: `validation` of the run.
        planned: cases and mirroring.
        may_start: asked before each case; may raise to stop, or say that there is no time for it.
    """
    predictor = replace(predictor, mirror_axes=planned.mirror_axes)
    done = _finished_cases(folder, planned, plan)
    left_out = list(planned.left_out)
    for name in planned.cases:
        if name in done:
            continue
        if not may_start(name):
            left_out.append(name)
            continue
        done[name] = _validate_case(predictor, plan, dataset, open_case(name), folder)
        save(_summary(done, left_out, planned), folder / SCORES_FILE)
    scores = _summary(done, left_out, planned)
    save(scores, folder / SCORES_FILE)
    return scores


def _validate_case(
    predictor: Predictor, plan: Plan, dataset: Dataset, stored: StoredCase, folder: Path
) -> dict[str, dict[str, float | None]]:
    from autoseg.images.readers import read_labels
    from autoseg.images.writers import write_labels

    placement = stored.placement
    predicted = predict_case(predictor, np.asarray(stored.image, np.float32), placement, plan.labels)
    name = stored.identifier
    write_labels(folder / f"{name}{plan.file_ending}", to_file_values(predicted, plan.labels), placement.geometry)
    file = next(case.labels for case in dataset.cases if case.identifier == name)
    if file is None:
        raise MissingInput(f"{name} has no label file", where=dataset.root, do="run autoseg plan again")
    reference = to_training_values(read_labels(Path(dataset.root) / file).array, plan.labels)
    return {
        label: {
            "dice": overlap.dice,
            "iou": overlap.iou,
            "predicted_voxels": overlap.prediction,
            "reference_voxels": overlap.reference,
        }
        for label, overlap in overlaps(predicted, reference, plan.labels).items()
    }


def make_predictor(
    network: torch.nn.Module, configuration: Configuration, heads: int, device: torch.device, precision: str
) -> Predictor:
    """The predictor of one network with the precision that it was trained with."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    is_channels_last = any(
        not parameter.is_contiguous() for parameter in network.parameters() if parameter.ndim > 3
    )  # as training has placed it
    return Predictor(
        networks=(network,),
        configuration=configuration,
        heads=heads,
        mirror_axes=configuration.mirror_axes,
        device=device,
        dtype=types.get(precision, torch.float32),
        channels_last=is_channels_last,
    )


def _finished_cases(folder: Path, planned: ValidationPlan, plan: Plan) -> dict[str, dict[str, dict[str, float | None]]]:
    try:
        before = load(FoldScores, folder / SCORES_FILE)
    except (MissingInput, RecordFault):
        return {}
    if before.mirror_axes != planned.mirror_axes:
        return {}
    return {name: scores for name, scores in before.cases.items() if (folder / f"{name}{plan.file_ending}").exists()}


def _summary(
    cases: Mapping[str, dict[str, dict[str, float | None]]], left_out: Sequence[str], planned: ValidationPlan
) -> FoldScores:
    ordered = {name: cases[name] for name in sorted(cases)}
    classes = list(dict.fromkeys(label for scores in ordered.values() for label in scores))
    kinds = ("dice", "iou")
    mean = {
        label: {kind: _mean(scores[label][kind] for scores in ordered.values()) for kind in kinds} for label in classes
    }
    foreground = {kind: _mean(mean[label][kind] for label in classes) for kind in kinds}
    return FoldScores(dict(ordered), mean, foreground, tuple(sorted(left_out)), planned.mirror_axes)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _spread(names: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` of the names, evenly spread over the list."""
    return tuple(names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count))
