"""Small networks and configurations for the tests of prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autoseg.inference.windows import axis_weights
from autoseg.networks.kinds import NETWORKS
from autoseg.networks.kinds.unet import PlainUNet
from autoseg.networks.spec import NetworkSpec
from autoseg.planning.plan import Configuration


def configuration(patch_size, spec=None, spacing_mm=None) -> Configuration:
    dimensions = len(patch_size)
    return Configuration(
        name="2d" if dimensions == 2 else "3d_fullres",
        dimensions=dimensions,
        spacing_mm=spacing_mm or (1.0,) * dimensions,
        patch_size=tuple(patch_size),
        batch_size=2,
        median_shape=tuple(map(float, patch_size)),
        normalization=("none",),
        use_nonzero_mask=(False,),
        network=spec or unet_spec(dimensions),
        batch_dice=False,
        cascade_from=None,
        mirror_axes=tuple(range(dimensions)),
        estimated_feature_map_elements=0,
    )


def unet_spec(dimensions, features=(4, 8)) -> PlainUNet:
    stages = len(features)
    return PlainUNet(
        dimensions=dimensions,
        features_per_stage=features,
        kernel_sizes=((3,) * dimensions,) * stages,
        strides=((1,) * dimensions, *((2,) * dimensions,) * (stages - 1)),
        blocks_per_stage=(1,) * stages,
        decoder_convs_per_stage=(1,) * (stages - 1),
    )


def random_unet(dimensions, channels=1, heads=3, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return unet_spec(dimensions).build(channels, heads)


def gaussian_weights(patch_size) -> np.ndarray:
    """nnU-Net's weights (z, y, x) of the voxels of a tile, 10 in the middle."""
    weights = np.full((1,) * len(patch_size), 10.0)
    for axis, patch in enumerate(patch_size):
        weights = weights * np.moveaxis(axis_weights(patch).reshape(-1, *(1,) * (len(patch_size) - 1)), 0, axis)
    return weights.astype(np.float32)


class VoxelWise(nn.Module):
    """Logits that depend on the voxel's own intensity alone: head k is k * intensity, so tiles cannot disagree."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, image):
        return torch.cat([k * image[:, :1] for k in range(self.heads)], 1)


def reference_network(vectors: Path, name: str = "plain_3d") -> tuple[nn.Module, NetworkSpec]:
    """A network of the reference vectors with its weights."""
    facts = next(entry for entry in json.loads((vectors / "networks.json").read_text()) if entry["name"] == name)
    spec = NETWORKS[f"{facts['kind']}_unet"](
        dimensions=facts["dimensions"],
        features_per_stage=tuple(facts["features_per_stage"]),
        kernel_sizes=tuple(map(tuple, facts["kernel_sizes"])),
        strides=tuple(map(tuple, facts["strides"])),
        blocks_per_stage=tuple(facts["blocks_per_stage"]),
        decoder_convs_per_stage=tuple(facts["decoder_convs_per_stage"]),
    )
    network = spec.build(facts["input_channels"], facts["classes"])
    prefix = f"{name}.weights."
    with np.load(vectors / "networks.npz") as stored:
        weights = {key.removeprefix(prefix): torch.from_numpy(stored[key]) for key in stored if key.startswith(prefix)}
    network.load_state_dict(weights)
    return network, spec
