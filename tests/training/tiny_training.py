"""A network, cases and a run so small that a training takes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoseg.data.model import LabelSet
from autoseg.networks.kinds.unet import PlainUNet
from autoseg.training.batches import Prefetcher
from autoseg.training.checkpoint import has_checkpoint, restore, save_checkpoint
from autoseg.training.loop import Callback, EpochResult, fit
from autoseg.training.losses import make_objective
from autoseg.training.recipe import Recipe
from autoseg.training.sampling import Batch, Sampling
from autoseg.training.step import Compute, TrainingState, start_state, train_step
from autoseg.training.validation import score_patches

LABELS = LabelSet(classes={"background": (0,), "cell": (1,), "core": (2,)}, file_values=(0, 1, 2))
SPEC = PlainUNet(3, (4, 8), ((3,) * 3,) * 2, ((1,) * 3, (2,) * 3), (1, 1), (1,))
PATCH = (8, 8, 8)
COMPUTE = Compute(torch.device("cpu"))
RECIPE = Recipe(epochs=3, steps_per_epoch=4, validation_steps=2, momentum=0.9, ema_decay=0.9, lr_update="step")


@dataclass
class TinyCase:
    identifier: str
    image: Any
    labels: Any
    locations: dict[int, Any]
    first_stage: Any = None


def make_case(seed: int, shape: tuple[int, ...] = (10, 12, 9)) -> TinyCase:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, shape).astype(np.int8)
    image = (labels + generator.normal(0, 0.3, shape)).astype(np.float32)[None]
    locations = {value: np.argwhere(labels == value) for value in (1, 2)}
    return TinyCase(f"case_{seed}", image, labels, locations)


loss = make_objective("dice_ce", LABELS, False)
CASES = {case.identifier: case for case in (make_case(seed) for seed in range(4))}


def sampling(stream: int = 0, cases: dict[str, TinyCase] | None = None, **changes: Any) -> Sampling:
    chosen = CASES if cases is None else cases
    made = Sampling(tuple(sorted(chosen)), chosen.__getitem__, PATCH, PATCH, 2, 0.33, (0, 0, stream))
    return replace(made, **changes)


def on_device(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(batch.image), torch.from_numpy(batch.labels).clamp(min=0)


def fresh_state(recipe: Recipe = RECIPE) -> TrainingState:
    torch.manual_seed(0)
    return start_state(SPEC.build(1, 3), recipe, COMPUTE, 3)


class Calls(Callback):
    """A callback made of functions."""

    def __init__(
        self,
        after_step: Callable[[TrainingState], object] = lambda _state: None,
        after_epoch: Callable[[EpochResult, TrainingState], object] = lambda _result, _state: None,
    ) -> None:
        self._after_step, self._after_epoch = after_step, after_epoch

    def after_step(self, state: TrainingState) -> None:
        self._after_step(state)

    def after_epoch(self, result: EpochResult, state: TrainingState) -> None:
        self._after_epoch(result, state)


def train(
    state: TrainingState,
    recipe: Recipe = RECIPE,
    *,
    threads: int = 0,
    callbacks: tuple[Callback, ...] = (),
) -> TrainingState:
    def take_step(now: TrainingState, batch: Batch) -> tuple[torch.Tensor, tuple[str, ...]]:
        return train_step(now, *on_device(batch), loss, recipe, COMPUTE), batch.cases

    def validate(now: TrainingState) -> Any:
        start = now.epoch * recipe.validation_steps
        batches = (on_device(sampling(1)(start + i)) for i in range(recipe.validation_steps))
        return score_patches(now, batches, loss, COMPUTE, LABELS)

    with Prefetcher(sampling(), state.step, threads) as batches:
        fit(state, batches, take_step, validate, callbacks)
    return state


def train_in_folder(folder: Path, recipe: Recipe = RECIPE, **options: Any) -> TrainingState:
    state = fresh_state(recipe)
    if has_checkpoint(folder):
        restore(state, folder)
    return train(
        state, recipe, callbacks=(Calls(after_epoch=lambda _result, now: save_checkpoint(now, folder)),), **options
    )


def same_weights(one: TrainingState, other: TrainingState) -> bool:
    pairs = [(one.network, other.network)] + ([(one.averaged, other.averaged)] if one.averaged else [])
    return all(
        torch.equal(a, b)
        for first, second in pairs
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
