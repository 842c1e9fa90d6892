"""The reference is what PyTorch computes in double precision, and faults of all the known kinds are found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.launch import convolutions
from autoseg.launch.convolutions import (
    OF_IMAGE,
    OF_WEIGHTS,
    RESULT,
    TOLERANCES,
    Layer,
    checked_shape,
    layers_of,
    make_example,
    representatives,
)
from autoseg.networks.kinds.unet import PlainUNet, ResidualUNet
from autoseg.training.step import Compute

CPU = torch.device("cpu")
LAYERS = [
    Layer(nn.Conv3d(3, 4, 3, padding=1), (2, 3, 5, 4, 6), (2, 4, 5, 4, 6)),
    Layer(nn.Conv3d(4, 5, (1, 3, 3), (1, 2, 2), (0, 1, 1)), (2, 4, 3, 4, 2), (2, 5, 3, 2, 1)),
    Layer(nn.ConvTranspose3d(4, 3, (1, 2, 2), (1, 2, 2)), (2, 4, 3, 2, 3), (2, 3, 3, 4, 6)),
    Layer(nn.Conv2d(1, 4, 3, 2, 1, bias=False), (2, 1, 7, 8), (2, 4, 4, 4)),
    Layer(nn.ConvTranspose2d(4, 3, 2, 2), (2, 4, 3, 1), (2, 3, 6, 2)),
]
WAYS = [Compute(CPU, *way) for way in product(("fp32", "bf16"), ("contiguous", "channels_last"))]


@pytest.mark.parametrize("gathered", [1 << 21, 1 << 10])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.title)
def test_the_reference_is_the_convolution(layer: Layer, gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "GATHERED", gathered)  # a few positions alone, or all
    example = make_example(layer, layer.shape, CPU)
    module = example.module.double()
    image = example.image.double().requires_grad_()
    output = module(image)
    output.backward(example.gradient.double())

    def rows(features: Tensor) -> Tensor:
        return features.detach().movedim(1, -1).flatten(0, -2)

    found = {
        RESULT: rows(output)[example.output_voxels],
        OF_IMAGE: rows(image.grad)[example.image_voxels],
        OF_WEIGHTS: module.weight.grad.flatten(2),
    }
    for name, expected in example.expected.items():
        torch.testing.assert_close(found[name], expected, msg=name)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.title)
def test_what_is_right_passes_with_a_margin(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    example = make_example(layer, checked_shape(layer, CPU), CPU)
    monkeypatch.setattr(convolutions, "TOLERANCES", {kind: value / 4 for kind, value in TOLERANCES.items()})
    assert [example.fault(way, with_gradients=True) for way in WAYS] == [""] * len(WAYS)


def faults(monkeypatch: pytest.MonkeyPatch, layer: Layer, spoil: Callable[..., Tensor]) -> list[str]:
    """Of the layer in all ways when convolutions give what `spoil` makes of their image, weights and stride."""
    true = functional.conv3d

    def conv3d(image, weight, bias, stride, padding, dilation, groups):
        return spoil(lambda weight: true(image, weight, bias, stride, padding, dilation, groups), weight, stride)

    example = make_example(layer, checked_shape(layer, CPU), CPU)
    monkeypatch.setattr(functional, "conv3d", conv3d)
    return [example.fault(way, with_gradients=True) for way in WAYS]


def test_one_wrong_plane_is_found_in_bf16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(convolve, weight, _stride):
        result = convolve(weight)
        if torch.is_autocast_enabled("cpu"):
            result[..., -1] = result[..., 0]
        return result

    fp32, fp32_last, bf16, bf16_last = faults(monkeypatch, LAYERS[0], spoil)
    assert not fp32
    assert not fp32_last
    assert RESULT in bf16
    assert RESULT in bf16_last


@pytest.mark.parametrize(("layer", "is_found"), [(LAYERS[0], False), (LAYERS[1], True)])
def test_a_last_axis_of_one_behind_a_stride_is_found(layer, is_found, monkeypatch) -> None:
    def spoil(convolve, weight, stride):
        result = convolve(weight)
        return result * 1.5 if stride[-1] > 1 and result.shape[-1] == 1 else result

    assert [bool(fault) for fault in faults(monkeypatch, layer, spoil)] == [is_found] * len(WAYS)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_wrong_gradient_of_the_weights_is_found(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(convolve, weight, _stride):
        weight = weight * 1.0
        weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), value))
        return convolve(weight)

    found = faults(monkeypatch, LAYERS[0], spoil)
    assert all(OF_WEIGHTS in fault for fault in found)
    example = make_example(LAYERS[0], LAYERS[0].shape, CPU)
    assert not example.fault(WAYS[0], with_gradients=False)  # prediction does not need it


@pytest.mark.parametrize("kind", [PlainUNet, ResidualUNet])
def test_layers_have_the_shapes_of_the_planned_batch(kind) -> None:
    spec = kind(3, (4, 8, 8), ((1, 3, 3), (3,) * 3, (3,) * 3), ((1,) * 3, (1, 2, 2), (2, 2, 2)), (1, 2, 2), (1, 1))
    network, planned = spec.build(2, 3), (2, 2, 4, 8, 12)
    found = {layer.title: layer for layer in layers_of(network, (1, 2, 2, 4, 4), planned)}
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for module in network.modules():
        if isinstance(module, convolutions.Convolution):
            module.register_forward_hook(
                lambda _own, given, out: seen.append((tuple(given[0].shape), tuple(out.shape)))
            )
    network(torch.zeros(planned), deep_supervision=True)
    assert {(layer.shape, layer.output) for layer in found.values()} == set(seen)


def test_a_few_layers_stand_for_all() -> None:
    widths = (4, 8, 16, 16)
    spec = PlainUNet(3, widths, ((3,) * 3,) * 4, ((1,) * 3, (2,) * 3, (2,) * 3, (1, 2, 2)), (2,) * 4, (2,) * 3)
    layers = layers_of(spec.build(1, 3), (1, 1, 8, 16, 16), (2, 1, 16, 16, 8))
    picked = representatives(layers)
    assert len(picked) == convolutions.CHECKED
    assert picked[0].operations == max(layer.operations for layer in layers)
    assert picked[1].shape[1] == 1
    assert picked[2].output[-1] == 1
    assert max(picked[2].module.stride) > 1
    assert isinstance(picked[3].module, nn.ConvTranspose3d)
