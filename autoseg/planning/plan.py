"""The plan: every decision about a dataset, written out in full."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from autoseg.core.errors import MissingInput, PlanFault
from autoseg.core.geometry import Geometry
from autoseg.core.limits import Name, Title
from autoseg.core.machine import BYTES_PER_GIB
from autoseg.core.records import load, record, to_data
from autoseg.core.registry import one_of
from autoseg.core.workspace import Workspace
from autoseg.data.changes import find_changes, load_dataset, shortened
from autoseg.data.fingerprint import Fingerprint, IntensityStatistics, fingerprint_hash
from autoseg.data.inputs import ExpectedImages
from autoseg.data.model import Dataset, FileEnding, LabelSet, label_set_faults
from autoseg.images.normalize import NORMALIZATIONS
from autoseg.images.orientation import Direction, Turn, is_orientation, turn_to
from autoseg.images.resample import resampled_shape
from autoseg.networks.kinds import AnyNetwork
from autoseg.networks.spec import Dimensions

if TYPE_CHECKING:
    from torch import nn

PLAN_VERSION: Final = 1

CONFIGURATION_NAMES = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
"""Of the configurations that are planned; imported plans may have others."""

BYTES_PER_ELEMENT = 8 * BYTES_PER_GIB / (2 * 560e6)
"""Training memory per feature-map element: nnU-Net's default planner sizes two patches of 560e6 elements for 8 GiB."""

STEP_GIB = 0.03
BYTES_PER_WEIGHT = 14
BYTES_PER_ELEMENT_IN: Final = {"fp32": 11.3, "bf16": 6.0, "fp16": 6.0}
"""What a training step takes on a CPU: in any case, for each weight (with gradient and momentum), for each feature-map
element by number format. Source: scripts/training_memory.py, docs/performance.md."""

WHOLE_NAMES: Final = "whole_names"
"""Decision that is there where four digits at the end of a file's name are no channel index."""

LABEL_WORDS: Final = "label_words"
"""Decision that is there where a word such as `_mask` at the end of a file's name makes it no label file."""

LARGEST_PATCH = 1 << 28
"""Voxels; a file that asks for more would only take memory (assumption)."""


_log = logging.getLogger(__name__)


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) != len(values):
        raise ValueError("every entry may stand there once only")
    return values


def _anatomical(codes: str) -> str:
    if not is_orientation(codes):
        raise ValueError('three letters are expected, one each of L or R, P or A, S or I, such as "LPS"')
    return codes


Orientation = Annotated[str, AfterValidator(_anatomical)]
Axis = Annotated[int, Field(ge=0, le=2)]
DistinctAxes = Annotated[tuple[Axis, ...], AfterValidator(_distinct)]
AxisOrder = Annotated[tuple[Axis, Axis, Axis], AfterValidator(_distinct)]
Count = Annotated[int, Field(gt=0)]
Edge = Annotated[int, Field(ge=1, le=8192)]
Length = Annotated[float, Field(gt=1e-9, lt=1e9)]
Normalization = Annotated[str, AfterValidator(one_of(NORMALIZATIONS, "normalization"))]
StoreType = Literal["float32", "float16"]

BYTES_PER_STORED_VOXEL: dict[StoreType, int] = {"float32": 4, "float16": 2}


@record
class Configuration:
    """One pipeline of the plan. Axes in the plan's (transposed) order.

    Attributes:
        name: "2d", "3d_fullres", "3d_lowres" or "3d_cascade_fullres"; imported plans may have others.
        dimensions: 2 or 3.
        spacing_mm: target spacing, one per dimension (2D leaves the first axis of a case as it is).
        patch_size: voxels, one per dimension; each a multiple of the network's total stride.
        batch_size: patches per step.
        median_shape: median voxels of a training case at `spacing_mm`; may be a half.
        normalization: for each channel a key of `images.normalize.NORMALIZATIONS`.
        use_nonzero_mask: for each channel, whether it is normalized inside the nonzero mask only.
        network: of any kind of `networks.kinds.NETWORKS`.
        batch_dice: whether the Dice loss pools the batch before dividing.
        cascade_from: configuration whose prediction is an extra input, or None.
        estimated_feature_map_elements: memory estimate of one patch, in elements of convolution outputs.
        mirror_axes: spatial axes (0 = first axis of the patch) that may be mirrored in training and prediction.
    """

    name: Name
    dimensions: Dimensions
    spacing_mm: tuple[Length, ...]
    patch_size: tuple[Edge, ...]
    batch_size: Count
    median_shape: tuple[float, ...]
    normalization: tuple[Normalization, ...]
    use_nonzero_mask: tuple[bool, ...]
    network: AnyNetwork
    batch_dice: bool
    cascade_from: Name | None
    estimated_feature_map_elements: int
    mirror_axes: DistinctAxes

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = list(self._faults())
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        lengths = {
            "spacing_mm": len(self.spacing_mm),
            "patch_size": len(self.patch_size),
            "the network": self.network.dimensions,
        }
        wrong = [name for name, length in lengths.items() if length != self.dimensions]
        if wrong:
            yield f"{', '.join(wrong)}: not of {self.dimensions} dimensions"
            return
        stride = self.network.total_stride
        if any(edge % step for edge, step in zip(self.patch_size, stride, strict=True)):
            yield f"a patch of {edges(self.patch_size)} is not a multiple of the network's stride {edges(stride)}"
        if math.prod(self.patch_size) > LARGEST_PATCH:
            yield f"a patch of {edges(self.patch_size)} voxels is too large"
        if any(axis >= self.dimensions for axis in self.mirror_axes):
            yield f"mirror_axes {list(self.mirror_axes)} are not axes of {self.dimensions} dimensions"

    @property
    def memory_gib(self) -> float:
        """What nnU-Net's planner counts as the memory of a step, to compare with `--memory`: feature maps on a GPU."""
        return self.estimated_feature_map_elements * self.batch_size * BYTES_PER_ELEMENT / BYTES_PER_GIB


@record
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
    by: Literal["rule", "user"] = "rule"


@record
class Plan:
    """Everything later stages need to know about a dataset; runs and model files carry a copy.

    Attributes:
        version: of this record.
        dataset: its name.
        preset: rules in force: "reference", "resenc-m", "resenc-l", "resenc-xl", "cpu" or the name of a user's file.
        memory_gib: memory target of the batch size rule.
        axis_order: axis of the images (0 = z, 1 = y, 2 = x) that becomes each axis of the plan.
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
        orientation: where the axes x, y, z of an image run to ("LPS") before `axis_order` applies; images that state
            another orientation are turned, and label maps turned back. None to take every image as it is stored.
        direction: what images are turned as near to as whole axes allow, for data that lie oblique in the body:
            directions of z, y, x, as `Geometry` has them. None for the axes of the body.
        store_type: of the voxels of prepared images: "float32", or "float16" for half the disk.
    """

    version: Literal[1]
    dataset: Title
    preset: str
    memory_gib: float
    axis_order: AxisOrder
    channels: Annotated[tuple[Title, ...], Field(min_length=1)]
    labels: LabelSet
    file_ending: FileEnding
    four_d: bool
    intensities: tuple[IntensityStatistics, ...]
    configurations: dict[str, Configuration]
    decisions: tuple[Decision, ...]
    fingerprint: str
    lateral_axis: Axis | None = None
    lateral_pairs: tuple[tuple[str, str], ...] = ()
    orientation: Orientation | None = None
    direction: Direction | None = None
    store_type: StoreType = "float32"

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if wrong := [f"{key} is called {own.name}" for key, own in self.configurations.items() if key != own.name]:
            raise ValueError(f"configurations: {', '.join(wrong)}")
        return self

    @model_validator(mode="after")
    def _has_every_channel(self) -> Self:
        counts = {"intensities": len(self.intensities)}
        for name, own in self.configurations.items():
            counts[f"{name}: normalization"] = len(own.normalization)
            counts[f"{name}: use_nonzero_mask"] = len(own.use_nonzero_mask)
        wrong = [f"{name} of {count}" for name, count in counts.items() if count != len(self.channels)]
        if wrong:
            raise ValueError(f"the dataset has {len(self.channels)} channels, not {', '.join(wrong)}")
        return self

    @model_validator(mode="after")
    def _labels_agree(self) -> Self:
        if faults := label_set_faults(self.labels):
            raise ValueError(f"labels: {'; '.join(faults)}")
        return self

    @property
    def expected_images(self) -> ExpectedImages:
        """What images to predict look like, and how their files name the cases."""
        made = {decision.name for decision in self.decisions if decision.value}
        return ExpectedImages(len(self.channels), self.four_d, WHOLE_NAMES in made, LABEL_WORDS in made)

    def input_channels(self, configuration: str) -> int:
        """Channels of the networks of a configuration: the image's and, in a cascade, one per value of the first stage.

        Source: nnU-Net v2 utilities/label_handling/label_handling.py, `determine_num_input_channels`.
        """
        is_cascade = self.configurations[configuration].cascade_from is not None
        return len(self.channels) + (len(self.labels.foreground_values) if is_cascade else 0)

    def build_network(self, configuration: str) -> nn.Module:
        """The network of a configuration with fresh weights, drawn from torch's global generator."""
        network = self.configurations[configuration].network
        return network.build(self.input_channels(configuration), self.labels.head_count)

    def parameter_shapes(self, configuration: str) -> dict[str, tuple[int, ...]]:
        """Shape of everything in the state of a configuration's network, by name; none of it is allocated."""
        network = self.configurations[configuration].network
        return network.parameter_shapes(self.input_channels(configuration), self.labels.head_count)

    def step_gib(self, configuration: str, precision: str) -> float:
        """Memory of a training step on a CPU in "fp32", "bf16" or "fp16", beside that of the program; an estimate."""
        own = self.configurations[configuration]
        weights = sum(map(math.prod, self.parameter_shapes(configuration).values()))
        elements = own.estimated_feature_map_elements * own.batch_size
        per_element = BYTES_PER_ELEMENT_IN[precision]
        return STEP_GIB + (BYTES_PER_WEIGHT * weights + per_element * elements) / BYTES_PER_GIB

    def turn(self, geometry: Geometry) -> Turn:
        """From an image as it is stored on a grid to the orientation of the plan."""
        return turn_to(geometry, self.orientation, self.direction)

    def store_gib(self, configuration: Configuration, fingerprint: Fingerprint) -> float:
        """Disk space of the preprocessed cases of a configuration: voxels of all channels, and 1 byte per label."""
        voxels = 0
        for case in fingerprint.cases:
            spacing = [case.spacing_mm[axis] for axis in self.axis_order]
            shape = [case.shape_after_crop[axis] for axis in self.axis_order]
            target = [*spacing[: 3 - configuration.dimensions], *configuration.spacing_mm]
            voxels += math.prod(resampled_shape(tuple(shape), tuple(spacing), tuple(target)))
        return voxels * (BYTES_PER_STORED_VOXEL[self.store_type] * len(self.channels) + 1) / BYTES_PER_GIB

    def document(self) -> dict[str, Any]:
        """The plan as `autoseg plan --json` prints it."""
        return {
            "preset": self.preset,
            "memory_gib": self.memory_gib,
            "axis_order": list(self.axis_order),
            "configurations": {name: _configuration_document(own) for name, own in self.configurations.items()},
            "decisions": [to_data(decision) for decision in self.decisions],
        }


def _configuration_document(configuration: Configuration) -> dict[str, Any]:
    """The fields of a configuration and of its network side by side; `network` is the kind."""
    fields = {**to_data(configuration), **configuration.network.document(), "network": configuration.network.kind}
    del fields["name"], fields["kind"]
    return fields


def edges(values: tuple[float, ...] | list[float]) -> str:
    """Numbers of the axes for people: "40 x 56 x 40"."""
    return " x ".join(f"{value:.4g}" for value in values)


def load_plan(workspace: Workspace) -> Plan:
    """The plan of a work folder.

    Raises:
        MissingInput: it is not planned yet; the message says the command to type.
    """
    if not workspace.plan.exists():
        raise MissingInput(
            "there is no plan yet", where=str(workspace.plan), do=f"run `{workspace.command('plan')}` first"
        )
    return load(Plan, workspace.plan)


def load_planned(workspace: Workspace) -> tuple[Dataset, Fingerprint, Plan]:
    """What `autoseg plan` left in the work folder, if the dataset still is what it was planned from.

    Raises:
        MissingInput: there is no plan, or the dataset is not where it was planned.
        PlanFault: the plan was made from another fingerprint or other classes, or the data changed since.
    """
    plan = load_plan(workspace)
    dataset = load_dataset(workspace)
    fingerprint = load(Fingerprint, workspace.fingerprint)
    if not Path(dataset.root).exists():
        raise MissingInput(
            f"the dataset was planned at {dataset.root}, and there is nothing now",
            where=str(workspace.dataset),
            do="run `autoseg plan` with the folder where it is now",
        )
    is_same_dataset = (plan.labels, plan.channels) == (dataset.labels, dataset.channels)
    if plan.fingerprint != fingerprint_hash(fingerprint) or not is_same_dataset:
        raise PlanFault(
            f"plan.json was made from another {'fingerprint' if is_same_dataset else 'dataset'} than "
            f"{'fingerprint' if is_same_dataset else 'dataset'}.json",
            where=str(workspace.root),
            why="one of them was changed or copied from elsewhere, or planning was stopped in between",
            do=f"run `{workspace.command('plan')}` again",
        )
    changes = find_changes(workspace, dataset, fingerprint)
    if changes.sentence:
        raise PlanFault(
            f"the dataset changed since it was planned: {changes.sentence}",
            where=dataset.root,
            why="what is prepared, trained or compared now would be of the former data, or a mixture",
            do=f"run `autoseg plan {dataset.root}` again, with the options as before; only what changed is read again",
        )
    if changes.new:
        _log.warning("%s: not planned, `autoseg plan` again would use it", shortened(changes.new))
    return dataset, fingerprint, plan
