"""What a model is made of, wherever it comes from: runs of a work folder, a bundle, or a model of nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from autoseg.data.outliers import Typical
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.planning.plan import Configuration, Plan


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one fold.

    Attributes:
        fold: number.
        where: file or folder that they come from, for error messages.
        read: gives them by parameter name, on the CPU.
    """

    fold: int
    where: str
    read: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Member:
    """One configuration of a model: the networks of its folds, whose logits are averaged.

    Attributes:
        plan: that they were trained with.
        configuration: theirs, a value of `plan.configurations`.
        weights: of each fold.
        precision: that they were trained with: "fp32", "bf16" or "fp16".
        memory_format: likewise: "contiguous" or "channels_last".
        device: kind that they were trained on: "cpu", "cuda" or "mps".
        share: of the averaged probabilities of an ensemble; the shares of its members sum to one.
    """

    plan: Plan
    configuration: Configuration
    weights: tuple[Weights, ...]
    precision: str
    memory_format: str
    device: str
    share: float = 1.0

    @property
    def folds(self) -> tuple[int, ...]:
        """Numbers of the folds."""
        return tuple(weights.fold for weights in self.weights)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model before it is loaded.

    Attributes:
        name: dataset, configurations, folds and a hash of plan and weights, which changes whenever predictions may.
        because: why these configurations and these folds.
        members: whose probabilities are averaged; one is not an ensemble.
        stages: first stages of the cascades among the members, by the name of their own configuration (the cascades'
            `cascade_from`).
        postprocessing: what is done to every predicted label map.
        typical: what is usual for the cases trained on, by property; empty where that is not known.
    """

    name: str
    because: str
    members: tuple[Member, ...]
    stages: dict[str, Member]
    postprocessing: tuple[PostprocessingStep, ...] = ()
    typical: dict[str, Typical] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """What all members agree on: channels, classes, axis order, ending of the files."""
        return self.members[0].plan
