"""selection.json: which configuration or ensemble was chosen, why, and how good it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import Field

from autoseg.core.limits import Name
from autoseg.core.records import content_hash, record, to_data
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.planning.plan import Plan

SELECTION_VERSION = 1


@record
class SelectedMember:
    """A configuration in an ensemble.

    Attributes:
        configuration: name in the plan.
        weight: how often it counts; its share of the probabilities is weight / sum of the weights.
    """

    configuration: Name
    weight: Annotated[int, Field(gt=0)]


@record
class CandidateScore:
    """Scores of a candidate before postprocessing, and what predicting with it costs.

    Attributes:
        name: "3d_fullres", "2d + 3d_fullres", "2d + 2 x 3d_fullres".
        kind: "single", "pair" (nnU-Net's kind of ensemble) or "greedy" (with replacement, over all configurations).
        members: with their weights.
        dice: mean over the classes of the mean over the cases in which it is defined; None if nowhere.
        interval: 95 % bootstrap interval of it over cases; None with a single case.
        class_dice: class -> mean over cases.
        difference: Dice of the best candidate minus this one's, on the same cases.
        difference_interval: 95 % bootstrap interval of it, cases paired.
        seconds_per_case: of predicting a case with all folds, estimated from the validation.
        memory_gib: estimate of what predicting a case of median size takes.
    """

    name: str
    kind: Literal["single", "pair", "greedy"]
    members: tuple[SelectedMember, ...]
    dice: float | None
    interval: tuple[float, float] | None
    class_dice: dict[str, float | None]
    difference: float | None
    difference_interval: tuple[float, float] | None
    seconds_per_case: float | None
    memory_gib: float | None


@record
class NestedScore:
    """The nested cross-validation score: every case is scored with what would have been chosen without its fold.

    Attributes:
        dice: over all cases, postprocessing included.
        interval: 95 % bootstrap interval over cases. That other cases might have led to another choice is not in it.
            With 40 simulated cases it covered the truth in 91 % of 200 datasets (that of a fixed candidate in 92 %);
            in 84 % where candidates differed on their cases as much as if each had been drawn by itself.
        naive_dice: the chosen one's score on the very cases it was chosen by; optimistic.
        choices: what was chosen without each fold, in the order of the folds.
    """

    dice: float
    interval: tuple[float, float]
    naive_dice: float
    choices: tuple[str, ...]


@record
class PostprocessingTrial:
    """A step that was tried on the out-of-fold predictions of the chosen one.

    Attributes:
        step: what was tried, on top of the steps accepted before.
        before: mean Dice of the classes concerned.
        after: the same with the step.
        nested_gain: gain on cases that had no part in deciding for the step or in choosing its volume.
        is_accepted: whether predictions get it.
        because: one sentence.
    """

    step: PostprocessingStep
    before: float
    after: float
    nested_gain: float
    is_accepted: bool
    because: str


@record
class Selection:
    """The result of `autoseg select`, which `autoseg predict DATASET` follows.

    Attributes:
        version: of this record.
        plan: hash of what of the plan matters to the runs compared (`plan_hash`).
        objective: "default", "dice", "nnunet" or "cost".
        name: of the chosen candidate.
        because: one or two sentences.
        members: of the chosen candidate.
        folds: configuration -> folds whose networks predict together, first stages of cascades included.
        candidates: all, best Dice first.
        nnunet_choice: name of what nnU-Net would have chosen: the best single or pair.
        nested: None where there are too few cases.
        postprocessing: everything tried, in order.
        case_dice: case -> class -> Dice of the chosen one after postprocessing; None where undefined.
        runs: "configuration/fold_k" -> hash of the weights that predicted; another hash now means another training.
        notes: sentences about what is not as usual.
        dataset: name that the dataset had then, which is part of `plan`; earlier versions did not note it.
        maps: SHA-256 of the chosen one's out-of-fold label maps by file name; earlier versions did not note it.
    """

    version: int
    plan: str
    objective: str
    name: str
    because: str
    members: tuple[SelectedMember, ...]
    folds: dict[str, Annotated[tuple[int, ...], Field(min_length=1)]]
    candidates: tuple[CandidateScore, ...]
    nnunet_choice: str
    nested: NestedScore | None
    postprocessing: tuple[PostprocessingTrial, ...]
    case_dice: dict[str, dict[str, float | None]]
    runs: dict[str, str]
    notes: tuple[str, ...] = ()
    dataset: str = ""
    maps: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[PostprocessingStep, ...]:
        """The postprocessing that predictions get."""
        return tuple(trial.step for trial in self.postprocessing if trial.is_accepted)

    def is_of(self, plan: Plan) -> bool:
        """Whether the plan still is, for the configurations compared, the one that they were trained with."""
        compared = {run.rsplit("/", 1)[0] for run in self.runs}
        return self.plan == plan_hash(replace(plan, dataset=self.dataset or plan.dataset), compared)


def plan_hash(plan: Plan, configurations: Iterable[str]) -> str:
    """Changes when a plan changes in what concerns the runs of these configurations, and not otherwise."""
    kept = {name: plan.configurations[name] for name in sorted(configurations) if name in plan.configurations}
    data = to_data(replace(plan, configurations=kept, decisions=(), memory_gib=0.0, preset=""))
    del data["orientation"], data["direction"]  # what is turned to it is in the hash of the fingerprint
    if plan.store_type == "float32":  # as in plans from before there was a choice
        del data["store_type"]
    return content_hash(data)
