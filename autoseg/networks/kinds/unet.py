"""U-Nets with a plain or a residual encoder: their topology, and the memory that they need.

Source: nnU-Net v2 experiment_planning/experiment_planners/network_topology.py (Isensee et al. 2021).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from autoseg.core.records import record
from autoseg.networks.spec import Dimensions, NetworkSpec

if TYPE_CHECKING:
    from torch import nn

SMALLEST_EDGE = 4
"""Voxels that every axis keeps at the bottleneck."""

SIMILAR_SPACING = 2.0
"""Axes whose spacings differ by less than this factor are treated alike."""

MOST_STAGES = 16
"""An axis of 2^17 voxels could be halved more often; a file that asks for more would only take memory (assumption)."""

FEATURE_MAPS_WHILE_PREDICTING = 4
"""Feature maps of full resolution that a network holds together while predicting; assumption, for the estimate."""


def _odd(edge: int) -> int:
    if edge % 2 == 0:
        raise ValueError("kernels of even size change the size of an image")
    return edge


Features = Annotated[int, Field(ge=1, le=8192)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Kernel = tuple[Annotated[int, Field(ge=1, le=15), AfterValidator(_odd)], ...]
Stride = tuple[Annotated[int, Field(ge=1, le=8)], ...]


@record
class UNetOptions:
    """What a preset says about its U-Nets.

    Attributes:
        base_features: channels of the finest stage; doubled at every stage.
        largest_features_2d: limit of that doubling in 2D.
        largest_features_3d: the same in 3D.
        encoder_blocks: convolutions or residual blocks per encoder stage; the last entry repeats.
        decoder_convs: convolutions per decoder level.
    """

    base_features: Features
    largest_features_2d: Features
    largest_features_3d: Features
    encoder_blocks: Annotated[tuple[Blocks, ...], Field(min_length=1)]
    decoder_convs: Blocks

    def features(self, dimensions: int, stages: int) -> tuple[int, ...]:
        """Channels double from stage to stage up to a limit."""
        limit = self.largest_features_2d if dimensions == 2 else self.largest_features_3d
        return tuple(min(limit, self.base_features * 2**stage) for stage in range(stages))

    def blocks(self, stages: int) -> tuple[int, ...]:
        """Blocks of each encoder stage, the last entry repeated."""
        return tuple(self.encoder_blocks[min(stage, len(self.encoder_blocks) - 1)] for stage in range(stages))


@record
class UNetSpec(NetworkSpec):
    """Topology of a U-Net.

    Attributes:
        kind: "plain_unet" or "residual_unet".
        dimensions: 2 or 3.
        features_per_stage: channels, finest stage first.
        kernel_sizes: per stage, the bottleneck included; odd, so that convolutions keep the size.
        strides: per stage; the first is all ones.
        blocks_per_stage: convolutions (plain) or residual blocks of each encoder stage.
        decoder_convs_per_stage: convolutions of each decoder level; one entry less than stages.
    """

    Options: ClassVar[type] = UNetOptions
    decisions: ClassVar[Mapping[str, str]] = {
        "features_per_stage": "every axis is halved while at least 4 voxels remain: {spec.n_stages} stages; "
        "channels double up to the limit",
        "blocks_per_stage": "every axis is halved while at least 4 voxels remain: {spec.n_stages} stages; "
        "the preset's blocks",
        "decoder_convs_per_stage": "the preset's decoder",
    }

    kind: str = field(default="", kw_only=True)
    dimensions: Dimensions
    features_per_stage: Annotated[tuple[Features, ...], Field(min_length=1, max_length=MOST_STAGES)]
    kernel_sizes: tuple[Kernel, ...]
    strides: tuple[Stride, ...]
    blocks_per_stage: tuple[Blocks, ...]
    decoder_convs_per_stage: tuple[Blocks, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        lengths = {
            "features_per_stage": len(self.features_per_stage),
            "kernel_sizes": len(self.kernel_sizes),
            "strides": len(self.strides),
            "blocks_per_stage": len(self.blocks_per_stage),
            "decoder_convs_per_stage and one": len(self.decoder_convs_per_stage) + 1,
        }
        if len(set(lengths.values())) > 1:
            raise ValueError("stages differ: " + ", ".join(f"{length} {name}" for name, length in lengths.items()))
        if {len(row) for row in (*self.kernel_sizes, *self.strides)} != {self.dimensions}:
            raise ValueError(f"kernel_sizes and strides need {self.dimensions} axes")
        if set(self.strides[0]) != {1}:
            raise ValueError("the first stage must keep the full resolution")
        return self

    @classmethod
    def for_patch(cls, options: UNetOptions, spacing_mm: Sequence[float], patch_size: Sequence[float]) -> Self:
        """The U-Net that suits a patch: axes are halved while 4 voxels remain, the finest spacings first."""
        strides, kernels = _topology(tuple(spacing_mm), tuple(patch_size))
        stages, dimensions = len(strides), len(spacing_mm)
        return cls(
            dimensions=dimensions,
            features_per_stage=options.features(dimensions, stages),
            kernel_sizes=kernels,
            strides=strides,
            blocks_per_stage=options.blocks(stages),
            decoder_convs_per_stage=(options.decoder_convs,) * (stages - 1),
        )

    @classmethod
    def enlarged_patch(cls, spacing_mm: Sequence[float], patch_size: Sequence[float]) -> tuple[float, ...] | None:
        """A patch of at least two stages for images so tiny that nnU-Net plans one; None where there are two.

        A U-Net without any halving has no decoder and crashes upstream (nnU-Net issue 2901). The axes within a factor
        of 2 of the finest spacing grow to 8 voxels (12 if it is a single one).
        """
        if len(_topology(tuple(spacing_mm), tuple(patch_size))[0]) > 1:
            return None
        finest = min(spacing_mm)
        axes = [axis for axis, own in enumerate(spacing_mm) if own / finest < SIMILAR_SPACING]
        edge = (2 if len(axes) > 1 else 3) * SMALLEST_EDGE
        return tuple(max(float(edge), size) if axis in axes else size for axis, size in enumerate(patch_size))

    @property
    def n_stages(self) -> int:
        """Resolution levels, the bottleneck included."""
        return len(self.strides)

    @property
    def total_stride(self) -> tuple[int, ...]:
        """The product of the strides of all stages."""
        return tuple(math.prod(steps) for steps in zip(*self.strides, strict=True))

    @property
    def description(self) -> str:
        """For example "plain unet 4 st. 16 ch."."""
        return f"{self._name} {self.n_stages} st. {self.features_per_stage[0]} ch."

    @property
    def details(self) -> Mapping[str, str]:
        """Stages, downsampling and channels."""
        pooling = " x ".join(map(str, self.total_stride))
        return {
            "network": f"{self._name}, {self.n_stages} stages, downsampled {pooling}",
            "features": ", ".join(map(str, self.features_per_stage)),
        }

    @property
    def _name(self) -> str:
        return self.kind.replace("_", " ")

    def document(self) -> dict[str, Any]:
        """The fields, and the number of stages."""
        return {**NetworkSpec.document(self), "n_stages": self.n_stages}

    def feature_map_elements(self, patch_size: Sequence[int], declared_labels: int) -> int:
        """Elements of all convolution outputs for one patch, without deep-supervision heads.

        Source: nnU-Net v2 `compute_conv_feature_map_size` (dynamic-network-architectures, unet.py and residual.py).
        """
        size = list(patch_size)
        voxels = []
        for stride in self.strides:
            size = [edge // step for edge, step in zip(size, stride, strict=True)]
            voxels.append(math.prod(size))
        # a decoder level has its convolutions and one transposed convolution
        levels = zip(self.decoder_convs_per_stage, self.features_per_stage, voxels, strict=False)
        decoder = sum((convolutions + 1) * features * count for convolutions, features, count in levels)
        stages = zip(self._encoder_convolutions(), self.features_per_stage, voxels, strict=True)
        encoder = sum(convolutions * features * count for convolutions, features, count in stages)
        return encoder + decoder + declared_labels * voxels[0]

    @abstractmethod
    def _encoder_convolutions(self) -> Sequence[int]:
        """Convolutions of each stage of the encoder."""

    def prediction_elements(self, patch_size: Sequence[int]) -> int:
        """A few feature maps of full resolution; coarser ones are small beside them."""
        return FEATURE_MAPS_WHILE_PREDICTING * self.features_per_stage[0] * math.prod(patch_size)


@record
class PlainUNet(UNetSpec):
    """The plain U-Net of nnU-Net v2."""

    kind: Literal["plain_unet"] = field(default="plain_unet", kw_only=True)

    def _encoder_convolutions(self) -> Sequence[int]:
        return self.blocks_per_stage

    def build(self, in_channels: int, heads: int) -> nn.Module:
        """Weights are drawn as nnU-Net draws them."""
        from autoseg.networks.unet import Decoder, PlainEncoder, UNet

        return UNet(PlainEncoder(self, in_channels), Decoder(self, heads))


@record
class ResidualUNet(UNetSpec):
    """The U-Net with residual encoder of nnU-Net v2."""

    kind: Literal["residual_unet"] = field(default="residual_unet", kw_only=True)

    def _encoder_convolutions(self) -> Sequence[int]:
        """Two per block, a stem, and a projection wherever channels or resolution change."""
        features, strides = self.features_per_stage, self.strides
        projected = [
            any(step != 1 for step in strides[stage]) or (stage > 0 and features[stage] != features[stage - 1])
            for stage in range(self.n_stages)
        ]
        first, *others = [2 * blocks + extra for blocks, extra in zip(self.blocks_per_stage, projected, strict=True)]
        return [first + 1, *others]

    def build(self, in_channels: int, heads: int) -> nn.Module:
        """Weights are drawn as nnU-Net draws them; every residual block starts as its skip."""
        from autoseg.networks.unet import Decoder, ResidualEncoder, UNet

        return UNet(ResidualEncoder(self, in_channels), Decoder(self, heads))


@lru_cache(maxsize=1024)  # the search for a patch asks for the same sizes again and again
def _topology(
    spacing_mm: tuple[float, ...], patch_size: tuple[float, ...]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides (the first all ones) and kernels of every stage that suit a patch.

    Source: nnU-Net v2 experiment_planning/experiment_planners/network_topology.py, `get_pool_and_conv_props`.
    """
    spacing = list(spacing_mm)
    size = list(patch_size)
    kernel = [1] * len(size)
    strides = [(1,) * len(size)]
    kernels: list[tuple[int, ...]] = []
    while halved := _axes_to_halve(spacing, size):
        # an axis gets kernel 3 once its spacing is within a factor of 2 of the finest, and keeps it
        finest = min(spacing)
        kernel = [
            3 if edge == 3 or own / finest < SIMILAR_SPACING else 1 for edge, own in zip(kernel, spacing, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(size))))
        for axis in halved:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * len(size))
    return tuple(strides), tuple(kernels)


def _axes_to_halve(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    """Axes of the next pooling: large enough, and among the finest; a lone axis needs one voxel edge more."""
    large = [axis for axis in range(len(size)) if size[axis] >= 2 * SMALLEST_EDGE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    axes = [axis for axis in large if spacing[axis] / finest < SIMILAR_SPACING]
    if len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_EDGE:
        return []
    return axes
