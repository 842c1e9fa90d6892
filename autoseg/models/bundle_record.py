"""model.json of a bundle, and every reason not to believe one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoseg.core.archives import without_duplicates
from autoseg.core.errors import AutoSegError, IntegrityRefusal
from autoseg.core.records import from_json, to_data
from autoseg.data.model import LabelSet
from autoseg.data.outliers import Typical
from autoseg.images.formats.files import SUPPORTED_ENDINGS
from autoseg.images.normalize import NORMALIZATIONS
from autoseg.inference.postprocessing import PostprocessingStep
from autoseg.networks.build import NETWORKS
from autoseg.planning.lateral import lateral_swap
from autoseg.planning.plan import PLAN_VERSION, Configuration, NetworkSpec, Plan
from autoseg.selection.record import CandidateScore, NestedScore

BUNDLE_VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LONGEST_TEXT = 20_000
_MOST_CHANNELS = 256
_MOST_CLASSES = 4096
_LARGEST_VALUE = 65535
_LARGEST_FOLD = 999
_LONGEST_EDGE = 8192
_LARGEST_PATCH = 1 << 28
_MOST_STAGES = 12
_MOST_FEATURES = 8192
_LARGEST_KERNEL = 15
_MOST_BLOCKS = 64

_PRECISIONS = ("fp32", "bf16", "fp16")
_MEMORY_FORMATS = ("contiguous", "channels_last")
_DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True)
class BundledMember:
    """A configuration in a bundle.

    Attributes:
        configuration: name in `plan`.
        folds: whose weights are in the bundle.
        precision: as `Member` has it.
        memory_format: likewise.
        device: likewise.
        share: of the averaged probabilities.
        plan: that it was trained with; of its configurations only this one.
    """

    configuration: str
    folds: tuple[int, ...]
    precision: str
    memory_format: str
    device: str
    share: float
    plan: Plan


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from; names no case.

    Attributes:
        dataset: name of the dataset.
        origin: "autoseg" or "nnU-Net v2".
        autoseg: version that wrote the bundle.
        versions: of python and torch that wrote it.
        training_cases: number of cases of the dataset, or None if not known.
    """

    dataset: str
    origin: str
    autoseg: str
    versions: dict[str, str]
    training_cases: int | None = None


@dataclass(frozen=True, slots=True)
class BundledScores:
    """How good the model is, from selection.json; names no case.

    Attributes:
        chosen: name of the chosen candidate.
        because: why it was chosen.
        candidates: everything compared.
        nested: nested cross-validation score of the choice.
    """

    chosen: str
    because: str
    candidates: tuple[CandidateScore, ...]
    nested: NestedScore | None


@dataclass(frozen=True, slots=True)
class BundleRecord:
    """model.json.

    Attributes:
        version: of this record.
        name: of the model, as predictions name it in their manifest.
        because: why it is made of these configurations and folds.
        members: whose probabilities are averaged.
        stages: first stages of cascades.
        postprocessing: done to every predicted label map.
        typical: what is usual for the cases trained on.
        provenance: where it comes from.
        scores: how good it is, if cross-validation told.
    """

    version: int
    name: str
    because: str
    members: tuple[BundledMember, ...]
    stages: tuple[BundledMember, ...]
    postprocessing: tuple[PostprocessingStep, ...]
    typical: dict[str, Typical]
    provenance: Provenance
    scores: BundledScores | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def every(self) -> tuple[BundledMember, ...]:
        """Members and first stages; a configuration that is both is there twice, with the same folds."""
        return (*self.members, *self.stages)


def parse_bundle_record(raw: bytes, where: str) -> BundleRecord:
    """The record in a model.json, if nothing in it could do harm or be misunderstood.

    Raises:
        IntegrityRefusal: with what is wrong.
    """
    try:
        record = from_json(BundleRecord, raw, where)
        written = json.loads(raw, object_pairs_hook=without_duplicates)
        json.dumps(to_data(record), allow_nan=False)
        fault = next(_faults(record, written), None)
    except (AutoSegError, ValueError, RecursionError, OverflowError) as error:
        fault = error.what if isinstance(error, AutoSegError) else str(error)
    if fault is not None:
        raise IntegrityRefusal(
            f"model.json cannot be used: {_printable(fault)}",
            where=where,
            why="it was changed, or made by a newer AutoSeg",
            do="get the model again, or update AutoSeg",
        )
    return record


def _faults(record: BundleRecord, written: Any) -> Iterator[str]:
    if record.version != BUNDLE_VERSION:
        yield f"it has version {record.version}, this AutoSeg reads {BUNDLE_VERSION}"
    yield from _text_faults(written)
    yield from _unknown(written, to_data(record), "")
    yield from _composition_faults(record)
    first = record.members[0].plan
    for member in record.every:
        if (member.plan.labels, member.plan.channels, member.plan.axis_order) != (
            first.labels,
            first.channels,
            first.axis_order,
        ):
            yield f"{member.configuration} is for other classes, channels or axes"
        yield from (f"{member.configuration}: {fault}" for fault in _member_faults(member))
    for step in record.postprocessing:
        if not step.classes or not set(step.classes) <= set(first.labels.foreground):
            yield "postprocessing of unknown classes"
        if step.minimum_mm3 is not None and step.minimum_mm3 < 0:
            yield "postprocessing with a negative volume"


def _composition_faults(record: BundleRecord) -> Iterator[str]:
    """What is wrong with how members and stages belong together."""
    if not record.members:
        yield "it has no member"
        return
    if not math.isclose(sum(member.share for member in record.members), 1.0, rel_tol=1e-6):
        yield "the shares of its members do not sum to one"
    for group in (record.members, record.stages):
        if len({member.configuration for member in group}) != len(group):
            yield "a configuration is there twice"
    folds: dict[str, tuple[int, ...]] = {}
    for member in record.every:
        if folds.setdefault(member.configuration, member.folds) != member.folds:
            yield f"{member.configuration} has two sets of folds"
    needed = {
        member.plan.configurations[member.configuration].cascade_from
        for member in record.members
        if member.configuration in member.plan.configurations
    } - {None}
    if needed != {stage.configuration for stage in record.stages}:
        yield "the first stages of its cascades are not those that it holds"


def _member_faults(member: BundledMember) -> Iterator[str]:
    plan = member.plan
    if set(plan.configurations) != {member.configuration}:
        yield "its plan holds something else"
        return
    checks = (
        (not _NAME.fullmatch(member.configuration), "the name is not a name"),
        (not _are_within(member.folds, 0, _LARGEST_FOLD) or not member.folds, "folds that cannot be"),
        (len(set(member.folds)) != len(member.folds), "a fold is there twice"),
        (not 0 < member.share <= 1, "a share that cannot be"),
        (member.precision not in _PRECISIONS, "unknown precision"),
        (member.memory_format not in _MEMORY_FORMATS, "unknown memory format"),
        (member.device not in _DEVICES, "unknown device"),
    )
    yield from (fault for is_wrong, fault in checks if is_wrong)
    yield from _plan_faults(plan)
    yield from _configuration_faults(plan.configurations[member.configuration], plan)
    lateral_swap(plan, plan.configurations[member.configuration])  # raises PlanFault


def _plan_faults(plan: Plan) -> Iterator[str]:
    checks = (
        (plan.version != PLAN_VERSION, f"its plan has version {plan.version}"),
        (sorted(plan.axis_order) != [0, 1, 2], "axes that are none"),
        (not 1 <= len(plan.channels) <= _MOST_CHANNELS, "no channels, or too many"),
        (len(plan.intensities) != len(plan.channels), "intensities of other channels"),
        (plan.file_ending not in SUPPORTED_ENDINGS, "files of a kind that is not known"),
        (plan.lateral_axis not in (None, 0, 1, 2), "a lateral axis that is none"),
    )
    yield from (fault for is_wrong, fault in checks if is_wrong)
    yield from _label_faults(plan.labels)


def _label_faults(labels: LabelSet) -> Iterator[str]:
    values = [value for own in labels.classes.values() for value in own]
    regions = labels.regions_class_order
    known = set(values) | ({labels.ignore} - {None})
    if not labels.foreground or len(labels.classes) > _MOST_CLASSES or not all(labels.classes.values()):
        yield "no classes, too many, or empty ones"
        return
    if not _are_within([value for value in known if value is not None], 0, _LARGEST_VALUE):
        yield "values of classes that cannot be"
    if labels.has_regions and (len(regions) != len(labels.foreground) or not set(regions) <= set(values)):
        yield "regions without an order"
    if not labels.has_regions and sorted(values) != list(range(len(labels.classes))):
        yield "values of classes that are not 0, 1, 2, ..."
    files = labels.file_values
    if files and (
        len(files) <= labels.largest_value or len(set(files)) != len(files) or not _are_within(files, 0, 2**31)
    ):
        yield "values in files that cannot be"


def _configuration_faults(configuration: Configuration, plan: Plan) -> Iterator[str]:
    dimensions, channels = configuration.dimensions, len(plan.channels)
    if dimensions not in (2, 3) or configuration.network.dimensions != dimensions:
        yield "neither 2D nor 3D"
        return
    spacing, patch, axes = configuration.spacing_mm, configuration.patch_size, configuration.mirror_axes
    checks = (
        (len(spacing) != dimensions or not all(1e-9 < length < 1e9 for length in spacing), "an impossible spacing"),
        (len(patch) != dimensions or not _are_within(patch, 1, _LONGEST_EDGE), "an impossible patch"),
        (math.prod(patch) > _LARGEST_PATCH, "a patch that is too large"),
        (len(configuration.normalization) != channels, "normalization of other channels"),
        (len(configuration.use_nonzero_mask) != channels, "masks of other channels"),
        (not set(configuration.normalization) <= set(NORMALIZATIONS), "unknown normalization"),
        (not set(axes) <= set(range(dimensions)) or len(set(axes)) != len(axes), "impossible mirroring"),
    )
    yield from (fault for is_wrong, fault in checks if is_wrong)
    yield from _network_faults(configuration.network, patch)


def _network_faults(network: NetworkSpec, patch: Sequence[int]) -> Iterator[str]:
    stages, dimensions = network.n_stages, network.dimensions
    lengths = (len(network.features_per_stage), len(network.kernel_sizes), len(network.blocks_per_stage))
    if not 1 <= stages <= _MOST_STAGES or set(lengths) != {stages}:
        yield "a network of an impossible number of stages"
        return
    per_axis = [*network.kernel_sizes, *network.strides]
    if any(len(entry) != dimensions for entry in per_axis) or len(patch) != dimensions:
        yield "a network of other dimensions"
        return
    kernels = [edge for kernel in network.kernel_sizes for edge in kernel]
    total = [math.prod(stride[axis] for stride in network.strides) for axis in range(dimensions)]
    checks = (
        (network.kind not in NETWORKS, "a network of an unknown kind"),
        (not _are_within(network.features_per_stage, 1, _MOST_FEATURES), "impossible features"),
        (not _are_within(kernels, 1, _LARGEST_KERNEL) or any(edge % 2 == 0 for edge in kernels), "impossible kernels"),
        (not _are_within([edge for stride in network.strides for edge in stride], 1, 8), "impossible strides"),
        (any(edge != 1 for edge in network.strides[0]), "strides that do not begin with 1"),
        (not _are_within(network.blocks_per_stage, 1, _MOST_BLOCKS), "impossible blocks"),
        (not _are_within(network.decoder_convs_per_stage, 1, _MOST_BLOCKS), "an impossible decoder"),
        (len(network.decoder_convs_per_stage) != stages - 1, "a decoder of other stages"),
        (any(edge % max(1, step) for edge, step in zip(patch, total, strict=True)), "a patch that does not fit"),
    )
    yield from (fault for is_wrong, fault in checks if is_wrong)


def _text_faults(data: Any) -> Iterator[str]:
    """Texts that are too long, or that would write to a terminal what nobody sees."""
    if isinstance(data, str):
        if len(data) > _LONGEST_TEXT or _printable(data) != data:
            yield f"the text {_printable(data[:40])!r} is too long or holds control characters"
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _text_faults(key)
            yield from _text_faults(value)
    elif isinstance(data, list):
        for value in data:
            yield from _text_faults(value)


def _unknown(written: Any, understood: Any, path: str) -> Iterator[str]:
    """Entries that were written and not understood; what they ask for would otherwise silently not happen."""
    if isinstance(written, dict) and isinstance(understood, dict):
        for key, value in written.items():
            if key not in understood:
                yield f"it holds something unknown: {path}{key}"
            else:
                yield from _unknown(value, understood[key], f"{path}{key}.")
    elif isinstance(written, list) and isinstance(understood, list):
        for index, (one, other) in enumerate(zip(written, understood, strict=False)):
            yield from _unknown(one, other, f"{path}{index}.")


def _printable(text: str) -> str:
    """The text without control, format and private characters; line ends and spaces stay."""
    return "".join(letter for letter in text if letter.isprintable() or letter in " \n")


def _are_within(values: Sequence[int], lowest: int, highest: int) -> bool:
    return all(lowest <= value <= highest for value in values)
