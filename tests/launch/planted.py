"""Faults of convolutions, planted below everything that computes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional


def is_half() -> bool:
    return torch.is_autocast_enabled("cpu")


def is_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous()


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Tensor, Tensor], Tensor]) -> list[int]:
    """Lets `fault` (result, weight) happen to every 3D convolution; returns the count of convolutions."""
    true, calls = functional.conv3d, [0]

    def conv3d(image: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        calls[0] += 1
        return fault(true(image, weight, *rest), weight)

    monkeypatch.setattr(functional, "conv3d", conv3d)
    return calls
