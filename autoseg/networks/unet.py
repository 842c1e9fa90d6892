"""U-Nets with a plain or a residual encoder, in two or three dimensions, exactly as a `UNetSpec` says.

Parameters are named as in nnU-Net v2 (package dynamic-network-architectures, `architectures/unet.py`), without the
second copy of the encoder that its decoder lists, so that weights can be exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from autoseg.networks.blocks import (
    CONVOLUTIONS,
    NEGATIVE_SLOPE,
    TRANSPOSED,
    ResidualBlock,
    StackedConvs,
    StackedResidualBlocks,
)
from autoseg.networks.channels_last_ops import Transposed, upsample, with_explicit_channels_last

if TYPE_CHECKING:
    from autoseg.networks.kinds.unet import UNetSpec

_Stage = tuple[int, int, tuple[int, int], tuple[int, ...], tuple[int, ...]]


class PlainEncoder(nn.Module):
    """Stages of plain convolutions; the first convolution of a stage carries its stride."""

    def __init__(self, spec: UNetSpec, in_channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(StackedConvs(*stage)) for stage in _stages(spec, in_channels))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of every stage, finest first."""
        return _through(self.stages, image)


class ResidualEncoder(nn.Module):
    """A stem of one convolution, then stages of residual blocks; the first block of a stage carries its stride."""

    def __init__(self, spec: UNetSpec, in_channels: int) -> None:
        super().__init__()
        width, still = spec.features_per_stage[0], (1,) * spec.dimensions
        self.stem = StackedConvs(1, spec.dimensions, (in_channels, width), spec.kernel_sizes[0], still)
        self.stages = nn.ModuleList(StackedResidualBlocks(*stage) for stage in _stages(spec, width))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of every stage, finest first."""
        return _through(self.stages, self.stem(image))


class Decoder(nn.Module):
    """Transposed convolutions back up; at each level the encoder's features are appended, and a head gives logits.

    Lists are ordered from the coarsest level to the finest, as in nnU-Net. An image too small for any pooling has an
    encoder of one stage: a head alone then makes the decoder.
    """

    def __init__(self, spec: UNetSpec, heads: int) -> None:
        super().__init__()
        still = (1,) * spec.dimensions
        convolution, transposed = CONVOLUTIONS[spec.dimensions], TRANSPOSED[spec.dimensions]
        self.transpconvs = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.seg_layers = nn.ModuleList()
        for level in reversed(range(spec.n_stages - 1)):
            width, stride = spec.features_per_stage[level], spec.strides[level + 1]
            deeper = spec.features_per_stage[level + 1]
            count, kernel = spec.decoder_convs_per_stage[spec.n_stages - 2 - level], spec.kernel_sizes[level]
            self.transpconvs.append(transposed(deeper, width, stride, stride))  # type: ignore[arg-type]
            self.stages.append(StackedConvs(count, spec.dimensions, (2 * width, width), kernel, still))
            self.seg_layers.append(convolution(width, heads, still))  # type: ignore[arg-type]
        if spec.n_stages == 1:
            self.seg_layers.append(convolution(spec.features_per_stage[0], heads, still))  # type: ignore[arg-type]

    def forward(self, features: list[Tensor], deep_supervision: bool) -> list[Tensor]:
        """Logits, finest first: of every level, or of the finest alone."""
        *skips, current = features
        if not skips:
            return [self.seg_layers[0](current)]
        logits = []
        for level, (up, stage, head) in enumerate(zip(self.transpconvs, self.stages, self.seg_layers, strict=True)):
            larger = upsample(cast(Transposed, up), current)
            current = stage(torch.cat((larger, skips[-1 - level]), 1))
            if deep_supervision or level == len(skips) - 1:
                logits.append(head(current))
        return logits[::-1]


class UNet(nn.Module):
    """An encoder and a decoder, with fresh weights drawn from torch's global generator.

    Args:
        encoder: gives the features of every stage, finest first.
        decoder: turns them into logits.
    """

    def __init__(self, encoder: PlainEncoder | ResidualEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        _initialize(self)

    def forward(self, image: Tensor, deep_supervision: bool = False) -> Tensor | list[Tensor]:
        """Logits (b, heads, *shape).

        Args:
            image: (b, c, *shape), each axis of shape a multiple of the network's total stride.
            deep_supervision: whether to return the logits of every decoder level, finest first, as a list.
        """
        # weights in channels-last order say that the features shall be so too, also after an image of one channel,
        # whose strides would not show it
        if any(not parameter.is_contiguous() for parameter in self.parameters()):
            image = with_explicit_channels_last(image)
        logits: list[Tensor] = self.decoder(self.encoder(image), deep_supervision)
        return logits if deep_supervision else logits[0]


def _stages(spec: UNetSpec, in_channels: int) -> Iterator[_Stage]:
    """Blocks, dimensions, channels in and out, kernel and stride of every stage of an encoder, finest first."""
    features = spec.features_per_stage
    channels = zip((in_channels, *features[:-1]), features, strict=True)
    stages = zip(spec.blocks_per_stage, channels, spec.kernel_sizes, spec.strides, strict=True)
    yield from ((count, spec.dimensions, pair, kernel, stride) for count, pair, kernel, stride in stages)


def _through(stages: nn.ModuleList, current: Tensor) -> list[Tensor]:
    features = []
    for stage in stages:
        current = stage(current)
        features.append(current)
    return features


def _initialize(network: UNet) -> None:
    """Draws Kaiming-normal weights (slope 0.01), sets biases to 0, and makes every residual block start as its skip.

    Source: nnU-Net v2, `InitWeights_He` and `init_last_bn_before_add_to_0`.
    """
    if next(network.parameters()).is_meta:
        return  # only shapes are asked for, and to draw without numbers PyTorch loads its compiler, for seconds
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.norm.weight)
            nn.init.zeros_(module.conv2.norm.bias)
