"""From a fingerprint to a plan: the rules, called in reading order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from autoseg.core.errors import PlanFault
from autoseg.core.records import to_data
from autoseg.data.fingerprint import Fingerprint, fingerprint_hash
from autoseg.data.model import LabelSet
from autoseg.planning import rules
from autoseg.planning.lateral import value_swap, without_counterpart
from autoseg.planning.memory import feature_map_elements
from autoseg.planning.pins import Pins
from autoseg.planning.plan import PLAN_VERSION, Configuration, Decision, NetworkSpec, Plan
from autoseg.planning.presets import Preset
from autoseg.planning.rules import Chosen, Lateral
from autoseg.planning.topology import Topology, topology

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What planning needs to know about a dataset besides its fingerprint.

    Attributes:
        name: of the dataset.
        channels: channel names in order; they select the normalization.
        labels: classes and values.
        file_ending: ending of predictions, dot included.
        training_cases: number of training cases that the dataset announces or that are usable.
        four_d: whether a fourth axis of the image files holds the channels.
    """

    name: str
    channels: tuple[str, ...]
    labels: LabelSet
    file_ending: str
    training_cases: int
    four_d: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked the planner for."""

    preset_name: str
    preset: Preset
    memory_gib: float
    pins: Pins = field(default_factory=Pins)


@dataclass(frozen=True, slots=True)
class _Ledger:
    """Decisions in the order they are made; a pinned one replaces the rule's."""

    pins: Pins
    decisions: list[Decision]

    def decide(
        self, name: str, chosen: Chosen[T], configuration: str | None = None, dimensions: int | None = None
    ) -> T:
        """The pinned value, or the rule's; recorded with its reason."""
        pinned: Any = self.pins.find(name, configuration, dimensions)
        if pinned is None:
            self.record(name, chosen, configuration)
            return chosen.value
        because = f"set by the user; the rule chose {to_data(chosen.value)} ({chosen.because})"
        self.decisions.append(Decision(name, configuration, to_data(pinned), because, by="user"))
        value: T = pinned
        return value

    def record(self, name: str, chosen: Chosen[Any], configuration: str | None = None) -> None:
        """A decision that no pin replaces."""
        self.decisions.append(Decision(name, configuration, to_data(chosen.value), chosen.because))


@dataclass(frozen=True, slots=True)
class _Target:
    """What a configuration is planned for: plan axes, one entry per dimension."""

    name: str
    spacing_mm: tuple[float, ...]
    median: tuple[float, ...]
    dataset_voxels: float


@dataclass(frozen=True, slots=True)
class _Common:
    """What all configurations of a plan share."""

    request: Request
    labels: LabelSet
    normalization: tuple[str, ...]
    use_nonzero_mask: tuple[bool, ...]
    lateral: Lateral
    ledger: _Ledger


def make_plan(fingerprint: Fingerprint, facts: DatasetFacts, request: Request) -> Plan:
    """Every decision for a dataset, with its reason.

    Raises:
        PlanFault: the fingerprint has no cases or impossible spacings, or a pin does not fit the dataset.
    """
    spacings, shapes = _arrays(fingerprint)
    ledger = _Ledger(request.pins, [])
    target = ledger.decide("spacing_mm", rules.target_spacing(spacings, shapes))
    order = ledger.decide("axis_order", rules.axis_order(target))
    median = rules.median_shape(spacings, shapes, target, order)
    spacing = tuple(float(target[axis]) for axis in order)
    schemes = ledger.decide("normalization", rules.normalization(facts.channels))
    masks = ledger.decide("use_nonzero_mask", rules.use_nonzero_mask(schemes, fingerprint.relative_size))
    _check_channel_count(facts, schemes, masks)
    lateral = _lateral(fingerprint, facts.labels, order, ledger)
    common = _Common(request, facts.labels, schemes, masks, lateral, ledger)
    voxels = float(np.prod(median, dtype=np.float64) * facts.training_cases)
    configurations = _configurations_2d(common, spacing, median, voxels)
    configurations |= _configurations_3d(common, spacing, median, facts.training_cases)
    return Plan(
        version=PLAN_VERSION,
        dataset=facts.name,
        preset=request.preset_name,
        memory_gib=request.memory_gib,
        axis_order=order,
        channels=facts.channels,
        labels=facts.labels,
        file_ending=facts.file_ending,
        four_d=facts.four_d,
        intensities=fingerprint.intensities,
        configurations=configurations,
        decisions=tuple(ledger.decisions),
        fingerprint=fingerprint_hash(fingerprint),
        lateral_axis=lateral.axis,
        lateral_pairs=lateral.pairs,
    )


def _arrays(fingerprint: Fingerprint) -> tuple[np.ndarray, np.ndarray]:
    """Spacings and shapes after the crop, (cases, 3) each, in file order."""
    if not fingerprint.cases:
        raise PlanFault(
            "the fingerprint holds no case", do="check the dataset: every case was refused or none is there"
        )
    spacings = np.array([case.spacing_mm for case in fingerprint.cases], dtype=np.float64)
    shapes = np.array([case.shape_after_crop for case in fingerprint.cases], dtype=np.float64)
    is_sound = np.logical_and.reduce(np.isfinite(spacings) & (spacings > 0) & (shapes > 0), axis=1)
    bad = [case.identifier for case, sound in zip(fingerprint.cases, is_sound.tolist(), strict=True) if not sound]
    if bad:
        raise PlanFault(
            f"{len(bad)} cases have a spacing or shape that is zero, negative or not finite: {', '.join(bad[:5])}",
            do="correct the spacing in these files, or remove the cases",
        )
    return spacings, shapes


def _lateral(fingerprint: Fingerprint, labels: LabelSet, order: tuple[int, int, int], ledger: _Ledger) -> Lateral:
    """What mirroring has to exchange or spare; which axis runs from left to right matters only if there is something.

    Whoever pins the pairs answers for all classes, those of one side included.
    """
    pairs = ledger.decide("lateral_pairs", rules.lateral_pairs(labels))
    is_pinned = ledger.pins.find("lateral_pairs", None, None) is not None
    unpaired = () if is_pinned else without_counterpart(labels.foreground)
    if not pairs and not unpaired:
        return Lateral()
    value_swap(labels, pairs)  # pinned pairs may be impossible
    axis = ledger.decide("lateral_axis", rules.lateral_axis([case.left_right_axis for case in fingerprint.cases]))
    return Lateral(None if axis is None else order.index(axis), pairs, unpaired)


def _check_channel_count(facts: DatasetFacts, schemes: Sequence[str], masks: Sequence[bool]) -> None:
    """Pinned normalizations must name every channel."""
    if not len(facts.channels) == len(schemes) == len(masks):
        raise PlanFault(
            f"the dataset has {len(facts.channels)} channels ({', '.join(facts.channels)}), but {len(schemes)} "
            f"normalizations and {len(masks)} mask flags are pinned",
            do="pin one entry per channel",
        )


def _configurations_2d(
    common: _Common, spacing: tuple[float, ...], median: tuple[float, ...], voxels: float
) -> dict[str, Configuration]:
    target = _Target("2d", spacing[1:], median[1:], voxels)
    because = "2D batches are large, so Dice is pooled over them: a class missing from one slice then does no harm"
    return {"2d": _plan_configuration(common, target, Chosen(True, because))}


def _configurations_3d(
    common: _Common, spacing: tuple[float, ...], median: tuple[float, ...], training_cases: int
) -> dict[str, Configuration]:
    """3d_fullres, and the low-resolution stage with its cascade where a patch sees too little."""
    is_3d = rules.needs_3d(median)
    common.ledger.record("needs_3d", is_3d)
    if not is_3d.value:
        return {}
    silent = replace(common, ledger=_Ledger(common.ledger.pins, []))
    voxels = float(np.prod(median, dtype=np.float64))
    full_target = _Target("3d_fullres", spacing, median, voxels * training_cases)
    full = _plan_configuration(silent, full_target, Chosen(False, ""))
    low_target, why = _lowres_target(silent, full, training_cases)
    common.ledger.record("needs_lowres", Chosen(low_target is not None, why))
    pools = "the low-resolution stage sees whole structures, so" if low_target else "without a cascade"
    because = f"{pools} 3d_fullres {'pools Dice over the batch' if low_target else 'takes Dice sample by sample'}"
    planned = {"3d_fullres": _plan_configuration(common, full_target, Chosen(low_target is not None, because))}
    if low_target is None:
        return planned
    low = _plan_configuration(
        common, low_target, Chosen(False, "patches of the low-resolution stage hold most classes")
    )
    cascade = replace(planned["3d_fullres"], name="3d_cascade_fullres", cascade_from="3d_lowres")
    return {"3d_lowres": low, **planned, "3d_cascade_fullres": cascade}


def _lowres_target(common: _Common, full: Configuration, training_cases: int) -> tuple[_Target | None, str]:
    """The coarsening at which a patch sees a quarter of the median case, or None, and why."""
    spacing = np.array(full.spacing_mm)
    median = np.array(full.median_shape)
    full_voxels = voxels = float(np.prod(median, dtype=np.float64))
    patch: Sequence[int] = full.patch_size
    share = math.prod(patch) / full_voxels
    seen = f"a 3d_fullres patch sees {share:.0%} of the median case"
    coarse = full.spacing_mm
    target = None
    while rules.needs_lowres(patch, voxels):
        coarse = rules.lowres_spacing(coarse)
        scaled = spacing / np.array(coarse) * median
        voxels = float(np.prod(scaled, dtype=np.float64))
        rounded = tuple(float(round(float(edge))) for edge in scaled)
        target = _Target("3d_lowres", coarse, rounded, voxels * training_cases)
        patch = _fitted_patch(common, target)[0].patch_size
    if target is None:
        return None, f"{seen}, enough context ({rules.LOWRES_BELOW:.0%}): no low-resolution stage"
    if full_voxels / voxels < rules.LOWRES_GAIN:
        return None, f"{seen}, but a low-resolution stage would have hardly fewer voxels: none is planned"
    return target, f"{seen}, less than {rules.LOWRES_BELOW:.0%}: a stage at {rules.edges(coarse)} mm adds context"


def _fitted_patch(common: _Common, target: _Target) -> tuple[Topology, NetworkSpec, int, str]:
    """The largest patch that fits the memory target, with its network, its estimate and the reason."""
    preset = common.request.preset
    dimensions = len(target.spacing_mm)
    start = rules.initial_patch_size(target.spacing_mm, target.median)
    because = f"the median case is {rules.edges(target.median)} voxels"
    relative_to = target.median
    tiny = rules.enlarged_tiny_patch(target.spacing_mm, start)
    if tiny is not None:
        # what had to grow must not shrink again: relative to infinity it is never the largest axis
        grown = zip(tiny, start, target.median, strict=True)
        relative_to = tuple(math.inf if edge > before else median for edge, before, median in grown)
        start = tiny
        because += (
            "; too small for any halving, where nnU-Net crashes: the patch is larger, images are padded with zeros"
        )
    shape = topology(target.spacing_mm, start)
    budget = rules.budget_elements(preset, dimensions, common.request.memory_gib)
    network = _network(preset, shape)
    elements = feature_map_elements(network, shape.patch_size, common.labels.declared_count)
    first = shape.patch_size
    while rules.is_too_large(elements, preset, dimensions, budget) and _can_shrink(shape):
        smaller = _shrunk(shape, relative_to, target.spacing_mm)
        if smaller is None:
            break
        shape = smaller
        network = _network(preset, shape)
        elements = feature_map_elements(network, shape.patch_size, common.labels.declared_count)
    if shape.patch_size == first:
        because += "; a patch that covers it, rounded up to what the network halves, fits the memory target"
    else:
        because += (
            f"; {rules.edges(first)} does not fit {common.request.memory_gib:g} GiB, "
            f"so the relatively largest axis shrank until it did"
        )
    return shape, network, elements, because


def _shrunk(shape: Topology, relative_to: Sequence[float], spacing_mm: Sequence[float]) -> Topology | None:
    """One step smaller, but not along an axis without which nothing could be halved; None if every axis is such."""
    relative_to = list(relative_to)
    for _ in relative_to:
        smaller = rules.shrink_patch(shape.patch_size, relative_to, shape, spacing_mm)
        if len(smaller.strides) > 1:
            return smaller
        relative_to[rules.relatively_largest_axis(shape.patch_size, relative_to)] = math.inf
    return None


def _can_shrink(shape: Topology) -> bool:
    """Whether another step would leave voxels on every axis."""
    return any(edge > divisor for edge, divisor in zip(shape.patch_size, shape.divisors, strict=True))


def _network(preset: Preset, shape: Topology) -> NetworkSpec:
    stages = len(shape.strides)
    dimensions = len(shape.patch_size)
    return NetworkSpec(
        kind=preset.network,
        dimensions=dimensions,
        features_per_stage=rules.features_per_stage(preset, dimensions, stages),
        kernel_sizes=shape.kernel_sizes,
        strides=shape.strides,
        blocks_per_stage=rules.blocks_per_stage(preset, stages),
        decoder_convs_per_stage=(preset.decoder_convs,) * (stages - 1),
    )


def _plan_configuration(common: _Common, target: _Target, batch_dice: Chosen[bool]) -> Configuration:
    """One configuration written out in full, every decision recorded."""
    name, dimensions = target.name, len(target.spacing_mm)
    ledger, preset = common.ledger, common.request.preset
    ledger.record("target_spacing_mm", Chosen(target.spacing_mm, "the plan's spacing in the plan's axis order"), name)
    shape, network, elements, because = _fitted_patch(common, target)
    patch = ledger.decide("patch_size", Chosen(shape.patch_size, because), name, dimensions)
    if patch != shape.patch_size:
        shape = _pinned_topology(target, patch)
        network = _network(preset, shape)
    network = _pinned_network(common, name, network)
    elements = feature_map_elements(network, patch, common.labels.declared_count)
    budget = rules.budget_elements(preset, dimensions, common.request.memory_gib)
    batch = ledger.decide("batch_size", rules.batch_size(elements, preset, budget, patch, target.dataset_voxels), name)
    warning = rules.large_batch_warning(batch, dimensions)
    if warning is not None:
        ledger.record("warning", Chosen(batch, warning), name)
    mirrored = ledger.decide("mirror_axes", rules.mirror_axes(preset, dimensions, common.lateral), name)
    return Configuration(
        name=name,
        dimensions=dimensions,
        spacing_mm=target.spacing_mm,
        patch_size=patch,
        batch_size=batch,
        median_shape=target.median,
        normalization=common.normalization,
        use_nonzero_mask=common.use_nonzero_mask,
        network=network,
        batch_dice=ledger.decide("batch_dice", batch_dice, name),
        cascade_from=None,
        estimated_feature_map_elements=elements,
        mirror_axes=tuple(axis for axis in mirrored if axis < dimensions),
    )


def _pinned_topology(target: _Target, patch: tuple[int, ...]) -> Topology:
    """The topology of a pinned patch, which must suit it without padding."""
    shape = topology(target.spacing_mm, patch)
    if shape.patch_size != patch:
        raise PlanFault(
            f"{target.name}: the pinned patch {rules.edges(patch)} is not a multiple of {rules.edges(shape.divisors)}",
            do=f"pin patch_size: {list(shape.patch_size)}, the next that is",
        )
    if len(shape.strides) == 1:
        raise PlanFault(
            f"{target.name}: the pinned patch {rules.edges(patch)} is too small for a U-Net of two stages",
            do="pin at least 8 voxels along two axes, or 12 along one",
        )
    return shape


def _pinned_network(common: _Common, name: str, network: NetworkSpec) -> NetworkSpec:
    """Channels, blocks and decoder convolutions, each from the rule or pinned."""
    stages = network.n_stages
    why_stages = f"every axis is halved while at least 4 voxels remain: {stages} stages"
    chosen = {
        "features_per_stage": Chosen(network.features_per_stage, f"{why_stages}; channels double up to the limit"),
        "blocks_per_stage": Chosen(network.blocks_per_stage, f"{why_stages}; the preset's blocks"),
        "decoder_convs_per_stage": Chosen(network.decoder_convs_per_stage, "the preset's decoder"),
    }
    decided = {key: common.ledger.decide(key, choice, name) for key, choice in chosen.items()}
    for key, value in decided.items():
        if len(value) != len(chosen[key].value):
            raise PlanFault(
                f"{name}: {key} is pinned with {len(value)} entries, but the network needs {len(chosen[key].value)}",
                do=f"pin {len(chosen[key].value)} entries, for example {list(chosen[key].value)}",
            )
    return replace(
        network,
        features_per_stage=decided["features_per_stage"],
        blocks_per_stage=decided["blocks_per_stage"],
        decoder_convs_per_stage=decided["decoder_convs_per_stage"],
    )
