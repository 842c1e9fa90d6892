"""Presets: the constants that the rules are applied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from autoseg.core.configs import find_config, read_yaml
from autoseg.core.errors import RecordFault
from autoseg.core.records import from_data, record
from autoseg.core.registry import one_of
from autoseg.networks.kinds import NETWORKS
from autoseg.networks.spec import NetworkSpec

Count = Annotated[int, Field(gt=0)]
Gib = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FittedPatch = tuple[NetworkSpec, tuple[int, ...]]
"""A network, and the patch padded to what it divides it by."""


@record
class Preset:
    """One set of constants; shipped as `configs/presets/<name>.yaml`.

    Attributes:
        name: that of the file.
        description: for people.
        network: kind of network, a key of `networks.kinds.NETWORKS`.
        options: what this kind of network needs to know; in the file its entries stand beside the others.
        reference_elements_2d: feature-map elements of one patch that fit with `reference_batch_2d` patches.
        reference_elements_3d: the same in 3D.
        reference_batch_2d: batch that the 2D reference was measured at.
        reference_batch_3d: batch that the 3D reference was measured at.
        reference_memory_gib: memory that the references were measured at.
        default_memory_gib: memory target when the user names none.
        fits_at_batch: the patch shrinks until this many patches fit; None: until the reference batch fits.
        dataset_share: largest share of all training voxels that one batch may hold.
        largest_batch_2d: limit of the batch in 2D, or None.
        largest_batch_3d: limit of the batch in 3D, or None.
        mirrored_dimensions: 2, 3 or both: configurations of these dimensions are mirrored.
        guarded: whether our own guards may change what nnU-Net would plan (tiny images, huge 2D batches).
    """

    name: str
    description: str
    network: Annotated[str, AfterValidator(one_of(NETWORKS, "network"))]
    options: Any
    reference_elements_2d: Count
    reference_elements_3d: Count
    reference_batch_2d: Count
    reference_batch_3d: Count
    reference_memory_gib: Gib
    default_memory_gib: Gib
    fits_at_batch: Count | None
    dataset_share: Annotated[float, Field(gt=0)]
    largest_batch_2d: Count | None
    largest_batch_3d: Count | None
    mirrored_dimensions: tuple[Literal[2, 3], ...]
    guarded: bool

    @field_validator("options", mode="plain")
    @classmethod
    def _read_options(cls, options: Any, info: ValidationInfo) -> Any:
        if "network" not in info.data or not isinstance(options, Mapping):
            return options
        try:
            return from_data(NETWORKS[info.data["network"]].Options, options, "options")
        except RecordFault as fault:
            raise ValueError(fault.what) from fault

    def network_for_patch(self, spacing_mm: Sequence[float], size: Sequence[float]) -> FittedPatch:
        """The network for patches of about this size, and the patch padded to what the network divides it by.

        Args:
            spacing_mm: voxel spacing, one per axis of the plan.
            size: voxels, one per axis; may hold halves (median shapes do).
        """
        network = NETWORKS[self.network].for_patch(self.options, spacing_mm, size)
        return network, tuple(_next_multiple(*pair) for pair in zip(size, network.total_stride, strict=True))

    def enlarged_patch(self, spacing_mm: Sequence[float], size: Sequence[float]) -> tuple[float, ...] | None:
        """The next larger patch that a network can work with where `size` is too small; None where it is not."""
        return NETWORKS[self.network].enlarged_patch(spacing_mm, size)

    def reference_elements(self, dimensions: int) -> int:
        """Feature-map elements of one patch at the reference memory and batch."""
        return self.reference_elements_2d if dimensions == 2 else self.reference_elements_3d

    def reference_batch(self, dimensions: int) -> int:
        """Batch that the reference was measured at."""
        return self.reference_batch_2d if dimensions == 2 else self.reference_batch_3d

    def largest_batch(self, dimensions: int) -> int | None:
        """Limit of the batch, or None."""
        return self.largest_batch_2d if dimensions == 2 else self.largest_batch_3d


def _next_multiple(edge: float, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not below `edge`; half voxels are dropped as nnU-Net drops them."""
    remainder = edge % divisor
    return int(edge if remainder == 0 else edge + divisor - remainder)


def load_preset(name: str) -> Preset:
    """A shipped preset, or that of a YAML file.

    Raises:
        UsageError: no shipped preset has this name.
        RecordFault: the file is not a preset; every fault is named.
    """
    path = find_config(name, "presets")
    content = read_yaml(path)
    own = {entry.name for entry in fields(Preset)}
    options = {key: content.pop(key) for key in list(content) if key not in own}
    return from_data(Preset, {**content, "name": path.stem, "options": options}, str(path))
