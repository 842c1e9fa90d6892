"""What a report shows, as plain records: whoever collects it knows nothing of pages, and pages nothing of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from autoseg.data.fingerprint import Fingerprint
from autoseg.data.model import Dataset, LabelSet, Problem
from autoseg.data.outliers import Outlier
from autoseg.evaluation.confusion import Counts
from autoseg.planning.plan import Plan
from autoseg.runs.run import RunStatus

ClassDice = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A training run.

    Attributes:
        configuration: its name.
        fold: its number.
        status: where it stands, or None if it was not started.
        history: lines of its history.jsonl.
        device: "cpu", "cuda" or "mps"; empty if it was not started.
        remark: what is not as usual, or empty.
    """

    configuration: str
    fold: int
    status: RunStatus | None = None
    history: Sequence[Mapping[str, Any]] = ()
    device: str = ""
    remark: str = ""

    @property
    def state(self) -> str:
        """Where it stands, in one word."""
        return "not started" if self.status is None else self.status.state

    @property
    def is_done(self) -> bool:
        """Whether training and validation are finished."""
        return self.state == "done"


@dataclass(frozen=True, slots=True)
class CandidateEntry:
    """A configuration or ensemble that could predict; `difference` is that of the best candidate to this one."""

    name: str
    kind: str
    dice: float | None
    interval: tuple[float, float] | None
    difference: float | None
    difference_interval: tuple[float, float] | None
    seconds_per_case: float | None
    memory_gib: float | None
    is_chosen: bool
    is_nnunets: bool


@dataclass(frozen=True, slots=True)
class TrialEntry:
    """A postprocessing step that was tried, with the scores before and after it."""

    title: str
    before: float
    after: float
    nested_gain: float
    is_accepted: bool
    because: str


@dataclass(frozen=True, slots=True)
class ChoiceEntry:
    """What was selected and how good it is.

    Attributes:
        name: of the chosen candidate.
        because: why it was chosen.
        objective: what the choice aimed at.
        candidates: all of them, best first.
        trials: of postprocessing.
        nested_dice: honest score of the choice, or None.
        nested_interval: its 95 % interval.
        naive_dice: score on the cases that the choice was made with.
        notes: what is not as usual.
    """

    name: str
    because: str
    objective: str
    candidates: tuple[CandidateEntry, ...]
    trials: tuple[TrialEntry, ...] = ()
    nested_dice: float | None = None
    nested_interval: tuple[float, float] | None = None
    naive_dice: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CaseEntry:
    """A case with its prediction.

    Attributes:
        identifier: of the case.
        dice: class -> Dice, None where undefined; empty without a reference.
        volumes: class -> (predicted, reference) in `unit`; the reference is None without one.
        unit: "ml", or "pixels" in pictures.
        confusion: voxels of each pair of values, or None without a reference.
        picture: overlay, or None.
        remark: why something is missing, or empty.
        unlike: respects in which the case is unlike the training cases.
        fold: that kept it back, or None.
    """

    identifier: str
    dice: ClassDice = field(default_factory=dict)
    volumes: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    unit: str = "ml"
    confusion: Counts | None = None
    picture: Markup | None = None
    remark: str = ""
    unlike: tuple[Outlier, ...] = ()
    fold: int | None = None

    @property
    def mean_dice(self) -> float | None:
        """Mean over the classes for which it is defined."""
        known = [value for value in self.dice.values() if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """Everything that the report of a dataset shows; what does not exist yet is empty.

    Attributes:
        plan: of the dataset.
        dataset: as detected.
        fingerprint: statistics of the usable cases.
        problems: everything found by the check.
        unlike: case -> respects in which it is unlike the others.
        runs: every configuration and fold, in the order of the plan.
        choice: what was selected, or None.
        source: what predicted the cases below.
        cases: worst first.
        version: of the program.
        written: date and time.
        references: folder of other label maps that the cases are compared with; empty for the dataset's own.
        own_dice: then the mean Dice of the cases on the dataset's own label maps.
    """

    plan: Plan
    dataset: Dataset
    fingerprint: Fingerprint
    problems: tuple[Problem, ...]
    unlike: dict[str, tuple[Outlier, ...]]
    runs: tuple[RunEntry, ...]
    choice: ChoiceEntry | None
    source: str
    cases: tuple[CaseEntry, ...]
    version: str
    written: str
    references: str = ""
    own_dice: float | None = None


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """Everything that the report of a prediction shows.

    Attributes:
        model: its name.
        labels: its classes.
        facts: name -> value: device, mirroring, versions.
        cases: done; those unlike the training data first.
        failed: case -> why.
        is_compared: whether the model says what its training data were like.
        version: of the program.
        written: date and time.
    """

    model: str
    labels: LabelSet
    facts: dict[str, str]
    cases: tuple[CaseEntry, ...]
    failed: dict[str, str]
    is_compared: bool
    version: str
    written: str


def mean_dice(cases: Sequence[CaseEntry]) -> float | None:
    """Mean over the cases of their mean Dice; None where it is undefined for all."""
    known = [case.mean_dice for case in cases if case.mean_dice is not None]
    return sum(known) / len(known) if known else None


def worst_first(cases: Sequence[CaseEntry]) -> tuple[CaseEntry, ...]:
    """The cases by rising mean Dice; those without any come last, in the order of their names."""
    return tuple(sorted(cases, key=lambda case: (2.0 if case.mean_dice is None else case.mean_dice, case.identifier)))
