"""The plan: every decision about a dataset, written out in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoseg.data.fingerprint import IntensityStatistics
from autoseg.data.model import LabelSet

PLAN_VERSION = 1


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Topology of a U-Net. Per-axis entries in the plan's axis order (z, y, x after transposition; y, x in 2D).

    Attributes:
        kind: a key of `networks.NETWORKS`: "plain_unet" or "residual_unet".
        dimensions: 2 or 3.
        features_per_stage: channels, finest stage first.
        kernel_sizes: per stage.
        strides: per stage; the first is all ones.
        blocks_per_stage: convolutions (plain) or residual blocks of each encoder stage.
        decoder_convs_per_stage: convolutions of each decoder level; one entry less than stages.
    """

    kind: str
    dimensions: int
    features_per_stage: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    blocks_per_stage: tuple[int, ...]
    decoder_convs_per_stage: tuple[int, ...]

    @property
    def n_stages(self) -> int:
        """Resolution levels, the bottleneck included."""
        return len(self.strides)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One pipeline of the plan. Axes in the plan's (transposed) order.

    Attributes:
        name: "2d", "3d_fullres", "3d_lowres" or "3d_cascade_fullres".
        dimensions: 2 or 3.
        spacing_mm: target spacing, one per dimension (2D leaves the first axis of a case as it is).
        patch_size: voxels, one per dimension; each a multiple of the network's total stride.
        batch_size: patches per step.
        median_shape: median voxels of a training case at `spacing_mm`; may be a half.
        normalization: for each channel a key of `images.normalize.NORMALIZATIONS`.
        use_nonzero_mask: for each channel, whether it is normalized inside the nonzero mask only.
        network: topology.
        batch_dice: whether the Dice loss pools the batch before dividing.
        cascade_from: configuration whose prediction is an extra input, or None.
        estimated_feature_map_elements: memory estimate of one patch, in elements of convolution outputs.
        mirror_axes: spatial axes (0 = first axis of the patch) that may be mirrored in training and prediction.
    """

    name: str
    dimensions: int
    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    median_shape: tuple[float, ...]
    normalization: tuple[str, ...]
    use_nonzero_mask: tuple[bool, ...]
    network: NetworkSpec
    batch_dice: bool
    cascade_from: str | None
    estimated_feature_map_elements: int
    mirror_axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision and its reason, for `autoseg explain`.

    Attributes:
        name: what was decided ("patch_size").
        configuration: which configuration it concerns, or None if all.
        value: the JSON value chosen.
        because: one or two sentences.
        by: "rule" or "user" (pinned).
    """

    name: str
    configuration: str | None
    value: Any
    because: str
    by: str = "rule"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything later stages need to know about a dataset; runs and model files carry a copy.

    Attributes:
        version: of this record.
        dataset: its name.
        preset: rules in force: "reference", "resenc-m", "resenc-l", "resenc-xl" or "cpu".
        memory_gib: memory target of the batch size rule.
        axis_order: axis of the files (0 = z, 1 = y, 2 = x) that becomes each axis of the plan.
        channels: channel names in order.
        labels: classes and values.
        file_ending: ending of predictions, dot included.
        four_d: whether a fourth axis of the image files holds the channels.
        intensities: foreground statistics per channel, for the CT normalization.
        configurations: by name.
        decisions: every decision with its reason, in the order made.
        fingerprint: hash of the fingerprint planned from.
        lateral_axis: axis of the plan that runs from left to right; None if it does not matter or is not known.
        lateral_pairs: names (left, right) of classes that change places where an image is mirrored along that axis.
    """

    version: int
    dataset: str
    preset: str
    memory_gib: float
    axis_order: tuple[int, int, int]
    channels: tuple[str, ...]
    labels: LabelSet
    file_ending: str
    four_d: bool
    intensities: tuple[IntensityStatistics, ...]
    configurations: dict[str, Configuration]
    decisions: tuple[Decision, ...]
    fingerprint: str
    lateral_axis: int | None = None
    lateral_pairs: tuple[tuple[str, str], ...] = ()

    def input_channels(self, configuration: str) -> int:
        """Channels of the networks of a configuration: the image's and, in a cascade, one per value of the first stage.

        Source: nnU-Net v2 utilities/label_handling/label_handling.py, `determine_num_input_channels`.
        """
        is_cascade = self.configurations[configuration].cascade_from is not None
        return len(self.channels) + (len(self.labels.foreground_values) if is_cascade else 0)
