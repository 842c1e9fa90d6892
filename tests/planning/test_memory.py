"""The memory estimate equals nnU-Net's count for reference networks."""

import json

import numpy as np

from autoseg.planning.memory import feature_map_elements
from autoseg.planning.plan import NetworkSpec


def deep_supervision_heads(spec, patch, classes):
    """The reference networks were counted with the coarser heads on; planning counts without, as nnU-Net plans."""
    scales = np.cumprod(spec.strides, axis=0)[1:-1]
    return classes * sum(int(np.prod(np.array(patch) // scale)) for scale in scales)


def test_feature_map_elements_equal_the_reference(golden_vectors):

    inputs = np.load(golden_vectors / "networks.npz")
    for entry in json.loads((golden_vectors / "networks.json").read_text()):
        spec = NetworkSpec(
            kind={"plain": "plain_unet", "resenc": "residual_unet"}[entry["kind"]],
            dimensions=entry["dimensions"],
            features_per_stage=tuple(entry["features_per_stage"]),
            kernel_sizes=tuple(map(tuple, entry["kernel_sizes"])),
            strides=tuple(map(tuple, entry["strides"])),
            blocks_per_stage=tuple(entry["blocks_per_stage"]),
            decoder_convs_per_stage=tuple(entry["decoder_convs_per_stage"]),
        )
        patch = inputs[f"{entry['name']}.input"].shape[2:]
        estimate = feature_map_elements(spec, patch, entry["classes"])
        assert estimate + deep_supervision_heads(spec, patch, entry["classes"]) == entry["feature_map_elements"]
