"""What a run was started with and every decision made then: the run folder's recipe.json and state.json."""

from __future__ import annotations

from dataclasses import dataclass, fields

from autoseg.training.recipe import Recipe

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunRecord:
    """recipe.json: a resumed run goes on with exactly this.

    Attributes:
        version: of this record.
        configuration: name in the plan.
        fold: number.
        seed: of all random numbers.
        asked: the recipe as named by the user.
        recipe: the recipe in force; a time budget sets its epochs and steps.
        budget_seconds: wall time given for the run, or None.
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


@dataclass(frozen=True, slots=True)
class RunStatus:
    """state.json: where a run stands.

    Attributes:
        state: "training", "validating" or "done".
        epochs: done.
        epochs_planned: of the whole training.
        seconds: wall time spent so far, all sittings.
        ema_dice: smoothed online Dice of the patches.
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


def differing(asked: Recipe, recorded: Recipe) -> list[str]:
    """What was asked for now and at the start of a run, setting by setting ("epochs: 5 at the start, 10 now")."""
    names = [field.name for field in fields(Recipe)]
    pairs = [(name, getattr(recorded, name), getattr(asked, name)) for name in names]
    return [f"{name}: {then} at the start, {now} now" for name, then, now in pairs if then != now]
