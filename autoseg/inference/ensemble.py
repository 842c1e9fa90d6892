"""Several configurations predict together: probabilities averaged, cascades chained, labels decided, pieces removed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.core.progress import Progress, silent
from autoseg.data.model import LabelSet
from autoseg.images.crop import slices
from autoseg.images.volume import Volume
from autoseg.inference.accumulate import allocate
from autoseg.inference.postprocessing import PostprocessingStep, postprocess
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import (
    label_kind,
    labels_of_planes,
    predict_case,
    predict_case_probabilities,
    predict_case_rows,
)
from autoseg.preprocessing.first_stage import one_hot, prepare_first_stage
from autoseg.preprocessing.prepare import Placement, Preparation, Prepared, prepare

_BYTES_PER_FLOAT = 4

PreparedCase = Mapping[Preparation, Prepared]
"""A case as each of an ensemble's preparations gives it; all of them share the crop."""

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """A configuration of an ensemble.

    Attributes:
        predictor: its networks.
        preparation: how images are prepared for it.
        share: of the averaged probabilities.
    """

    predictor: Predictor
    preparation: Preparation
    share: float = 1.0

    @property
    def name(self) -> str:
        """Of the configuration."""
        return self.predictor.configuration.name

    @property
    def first_stage(self) -> str | None:
        """Configuration whose label map is an input of this one."""
        return self.predictor.configuration.cascade_from


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What an ensemble makes of a case.

    Attributes:
        labels: training values (z, y, x) on the grid of the file, postprocessed.
        probabilities: (heads, z, y, x) float16 on the same grid before postprocessing, or None if not asked for.
    """

    labels: Labels
    probabilities: NDArray[np.float16] | None = None


@dataclass(frozen=True)
class Ensemble:
    """Configurations that predict together; one alone is the simplest case.

    Logits are averaged over the folds and mirrorings of a configuration, probabilities over configurations.

    Attributes:
        members: whose probabilities are averaged by their shares. All of them crop alike: equal axis orders.
        stages: first stages of cascades, by their own names. One that is a member as well is the very same object, and
            predicts once.
        labels: classes of the plan.
        postprocessing: done to the decided labels.
        scratch: folder for temporary files; None for the system's.

    Source: nnU-Net v2 ensembling/ensemble.py.
    """

    members: tuple[EnsembleMember, ...]
    labels: LabelSet
    stages: Mapping[str, EnsembleMember] = field(default_factory=dict)
    postprocessing: tuple[PostprocessingStep, ...] = ()
    scratch: Path | None = None

    @property
    def every(self) -> tuple[EnsembleMember, ...]:
        """Members and first stages, each once."""
        others = [stage for stage in self.stages.values() if not any(stage is member for member in self.members)]
        return (*self.members, *others)

    def prepare(self, volume: Volume) -> dict[Preparation, Prepared]:
        """The image as each preparation gives it; members that prepare alike share the arrays."""
        preparations = dict.fromkeys(member.preparation for member in self.every)
        return {preparation: prepare(volume, None, preparation) for preparation in preparations}

    def predict(
        self,
        case: PreparedCase,
        *,
        keep_probabilities: bool = False,
        max_bytes: int | None = None,
        progress: Progress = silent,
    ) -> Prediction:
        """Labels, and probabilities if asked for, of a prepared case.

        Args:
            case: as `prepare` returned it.
            keep_probabilities: whether to return them; all heads are then in memory at full resolution.
            max_bytes: memory that logits and probabilities being added up may take; more goes to a file.
            progress: told about finished tiles of all networks' configurations together.

        Raises:
            NonFiniteLogits: a network returned an infinite or undefined value.
            NotEnoughResources: neither memory nor disk hold what is added up.
        """
        work = _Work(self, case, _Tiles(self, case, progress), max_bytes, {})
        placement = case[self.members[0].preparation].placement
        if len(self.members) > 1:
            total = work.averaged()
            labels = placement.restore_labels(_decided(total, self.labels))
            probabilities = _on_file_grid(total, placement, self.labels) if keep_probabilities else None
        elif keep_probabilities:
            labels, probabilities = work.with_probabilities(self.members[0])
        else:
            labels, probabilities = work.predicted(self.members[0]), None
        spacing = placement.geometry.spacing_mm
        return Prediction(postprocess(labels, self.postprocessing, self.labels, spacing), probabilities)

    def with_less_memory(self) -> Ensemble | None:
        """This ensemble with a smaller need of device memory, or None if none of its predictors can do with less."""
        smaller = {id(member): member.predictor.with_less_memory() for member in self.every}
        if not any(smaller.values()):
            return None
        made = {id(member): replace(member, predictor=smaller[id(member)] or member.predictor) for member in self.every}
        members = tuple(made[id(member)] for member in self.members)
        return replace(self, members=members, stages={name: made[id(stage)] for name, stage in self.stages.items()})


class _Tiles:
    """Progress over the tiles of everything that predicts."""

    def __init__(self, ensemble: Ensemble, case: PreparedCase, progress: Progress) -> None:
        self._progress = progress
        self._finished = 0
        self._total = sum(
            len(member.predictor.tiling(case[member.preparation].image.shape[1:]).windows) for member in ensemble.every
        )

    def __call__(self, done: int, total: int) -> None:
        self._progress(self._finished + done, self._total)
        if done == total:
            self._finished += total


@dataclass(slots=True)
class _Work:
    """The prediction of one case: what is known of it so far, by configuration."""

    ensemble: Ensemble
    case: PreparedCase
    progress: Progress
    max_bytes: int | None
    known: dict[str, Labels]

    def predicted(self, member: EnsembleMember) -> Labels:
        """Training values on the grid of the file, decided by one configuration alone."""
        image, placement = self._input(member), self.case[member.preparation].placement
        return predict_case(self._limited(member, image), image, placement, self.ensemble.labels, self.progress)

    def with_probabilities(self, member: EnsembleMember) -> tuple[Labels, NDArray[np.float16]]:
        """The same, with probabilities."""
        image, placement = self._input(member), self.case[member.preparation].placement
        predictor = self._limited(member, image)
        return predict_case_probabilities(predictor, image, placement, self.ensemble.labels, self.progress)

    def averaged(self) -> Tensor:
        """Probabilities (heads, z, y, x) inside the crop, in the plan's axis order, averaged over the members."""
        first = self.ensemble.members[0]
        shape = (first.predictor.heads, *self.case[first.preparation].placement.cropped_shape)
        needed = _BYTES_PER_FLOAT * int(np.prod(shape))
        is_small = self.max_bytes is None or needed <= self.max_bytes
        folder = None if is_small else self.ensemble.scratch or Path(tempfile.gettempdir())
        total = allocate(shape, torch.device("cpu"), folder)
        if is_small and self.max_bytes is not None:
            self.max_bytes -= needed
        for member in sorted(self.ensemble.members, key=lambda member: member.first_stage is not None):
            self._add(member, total)
        return total

    def _add(self, member: EnsembleMember, total: Tensor) -> None:
        """Adds a member's share to the total; its own labels are kept if a cascade begins with it."""
        image, placement, labels = self._input(member), self.case[member.preparation].placement, self.ensemble.labels
        predictor = self._limited(member, image)
        rolled = total.movedim(predictor.tiling(image.shape[1:]).rolling_axis + 1, 0)

        def add_row(index: int, row: Tensor) -> None:
            rolled[index].add_(row.cpu(), alpha=member.share)

        decided = predict_case_rows(predictor, image, placement, labels, add_row, self.progress)
        if self.ensemble.stages.get(member.name) is member:
            self.known[member.name] = decided

    def _input(self, member: EnsembleMember) -> NDArray[np.float32]:
        """What the member's networks get: the image, in a cascade with what its first stage predicts."""
        prepared = self.case[member.preparation]
        if member.first_stage is None:
            return prepared.image
        if member.first_stage not in self.known:
            self.known[member.first_stage] = self.predicted(self.ensemble.stages[member.first_stage])
        first_stage = prepare_first_stage(self.known[member.first_stage], prepared.placement)
        return np.concatenate([prepared.image, one_hot(first_stage, self.ensemble.labels)])

    def _limited(self, member: EnsembleMember, image: NDArray[np.float32]) -> Predictor:
        if self.max_bytes is None:
            return member.predictor
        more = image.nbytes - self.case[member.preparation].image.nbytes
        return replace(member.predictor, max_slab_bytes=max(0, self.max_bytes - more))


def _decided(total: Tensor, labels: LabelSet) -> Labels:
    """Training values (z, y, x) decided from averaged probabilities (heads, z, y, x)."""
    decided = np.zeros(tuple(total.shape[1:]), dtype=label_kind(labels))
    for row, planes in zip(decided, _rows(total, labels), strict=True):
        row[...] = labels_of_planes(planes, labels).numpy()
    return decided


def _rows(total: Tensor, labels: LabelSet) -> Iterator[Iterator[Tensor]]:
    """For each row the planes of the heads; those of regions so that a probability of one half is 0."""
    threshold = 0.5 if labels.has_regions else 0.0
    for row in total.unbind(1):
        yield (plane - threshold for plane in row)


def _on_file_grid(total: Tensor, placement: Placement, labels: LabelSet) -> NDArray[np.float16]:
    """Probabilities on the grid of the file; outside the crop the background is certain, regions are not there."""
    probabilities = np.zeros((len(total), *placement.geometry.shape), dtype=np.float16)
    probabilities[0] = 0 if labels.has_regions else 1
    in_plan_order = probabilities.transpose(0, *(axis + 1 for axis in placement.axis_order))
    in_plan_order[slices(placement.box)] = total.numpy()
    return probabilities
