"""Whether a machine computes the convolutions of a network correctly, compared with products in double precision.

The libraries under PyTorch have had convolutions that are wrong for some shapes and formats alone: bfloat16 in 3D for
huge inputs (cuDNN 9.10.2, pytorch#163539), a last axis of one voxel behind a stride (oneDNN 3.12 with AMX,
pytorch#169688), gradients of the weights in bfloat16 where the first of three axes has two voxels, which come from
memory that nobody wrote (oneDNN of torch 2.13 with AVX512-BF16). So the shapes that are checked are the network's own,
and the reference uses no convolution at all: the voxels under the kernel are gathered, and multiplied with the weights.

Of a convolution, the *coarse* side has one voxel per position of the kernel, the *fine* side those under it. The output
of a convolution is coarse, that of a transposed one fine; otherwise the two are the same three products.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoseg.networks.channels_last_ops import Transposed, upsample, with_explicit_channels_last
from autoseg.training.step import Compute

CHECKED = 6
"""Convolutions of a network that are checked at most."""

TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 3e-2}
"""Largest error as a share of the largest value: what rounding the result and partial sums takes, with a margin
(assumption); a voxel that is wrong is off by a tenth of it and more. Of fp32 it lets TF32 pass, as PyTorch does."""

FREED = tuple(1 << power for power in range(10, 20))
"""Sizes of tensors of not-a-number that are freed before a convolution: what reads memory before anything was written
there finds them, and not zeros, which might be right."""

GATHERED = 1 << 21
"""Numbers that the reference gathers at most: 16 MiB, and a tenth of a second on one core with the products."""

RESULT, OF_WEIGHTS, OF_IMAGE = "the result", "the gradient of the weights", "the gradient of the input"

Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A convolution of a network, and what it is applied to.

    Attributes:
        module: its kernel, stride, channels.
        shape: of its input (b, c, *spatial).
        output: shape of its output.
    """

    module: Convolution
    shape: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def reach(self) -> int:
        """Voxels of the kernel."""
        return math.prod(self.module.kernel_size)

    @property
    def coarse(self) -> tuple[int, ...]:
        """Shape (b, c, *spatial) of the side with one voxel per position of the kernel."""
        return self.shape if is_transposed(self.module) else self.output

    @property
    def operations(self) -> int:
        """Multiplications and additions of a forward pass."""
        channels = self.module.in_channels * self.module.out_channels
        return 2 * channels * self.reach * self.coarse[0] * math.prod(self.coarse[2:])

    @property
    def title(self) -> str:
        """The layer in words."""
        kind = "transposed convolution" if is_transposed(self.module) else "convolution"
        kernel, stride, shape = (
            " x ".join(map(str, own)) for own in (self.module.kernel_size, self.module.stride, self.shape[2:])
        )
        channels = f"{self.module.in_channels} -> {self.module.out_channels}"
        return f"{kind} {channels}, kernel {kernel}, stride {stride}, of {shape} voxels"


def is_transposed(module: nn.Module) -> bool:
    """Whether the output of a convolution is its finer side."""
    return isinstance(module, Transposed)


def layers_of(network: nn.Module, small: Sequence[int], planned: Sequence[int]) -> list[Layer]:
    """The convolutions of a network that are different, in order.

    Args:
        network: with any weights; a copy runs on the CPU.
        small: shape (b, c, *patch) of the batch that it runs with.
        planned: shape of the batch that is meant; both are multiples of the network's total stride, so that every layer
            grows in proportion.
    """
    found: dict[tuple[Any, ...], Layer] = {}

    def grown(shape: Sequence[int]) -> tuple[int, ...]:
        spatial = (own * goal // ran for own, goal, ran in zip(shape[2:], planned[2:], small[2:], strict=True))
        return (planned[0], shape[1], *spatial)

    def note(module: Any, given: tuple[Tensor, ...], result: Tensor) -> None:
        layer = Layer(module, grown(given[0].shape), grown(result.shape))
        found.setdefault((type(module), module.kernel_size, module.stride, layer.shape, layer.output), layer)

    traced = copy.deepcopy(network).cpu()
    hooks = [own.register_forward_hook(note) for own in traced.modules() if isinstance(own, Convolution)]
    with torch.no_grad():
        traced(torch.zeros(*small), deep_supervision=True)
    for hook in hooks:
        hook.remove()
    return list(found.values())


def representatives(layers: Sequence[Layer]) -> list[Layer]:
    """The few layers that stand for all: where libraries take different paths, and where most of the time goes."""
    strided = [layer for layer in layers if max(layer.module.stride) > 1 and not is_transposed(layer.module)]
    picked = [
        max(layers, key=lambda layer: layer.operations),
        layers[0],
        *sorted(strided, key=lambda layer: (layer.output[-1], -layer.operations))[:1],
        *[layer for layer in layers if is_transposed(layer.module)][-1:],
        max(layers, key=lambda layer: layer.module.weight.numel()),
        layers[-1],
    ]
    return list(dict.fromkeys(picked))[:CHECKED]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A layer with random input and gradient, and what comes of them in double precision.

    bfloat16 holds every number given, so that formats differ by the rounding of results alone.

    Attributes:
        module: with random weights.
        image: its input (b, c, *spatial).
        gradient: of its output; zero where nothing is compared.
        image_voxels, output_voxels: flat indices (b, *spatial) of those compared.
        expected: what is right, by what it is.
    """

    module: Convolution
    image: Tensor
    gradient: Tensor
    image_voxels: Tensor
    output_voxels: Tensor
    expected: dict[str, Tensor]

    def fault(self, compute: Compute, with_gradients: bool) -> str:
        """What is wrong when the layer is computed so, in words; empty if nothing is."""
        image = self.image.clone().requires_grad_()
        module = compute.place_network(copy.deepcopy(self.module), image.ndim - 2)
        placed = compute.place_image(image)
        if compute.memory_format == "channels_last":
            placed = with_explicit_channels_last(placed)
        _free_memory_of_nans(compute.device)
        with compute.autocast():
            output = upsample(module, placed) if isinstance(module, Transposed) else module(placed)
        _free_memory_of_nans(compute.device)
        found = {RESULT: _voxels(output.detach(), self.output_voxels)}
        if with_gradients:
            output.backward(self.gradient.to(output.dtype))
            found[OF_WEIGHTS] = cast(Tensor, module.weight.grad).flatten(2)
            found[OF_IMAGE] = _voxels(cast(Tensor, image.grad), self.image_voxels)
        for name, values in found.items():
            expected = self.expected[name]
            error = float((values.cpu().double() - expected).abs().max() / expected.abs().max())
            if not error <= TOLERANCES[compute.precision]:  # also where it is no number
                return f"{name} is off by {error:.0%} of its largest value"
        return ""


def _free_memory_of_nans(device: torch.device) -> None:
    """Leaves not-a-number in memory that is given out next."""
    _ = [torch.full((size,), math.nan, device=device) for size in FREED for _ in range(4)]


def checked_shape(layer: Layer, device: torch.device) -> tuple[int, ...]:
    """Shape (b, c, *spatial) of the input that a layer is checked with.

    A CPU gets a part of the layer's own, of which every voxel can be compared. Other devices get the whole: a kernel
    that is wrong for many voxels alone would pass otherwise.
    """
    if device.type != "cpu":
        return layer.shape
    shape, coarse = [1, *layer.shape[1:]], list(layer.coarse)
    while math.prod(coarse[2:]) > _most_positions(layer):
        axis = max(range(2, len(shape)), key=lambda index: coarse[index])
        shape[axis], coarse[axis] = -(-shape[axis] // 2), -(-coarse[axis] // 2)
    return tuple(shape)


def make_example(layer: Layer, shape: tuple[int, ...], device: torch.device) -> Example:
    """An example of a layer with an input of a shape (b, c, *spatial), compared where the reference has room for it."""
    output = _output_shape(layer.module, shape)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=generator, device=device) * scale).bfloat16().float()

    module = copy.deepcopy(layer.module).to_empty(device=device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(draw(*parameter.shape, scale=1 / math.sqrt(layer.reach * layer.shape[1])))
    image, gradient = draw(*shape), torch.zeros(*output, device=device)
    coarse, fine = (shape, output) if is_transposed(module) else (output, shape)
    positions = _positions(coarse[0] * math.prod(coarse[2:]), _most_positions(layer), generator)
    windows = _Windows(module, coarse, fine, positions)
    compared = (windows.fine_voxels, positions) if is_transposed(module) else (positions, windows.fine_voxels)
    values = draw(len(compared[0]), output[1])
    gradient[_places(gradient, compared[0])] = values
    return Example(module, image, gradient, compared[1], compared[0], windows.products(image, gradient))


class _Windows:
    """The fine voxels under the kernel of a convolution at some of its positions, and products with them.

    Args:
        module: the convolution.
        coarse, fine: shapes (b, c, *spatial) of its two sides.
        positions: flat indices of coarse voxels.
    """

    def __init__(self, module: Convolution, coarse: Sequence[int], fine: Sequence[int], positions: Tensor) -> None:
        self._module, self._positions = module, positions
        index, *corner = (own[:, None] for own in torch.unravel_index(positions, (coarse[0], *coarse[2:])))
        offsets = torch.tensor(list(product(*map(range, module.kernel_size))), device=positions.device)
        self._is_inside = torch.ones(len(positions), len(offsets), dtype=torch.bool, device=positions.device)
        for axis, size in enumerate(fine[2:]):
            place = corner[axis] * module.stride[axis] - int(module.padding[axis]) + offsets[:, axis]
            self._is_inside &= (place >= 0) & (place < size)
            index = index * size + place
        self._index = index.where(self._is_inside, 0)
        self.fine_voxels, self._which = torch.unique(self._index[self._is_inside], return_inverse=True)

    def products(self, image: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """Result and gradients of the convolution in double precision, at the voxels that are compared."""
        weight = self._module.weight.detach().cpu().double().flatten(2)
        bias = 0.0 if self._module.bias is None else self._module.bias.detach().cpu().double()
        if is_transposed(self._module):
            coarse, fine = self._coarse(image), self._fine(gradient)
            result, of_image = self._up(coarse, weight), torch.einsum("pkf,cfk->pc", fine, weight)
        else:
            coarse, fine = self._coarse(gradient), self._fine(image)
            result, of_image = torch.einsum("pkf,cfk->pc", fine, weight), self._up(coarse, weight)
        return {RESULT: result + bias, OF_WEIGHTS: torch.einsum("pc,pkf->cfk", coarse, fine), OF_IMAGE: of_image}

    def _coarse(self, features: Tensor) -> Tensor:
        """Features (positions, c)."""
        return _voxels(features, self._positions).cpu().double()

    def _fine(self, features: Tensor) -> Tensor:
        """Features (positions, kernel, c), zero outside of the image."""
        return (_voxels(features, self._index) * self._is_inside[..., None]).cpu().double()

    def _up(self, coarse: Tensor, weight: Tensor) -> Tensor:
        """What every position adds to the voxels under its kernel, summed: (fine voxels, c)."""
        added = torch.einsum("pc,cfk->pkf", coarse, weight)[self._is_inside.cpu()]
        total = added.new_zeros(len(self.fine_voxels), added.shape[1])
        return total.index_add_(0, self._which.cpu(), added)


def _positions(count: int, most: int, generator: torch.Generator) -> Tensor:
    """Flat indices: all of `count`, or where those are too many, the first, the last and others anywhere."""
    if count <= most:
        return torch.arange(count, device=generator.device)
    drawn = torch.randint(count, (most,), generator=generator, device=generator.device)
    drawn[0], drawn[-1] = 0, count - 1
    voxels: Tensor = torch.unique(drawn)
    return voxels


def _output_shape(module: Convolution, shape: Sequence[int]) -> tuple[int, ...]:
    axes = zip(shape[2:], module.kernel_size, module.stride, map(int, module.padding), strict=True)
    if is_transposed(module):
        spatial = [(size - 1) * stride - 2 * padding + kernel for size, kernel, stride, padding in axes]
    else:
        spatial = [(size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in axes]
    return (shape[0], module.out_channels, *spatial)


def _most_positions(layer: Layer) -> int:
    """Positions of the kernel that the reference can hold."""
    return max(1, GATHERED // (layer.reach * max(layer.shape[1], layer.output[1])))


def _places(features: Tensor, voxels: Tensor) -> tuple[Any, ...]:
    """What picks voxels by their flat indices (b, *spatial), with all channels."""
    sample, *place = torch.unravel_index(voxels, (features.shape[0], *features.shape[2:]))
    return (sample, slice(None), *place)


def _voxels(features: Tensor, voxels: Tensor) -> Tensor:
    """Features (..., c) of voxels with flat indices (...)."""
    return features[_places(features, voxels)]
