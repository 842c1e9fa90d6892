"""Operators that are faster than PyTorch's for channels-last tensors, with equal results.

On a CUDA GPU the normalization and the leaky ReLU after it are Triton kernels (`fused_norm`) where Triton is installed,
as it is with PyTorch for CUDA on Linux. Everything else there, and contiguous tensors anywhere, take PyTorch's.

On a CPU three of PyTorch's operators are slow for channels-last tensors, or copy between memory formats (CPU time of a
training step of the planned hippocampus network, batch 2, bfloat16 with AVX512-BF16, both kinds in turn: 0.96 s with
PyTorch's operators, 0.78 s with these, four fifths of it in convolutions):

* instance normalization converts to contiguous and back; batch normalization of one sample is the same and does not;
* an image of one channel counts as contiguous, so that the whole first stage loses the memory format;
* the weight gradient of a transposed convolution without overlap takes four times as long as the matrix product it is.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from importlib import util
from typing import Any

import torch
from torch import Tensor, nn

_FEW_CHANNELS, _SIDE_BY_SIDE = 32, 128
"""Fewer channels than the first are normalized as the second, which fill vector registers. Measured, bf16, one core,
48 x 64 x 64 voxels of 8 channels: 0.6 ms instead of 2.0; of 16 channels 1.2 instead of 2.2; nothing is gained
from 32 on. In fp32 the error falls from 2e-4 to 1e-5."""

_log = logging.getLogger(__name__)

Transposed = nn.ConvTranspose2d | nn.ConvTranspose3d

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory format by number of axes of a batch."""


def is_channels_last_on_cpu(features: Tensor) -> bool:
    """Whether the tensor lies on a CPU with channels innermost."""
    return (
        features.is_cpu
        and not features.is_contiguous()
        and features.is_contiguous(memory_format=CHANNELS_LAST[features.dim()])
    )


def with_explicit_channels_last(image: Tensor) -> Tensor:
    """The batch (b, c, *shape) in channels-last order, with strides that say so even for a single channel."""
    image = image.contiguous(memory_format=CHANNELS_LAST[image.dim()])
    channels, shape = image.shape[1], image.shape[2:]
    spatial = [channels * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return image.as_strided(image.shape, (channels * math.prod(shape), 1, *spatial))


def has_kernels(features: Tensor) -> bool:
    """Whether the Triton kernels of this package compute with such a tensor: on CUDA, not compiled, with Triton."""
    return (
        features.is_cuda
        and features.dtype != torch.float64
        and not torch.compiler.is_compiling()
        and triton_works(features.device)
    )


@cache
def triton_works(device: torch.device) -> bool:
    """Whether Triton is installed and can build and run kernels on a device; tried once.

    It needs a C compiler, which slim container images do not have.
    """
    if util.find_spec("triton") is None:
        return False
    from autoseg.networks import fused_norm

    features = torch.ones(1, 1, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    try:
        fused_norm.norm_and_leaky_relu(features, one, zero, 1e-5, 0.01)
    except torch.OutOfMemoryError:
        raise  # says nothing of Triton
    except Exception as error:  # Triton lets through whatever the call of the compiler raises
        _log.warning(
            "Triton cannot build kernels for %s (%s), so that PyTorch's slower ones compute: install a C compiler",
            *(device, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__),
        )
        return False
    return True


def is_fused_on_gpu(features: Tensor) -> bool:
    """Whether normalization and activation of this tensor are one kernel: channels innermost."""
    return (
        has_kernels(features)
        and features.is_contiguous(memory_format=CHANNELS_LAST[features.dim()])
        and features[0, 0].numel() > 1
    )


def norm_and_leaky_relu(features: Tensor, weight: Tensor, bias: Tensor, epsilon: float, slope: float) -> Tensor:
    """Instance normalization and a leaky ReLU, which a slope of 1 leaves out; shape, dtype and memory format stay."""
    if is_fused_on_gpu(features):
        from autoseg.networks import fused_norm

        return fused_norm.norm_and_leaky_relu(features, weight, bias, epsilon, slope)
    normalized = instance_norm(features, weight, bias, epsilon)
    return normalized if slope == 1.0 else nn.functional.leaky_relu(normalized, slope, inplace=True)


def instance_norm(features: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Every channel of every sample normalized over its voxels, scaled, shifted; memory format and dtype stay."""
    if is_channels_last_on_cpu(features):
        if features.shape[1] < _FEW_CHANNELS and not torch.is_grad_enabled():
            parts = [_normalized(one, weight, bias, epsilon) for one in _samples(features)]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        normalized: Tensor = _SampleWiseNorm.apply(features, weight, bias, epsilon)  # type: ignore[no-untyped-call]
        return normalized
    cudnn = torch.backends.cudnn.enabled
    return torch.instance_norm(features, weight, bias, None, None, True, 0.0, epsilon, cudnn)


def _samples(batch: Tensor) -> list[Tensor]:
    return [batch[i : i + 1] for i in range(len(batch))]


def _normalized(sample: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Instance normalization of one sample (1, c, *shape) without a way back.

    Neighboring voxels count as further channels, whose means and variances are combined (Chan, Golub, LeVeque 1983):
    few channels fill vector registers otherwise, and one running sum over all voxels loses digits.
    """
    channels, voxels = sample.shape[1], sample[0, 0].numel()
    side = math.gcd(voxels, max(1, _SIDE_BY_SIDE // channels))
    width = side * channels
    precise = torch.promote_types(sample.dtype, torch.float32)
    nothing = torch.zeros(width, dtype=precise)  # running statistics: their type decides in which one sums are kept
    folded = sample.as_strided((1, width, 1, voxels // side), (voxels * channels, 1, voxels * channels, width))
    means, variances = torch.ops.aten.batch_norm_update_stats(folded, nothing, nothing, 0.0)
    means, variances = means.view(side, channels), variances.view(side, channels)
    mean = means.mean(0)
    variance = (variances + (means - mean).square()).mean(0)
    scaling = [one.to(precise).repeat(side) for one in (weight, bias, mean, variance)]
    normalized: Tensor = torch.ops.aten.native_batch_norm(folded, *scaling, False, 0.0, epsilon)[0]
    return normalized.as_strided(sample.shape, sample.stride())


class _SampleWiseNorm(torch.autograd.Function):
    """Instance normalization as one batch normalization per sample (two-pass variance in float32)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        precise = torch.promote_types(features.dtype, torch.float32)
        weight, bias = weight.to(precise), bias.to(precise)
        normalize = torch.ops.aten.native_batch_norm
        parts = [normalize(one, weight, bias, None, None, True, 0.0, epsilon) for one in _samples(features)]
        ctx.save_for_backward(features, weight, *(part[1] for part in parts), *(part[2] for part in parts))
        ctx.epsilon = epsilon
        return parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        features, weight, *statistics = ctx.saved_tensors
        means, inverse_deviations = statistics[: len(features)], statistics[len(features) :]
        # a gradient may come in another memory format, from a loss for example; the operator would copy each sample
        gradient = gradient.contiguous(memory_format=CHANNELS_LAST[gradient.dim()])
        differentiate = torch.ops.aten.native_batch_norm_backward
        parts = [
            differentiate(*pair, weight, None, None, mean, deviation, True, ctx.epsilon, [True, True, True])
            for pair, mean, deviation in zip(
                zip(_samples(gradient), _samples(features), strict=True), means, inverse_deviations, strict=True
            )
        ]
        inputs = parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts])
        return inputs, sum(part[1] for part in parts), sum(part[2] for part in parts), None


def upsample(transposed: Transposed, features: Tensor) -> Tensor:
    """The transposed convolution of features (b, c, *shape) whose kernel equals its stride."""
    if not is_channels_last_on_cpu(features):
        plain: Tensor = transposed(features)
        return plain
    batch, *shape = features.shape[0], *features.shape[2:]
    factors = transposed.kernel_size
    width = transposed.out_channels
    weight = transposed.weight.movedim(1, -1).flatten(1)
    bias = torch.zeros_like(weight[0, :width]) if transposed.bias is None else transposed.bias
    # without overlap every input voxel makes its own block of output voxels: one matrix product, a row per voxel
    rows = torch.addmm(bias.repeat(math.prod(factors)), features.movedim(1, -1).flatten(0, -2), weight)
    n = len(shape)
    # bring each axis of the blocks beside the axis of the image that it refines, so that a reshape joins the two
    order = [0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)), 2 * n + 1]
    blocks = rows.view(batch, *shape, *factors, width).permute(order)
    larger = [size * factor for size, factor in zip(shape, factors, strict=True)]
    return blocks.reshape(batch, *larger, width).movedim(-1, 1)
