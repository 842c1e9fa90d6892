"""The learning rate as a function of how far the training is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

POLY_POWER = 0.9
"""Exponent of the polynomial decay (nnU-Net v2, training/lr_scheduler/polylr.py)."""


@dataclass(frozen=True, slots=True)
class Horizon:
    """From which step and progress the training runs evenly to its end.

    It changes only under a time budget: when the end moves, the progress made stays what it is, so that the learning
    rate never jumps.

    Attributes:
        step: where this stretch begins.
        progress: progress at `step`, in [0, 1].
        end: number of steps of the whole training.
    """

    step: int
    progress: float
    end: int

    def at(self, step: int) -> float:
        """Progress in [0, 1] at a step of this stretch."""
        if self.end <= self.step:
            return 1.0
        return min(1.0, self.progress + (1.0 - self.progress) * (step - self.step) / (self.end - self.step))

    def moved(self, step: int, end: int) -> Horizon:
        """The stretch that begins at `step` with the progress made and ends at `end`."""
        return Horizon(step, self.at(step), end)


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
