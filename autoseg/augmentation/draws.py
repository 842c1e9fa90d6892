"""Random numbers from an explicit CPU generator: the same on every device, and exactly repeatable."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field

_SEEDS = 2**62


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= limits[0] <= limits[1]:
        raise ValueError("expected two numbers from 0 on, the smaller one first")
    return limits


Probability = Annotated[float, Field(ge=0, le=1)]
Limits = Annotated[tuple[float, float], AfterValidator(_ascending)]
"""Numbers are drawn from [first, second)."""


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """A number drawn evenly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def happens(generator: torch.Generator, probability: float) -> bool:
    """True with the given probability."""
    return uniform(generator, 0.0, 1.0) < probability


def around_one(generator: torch.Generator, low: float, high: float) -> float:
    """With equal probability evenly from [low, 1) or from [1, high).

    Source: nnU-Net v2's augmentation package, `BGContrast`.
    """
    return uniform(generator, low, 1.0) if happens(generator, 0.5) else uniform(generator, 1.0, high)


def draw_factors(
    generator: torch.Generator, probability: float, limits: tuple[float, float], channels: int
) -> tuple[float, ...] | None:
    """One number `around_one` per channel, or with the remaining probability None."""
    if not happens(generator, probability):
        return None
    return tuple(around_one(generator, *limits) for _ in range(channels))


def seed(generator: torch.Generator) -> int:
    """A seed for a second generator, one that makes many numbers on another device."""
    return int(torch.randint(_SEEDS, (), generator=generator).item())
