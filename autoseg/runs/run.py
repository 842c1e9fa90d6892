"""A run: one configuration trained on one fold, in a folder that holds everything about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from autoseg.core.errors import AutoSegError, IntegrityRefusal, MissingInput, PlanFault, RecordFault, UsageError
from autoseg.core.limits import Name
from autoseg.core.records import load, record
from autoseg.core.workspace import RunFolder, Workspace
from autoseg.data.changes import changed_data, listed_changes
from autoseg.images.formats.files import is_as_written
from autoseg.networks.weights import fault_of, generations, weights_hash
from autoseg.planning.plan import Plan
from autoseg.training.recipe import PAST_TRAINING, Recipe
from autoseg.training.splits import Fold

RECORD_VERSION = 1

SCORES_FILE = "scores.json"

T = TypeVar("T")

Stage = Literal["new", "started", "done"]

DeviceKind = Annotated[str, Field(pattern="^(cpu|cuda|mps)$")]
Precision = Annotated[str, Field(pattern="^(fp32|bf16|fp16)$")]
MemoryFormat = Annotated[str, Field(pattern="^(contiguous|channels_last)$")]
"""What networks were trained with, in a record."""

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
        contents: case -> hash of its files; earlier versions did not note it.
    """

    version: int
    configuration: Name
    fold: int
    seed: int
    asked: Recipe
    recipe: Recipe
    budget_seconds: float | None
    device: DeviceKind
    precision: Precision
    memory_format: MemoryFormat
    threads: int
    train: tuple[Name, ...]
    val: tuple[Name, ...]
    decisions: tuple[str, ...]
    previous: str | None = None
    contents: dict[str, str] = field(default_factory=dict)


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
        weights: hash of the final weights; empty before the end, and earlier versions did not note it.
        history: SHA-256 of history.jsonl; likewise.
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
    weights: str = ""
    history: str = ""

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
        weights: hash of the weights that predicted; earlier versions did not note it.
        maps: SHA-256 of the label maps by file name; earlier versions did not note it.
        probabilities: SHA-256 of the kept probabilities by file name, which may be deleted; likewise.
    """

    cases: dict[str, CaseScores]
    mean: dict[str, dict[str, float | None]]
    foreground_mean: dict[str, float | None]
    left_out: tuple[str, ...]
    mirror_axes: tuple[int, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    maps: dict[str, str] = field(default_factory=dict)
    probabilities: dict[str, str] = field(default_factory=dict)


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
    def is_unclear(self) -> bool:
        """Whether state.json is there, but damaged or changed, so that nobody knows how far it is."""
        return self.status is None and self.folder.state.exists()

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

    @property
    def name_fault(self) -> str | None:
        """Which other run it is by its recipe.json, as half a sentence; None if it is what its folder is called."""
        record = _read(RunRecord, self.folder.recipe, PAST_TRAINING)
        if record is None or (record.configuration, record.fold) == (self.configuration, self.fold):
            return None
        return f"is {record.configuration} fold {record.fold} by its recipe.json: its folder was renamed or copied"

    @property
    def weights_fault(self) -> str | None:
        """Why its weights are not those that its training made, or ended with if it is done, as half a sentence."""
        status = self.status
        if (misplaced := self.name_fault) is not None:
            return misplaced
        if status is None or status.state != "done":
            from autoseg.training.checkpoint import foreign_fault

            return foreign_fault(self.folder.checkpoint, self.folder.recipe)
        try:
            is_final = self.weights_hash == status.weights if status.weights else self._has_newest_generation
        except AutoSegError as error:
            return f"has no weights any more: {error.what}"
        return None if is_final else "has lost its last checkpoint, or it is damaged"

    @property
    def fault(self) -> str | None:
        """What of a finished run is not what its training and validation left, as half a sentence; None if all is."""
        status, scores, weights = self.status, self.scores, self.weights_fault
        if weights is not None or status is None or status.state != "done":
            return weights
        if scores is None:
            return "has no validation scores any more, or they are damaged"
        if scores.weights not in ("", status.weights):
            return "has validation scores of other weights"
        folder = self.folder.validation
        changed = [name for name, own in scores.maps.items() if not is_as_written(folder / name, own)]
        return f"has another label map {changed[0]} than its validation wrote" if changed else None

    @property
    def _has_newest_generation(self) -> bool:
        return (found := generations(self.folder.checkpoint)) != [] and fault_of(found[-1]) is None

    def record(self) -> RunRecord:
        """What it was started with.

        Raises:
            MissingInput: it has not begun.
            RecordFault: recipe.json is damaged.
        """
        return _read_start(RunRecord, self.folder.recipe, PAST_TRAINING)

    def plan(self) -> Plan:
        """The plan it was started with.

        Raises:
            MissingInput: it has not begun.
            RecordFault: plan.json is damaged.
        """
        return _read_start(Plan, self.folder.plan)

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


def check_same_plan(run: Run, plan: Plan, contents: Mapping[str, str]) -> None:
    """Refuses a run that was started with another plan, as far as it concerns the run, or with other data.

    Args:
        run: that has begun.
        plan: of now. The name of its dataset is no decision.
        contents: case -> hash of its files now, as the fingerprint has it.

    Raises:
        PlanFault: with what is different.
        IntegrityRefusal: it is another run than its folder says.
    """
    if fault := run.name_fault:
        raise damaged_run(run, fault)
    before, configuration, known = run.plan(), plan.configurations[run.configuration], run.record().contents
    own = before.configurations.get(run.configuration)
    if data := changed_data(known, contents):  # first, as much of a plan follows from the data
        raise PlanFault(
            f"{run.title} was started with other data ({'; '.join(listed_changes(data))})",
            where=str(run.folder.root),
            why="what it learned, and its scores, are of the former files",
            do="train with --fresh to discard the run, or restore the files and plan again",
        )
    then, now = (_compared(one, by_case=bool(known)) for one in (before, plan))
    if changed := [*_changed_fields(then, now), *_changed_fields(own, configuration)]:
        raise PlanFault(
            f"this run was started with another plan (different: {', '.join(changed)})",
            where=str(run.folder.root),
            why="the plan or the data changed since",
            do="train with --fresh to discard the run, or plan again with the former options",
        )


def _compared(plan: Plan, *, by_case: bool) -> Plan:
    """What of a plan concerns every run.

    Args:
        plan: of a run, or of now.
        by_case: whether the run knows the hash of each of its cases. Else the fingerprint of all of them stands for
            what they are, and for how they are turned: the plan of such a run knows of no orientation.
    """
    apart: dict[str, Any] = {"fingerprint": ""} if by_case else {"orientation": None, "direction": None}
    return replace(plan, dataset="-", preset="", memory_gib=0.0, configurations={}, decisions=(), **apart)


def damaged_run(run: Run, fault: str) -> IntegrityRefusal:
    """The error that refuses a run of which something is not what it left."""
    return IntegrityRefusal(
        f"{run.title} {'is done and ' * run.is_done}{fault}",
        where=str(run.folder.root),
        why="what it predicts, and its scores, would not belong together",
        do="run autoseg train again, which goes on from what is intact, or restore the files",
    )


def check_same_cases(run: Run, fold: Fold) -> None:
    """Refuses a run that was trained with other folds; cases that could not be prepared may be missing in it.

    Raises:
        UsageError: a case is in none of the fold's lists, or on the other side.
    """
    record = run.record()
    if not (set(record.train) <= set(fold.train) and set(record.val) <= set(fold.val)):
        raise UsageError(
            f"{run.title} was trained with other cases in this fold",
            where=str(run.folder.root),
            why="the dataset or its folds changed since",
            do="restore the former folds, or train with --fresh to discard the run",
        )


def differing(asked: Recipe, seed: int, record: RunRecord) -> list[str]:
    """What was asked for now and at the start of a run, setting by setting ("epochs: 5 at the start, 10 now")."""
    then = record.asked
    both = [(name, getattr(then, name), getattr(asked, name)) for name in _changed_fields(then, asked)]
    both += [("seed", record.seed, seed)] * (seed != record.seed)
    return [f"{name}: {own} at the start, {now} now" for name, own, now in both]


def _changed_fields(then: Any, now: Any) -> list[str]:
    return [own.name for own in fields(now) if getattr(then, own.name, None) != getattr(now, own.name)]


def _read_start(kind: type[T], path: Path, context: object = None) -> T:
    """A record that is written once, when a run begins; no command writes it again."""
    try:
        return load(kind, path, context)
    except (MissingInput, RecordFault) as error:
        error.do = "restore the file, or train with --fresh to discard the run"
        raise


def _read(kind: type[T], path: Path, context: object = None) -> T | None:
    try:
        return load(kind, path, context)
    except (MissingInput, RecordFault):
        return None
