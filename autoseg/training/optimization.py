"""Optimizers, and the learning rate as a function of how far the training is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from autoseg.training.recipe import Recipe  # which resolves the names of what stands here

POLY_POWER = 0.9
"""Exponent of the polynomial decay (nnU-Net v2, training/lr_scheduler/polylr.py)."""


@dataclass(frozen=True, slots=True)
class ScheduleSegment:
    """The part of the schedule from a step to the end of the training, along which progress grows evenly.

    Without a time budget there is one segment, from step 0 to the last. Under a budget the end moves as the pace
    becomes known; a new segment then begins at the present step with the progress made, so that the learning rate never
    jumps: it only falls faster or more slowly from there on.

    Attributes:
        step: where the segment begins.
        progress: progress at `step`, in [0, 1].
        end: number of steps of the whole training.
    """

    step: int
    progress: float
    end: int

    def at(self, step: int) -> float:
        """Progress in [0, 1] at a step of this segment."""
        if self.end <= self.step:
            return 1.0
        return min(1.0, self.progress + (1.0 - self.progress) * (step - self.step) / (self.end - self.step))

    def moved(self, step: int, end: int) -> ScheduleSegment:
        """The segment that begins at `step` with the progress made and ends at `end`."""
        return ScheduleSegment(step, self.at(step), end)


def poly(progress: float) -> float:
    """Polynomial decay to 0."""
    return float((1.0 - progress) ** POLY_POWER)


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"poly": poly, "cosine": cosine}
"""Progress in [0, 1] -> factor of the learning rate."""


def warmup(step: int, steps: int) -> float:
    """Factor that rises linearly to 1 over the first `steps` steps."""
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


def sgd(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum (nnU-Net v2)."""
    parameters = list(parameters)
    options = _options(parameters, recipe)
    has_momentum = recipe.momentum > 0
    optimizer = torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=has_momentum, **options)
    if skips_on_device(optimizer) and has_momentum:
        # The fused kernel allocates momentum in the first step and leaves it as it is where that step is skipped.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adamw(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); `momentum` is the first beta, the second is 0.999."""
    parameters = list(parameters)
    options = _options(parameters, recipe)
    return torch.optim.AdamW(parameters, betas=(recipe.momentum, 0.999), **options)


def _options(parameters: Sequence[nn.Parameter], recipe: Recipe) -> dict[str, Any]:
    """Rate and decay; on a GPU one kernel for all parameters, which reads its rate there."""
    decay = {"weight_decay": recipe.weight_decay}
    if not parameters[0].is_cuda:
        return {"lr": recipe.lr, **decay}
    return {"lr": torch.tensor(recipe.lr, device=parameters[0].device), "fused": True, **decay}


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its kernels read there whether the step is to be skipped (`found_inf`), so that the host need not."""
    return all(group.get("fused") for group in optimizer.param_groups)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of the next step; one that lies on the device is changed there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Recipe], torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}
"""Kinds of optimizers by the name used in recipes."""
