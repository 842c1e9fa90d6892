"""Each formulation for channels-last tensors against PyTorch's own operator, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoseg.networks.channels_last_ops import (
    CHANNELS_LAST,
    instance_norm,
    is_channels_last_on_cpu,
    upsample,
    with_explicit_channels_last,
)

SHAPES = [(1, 4, 5, 6), (3, 4, 5, 6), (1, 3, 4, 2, 6), (2, 3, 4, 2, 6)]


def channels_last(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    batch = torch.randn(shape, dtype=torch.float64, generator=generator)
    return batch.contiguous(memory_format=CHANNELS_LAST[len(shape)]).requires_grad_()


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    return torch.autograd.grad((output * weights).sum(), inputs)


def assert_same(mine: Tensor, reference: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(mine, reference)
    for gradient, expected in zip(gradients(mine, *inputs), gradients(reference, *inputs), strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_instance_norm_equals_pytorch(shape: tuple[int, ...]) -> None:
    features = channels_last(shape)
    weight = torch.rand(shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.rand(shape[1], dtype=torch.float64, requires_grad=True)
    reference = nn.functional.instance_norm(features.contiguous(), weight=weight, bias=bias, eps=1e-5)
    normalized = instance_norm(features, weight, bias, 1e-5)
    assert is_channels_last_on_cpu(normalized)
    assert_same(normalized, reference, features, weight, bias)


def test_instance_norm_is_exact_where_the_mean_is_far_from_zero() -> None:
    torch.manual_seed(0)
    features = (1000 + torch.randn(2, 4, 40, 40)).contiguous(memory_format=torch.channels_last)
    normalized = instance_norm(features, torch.ones(4), torch.zeros(4), 1e-5)
    assert torch.allclose(normalized.std((2, 3), unbiased=False), torch.ones(2, 4), atol=1e-3)
    assert normalized.mean((2, 3)).abs().max() < 2e-3  # float32 rounds a mean of 1000 to 6e-5, and sums add to it


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 8, 16, 8), (1, 40, 4, 6), (1, 8, 7, 7, 7)])
def test_instance_norm_of_a_prediction_is_as_exact(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    features = (3 + 2 * channels_last(shape).detach()).to(dtype)
    weight, bias = torch.linspace(0.5, 2, shape[1]), torch.linspace(-1, 1, shape[1])
    with torch.inference_mode():
        normalized = instance_norm(features, weight, bias, 1e-5)
    exact = nn.functional.instance_norm(features.double(), weight=weight.double(), bias=bias.double(), eps=1e-5)
    assert normalized.dtype == dtype
    assert is_channels_last_on_cpu(normalized)
    assert (normalized - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max() + 1e-7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_upsampling_equals_the_transposed_convolution(shape: tuple[int, ...], has_bias: bool) -> None:
    features = channels_last(shape)
    factors = (1, 2, 3)[-len(shape) + 2 :]
    kind = nn.ConvTranspose2d if len(shape) == 4 else nn.ConvTranspose3d
    transposed = kind(shape[1], 4, factors, factors, bias=has_bias, dtype=torch.float64)
    reference = transposed(features.contiguous())
    larger = upsample(transposed, features)
    assert is_channels_last_on_cpu(larger)
    assert_same(larger, reference, features, *transposed.parameters())


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 3, 4, 5), (1, 1, 3, 4, 5), (2, 1, 1, 1, 7)])
def test_explicit_channels_last_changes_strides_and_no_value(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape)
    explicit = with_explicit_channels_last(image)
    assert torch.equal(explicit, image)
    assert explicit.stride(1) == 1


def test_tensors_that_are_both_contiguous_and_channels_last_take_the_common_path() -> None:
    assert not is_channels_last_on_cpu(torch.zeros(2, 1, 4, 4))
    assert not is_channels_last_on_cpu(torch.zeros(2, 3, 1, 1))
    assert is_channels_last_on_cpu(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last))
