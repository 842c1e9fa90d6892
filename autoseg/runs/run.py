"""A run: one configuration trained on one fold, in a folder that holds everything about it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from autoseg.core.errors import AutoSegError, MissingInput, PlanFault, RecordFault
from autoseg.core.records import load, record
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.networks.weights import generations, weights_hash
from autoseg.planning.plan import Plan
from autoseg.training.recipe import Recipe

RECORD_VERSION = 1

SCORES_FILE = "scores.json"

T = TypeVar("T")

Stage = Literal["new", "started", "done"]

CaseScores = dict[str, dict[str, float | None]]
"""Class -> the scores of `COUNT_METRICS`, and the voxels of prediction and reference."""


@record
class RunRecord:
    """recipe.json: what a run was started with and every decision made then; a resumed run goes on with exactly this.

    Attributes:
        version: of this record.
        configuration: name in the plan.
        fold: number.
        seed: of all random numbers.
        asked: the recipe as named by the user.
        recipe: the recipe in force; a time budget sets its epochs and steps.
        budget_seconds: wall time given for all runs together, or None.
        device: "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16".
        memory_format: "contiguous" or "channels_last".
        threads: of torch on the CPU; results are bit-equal only with equal numbers.
        train: cases trained on.
        val: cases kept back.
        decisions: sentences that say why.
        previous: name of the first stage's label maps that a cascade is trained with; None without one.
    """

    version: int
    configuration: str
    fold: int
    seed: int
    asked: Recipe
    recipe: Recipe
    budget_seconds: float | None
    device: str
    precision: str
    memory_format: str
    threads: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    decisions: tuple[str, ...]
    previous: str | None = None


@record
class RunStatus:
    """state.json: where a run stands.

    Attributes:
        state: "training", "validating" or "done".
        epochs: done.
        epochs_planned: of the whole training.
        seconds: wall time spent so far, interruptions left out.
        ema_dice: smoothed Dice of the validation patches.
        validation: mean Dice of each class over the whole validation cases, None before the end.
        foreground_dice: mean of it over the classes.
        validated_cases: number of cases that the validation covers.
        notes: sentences about what is not as usual.
    """

    state: str
    epochs: int
    epochs_planned: int
    seconds: float
    ema_dice: float | None
    validation: dict[str, float | None] | None = None
    foreground_dice: float | None = None
    validated_cases: int = 0
    notes: tuple[str, ...] = ()

    @property
    def dice(self) -> float | None:
        """Mean over the classes of whole validation cases, or of patches where that is not known yet."""
        return self.ema_dice if self.foreground_dice is None else self.foreground_dice


@record
class FoldScores:
    """validation/scores.json; a score that is undefined (class neither there nor predicted) is null.

    Attributes:
        cases: case -> class -> scores.
        mean: class -> mean over the cases in which the score is defined.
        foreground_mean: mean of `mean` over the classes.
        left_out: validation cases that the time budget left no time for.
        mirror_axes: axes along which the prediction was averaged over mirrored images.
        seconds: of computing each case with one network and writing it; reading and preparing do not count.
    """

    cases: dict[str, CaseScores]
    mean: dict[str, dict[str, float | None]]
    foreground_mean: dict[str, float | None]
    left_out: tuple[str, ...]
    mirror_axes: tuple[int, ...]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """One configuration and fold of a plan, whether it was trained already or not.

    What is known about it stands in its folder and is read when asked for, so that a run is never out of date.

    Attributes:
        configuration: name in the plan.
        fold: number.
        folder: where it is, or will be.
    """

    configuration: str
    fold: int
    folder: RunFolder = field(compare=False)

    @property
    def title(self) -> str:
        """For messages: "3d_fullres fold 0"."""
        return f"{self.configuration} fold {self.fold}"

    @property
    def key(self) -> str:
        """For records: "3d_fullres/fold_0"."""
        return f"{self.configuration}/fold_{self.fold}"

    @property
    def status(self) -> RunStatus | None:
        """Where it stands; None if it did not get so far, or the file is damaged."""
        return _read(RunStatus, self.folder.state)

    @property
    def is_done(self) -> bool:
        """Whether it is trained and validated."""
        return self.stage == "done"

    @property
    def stage(self) -> Stage:
        """Whether it has begun, and whether it is done."""
        if not self.folder.recipe.exists():
            return "new"
        status = self.status
        return "done" if status is not None and status.state == "done" else "started"

    @property
    def is_trained(self) -> bool:
        """Whether it has weights to predict with, finished or not."""
        return bool(generations(self.folder.checkpoint))

    @property
    def weights_hash(self) -> str:
        """Changes whenever the run is trained again."""
        return weights_hash(self.folder.checkpoint)

    def record(self) -> RunRecord:
        """What it was started with.

        Raises:
            MissingInput: it has not begun.
            RecordFault: recipe.json is damaged.
        """
        return load(RunRecord, self.folder.recipe)

    def plan(self) -> Plan:
        """The plan it was started with.

        Raises:
            MissingInput: it has not begun.
            RecordFault: plan.json is damaged.
        """
        return load(Plan, self.folder.plan)

    @property
    def scores(self) -> FoldScores | None:
        """Of its validation cases; empty if no case was kept back, None if it was not validated yet."""
        scores = _read(FoldScores, self.folder.validation / SCORES_FILE)
        if scores is None:
            record = _read(RunRecord, self.folder.recipe)
            return FoldScores({}, {}, {}, (), ()) if record is not None and not record.val else None
        return scores


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a run.

    Attributes:
        run: that was tried.
        state: "done", "failed", "interrupted" or "busy" (another process trains it).
        error: what stopped it.
    """

    run: Run
    state: Literal["done", "failed", "interrupted", "busy"]
    error: AutoSegError | None = None


Runs = dict[str, dict[int, Run]]
"""Configuration -> fold -> run."""


def trained_runs(workspace: Workspace) -> Runs:
    """All runs of a work folder that have weights, by configuration and fold."""
    found: Runs = {}
    for configuration, fold, folder in workspace.run_folders():
        run = Run(configuration, fold, folder)
        if run.is_trained:
            found.setdefault(configuration, {})[fold] = run
    return found


def check_same_plan(run: Run, plan: Plan) -> None:
    """Raises PlanFault if a run was started with another plan, as far as it concerns the run."""
    before, configuration = run.plan(), plan.configurations[run.configuration]
    own = before.configurations.get(run.configuration)
    # What is turned to the orientation is in the fingerprint; plans of old runs know of none, and turned nothing.
    apart: dict[str, Any] = {
        "configurations": {},
        "decisions": (),
        "memory_gib": 0.0,
        "preset": "",
        "orientation": None,
    }
    now, then = replace(plan, **apart), replace(before, **apart)
    changed = [*_changed_fields(then, now), *_changed_fields(own, configuration)]
    if changed:
        raise PlanFault(
            f"this run was started with another plan (different: {', '.join(changed)})",
            where=str(run.folder.root),
            why="the plan or the data changed since",
            do="train with --fresh to discard the run, or plan again with the former options",
        )


def differing(asked: Recipe, recorded: Recipe) -> list[str]:
    """What was asked for now and at the start of a run, setting by setting ("epochs: 5 at the start, 10 now")."""
    return [
        f"{name}: {getattr(recorded, name)} at the start, {getattr(asked, name)} now"
        for name in _changed_fields(recorded, asked)
    ]


def _changed_fields(then: Any, now: Any) -> list[str]:
    return [own.name for own in fields(now) if getattr(then, own.name, None) != getattr(now, own.name)]


def _read(kind: type[T], path: Path) -> T | None:
    try:
        return load(kind, path)
    except (MissingInput, RecordFault):
        return None
