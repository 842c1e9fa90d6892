"""Instance normalization and leaky ReLU in two passes over channels-last tensors on a CUDA GPU, as Triton kernels.

PyTorch's instance normalization copies a channels-last tensor into another order and back, and its kernels read one
channel at a time: training a U-Net of 128 x 128 x 128 voxels spends more time there than in convolutions
(docs/benchmarks.md). Every kernel here reads voxels with all their channels, as they lie in memory, sums in float32,
and combines the sums of parts without cancellation (Chan, Golub, LeVeque 1983), always in the same order.

The kernels see a tensor as samples x voxels x channels. Partial results are (samples, parts, 2, channels): mean and sum
of squared deviations forward, the sums of g and of g times the normalized features backward, g being the gradient
before the leaky ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 8192
"""Numbers that a program holds at a time: 16 KiB of half precision, within the registers of a multiprocessor."""

MOST_CHANNELS_OF_TILE = 64

PROGRAMS = 1024
"""Programs that share a reduction: about eight for each multiprocessor of a large GPU."""

MOST_PARTS = 256
"""Parts of a sample that are summed apart; one program combines them."""

CHANNELS_COMBINED = 16


@dataclass(frozen=True)
class _Tiling:
    """How the numbers of a tensor are shared out.

    Attributes:
        samples, voxels, channels: of the tensor.
        width: channels of a tile, a power of two.
        height: voxels of a tile.
        parts: of a sample, for sums.
        part: voxels of a part; the last one may have fewer.
    """

    samples: int
    voxels: int
    channels: int
    width: int
    height: int
    parts: int
    part: int

    @property
    def tiles_of_channels(self) -> int:
        """Tiles side by side."""
        return int(triton.cdiv(self.channels, self.width))

    @property
    def sum_grid(self) -> tuple[int, int, int]:
        """Programs that sum: parts x samples x tiles of channels; only the first axis may exceed 65,535."""
        return self.parts, self.samples, self.tiles_of_channels

    @property
    def apply_grid(self) -> tuple[int, int, int]:
        """Programs that apply: tiles of voxels x samples x tiles of channels."""
        return int(triton.cdiv(self.voxels, self.height)), self.samples, self.tiles_of_channels

    @property
    def combine_grid(self) -> tuple[int, int]:
        """Programs that combine parts: samples x groups of channels."""
        return self.samples, int(triton.cdiv(self.channels, CHANNELS_COMBINED))


def _tiling(features: Tensor) -> _Tiling:
    samples, channels = features.shape[:2]
    voxels = features[0, 0].numel()
    width = min(MOST_CHANNELS_OF_TILE, int(triton.next_power_of_2(channels)))
    height = TILE // width
    wanted = triton.cdiv(PROGRAMS, samples * triton.cdiv(channels, width))
    part = triton.cdiv(voxels, min(MOST_PARTS, triton.cdiv(voxels, height), wanted))
    return _Tiling(samples, voxels, channels, width, height, int(triton.cdiv(voxels, part)), int(part))


@triton.jit
def _sum_forward(
    features, partial, voxels, channels, part, STEPS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """Mean and sum of squared deviations of a part."""
    parts, number, sample = tl.num_programs(0), tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    begin = number * part
    end = tl.minimum(begin + part, voxels)
    first = features + sample.to(tl.int64) * voxels * channels
    mean = tl.zeros([WIDTH], tl.float32)
    squares = tl.zeros([WIDTH], tl.float32)
    count = 0.0
    for step in range(STEPS):
        v = begin + step * HEIGHT + tl.arange(0, HEIGHT)
        is_there = (v < end)[:, None] & (c < channels)[None, :]
        place = v[:, None].to(tl.int64) * channels + c[None, :]
        value = tl.load(first + place, mask=is_there, other=0.0).to(tl.float32)
        added = tl.maximum(tl.minimum(HEIGHT, end - begin - step * HEIGHT), 0).to(tl.float32)
        own_mean = tl.sum(value, 0) / tl.maximum(added, 1.0)
        deviation = tl.where(is_there, value - own_mean[None, :], 0.0)
        total = tl.maximum(count + added, 1.0)
        shift = own_mean - mean
        mean += shift * (added / total)
        squares += tl.sum(deviation * deviation, 0) + shift * shift * (count * added / total)
        count += added
    out = partial + (sample * parts + number) * 2 * channels
    tl.store(out + c, mean, mask=c < channels)
    tl.store(out + channels + c, squares, mask=c < channels)


@triton.jit
def _combine(partial, statistics, voxels, channels, part, parts, epsilon, MOST: tl.constexpr, WIDTH: tl.constexpr):
    """Mean and inverse standard deviation of a sample from those of its parts."""
    sample = tl.program_id(0)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    number = tl.arange(0, MOST)
    is_there = (number < parts)[:, None] & (c < channels)[None, :]
    place = partial + (sample * parts + number[:, None]) * 2 * channels + c[None, :]
    means = tl.load(place, mask=is_there, other=0.0)
    squares = tl.load(place + channels, mask=is_there, other=0.0)
    counts = tl.minimum(part, tl.maximum(voxels - number * part, 0)).to(tl.float32)[:, None]
    mean = tl.sum(means * counts, 0) / voxels
    shift = tl.where(is_there, means - mean[None, :], 0.0)
    variance = (tl.sum(squares, 0) + tl.sum(shift * shift * counts, 0)) / voxels
    out = statistics + sample * 2 * channels
    tl.store(out + c, mean, mask=c < channels)
    tl.store(out + channels + c, 1.0 / tl.sqrt(variance + epsilon), mask=c < channels)


@triton.jit
def _apply_forward(
    features, output, statistics, weight, bias, voxels, channels, slope, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """Normalizes, scales, shifts and activates a tile."""
    sample = tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    v = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    is_there = (v < voxels)[:, None] & (c < channels)[None, :]
    mean = tl.load(statistics + sample * 2 * channels + c, mask=c < channels, other=0.0)
    inverse = tl.load(statistics + (sample * 2 + 1) * channels + c, mask=c < channels, other=0.0)
    scale = tl.load(weight + c, mask=c < channels, other=0.0) * inverse
    shift = tl.load(bias + c, mask=c < channels, other=0.0) - mean * scale
    place = (sample.to(tl.int64) * voxels + v[:, None]) * channels + c[None, :]
    value = tl.load(features + place, mask=is_there, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    tl.store(output + place, tl.where(value > 0, value, value * slope).to(output.dtype.element_ty), mask=is_there)


@triton.jit
def _before_activation(features, gradient, statistics, weight, bias, sample, place, is_there, c, channels, slope):
    """Normalized features of a tile, and the gradient before the leaky ReLU, in float32."""
    mean = tl.load(statistics + sample * 2 * channels + c, mask=c < channels, other=0.0)
    inverse = tl.load(statistics + (sample * 2 + 1) * channels + c, mask=c < channels, other=0.0)
    scale = tl.load(weight + c, mask=c < channels, other=0.0)
    shift = tl.load(bias + c, mask=c < channels, other=0.0)
    value = tl.load(features + place, mask=is_there, other=0.0).to(tl.float32)
    g = tl.load(gradient + place, mask=is_there, other=0.0).to(tl.float32)
    normalized = tl.where(is_there, (value - mean[None, :]) * inverse[None, :], 0.0)
    g = tl.where(normalized * scale[None, :] + shift[None, :] > 0, g, g * slope)
    return normalized, g, scale * inverse


@triton.jit
def _sum_backward(
    features, gradient, partial, statistics, weight, bias, voxels, channels, part, slope,
    STEPS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient, and of it times the normalized features, of a part."""
    parts, number, sample = tl.num_programs(0), tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    begin = number * part
    end = tl.minimum(begin + part, voxels)
    plain = tl.zeros([WIDTH], tl.float32)
    weighted = tl.zeros([WIDTH], tl.float32)
    for step in range(STEPS):
        v = begin + step * HEIGHT + tl.arange(0, HEIGHT)
        is_there = (v < end)[:, None] & (c < channels)[None, :]
        place = (sample.to(tl.int64) * voxels + v[:, None]) * channels + c[None, :]
        normalized, g, _ = _before_activation(
            features, gradient, statistics, weight, bias, sample, place, is_there, c, channels, slope
        )
        plain += tl.sum(g, 0)
        weighted += tl.sum(g * normalized, 0)
    out = partial + (sample * parts + number) * 2 * channels
    tl.store(out + c, plain, mask=c < channels)
    tl.store(out + channels + c, weighted, mask=c < channels)


@triton.jit
def _apply_backward(
    features, gradient, output, statistics, sums, weight, bias, voxels, channels, slope,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of the features of a tile."""
    sample = tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    v = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    is_there = (v < voxels)[:, None] & (c < channels)[None, :]
    place = (sample.to(tl.int64) * voxels + v[:, None]) * channels + c[None, :]
    normalized, g, scale = _before_activation(
        features, gradient, statistics, weight, bias, sample, place, is_there, c, channels, slope
    )
    plain = tl.load(sums + sample * 2 * channels + c, mask=c < channels, other=0.0) / voxels
    weighted = tl.load(sums + (sample * 2 + 1) * channels + c, mask=c < channels, other=0.0) / voxels
    change = (g - plain[None, :] - normalized * weighted[None, :]) * scale[None, :]
    tl.store(output + place, change.to(output.dtype.element_ty), mask=is_there)


class _NormAndLeakyReLU(torch.autograd.Function):
    """Keeps the features and two numbers per channel for the way back, not the normalized features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, epsilon: float, slope: float) -> Tensor:
        tiling = _tiling(features)
        sizes = (tiling.voxels, tiling.channels)
        tile = {"HEIGHT": tiling.height, "WIDTH": tiling.width}
        partial = features.new_empty((tiling.samples, tiling.parts, 2, tiling.channels), dtype=torch.float32)
        statistics = features.new_empty((tiling.samples, 2, tiling.channels), dtype=torch.float32)
        output = torch.empty_like(features)
        steps, most = triton.cdiv(tiling.part, tiling.height), triton.next_power_of_2(tiling.parts)
        with torch.cuda.device_of(features):
            _sum_forward[tiling.sum_grid](features, partial, *sizes, tiling.part, STEPS=steps, **tile)
            _combine[tiling.combine_grid](
                partial, statistics, *sizes, tiling.part, tiling.parts, epsilon, MOST=most, WIDTH=CHANNELS_COMBINED
            )
            _apply_forward[tiling.apply_grid](features, output, statistics, weight, bias, *sizes, slope, **tile)
        ctx.save_for_backward(features, weight, bias, statistics)
        ctx.slope = slope
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        features, weight, bias, statistics = ctx.saved_tensors
        tiling = _tiling(features)
        sizes = (tiling.voxels, tiling.channels)
        tile = {"HEIGHT": tiling.height, "WIDTH": tiling.width}
        partial = features.new_empty((tiling.samples, tiling.parts, 2, tiling.channels), dtype=torch.float32)
        # a gradient may come in another order, from a loss for example
        gradient = torch.empty_like(features).copy_(gradient) if gradient.stride() != features.stride() else gradient
        output = torch.empty_like(features)
        steps = triton.cdiv(tiling.part, tiling.height)
        with torch.cuda.device_of(features):
            _sum_backward[tiling.sum_grid](
                *(features, gradient, partial, statistics, weight, bias, *sizes, tiling.part, ctx.slope),
                STEPS=steps,
                **tile,
            )
            sums = partial.sum(1)
            _apply_backward[tiling.apply_grid](
                features, gradient, output, statistics, sums, weight, bias, *sizes, ctx.slope, **tile
            )
        shifts, scales = sums.sum(0)
        return output, scales.to(weight.dtype), shifts.to(bias.dtype), None, None


def norm_and_leaky_relu(features: Tensor, weight: Tensor, bias: Tensor, epsilon: float, slope: float) -> Tensor:
    """Every channel of every sample normalized over its voxels, scaled, shifted, its negative values times `slope`.

    Args:
        features: (b, c, *shape), channels-last, on a CUDA GPU; float16, bfloat16 or float32.
        weight: (c,), float32.
        bias: (c,), float32.
        epsilon: added to the variance.
        slope: of the leaky ReLU; 1 leaves it out.
    """
    output: Tensor = _NormAndLeakyReLU.apply(features, weight, bias, epsilon, slope)
    return output
