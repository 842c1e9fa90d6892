"""From the topology in a plan to a network with fresh weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from autoseg.core.errors import PlanFault
from autoseg.core.registry import choose
from autoseg.networks.blocks import NEGATIVE_SLOPE, ResidualBlock
from autoseg.networks.unet import Decoder, PlainEncoder, ResidualEncoder, UNet
from autoseg.planning.plan import NetworkSpec


def plain_unet(spec: NetworkSpec, in_channels: int, heads: int) -> UNet:
    """The plain U-Net of nnU-Net v2."""
    return UNet(PlainEncoder(spec, in_channels), Decoder(spec, heads))


def residual_unet(spec: NetworkSpec, in_channels: int, heads: int) -> UNet:
    """The U-Net with residual encoder of nnU-Net v2."""
    return UNet(ResidualEncoder(spec, in_channels), Decoder(spec, heads))


NETWORKS: dict[str, Callable[[NetworkSpec, int, int], UNet]] = {
    "plain_unet": plain_unet,
    "residual_unet": residual_unet,
}


def build_network(spec: NetworkSpec, in_channels: int, heads: int) -> UNet:
    """The network that a plan asks for, with random weights drawn from torch's global generator.

    Args:
        spec: topology.
        in_channels: image channels, and those of a cascade's previous stage.
        heads: output channels: labels with background (softmax) or regions (sigmoid).

    Raises:
        UsageError: no network of that kind.
        PlanFault: the topology's lists do not fit together.
    """
    build = choose(spec.kind, NETWORKS, "network")
    _check(spec)
    network = build(spec, in_channels, heads)
    initialize(network)
    return network


def initialize(network: UNet) -> None:
    """Draws Kaiming-normal weights (slope 0.01), sets biases to 0, and makes every residual block start as its skip.

    Source: nnU-Net v2, `InitWeights_He` and `init_last_bn_before_add_to_0`.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.norm.weight)
            nn.init.zeros_(module.conv2.norm.bias)


def _check(spec: NetworkSpec) -> None:
    n = spec.n_stages
    found = {
        "features_per_stage": len(spec.features_per_stage),
        "kernel_sizes": len(spec.kernel_sizes),
        "blocks_per_stage": len(spec.blocks_per_stage),
        "decoder_convs_per_stage": len(spec.decoder_convs_per_stage) + 1,
    }
    wrong = [name for name, length in found.items() if length != n]
    if n < 1 or wrong or spec.dimensions not in (2, 3):
        raise PlanFault(
            f"a {spec.dimensions}D network of {n} stages cannot be built: {', '.join(wrong) or 'no stages'} do not fit",
            do="plan again, or correct the pinned topology",
        )
