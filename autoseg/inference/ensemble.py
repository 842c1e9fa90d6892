"""Several configurations predict together: probabilities averaged, cascades chained, labels decided, pieces removed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.core.geometry import Geometry
from autoseg.core.progress import Progress, silent
from autoseg.data.model import LabelSet
from autoseg.images.volume import Volume
from autoseg.inference.accumulate import allocate
from autoseg.inference.postprocessing import PostprocessingStep, postprocess
from autoseg.inference.predictor import Predictor
from autoseg.inference.restore import (
    labels_of_rows,
    predict_case,
    predict_case_probabilities,
    probabilities_outside,
)
from autoseg.preprocessing.first_stage import one_hot, prepare_first_stage
from autoseg.preprocessing.prepare import Placement, Preparation, Prepared, PreparedCase, prepare

_log = logging.getLogger(__name__)

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
        geometry: of that grid.
        probabilities: (heads, z, y, x) float16 on the same grid before postprocessing, or None if not asked for.
    """

    labels: Labels
    geometry: Geometry
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

    @property
    def preparations(self) -> tuple[Preparation, ...]:
        """How images are prepared for it, each way once."""
        return tuple(dict.fromkeys(member.preparation for member in self.every))

    def prepare(self, volume: Volume) -> dict[Preparation, Prepared]:
        """The image as each preparation gives it; members that prepare alike share the arrays."""
        return {preparation: prepare(volume, None, preparation) for preparation in self.preparations}

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
            keep_probabilities: whether to return them.
            max_bytes: memory that logits and probabilities may take; more goes to a file.
            progress: called with finished and all tiles, of all configurations together.

        Raises:
            NonFiniteLogits: a network returned an infinite or undefined value.
            NotEnoughResources: neither memory nor disk hold what is added up.
        """
        work = _CaseWork(self, case, progress, max_bytes)
        first, probabilities = self.members[0], None
        placement = case[first.preparation].placement
        if len(self.members) > 1:
            total = work.averaged()
            labels = placement.restore_labels(
                labels_of_rows(_rows(total, self.labels), 0, total.shape[1:], self.labels)
            )
            if keep_probabilities:
                probabilities, inside = probabilities_outside(placement, self.labels, work.left_bytes, self.scratch)
                inside[...] = total.numpy()
        elif keep_probabilities:
            labels, probabilities = predict_case_probabilities(*work.inputs(first), self.labels, work.count_tiles)
        else:
            labels = work.predicted(first)
        labels = postprocess(labels, self.postprocessing, self.labels, placement.geometry.spacing_mm)
        return Prediction(labels, placement.geometry, probabilities)

    def with_less_memory(self, of_device: bool = True) -> Ensemble | None:
        """This ensemble with a smaller need of memory, or None if none of its predictors can do with less.

        Networks of configurations that are not at work leave a device first that is full: moving them back costs the
        least.

        Args:
            of_device: whether it is the device's memory that is short, not the main memory.
        """
        every, can_park = self.every, of_device and len(self.every) > 1
        smaller = {id(one): one.predictor.with_parked_networks() for one in every} if can_park else {}
        if any(smaller.values()):
            _log.warning("not enough memory on %s: each configuration's networks are there in turn", _devices(every))
        else:
            smaller = {id(member): member.predictor.with_less_memory() for member in every}
        return self._with_predictors(smaller) if any(smaller.values()) else None

    def _with_predictors(self, changed: Mapping[int, Predictor | None]) -> Ensemble:
        """This ensemble with other predictors, by the identity of their members; None leaves one as it is."""
        made = {id(own): replace(own, predictor=changed[id(own)] or own.predictor) for own in self.every}
        members = tuple(made[id(member)] for member in self.members)
        return replace(self, members=members, stages={name: made[id(stage)] for name, stage in self.stages.items()})


def _devices(members: tuple[EnsembleMember, ...]) -> str:
    return ", ".join(dict.fromkeys(str(member.predictor.device) for member in members))


class _CaseWork:
    """The prediction of one case by the configurations of an ensemble, one after another.

    Args:
        ensemble: that predicts.
        case: as prepared for it.
        progress: called with finished and all tiles, of all configurations together.
        left_bytes: memory that logits and probabilities may take, less what was allocated since; None for no limit.
    """

    def __init__(self, ensemble: Ensemble, case: PreparedCase, progress: Progress, left_bytes: int | None) -> None:
        self._ensemble = ensemble
        self._case = case
        self._progress = progress
        self.left_bytes = left_bytes
        self._known: dict[str, Labels] = {}  # label maps of first stages, by configuration
        shapes = {preparation: prepared.image.shape[1:] for preparation, prepared in case.items()}
        every = [member.predictor.tiling(shapes[member.preparation]) for member in ensemble.every]
        self._tiles = sum(len(tiling.windows) for tiling in every)
        self._finished_tiles = 0

    def count_tiles(self, done: int, total: int) -> None:
        """Progress of one configuration as that of all."""
        self._progress(self._finished_tiles + done, self._tiles)
        if done == total:
            self._finished_tiles += total

    def predicted(self, member: EnsembleMember) -> Labels:
        """Training values on the grid of the file, decided by one configuration alone."""
        return predict_case(*self.inputs(member), self._ensemble.labels, progress=self.count_tiles)

    def averaged(self) -> Tensor:
        """Probabilities (heads, z, y, x) inside the crop, in the plan's axis order, averaged over the members."""
        first = self._ensemble.members[0]
        shape = (first.predictor.heads, *self._case[first.preparation].placement.cropped_shape)
        total = allocate(shape, torch.device("cpu"), self.left_bytes, self._ensemble.scratch)
        if self.left_bytes is not None and total.nbytes <= self.left_bytes:
            self.left_bytes -= total.nbytes
        # a configuration that begins a cascade goes before the one that continues it: both need its prediction
        for member in sorted(self._ensemble.members, key=lambda member: member.first_stage is not None):
            self._add(member, total)
        return total

    def _add(self, member: EnsembleMember, total: Tensor) -> None:
        """Adds a member's share to the total; its own labels are kept if a cascade begins with it."""
        predictor, image, placement = self.inputs(member)
        rolled = total.movedim(predictor.tiling(image.shape[1:]).rolling_axis + 1, 0)

        def add_row(index: int, row: Tensor) -> None:
            rolled[index].add_(row.cpu(), alpha=member.share)

        decided = predict_case(predictor, image, placement, self._ensemble.labels, add_row, self.count_tiles)
        if self._ensemble.stages.get(member.name) is member:
            self._known[member.name] = decided

    def inputs(self, member: EnsembleMember) -> tuple[Predictor, NDArray[np.float32], Placement]:
        """The member's predictor, within the memory that is allowed; what its networks get; and where that lies.

        That is the image, in a cascade with the label map that its first stage predicts.
        """
        prepared, image = self._case[member.preparation], self._case[member.preparation].image
        if member.first_stage is not None:
            if member.first_stage not in self._known:
                self._known[member.first_stage] = self.predicted(self._ensemble.stages[member.first_stage])
            first_stage = prepare_first_stage(self._known[member.first_stage], prepared.placement)
            image = np.concatenate([image, one_hot(first_stage, self._ensemble.labels)])
        predictor = member.predictor
        if self.left_bytes is not None:
            added = image.nbytes - prepared.image.nbytes  # the limit was made without the channels of a first stage
            allowed = max(0, self.left_bytes - added)
            own = predictor.max_slab_bytes
            predictor = replace(predictor, max_slab_bytes=allowed if own is None else min(own, allowed))
        return predictor, image, prepared.placement


def _rows(total: Tensor, labels: LabelSet) -> Iterator[Iterator[Tensor]]:
    """The planes of each row of probabilities, one per head; with regions less one half, so that 0 decides."""
    threshold = 0.5 if labels.has_regions else 0.0
    for row in total.unbind(1):
        yield (plane - threshold for plane in row)
