"""How a network is trained: everything a user may want to change, as plain values in one YAML file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from autoseg.core.configs import find_config, read_yaml
from autoseg.core.errors import RecordFault
from autoseg.core.records import from_data
from autoseg.core.registry import choose
from autoseg.training.schedule import SCHEDULES

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
LR_UPDATES = ("epoch", "step")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A training recipe; values not given are nnU-Net v2's (training/nnUNetTrainer/nnUNetTrainer.py).

    Attributes:
        epochs: validation, history and checkpoints come once per epoch.
        steps_per_epoch: optimizer steps of an epoch.
        validation_steps: batches scored after each epoch.
        optimizer: a key of `OPTIMIZERS`.
        lr: learning rate at the start (after the warm-up).
        momentum: of SGD (with Nesterov's correction), or the first beta of AdamW.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        schedule: a key of `schedule.SCHEDULES`.
        lr_update: whether the learning rate changes every "epoch" or every "step".
        warmup_steps: steps over which the learning rate rises linearly from 0; 0 = none.
        ema_decay: decay per step of the moving average of the weights, which is then validated and used for
            prediction; 0 = no average.
        gradient_clip: largest global norm of the gradient.
        loss: a key of `losses.LOSSES`.
        augmentation: a key of `augmentation.AUGMENTATIONS`.
        oversample_foreground: share of a batch, its last part, that is centered on foreground.
        precision: "auto" (measured at the start), "fp32", "bf16" or "fp16" (CUDA only).
        memory_format: "auto" (measured at the start), "contiguous" or "channels_last".
        compile: whether to try `torch.compile`; without it where that fails.
    """

    epochs: int = 1000
    steps_per_epoch: int = 250
    validation_steps: int = 50
    optimizer: str = "sgd"
    lr: float = 1e-2
    momentum: float = 0.99
    weight_decay: float = 3e-5
    schedule: str = "poly"
    lr_update: str = "epoch"
    warmup_steps: int = 0
    ema_decay: float = 0.0
    gradient_clip: float = 12.0
    loss: str = "dice_ce"
    augmentation: str = "default"
    oversample_foreground: float = 0.33
    precision: str = "auto"
    memory_format: str = "auto"
    compile: bool = False


def load_recipe(name: str, *, epochs: int | None = None, steps: int | None = None) -> Recipe:
    """The recipe shipped under a name or stored in the user's YAML file, with the numbers given on the command line.

    Raises:
        MissingInput: there is no such file.
        UsageError: no recipe, optimizer or schedule of that name.
        RecordFault: with every fault of the file.
    """
    path = find_config(name, "recipes")
    data = read_yaml(path)
    for key in data:
        choose(str(key), _FIELDS, f"setting in {path.name}")
    recipe = from_data(Recipe, {key: _number(key, value) for key, value in data.items()}, str(path))
    recipe = replace(recipe, epochs=epochs or recipe.epochs, steps_per_epoch=steps or recipe.steps_per_epoch)
    check_recipe(recipe, str(path))
    return recipe


def check_recipe(recipe: Recipe, where: str) -> None:
    """Raises RecordFault naming every value that makes no sense, or UsageError for an unknown kind."""
    choose(recipe.optimizer, OPTIMIZERS, "optimizer")
    choose(recipe.schedule, SCHEDULES, "schedule")
    whole = {"epochs": 1, "steps_per_epoch": 1, "validation_steps": 0, "warmup_steps": 0}
    faults = [f"{name} must be at least {least}" for name, least in whole.items() if getattr(recipe, name) < least]
    faults += [f"{name} must be above 0" for name in ("lr", "gradient_clip") if not getattr(recipe, name) > 0]
    fractions = ("momentum", "ema_decay", "oversample_foreground", "weight_decay")
    faults += [f"{name} must lie in [0, 1]" for name in fractions if not 0 <= getattr(recipe, name) <= 1]
    words = {"precision": PRECISIONS, "memory_format": MEMORY_FORMATS, "lr_update": LR_UPDATES}
    faults += [f"{name} must be one of {', '.join(w)}" for name, w in words.items() if getattr(recipe, name) not in w]
    if faults:
        raise RecordFault("not a usable recipe: " + "; ".join(faults), where=where, do="correct the recipe")


def sgd(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum (nnU-Net v2)."""
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )


def adamw(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); `momentum` is the first beta, the second is 0.999."""
    return torch.optim.AdamW(parameters, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Recipe], torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}

_FIELDS = {field.name: field.type for field in fields(Recipe)}


def _number(key: str, value: Any) -> Any:
    """YAML 1.1 reads `1e-3` (without a dot) as text; a setting that is a number accepts it all the same."""
    if isinstance(value, str) and _FIELDS[key] in ("float", float):
        try:
            return float(value)
        except ValueError:
            return value
    return value
