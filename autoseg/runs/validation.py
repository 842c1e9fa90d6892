"""Whole-case validation of a finished fold: the predictor that users get, on the cases kept back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.core.errors import MissingInput, PlanFault
from autoseg.core.files import remove_leftovers, sha256_of_file
from autoseg.core.machine import BYTES_PER_GIB, free_disk_bytes
from autoseg.core.records import save_sealed
from autoseg.core.workspace import Workspace
from autoseg.data.check import HASH_DIGITS, labels_hash, match_labels
from autoseg.data.labels import to_file_values, to_training_values
from autoseg.evaluation.confusion import overlaps
from autoseg.evaluation.metrics import COUNT_METRICS
from autoseg.evaluation.scores import count_scores, mean_scores
from autoseg.images.formats.files import hash_of_written, is_as_written
from autoseg.inference.out_of_fold import keeping_probabilities, probabilities_file
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import predict_case
from autoseg.planning.lateral import lateral_swap
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.first_stage import network_input
from autoseg.preprocessing.store import StoredCase
from autoseg.runs.queue import PROBABILITIES_GIB, RunTask
from autoseg.runs.run import SCORES_FILE, CaseScores, FoldScores

LARGEST_VALIDATION_SHARE = 0.25
"""Share of a time budget that validation may take (assumption: training has to learn something to validate)."""

SECONDS_PER_VOXEL_AND_HEAD = 6e-8
"""Resampling, deciding, compressing and comparing one voxel of the file's grid, per head; assumption for one core."""

SECONDS_PER_CASE = 0.1
"""Opening and closing files; assumption."""

VALIDATION_RESERVE = 1.1
"""Time kept for the validation / time expected for it."""

FREE_DISK_SHARE = 0.5
"""Of the disk that is free when a fold's validation starts, how much its probabilities may take at most."""

Labels = NDArray[np.integer]


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


def expected_pace(predictor: Predictor, patch_seconds: float) -> Pace:
    """The pace of prediction if training takes so long for a patch: a backward pass costs about two forward passes."""
    return _pace(predictor, patch_seconds / 3)


def measure_pace(predictor: Predictor, channels: int) -> Pace:
    """Times a few tiles with as many mirrorings as are computed side by side; the first does not count."""
    plain = replace(predictor, mirror_axes=predictor.mirror_axes[: (predictor.passes_at_once - 1).bit_length()])
    tile = np.zeros((channels, *predictor.patch_size), np.float32)
    plain.logits(tile)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        plain.logits(tile)
        times.append(time.perf_counter() - begin)
    return _pace(predictor, min(times) / 2 ** len(plain.mirror_axes))


def _pace(predictor: Predictor, tile_seconds: float) -> Pace:
    return Pace(tile_seconds, SECONDS_PER_VOXEL_AND_HEAD * (predictor.heads + 1))


def case_size(stored: StoredCase, predictor: Predictor) -> CaseSize:
    """Tiles and voxels of a case."""
    tiles = len(predictor.tiling(stored.image.shape[1:]).windows)
    return CaseSize(tiles, math.prod(stored.placement.geometry.shape))


def plan_validation(
    sizes: Mapping[str, CaseSize], mirror_axes: tuple[int, ...], pace: Pace, seconds: float
) -> ValidationPlan:
    """Everything, mirrored along as many axes as time allows; if too little for none, only some cases, evenly spread.

    Cases come in an order that is the same for every configuration: whatever time leaves out, the ones that have less
    of it validate cases that the others validate as well, so that they can be compared.

    Args:
        sizes: of the validation cases.
        mirror_axes: of the configuration.
        pace: measured.
        seconds: that validation may take.
    """
    names = _spread(sizes)
    for count in range(len(mirror_axes), -1, -1):
        axes = mirror_axes[:count]
        expected = {name: pace.case_seconds(size, 2 ** len(axes)) for name, size in sizes.items()}
        if sum(expected.values()) <= seconds:
            told = f"validated with mirroring along {count} of {len(mirror_axes)} axes, for lack of time"
            notes = () if axes == mirror_axes else (told,)
            return ValidationPlan(names, (), axes, expected, notes)
    count = len(names)
    while count > 1 and sum(expected[name] for name in names[:count]) > seconds:
        count -= 1
    kept, left_out = names[:count], names[count:]
    note = f"validated on {count} of {len(names)} cases and without mirroring, for lack of time"
    return ValidationPlan(kept, left_out, (), {name: expected[name] for name in kept}, (note,))


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long validation will take, given how fast training steps are.

    Attributes:
        sizes: of the validation cases.
        mirror_axes: of the configuration.
        pace: expected at the start of the run.
        step_seconds: of a training step, which it was expected by; load slows both alike.
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


def probability_allowance(workspace: Workspace, budget_gib: float = PROBABILITIES_GIB) -> int:
    """Bytes that further probabilities may take.

    Args:
        workspace: whose runs keep probabilities.
        budget_gib: for the kept probabilities of all its runs together.
    """
    folders = [folder.validation for _, _, folder in workspace.run_folders()]
    used = sum(file.stat().st_size for folder in folders for file in folder.glob("*.probabilities.npz"))
    free = free_disk_bytes(workspace.runs)
    return max(0, min(int(budget_gib * BYTES_PER_GIB) - used, int(FREE_DISK_SHARE * free)))


@dataclass(slots=True)
class _Fold:
    """What is known of the cases of a fold, and what each of them needs to be predicted and scored."""

    predictor: Predictor
    task: RunTask
    planned: ValidationPlan
    allowed_bytes: int
    weights: str
    cases: dict[str, CaseScores] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)
    probabilities: dict[str, str] = field(default_factory=dict)

    def resume(self) -> None:
        """Goes on from what an interrupted validation of the same weights finished."""
        remove_leftovers(self.task.run.folder.validation)
        before = self.task.run.scores
        is_same = before is not None and before.weights in ("", self.weights)  # former versions did not note it
        if before is None or not is_same or before.mirror_axes != self.planned.mirror_axes:
            return
        for name, scores in before.cases.items():
            if self._is_complete(name, scores, before):
                self.cases[name] = scores
                self.seconds |= {name: before.seconds[name]} if name in before.seconds else {}
                self._note_files(name)

    def _is_complete(self, name: str, scores: CaseScores, before: FoldScores) -> bool:
        """Whether its files are as they were written (probabilities may be gone), and all scores of this version."""
        file, kept = self._label_file(name), self._kept_file(name)
        known = before.maps | before.probabilities
        is_same = file.exists() and all(
            is_as_written(own, known[own.name]) for own in (file, kept) if own.exists() and own.name in known
        )
        return is_same and all(COUNT_METRICS.keys() <= own.keys() for own in scores.values())

    def _note_files(self, name: str) -> None:
        """Notes the hashes of what was written about a case."""
        label_map, kept = self._label_file(name), self._kept_file(name)
        self.maps[label_map.name] = hash_of_written(label_map)
        if kept.exists():
            self.probabilities[kept.name] = sha256_of_file(kept)

    def _kept_file(self, name: str) -> Path:
        return probabilities_file(self.task.run.folder.validation, name)

    def _label_file(self, name: str) -> Path:
        return self.task.run.folder.validation / f"{name}{self.task.plan.file_ending}"

    def do(self, stored: StoredCase) -> None:
        """Predicts a case, keeps its probabilities if they fit, and scores it."""
        begin = time.perf_counter()
        predicted = self._predicted(stored)
        self.seconds[stored.identifier] = round(time.perf_counter() - begin, 3)
        self.cases[stored.identifier] = _scores(predicted, self.task, stored)
        self._note_files(stored.identifier)

    def _predicted(self, stored: StoredCase) -> Labels:
        from autoseg.images.writers import write_labels

        labels, placement, name = self.task.plan.labels, stored.placement, stored.identifier
        image = network_input(stored, labels)
        kept = self._kept_file(name)
        rolling_axis = self.predictor.tiling(image.shape[1:]).rolling_axis
        with keeping_probabilities(kept, placement, rolling_axis, labels, self.allowed_bytes) as take_row:
            predicted = predict_case(self.predictor, image, placement, labels, take_row)
        self.allowed_bytes -= kept.stat().st_size if kept.exists() else 0
        write_labels(self._label_file(name), to_file_values(predicted, labels), placement.geometry)
        return predicted

    def summary(self, left_out: Sequence[str]) -> FoldScores:
        """scores.json as far as it goes."""
        ordered = {name: self.cases[name] for name in sorted(self.cases)}
        mean, foreground = mean_scores(ordered, COUNT_METRICS)
        return FoldScores(
            cases=ordered,
            mean=mean,
            foreground_mean=foreground,
            left_out=tuple(sorted(left_out)),
            mirror_axes=self.planned.mirror_axes,
            seconds=dict(sorted(self.seconds.items())),
            weights=self.weights,
            maps=dict(sorted(self.maps.items())),
            probabilities=dict(sorted(self.probabilities.items())),
        )


def validate_fold(
    predictor: Predictor,
    task: RunTask,
    open_case: Callable[[str], StoredCase],
    planned: ValidationPlan,
    may_start: Callable[[str], bool],
    weights: str = "",
) -> FoldScores:
    """Predicts and scores the validation cases; writes each label map and, after each case, scores.json.

    Probabilities are kept beside the label maps as long as they fit. Cases that an interrupted validation of the same
    weights finished are not predicted again.

    Args:
        predictor: with the trained network.
        task: the run, its dataset, and the disk that probabilities may take (0 keeps label maps alone).
        open_case: gives a stored case.
        planned: cases and mirroring.
        may_start: asked before each case; may raise to stop, or say that there is no time for it.
        weights: hash of the network's weights; what other ones predicted before is predicted again.

    Raises:
        PlanFault: the labels of a case changed since it was planned.
    """
    folder = task.run.folder.validation
    folder.mkdir(parents=True, exist_ok=True)
    allowed = probability_allowance(task.run.folder.workspace, task.options.probabilities_gib)
    fold = _Fold(replace(predictor, mirror_axes=planned.mirror_axes), task, planned, allowed, weights)
    fold.resume()
    left_out = list(planned.left_out)
    for name in planned.cases:
        if name in fold.cases:
            continue
        if not may_start(name):
            left_out.append(name)
            continue
        fold.do(open_case(name))
        save_sealed(fold.summary(left_out), folder / SCORES_FILE)
    scores = fold.summary(left_out)
    save_sealed(scores, folder / SCORES_FILE)
    return scores


def _scores(predicted: Labels, task: RunTask, stored: StoredCase) -> CaseScores:
    from autoseg.images.readers import read_labels

    dataset, labels, name = task.dataset, task.plan.labels, stored.identifier
    case = next(case for case in dataset.cases if case.identifier == name)
    if case.labels is None:
        raise MissingInput(f"{name} has no label file", where=dataset.root, do="run autoseg plan again")
    file = Path(dataset.root) / case.labels
    read, _ = match_labels(stored.placement.geometry, read_labels(file), case.labels)
    reference = to_training_values(read.array, labels)
    planned = task.contents.get(name, "")
    if planned and labels_hash(dataset, case) != planned[HASH_DIGITS:]:
        raise PlanFault(
            f"{name}: its labels changed since it was planned",
            where=str(file),
            why="the network was trained on the former ones",
            do="restore the file and run the same command again, or plan again and train with --fresh",
        )
    return {
        label: {
            **count_scores(overlap),
            "predicted_voxels": overlap.prediction,
            "reference_voxels": overlap.reference,
        }
        for label, overlap in overlaps(predicted, reference, labels).items()
    }


def make_predictor(
    network: torch.nn.Module, plan: Plan, configuration: Configuration, device: torch.device, precision: str
) -> Predictor:
    """The predictor of one network with the precision that it was trained with."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    is_channels_last = any(
        not parameter.is_contiguous() for parameter in network.parameters() if parameter.ndim > 3
    )  # as training has placed it
    return Predictor(
        networks=(network,),
        configuration=configuration,
        heads=plan.labels.head_count,
        mirror_axes=configuration.mirror_axes,
        swap=lateral_swap(plan, configuration),
        device=device,
        dtype=types.get(precision, torch.float32),
        channels_last=is_channels_last,
    )


def _spread(names: Iterable[str]) -> tuple[str, ...]:
    """The names in an order of which every beginning is evenly spread over the sorted list (van der Corput's)."""
    ordered = sorted(names)
    digits = len(ordered).bit_length()
    return tuple(ordered[i] for i in sorted(range(len(ordered)), key=lambda i: f"{i:0{digits}b}"[::-1]))
