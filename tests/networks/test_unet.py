"""Networks against reference outputs with copied weights, and the laws of their construction."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.networks.blocks import ResidualBlock
from autoseg.networks.kinds.unet import PlainUNet, ResidualUNet, UNetSpec

UNETS: dict[str, type[UNetSpec]] = {"plain_unet": PlainUNet, "residual_unet": ResidualUNet}
NAMES = ("plain_3d", "plain_2d", "resenc_3d", "resenc_2d")
MEMORY_FORMATS = {
    2: (torch.contiguous_format, torch.channels_last),
    3: (torch.contiguous_format, torch.channels_last_3d),
}
TOLERANCE = 1e-5
"""Reference outputs are float32; logits of these networks are of the order 1."""


def tuples(rows: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in rows)


def spec_of(entry: dict[str, Any]) -> UNetSpec:
    kind = {"plain": "plain_unet", "resenc": "residual_unet"}[entry["kind"]]
    return UNETS[kind](
        dimensions=entry["dimensions"],
        features_per_stage=tuple(entry["features_per_stage"]),
        kernel_sizes=tuples(entry["kernel_sizes"]),
        strides=tuples(entry["strides"]),
        blocks_per_stage=tuple(entry["blocks_per_stage"]),
        decoder_convs_per_stage=tuple(entry["decoder_convs_per_stage"]),
    )


@pytest.fixture(scope="module")
def entries(golden_vectors: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads((golden_vectors / "networks.json").read_text())}


@pytest.fixture(scope="module")
def arrays(golden_vectors: Path) -> dict[str, np.ndarray]:
    with np.load(golden_vectors / "networks.npz") as stored:
        return dict(stored)


def weights_of(arrays: dict[str, np.ndarray], name: str) -> dict[str, torch.Tensor]:
    prefix = f"{name}.weights."
    return {key.removeprefix(prefix): torch.from_numpy(a) for key, a in arrays.items() if key.startswith(prefix)}


def small_spec(kind: str, dimensions: int, stages: int = 3) -> UNetSpec:
    return UNETS[kind](
        dimensions=dimensions,
        features_per_stage=(4, 6, 8)[:stages],
        kernel_sizes=((3,) * dimensions,) * stages,
        strides=((1,) * dimensions, *((2,) * dimensions,) * (stages - 1)),
        blocks_per_stage=(2, 1, 3)[:stages],
        decoder_convs_per_stage=(2, 1)[: stages - 1],
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_every_output_equals_the_reference_with_copied_weights(
    entries: dict[str, Any], arrays: dict[str, np.ndarray], name: str, is_channels_last: bool
) -> None:
    entry = entries[name]
    network = spec_of(entry).build(entry["input_channels"], entry["classes"])
    network.load_state_dict(weights_of(arrays, name))  # strict: the names are the reference's, none more, none less
    memory_format = MEMORY_FORMATS[entry["dimensions"]][is_channels_last]
    network = network.to(memory_format=memory_format)
    image = torch.from_numpy(arrays[f"{name}.input"]).to(memory_format=memory_format)
    with torch.no_grad():
        outputs = network(image, deep_supervision=True)
        finest = network(image)
    assert len(outputs) == len(entry["strides"]) - 1
    for i, logits in enumerate(outputs):
        np.testing.assert_allclose(logits.numpy(), arrays[f"{name}.output_{i}"], atol=TOLERANCE)
    assert torch.equal(finest, outputs[0])


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_the_reference_has(entries: dict[str, Any], name: str) -> None:
    entry = entries[name]
    network = spec_of(entry).build(entry["input_channels"], entry["classes"])
    assert sum(parameter.numel() for parameter in network.parameters()) == entry["parameters"]


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_gradients_do_not_depend_on_the_memory_format(kind: str, dimensions: int) -> None:
    torch.manual_seed(0)
    network = small_spec(kind, dimensions).build(1, 2).double()
    image = torch.randn(2, 1, *(8, 16, 12)[-dimensions:], dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.normal_(module.conv2.norm.weight)
    gradients = []
    for memory_format in MEMORY_FORMATS[dimensions]:
        network.to(memory_format=memory_format).zero_grad()
        outputs = network(image.to(memory_format=memory_format), deep_supervision=True)
        sum(logits.square().sum() for logits in outputs).backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_bfloat16_stays_near_float32(kind: str, dimensions: int) -> None:
    torch.manual_seed(0)
    memory_format = MEMORY_FORMATS[dimensions][1]
    network = small_spec(kind, dimensions).build(2, 3).to(memory_format=memory_format)
    image = torch.randn(2, 2, *(8, 16, 16)[-dimensions:])
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(image)
    assert rounded.dtype == torch.bfloat16
    assert rounded.is_contiguous(memory_format=memory_format)
    assert float((rounded.float() - exact).abs().mean()) < 0.02 * float(exact.abs().max())


def test_weights_are_drawn_as_kaiming_says_and_biases_start_at_zero() -> None:
    torch.manual_seed(0)
    spec = replace(small_spec("plain_unet", 3), features_per_stage=(32, 64, 64))
    network = spec.build(2, 3)
    for name, parameter in network.named_parameters():
        if name.endswith("conv.weight") and parameter.numel() > 5000:
            fan_in = parameter[0].numel()
            assert float(parameter.detach().std()) == pytest.approx((2 / (1 + 0.01**2) / fan_in) ** 0.5, rel=0.05)
        if name.endswith("bias"):
            assert not parameter.any()
        if name.endswith("norm.weight"):
            assert bool((parameter == 1).all())


def test_a_residual_block_starts_as_its_skip() -> None:
    network = small_spec("residual_unet", 2).build(1, 2)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    features = torch.randn(1, 4, 6, 6)
    assert len(blocks) == 6
    assert torch.equal(blocks[0](features), nn.functional.leaky_relu(features, 0.01))


@pytest.mark.parametrize("kind", UNETS)
def test_an_image_too_small_for_pooling_still_gets_logits(kind: str) -> None:
    network = small_spec(kind, 3, stages=1).build(1, 2)
    assert network(torch.randn(1, 1, 3, 5, 4)).shape == (1, 2, 3, 5, 4)
    assert len(network(torch.randn(1, 1, 3, 5, 4), deep_supervision=True)) == 1


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS[3])
def test_a_bottleneck_of_one_voxel_trains(memory_format: torch.memory_format) -> None:
    network = small_spec("plain_unet", 3).build(1, 2).to(memory_format=memory_format)
    logits = network(torch.randn(2, 1, 4, 4, 4))
    logits.sum().backward()
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_sizes": ((3, 3),)}, "stages differ"),
        ({"dimensions": 4}, "dimensions"),
        ({"dimensions": 3}, "3 axes"),
        ({"kernel_sizes": ((2, 3), (3, 3), (3, 3))}, "even size"),
        ({"strides": ((2, 1), (2, 2), (2, 2))}, "full resolution"),
        ({"strides": ((1, 1), (2, 2), (0, 2))}, "strides"),
        ({"features_per_stage": (4, 6, 100_000)}, "features_per_stage"),
        ({"blocks_per_stage": (2, 1, 0)}, "blocks_per_stage"),
    ],
)
def test_a_topology_that_cannot_be_built_is_refused_when_it_is_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(small_spec("plain_unet", 2), **changes)


def deep_supervision_heads(spec: UNetSpec, patch: tuple[int, ...], classes: int) -> int:
    """The reference networks were counted with the coarser heads on; planning counts without, as nnU-Net plans."""
    scales = np.cumprod(spec.strides, axis=0)[1:-1]
    return classes * sum(int(np.prod(np.array(patch) // scale)) for scale in scales)


@pytest.mark.parametrize("name", NAMES)
def test_feature_map_elements_equal_the_reference(
    entries: dict[str, Any], arrays: dict[str, np.ndarray], name: str
) -> None:
    entry = entries[name]
    spec, patch = spec_of(entry), arrays[f"{name}.input"].shape[2:]
    estimate = spec.feature_map_elements(patch, entry["classes"])
    assert estimate + deep_supervision_heads(spec, patch, entry["classes"]) == entry["feature_map_elements"]


def test_the_shapes_of_a_network_s_parameters_are_known_without_it() -> None:
    spec = small_spec("residual_unet", 3)
    state = spec.build(2, 3).state_dict()
    assert spec.parameter_shapes(2, 3) == {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.oracle
@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_state_dicts_exchange_with_dynamic_network_architectures(kind: str, dimensions: int) -> None:
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    spec = small_spec(kind, dimensions)
    options: dict[str, Any] = {
        "n_stages": spec.n_stages,
        "features_per_stage": spec.features_per_stage,
        "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[dimensions],
        "kernel_sizes": spec.kernel_sizes,
        "strides": spec.strides,
        "num_classes": 3,
        "n_conv_per_stage_decoder": spec.decoder_convs_per_stage,
        "conv_bias": True,
        "norm_op": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimensions],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    if kind == "plain_unet":
        other = unet.PlainConvUNet(2, n_conv_per_stage=spec.blocks_per_stage, **options)
    else:
        other = unet.ResidualEncoderUNet(2, n_blocks_per_stage=spec.blocks_per_stage, **options)
    network = spec.build(2, 3)
    theirs = other.state_dict()
    network.load_state_dict({name: theirs[_as_theirs(name, theirs)] for name in network.state_dict()})
    image = torch.randn(2, 2, *(8, 16, 16)[-dimensions:])
    with torch.no_grad():
        for mine, reference in zip(network(image, deep_supervision=True), other(image), strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-4, rtol=1e-5)


def _as_theirs(name: str, theirs: dict[str, torch.Tensor]) -> str:
    assert name in theirs, name
    return name


def test_shapes_are_found_without_loading_the_compiler():
    code = (
        "import sys; from autoseg.networks.kinds.unet import PlainUNet;"
        "PlainUNet(dimensions=2, features_per_stage=(2, 4), kernel_sizes=((3, 3),) * 2, strides=((1, 1), (2, 2)),"
        "blocks_per_stage=(1, 1), decoder_convs_per_stage=(1,)).parameter_shapes(1, 2);"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
