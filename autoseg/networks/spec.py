"""What a plan holds of a network, and all that the rest of AutoSeg asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from autoseg.core.records import to_data

if TYPE_CHECKING:
    from torch import nn

Dimensions = Annotated[int, Field(ge=2, le=3)]


class NetworkSpec(ABC):
    """A network as a plan describes it. A kind is a subclass made with `core.records.record`, listed in `NETWORKS`.

    Planning works without torch: the module of a kind imports it inside `build` only.
    Everything per axis is in the plan's axis order (z, y, x after transposition; y, x in 2D).

    Attributes:
        Options: record of what a preset says about networks of this kind.
        decisions: fields that a user may pin, each with its reason; the reason may name attributes as `{spec.name}`.
        kind: key of `NETWORKS`.
        dimensions: 2 or 3.
    """

    Options: ClassVar[type]
    decisions: ClassVar[Mapping[str, str]] = {}

    kind: str
    dimensions: int

    @classmethod
    @abstractmethod
    def for_patch(cls, options: Any, spacing_mm: Sequence[float], patch_size: Sequence[float]) -> Self:
        """The network for patches of about this size; the planner pads the patch to multiples of `total_stride`.

        Args:
            options: a record of type `Options`.
            spacing_mm: voxel spacing, one per axis.
            patch_size: voxels, one per axis; may hold halves (median shapes do).
        """

    @classmethod
    def enlarged_patch(
        cls,
        spacing_mm: Sequence[float],  # noqa: ARG003
        patch_size: Sequence[float],  # noqa: ARG003
    ) -> tuple[float, ...] | None:
        """The next larger patch that a network can work with where `patch_size` is too small; None where it is not."""
        return None

    @property
    @abstractmethod
    def total_stride(self) -> tuple[int, ...]:
        """What each axis of a patch must be a multiple of."""

    @property
    def description(self) -> str:
        """A few words for tables."""
        return self.kind.replace("_", " ")

    @property
    def details(self) -> Mapping[str, str]:
        """Rows that describe the network in a report."""
        return {"network": self.description}

    def document(self) -> dict[str, Any]:
        """The fields as `autoseg plan --json` prints them."""
        data: dict[str, Any] = to_data(self)
        return data

    @abstractmethod
    def feature_map_elements(self, patch_size: Sequence[int], declared_labels: int) -> int:
        """Elements that training keeps for one patch: the measure that patch and batch are chosen by.

        It counts outputs of layers, not bytes; presets say how many fit into how much memory.

        Args:
            patch_size: voxels, one per axis.
            declared_labels: entries of the dataset's label table (background, regions and ignore counted as written).
        """

    @abstractmethod
    def prediction_elements(self, patch_size: Sequence[int]) -> int:
        """Elements that predicting one patch holds in memory together, without the logits; an estimate."""

    @abstractmethod
    def build(self, in_channels: int, heads: int) -> nn.Module:
        """The network with fresh weights, drawn from torch's global generator.

        It turns an image (b, in_channels, *shape), each axis a multiple of `total_stride`, into logits
        (b, heads, *shape); called with `deep_supervision=True`, into a list of logits, finest first, of which the first
        has the full shape. A list of one is fine.

        Args:
            in_channels: image channels, and those of a cascade's first stage.
            heads: output channels: labels with background (softmax) or regions (sigmoid).
        """

    def parameter_shapes(self, in_channels: int, heads: int) -> dict[str, tuple[int, ...]]:
        """Shape of everything in the network's state, by name; none of it is allocated. Arguments as for `build`."""
        import torch

        with torch.device("meta"):
            network = self.build(in_channels, heads)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
