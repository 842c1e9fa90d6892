"""How many feature-map elements a network keeps for one patch: the measure that patch and batch are chosen by.

It counts outputs of convolutions, not bytes; the presets say how many fit into how much memory.
Source: nnU-Net v2 `compute_conv_feature_map_size` (dynamic-network-architectures, unet.py and residual.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoseg.planning.plan import NetworkSpec


def feature_map_elements(network: NetworkSpec, patch_size: Sequence[int], declared_labels: int) -> int:
    """Elements of all convolution outputs for one patch, without deep-supervision heads.

    Args:
        network: topology.
        patch_size: voxels, one per axis.
        declared_labels: entries of the dataset's label table (background, regions and ignore counted as written).
    """
    voxels = _voxels_per_stage(network.strides, patch_size)
    encoder = _residual_encoder if network.kind == "residual_unet" else _plain_encoder
    return encoder(network, voxels) + _decoder(network, voxels) + declared_labels * voxels[0]


def _voxels_per_stage(strides: Sequence[Sequence[int]], patch_size: Sequence[int]) -> list[int]:
    size = list(patch_size)
    voxels = []
    for stride in strides:
        size = [edge // step for edge, step in zip(size, stride, strict=True)]
        voxels.append(math.prod(size))
    return voxels


def _plain_encoder(network: NetworkSpec, voxels: Sequence[int]) -> int:
    stages = zip(network.blocks_per_stage, network.features_per_stage, voxels, strict=True)
    return sum(blocks * features * count for blocks, features, count in stages)


def _residual_encoder(network: NetworkSpec, voxels: Sequence[int]) -> int:
    """Two convolutions per block, a stem, and a projection wherever channels or resolution change."""
    features = network.features_per_stage
    total = features[0] * voxels[0]
    for stage, blocks in enumerate(network.blocks_per_stage):
        changes_channels = stage > 0 and features[stage] != features[stage - 1]
        is_projected = changes_channels or any(step != 1 for step in network.strides[stage])
        total += (2 * blocks + is_projected) * features[stage] * voxels[stage]
    return total


def _decoder(network: NetworkSpec, voxels: Sequence[int]) -> int:
    """Every level: its convolutions and one transposed convolution."""
    levels = zip(network.decoder_convs_per_stage, network.features_per_stage, voxels, strict=False)
    return sum((convolutions + 1) * features * count for convolutions, features, count in levels)
