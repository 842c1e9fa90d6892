"""The building blocks of every U-Net: convolution, instance normalization, leaky ReLU, and the residual block."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from autoseg.networks.channels_last_ops import norm_and_leaky_relu

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
AVERAGE_POOLS: dict[int, type[nn.AvgPool2d] | type[nn.AvgPool3d]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}

NEGATIVE_SLOPE = 0.01
"""Slope of the leaky ReLU below zero (nnU-Net v2; PyTorch's default)."""

NORM_EPSILON = 1e-5
"""Added to the variance before the square root (nnU-Net v2)."""


NO_ACTIVATION = 1.0
"""Slope of a leaky ReLU that changes nothing."""


class InstanceNorm(nn.Module):
    """Normalizes every channel of every sample over its voxels, scales, shifts and activates it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor, slope: float) -> Tensor:
        """Same shape, dtype and memory format, negative values times `slope`; a single voxel becomes the bias."""
        return norm_and_leaky_relu(features, self.weight, self.bias, NORM_EPSILON, slope)


class ConvBlock(nn.Module):
    """Convolution that keeps the size (but for its stride), instance normalization and, unless left out, leaky ReLU."""

    def __init__(
        self,
        dimensions: int,
        channels: tuple[int, int],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        *,
        has_bias: bool = True,
        is_activated: bool = True,
    ) -> None:
        super().__init__()
        padding = tuple((size - 1) // 2 for size in kernel)
        convolution = CONVOLUTIONS[dimensions]
        self.conv = convolution(*channels, kernel, stride, padding, bias=has_bias)  # type: ignore[arg-type]
        self.norm = InstanceNorm(channels[1])
        self.slope = NEGATIVE_SLOPE if is_activated else NO_ACTIVATION

    def forward(self, features: Tensor) -> Tensor:
        """Features (b, out channels, *shape / stride)."""
        return cast(Tensor, self.norm(self.conv(features), self.slope))


class StackedConvs(nn.Module):
    """Convolution blocks one after the other; only the first changes channels and carries the stride."""

    def __init__(
        self, count: int, dimensions: int, channels: tuple[int, int], kernel: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.convs = _in_a_row(ConvBlock, count, dimensions, channels, kernel, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Features (b, out channels, *shape / stride)."""
        return cast(Tensor, self.convs(features))


class ResidualBlock(nn.Module):
    """Two convolutions added to their input, which is average-pooled and projected where size or channels change.

    Source: He et al. 2016, variant D of He et al. 2019 (pooling before the projection),
    as in nnU-Net's residual encoder.
    """

    def __init__(
        self, dimensions: int, channels: tuple[int, int], kernel: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        still = (1,) * dimensions
        self.conv1 = ConvBlock(dimensions, channels, kernel, stride)
        self.conv2 = ConvBlock(dimensions, (channels[1], channels[1]), kernel, still, is_activated=False)
        path: list[nn.Module] = []
        if any(step != 1 for step in stride):
            path.append(AVERAGE_POOLS[dimensions](stride, stride))  # type: ignore[arg-type]
        if channels[0] != channels[1]:
            path.append(ConvBlock(dimensions, channels, still, still, has_bias=False, is_activated=False))
        self.skip = nn.Sequential(*path)

    def forward(self, features: Tensor) -> Tensor:
        """Features (b, out channels, *shape / stride)."""
        change = self.conv2(self.conv1(features))
        return nn.functional.leaky_relu(change + self.skip(features), NEGATIVE_SLOPE, inplace=True)


class StackedResidualBlocks(nn.Module):
    """Residual blocks one after the other; only the first changes channels and carries the stride."""

    def __init__(
        self, count: int, dimensions: int, channels: tuple[int, int], kernel: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.blocks = _in_a_row(ResidualBlock, count, dimensions, channels, kernel, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Features (b, out channels, *shape / stride)."""
        return cast(Tensor, self.blocks(features))


def _in_a_row(
    block: type[ConvBlock] | type[ResidualBlock],
    count: int,
    dimensions: int,
    channels: tuple[int, int],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
) -> nn.Sequential:
    first = block(dimensions, channels, kernel, stride)
    rest = [block(dimensions, (channels[1], channels[1]), kernel, (1,) * dimensions) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)
