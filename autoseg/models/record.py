"""What a model is: the networks that predict, what is done to their label maps, where it comes from, how good it is.

Every loader (runs of a work folder, a bundle, a model of nnU-Net) answers with `ModelFiles`: this record, and a
function that reads the weights.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from autoseg import __version__
from autoseg.core.errors import PlanFault
from autoseg.core.records import record
from autoseg.data.outliers import TrainingRange
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.planning.lateral import lateral_swap
from autoseg.planning.plan import Configuration, Plan
from autoseg.runs.run import DeviceKind, MemoryFormat, Precision
from autoseg.selection.record import CandidateScore, NestedScore

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_FOLD = 999


@record
class Member:
    """One configuration of a model: the networks of its folds, whose logits are averaged.

    Attributes:
        plan: that they were trained with; of its configurations only this one.
        folds: whose networks predict.
        precision: that they were trained with: "fp32", "bf16" or "fp16".
        memory_format: likewise: "contiguous" or "channels_last".
        device: kind that they were trained on: "cpu", "cuda" or "mps".
        share: of the averaged probabilities of an ensemble; the shares of its members sum to one.
    """

    plan: Plan
    folds: Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST_FOLD)], ...], Field(min_length=1)]
    precision: Precision
    memory_format: MemoryFormat
    device: DeviceKind
    share: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def configuration(self) -> Configuration:
        """The configuration that the networks are of."""
        return next(iter(self.plan.configurations.values()))

    @property
    def folds_title(self) -> str:
        """The folds in words: "fold 0" or "mean of folds 0, 1"."""
        return f"{'fold' if len(self.folds) == 1 else 'mean of folds'} {', '.join(map(str, self.folds))}"

    @model_validator(mode="after")
    def _check(self) -> Member:
        names = [(key, own.name) for key, own in self.plan.configurations.items()]
        if len(names) != 1 or len(set(names[0])) != 1:
            raise PlanFault("the plan of a member must hold one configuration under its own name")
        if len(set(self.folds)) != len(self.folds):
            raise PlanFault(f"{names[0][0]}: a fold is given twice")
        return self


@record
class Provenance:
    """Where a model comes from; names no case.

    Attributes:
        dataset: name of the dataset.
        origin: what trained it: "autoseg" or "nnU-Net v2".
        training_cases: number of cases of the dataset, or None if not known.
        autoseg: version that made this record.
        versions: of python and torch that made it.
    """

    dataset: str
    origin: str
    training_cases: int | None = None
    autoseg: str = __version__
    versions: dict[str, str] = field(
        default_factory=lambda: {"python": platform.python_version(), "torch": metadata.version("torch")}
    )


@record
class Scores:
    """How good a model is: what of selection.json names no case.

    Attributes:
        chosen: name of the chosen candidate.
        because: why it was chosen.
        candidates: everything compared.
        nested: the nested cross-validation score of the choice.
    """

    chosen: str
    because: str
    candidates: tuple[CandidateScore, ...]
    nested: NestedScore | None


@record
class ModelRecord:
    """A model without its weights.

    Attributes:
        name: dataset, configurations, folds and a hash of plan and weights, which changes whenever predictions may.
        because: why these configurations and these folds.
        members: whose probabilities are averaged; one is not an ensemble.
        provenance: where it comes from.
        stages: first stages of the cascades among the members.
        postprocessing: what is done to every predicted label map.
        typical: what is usual for the cases trained on, by property; empty where that is not known.
        scores: how good it is, if it was chosen by cross-validation.
    """

    name: str
    because: str
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    provenance: Provenance
    stages: tuple[Member, ...] = ()
    postprocessing: tuple[PostprocessingStep, ...] = ()
    typical: dict[str, TrainingRange] = field(default_factory=dict)
    scores: Scores | None = None

    @property
    def plan(self) -> Plan:
        """What all members agree on: channels, classes, axis order, ending of the files."""
        return self.members[0].plan

    @property
    def by_configuration(self) -> dict[str, Member]:
        """Members and first stages, each configuration once."""
        return {member.configuration.name: member for member in (*self.stages, *self.members)}

    @model_validator(mode="after")
    def _check(self) -> ModelRecord:
        _refuse_unequal(self.members[0], (*self.members[1:], *self.stages))
        members, stages = (
            {member.configuration.name: member.folds for member in group} for group in (self.members, self.stages)
        )
        needed = {member.configuration.cascade_from for member in self.members} - {None}
        steps = {name for step in self.postprocessing for name in step.classes or ("",)}
        for is_wrong, fault in (
            (len(members) + len(stages) != len(self.members) + len(self.stages), "a configuration is given twice"),
            (members | stages != stages | members, "a first stage has other folds than the member that it is as well"),
            (not math.isclose(sum(member.share for member in self.members), 1.0), "the shares do not sum to one"),
            (needed != set(stages), "the first stages of its cascades are not those that it holds"),
            (not steps <= set(self.plan.labels.foreground), "postprocessing of unknown classes"),
        ):
            if is_wrong:
                raise PlanFault(fault)
        return self


def _refuse_unequal(first: Member, others: tuple[Member, ...]) -> None:
    """Raises PlanFault if members differ in what their averaged probabilities and one set of image files require."""
    for other in others:
        for what, names in (
            ("channels, classes or files", ("labels", "channels", "file_ending")),
            ("orders of image axes", ("axis_order", "orientation", "direction")),
        ):
            if any(getattr(first.plan, name) != getattr(other.plan, name) for name in names):
                raise PlanFault(
                    f"{first.configuration.name} and {other.configuration.name} were trained for different {what}",
                    do="choose one with --configuration",
                )


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model before its networks are loaded.

    Attributes:
        record: what it is.
        read: the weights of a configuration and fold by parameter name, on the CPU.
        report: page of the dataset that it was trained on, or None.
        content: 16 hexadecimal digits that change with anything in a bundle; None for other models.
    """

    record: ModelRecord
    read: Callable[[str, int], dict[str, Tensor]]
    report: Path | None = None
    content: str | None = None

    def verify(self) -> None:
        """Reads all weights once.

        Raises:
            IntegrityRefusal: some do not match their hash.
        """
        for name, member in self.record.by_configuration.items():
            for fold in member.folds:
                self.read(name, fold)


_MOST_CHANNELS = 256  # of a real model (assumption, generous); what claims more would only take memory

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def plan_faults(plan: Plan) -> Iterator[str]:
    """Everything in a member's plan that no plan of AutoSeg has, for a file of unknown origin.

    Raises:
        PlanFault: its lateral classes cannot be exchanged.
    """
    configuration = next(iter(plan.configurations.values()))
    if not _NAME.fullmatch(configuration.name):
        yield "the name of its configuration is not a name"
    elif len(plan.channels) > _MOST_CHANNELS:
        yield "too many channels"
    else:
        lateral_swap(plan, configuration)
